"""``callback_on_step_end`` is told by every door what the pipeline's own call tells, and may act."""

import diffusers
import pytest
import torch
from as_found import state_of
from diffusers.callbacks import SDCFGCutoffCallback

from rewards import PythonFunction
from samplers import BestOfN, FKSteering
from steering.engine import MissingAbility
from steering.pipeline import SteeredPipeline
from steering.report import SteeringFailed
from steering.stepping import Interrupted
from steering.strength import Strength

PROMPT = ["a red ring"]
BRIGHT = PythonFunction(lambda images, prompts: images.mean((1, 2, 3)))
SD = {"num_inference_steps": 4, "output_type": "pt"}


def generator():
    return torch.Generator().manual_seed(5)


def control(tiny):
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return tiny.control(), {**SD, "image": picture}


def sd(tiny):
    return tiny.sd(), SD


def heun(tiny):
    return tiny.sd(diffusers.HeunDiscreteScheduler(**tiny.SD_BETAS)), SD


def flux(tiny):
    return tiny.flux(), {**SD, "height": 16, "width": 16}


DOORS = {
    "replay": (sd, "auto"),
    "replay, packed": (flux, "auto"),
    "two calls a step": (heun, "auto"),
    "own loop": (control, "auto"),
    "black box": (sd, "black-box"),
}


def steer(pipe, door="auto", sampler=None, **options):
    options = {"strength": Strength(1.0, "raw"), "seed": 0, **options}
    return SteeredPipeline(pipe, sampler=sampler or BestOfN(1), reward=BRIGHT, door=door, **options)


class Notes:
    """A callback that only looks."""

    def __init__(self):
        self.seen = []

    def __call__(self, pipe, step, timestep, told):
        assert pipe.num_timesteps > step
        assert pipe.interrupt is False
        self.seen.append((step, float(timestep), told["latents"].clone()))
        return told


def halved(pipe, step, timestep, told):
    """A callback that changes the latents."""
    return {"latents": told["latents"] * 0.5} if step == 1 else {}


@pytest.mark.parametrize("name", DOORS)
def test_it_is_told_what_the_pipeline_tells(tiny, name):
    make, door = DOORS[name]
    pipe, call = make(tiny)
    own, ours = Notes(), Notes()
    expected = pipe(PROMPT, generator=generator(), callback_on_step_end=own, **call)[0]
    before = state_of(pipe)
    steered = steer(pipe, door)
    found = steered(PROMPT, generator=generator(), callback_on_step_end=ours, **call).images
    assert float((found - expected).abs().max()) < 1e-4
    assert [seen[:2] for seen in ours.seen] == [seen[:2] for seen in own.seen]
    for (*_, a), (*_, b) in zip(ours.seen, own.seen, strict=True):
        assert float((a - b).abs().max()) < 1e-4 * float(b.abs().max())
    assert state_of(pipe) == before


@pytest.mark.parametrize("name", DOORS)
def test_a_search_over_noise_goes_on_with_changed_latents(tiny, name):
    make, door = DOORS[name]
    pipe, call = make(tiny)
    plain = pipe(PROMPT, generator=generator(), **call)[0]
    expected = pipe(PROMPT, generator=generator(), callback_on_step_end=halved, **call)[0]
    assert float((expected - plain).abs().max()) > 1e-3
    steered = steer(pipe, door)
    found = steered(PROMPT, generator=generator(), callback_on_step_end=halved, **call).images
    assert float((found - expected).abs().max()) < 1e-4
    again = steered(PROMPT, generator=generator(), **call).images  # of one call, not of the model
    assert float((again - plain).abs().max()) < 1e-4


@pytest.mark.parametrize("name", DOORS)
def test_an_interrupted_run_ends_with_what_had_finished(tiny, name):
    make, door = DOORS[name]
    pipe, call = make(tiny)
    pipe(PROMPT, **call)
    before, count = state_of(pipe), 0

    def stop(pipe, step, timestep, told):
        nonlocal count
        count += 1
        pipe._interrupt = step == 2
        return {}

    steered = steer(pipe, door)
    with pytest.raises(SteeringFailed, match="interrupted") as failure:
        steered([*PROMPT, "two stars"], callback_on_step_end=stop, **call)
    assert all(isinstance(r.error.__cause__, Interrupted) for r in failure.value.report.results)
    assert count <= 6
    assert state_of(pipe) == before
    assert pipe.interrupt is not True


