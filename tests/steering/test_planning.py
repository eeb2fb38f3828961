import diffusers
import pytest

from samplers import BestOfN, FKSteering
from steering.cost import Cost, Usage
from steering.planning import Figures, describe, scheduler_facts
from steering.search import Facts, Plan


@pytest.mark.parametrize(
    ("kind", "call", "facts"),
    [
        ("DDIMScheduler", {"num_inference_steps": 25}, (25, 25)),
        ("PNDMScheduler", {"num_inference_steps": 25}, (25, 26)),
        ("DPMSolverMultistepScheduler", {"num_inference_steps": 20}, (20, 20)),
        ("DDPMScheduler", {"timesteps": [900, 500, 100]}, (3, 3)),
        ("DDIMScheduler", {}, (50, 50)),
    ],
)
def test_steps_and_calls_of_schedulers(kind, call, facts):
    options = {"skip_prk_steps": True, "steps_offset": 1} if kind == "PNDMScheduler" else {}
    scheduler = getattr(diffusers, kind)(beta_schedule="scaled_linear", **options)
    before = str(scheduler.__dict__)
    assert scheduler_facts(scheduler, call) == facts
    assert str(scheduler.__dict__) == before


def test_flow_schedulers_with_dynamic_shift():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    assert scheduler_facts(scheduler, {"num_inference_steps": 7}) == (7, 7)


def test_the_default_number_of_steps_is_the_pipelines_own():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    assert scheduler_facts(scheduler, {}, diffusers.FluxPipeline) == (28, 28)


def test_impossible_steps_are_refused():
    with pytest.raises(ValueError, match=r"num_inference_steps .* got 0"):
        scheduler_facts(diffusers.DDIMScheduler(), {"num_inference_steps": 0})


def test_a_plan_in_numbers(tmp_path):
    plan = FKSteering(4).plan(Facts(25, 25))
    said = describe(plan, 3, None)
    assert (said["nfe"], said["decodes"], said["reward_calls"]) == (300, 60, 60)
    assert said["seconds"] == said["memory_bytes"] == "not measured"
    usage = Usage(nfe=10, decodes=5, reward_calls=5)
    usage.seconds_denoise, usage.seconds_decode, usage.seconds_reward = 1.0, 0.5, 0.25
    figures = Figures.of(usage, 10**9, 16)
    figures.save(tmp_path / "f.json")
    figures = Figures.load(tmp_path / "f.json")
    assert describe(plan, 3, figures)["seconds"] == pytest.approx(30 + 6 + 3)
    assert Figures.load(tmp_path / "none.json") is None
    assert Figures.of(Usage(), 1, 1) is None


def test_an_adaptive_plan_is_an_upper_bound():
    plan = Plan(Cost(nfe=7), Cost(nfe=1), 1, exact=False)
    assert describe(plan, 1, None)["bound"] == "at most"
    assert describe(BestOfN(2).plan(Facts(5, 5)), 1, None)["bound"] == "exact"