def test_prompts_that_finished_before_are_in_the_report(tiny):
    pipe, call = sd(tiny)
    count = 0

    def stop(pipe, step, timestep, told):
        nonlocal count
        count += 1
        pipe._interrupt = count > 4
        return {}

    steered = steer(pipe, batch_size=1)
    with pytest.raises(SteeringFailed) as failure:
        steered([*PROMPT, "two stars"], callback_on_step_end=stop, **call)
    first, second = failure.value.report.results
    assert first.error is None
    assert len(first.media) == 1
    assert isinstance(second.error.__cause__, Interrupted)


@pytest.mark.parametrize("name", ["replay", "own loop"])
def test_a_search_by_steps_tells_of_all_its_candidates(tiny, name):
    make, door = DOORS[name]
    pipe, call = make(tiny)
    notes = Notes()
    search = FKSteering(3, start=1, every=1)
    plain = steer(pipe, door, search)(PROMPT, **call).images
    found = steer(pipe, door, search)(PROMPT, callback_on_step_end=notes, **call).images
    assert torch.equal(found, plain)
    assert [seen[0] for seen in notes.seen] == [0, 1, 2, 3]
    assert all(len(latents) == 3 for *_, latents in notes.seen)
    with pytest.raises(
        SteeringFailed, match=r"changed the latents of step 1.*only searches over noise"
    ):
        steer(pipe, door, search)(PROMPT, callback_on_step_end=halved, **call)


def test_what_reads_more_than_latents_acts_within_the_pipelines_own_call(tiny):
    pipe, call = sd(tiny)
    cut = {"callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=0.25)}
    plain = pipe(PROMPT, generator=generator(), guidance_scale=40.0, **call)[0]
    expected = pipe(PROMPT, generator=generator(), guidance_scale=40.0, **cut, **call)[0]
    assert float((expected - plain).abs().max()) > 1e-3
    before = state_of(pipe)
    steered = steer(pipe)
    out = steered(PROMPT, generator=generator(), guidance_scale=40.0, **cut, **call)
    assert float((out.images - expected).abs().max()) < 1e-4
    assert out.steering.settings["door"] == "black-box"
    assert "more than the latents" in out.steering.settings["reason"]
    assert state_of(pipe) == before
    assert steered.plan(**cut, **call)["nfe"] == 4
    with pytest.raises(MissingAbility, match="more than the latents"):
        steer(pipe, sampler=FKSteering(2, start=1))(PROMPT, **cut, **call)
    with pytest.raises(TypeError, match="leave door='replay' out"):
        steer(pipe, "replay")(PROMPT, **cut, **call)


def test_what_changes_the_pipeline_is_told_where_that_acts(tiny):
    pipe, call = sd(tiny)

    def unguided(pipe, step, timestep, told):
        pipe._guidance_scale = 0.0
        return told

    with pytest.raises(SteeringFailed, match=r"set _guidance_scale.*door='black-box'"):
        steer(pipe)(PROMPT, callback_on_step_end=unguided, **call)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"callback_on_step_end": 3}, TypeError, "must be callable, got int"),
        (
            {
                "callback_on_step_end": halved,
                "callback_on_step_end_tensor_inputs": ["latents", "noise"],
            },
            ValueError,
            r"may name latents.*got \['noise'\]",
        ),
    ],
)
def test_mistakes_are_refused_before_any_work(tiny, monkeypatch, given, kind, message):
    pipe, call = sd(tiny)
    monkeypatch.setattr(pipe.unet, "forward", pytest.fail)
    with pytest.raises(kind, match=message):
        steer(pipe)(PROMPT, **given, **call)


def test_answers_of_another_form_and_pipelines_without_it_are_told(tiny):
    pipe, call = sd(tiny)
    with pytest.raises(SteeringFailed, match="must return a dict, got int"):
        steer(pipe)(PROMPT, callback_on_step_end=lambda *_: 3, **call)
    wrong = {"latents": torch.zeros(1, 2)}
    with pytest.raises(SteeringFailed, match=r"returned latents \(1, 2\)"):
        steer(pipe)(PROMPT, callback_on_step_end=lambda *_: wrong, **call)
    with pytest.raises(TypeError, match=r"takes no argument 'callback_on_step_end'.*on_progress"):
        steer(tiny.ddpm())(PROMPT, callback_on_step_end=halved, num_inference_steps=2)
