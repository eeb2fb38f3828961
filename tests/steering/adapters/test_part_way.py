"""The pipeline's own scheduler may carry states to a place part-way, and begin anew there."""

import copy
import math

import diffusers
import pytest
import torch

from rewards import PythonFunction
from samplers import FKSteering
from steering.adapters import Refusal
from steering.adapters.scheduling import PipelineSchedule, run_of
from steering.cost import Cost
from steering.model import Stage
from steering.pipeline import SteeredPipeline
from steering.prediction import Posterior
from steering.report import SteeringFailed
from steering.requests import Rollout, Score
from steering.schedulers import grid_of
from steering.search import Needs, Outcome, Plan, Search
from steering.strength import Strength
from steering.transitions import DDIM

BETAS = {"beta_start": 8.5e-4, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BRIGHT = PythonFunction(lambda images, prompts: images.mean((1, 2, 3)))
CALL = {"num_inference_steps": 8, "output_type": "latent"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}

#: Deterministic, one model call a step.
DETERMINISTIC = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "DPM multistep": ("DPMSolverMultistepScheduler", {}),
    "DPM multistep third order": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "flow Euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow DPM": ("DPMSolverMultistepScheduler", FLOW),
    "flow UniPC": ("UniPCMultistepScheduler", FLOW),
}
#: What may be left, but not entered, part-way; or neither.
REFUSED = {
    "DDPM": ("DDPMScheduler", {"clip_sample": False}, "cannot begin part-way.*draws noise"),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}, "cannot begin part-way"),
    "DPM multistep SDE": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
        "cannot begin part-way",
    ),
    "Heun": ("HeunDiscreteScheduler", {}, "15 times in 8 steps"),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}, "9 times in 7 steps"),
}


class NoHandle:
    """A prompt without a generator of the user's."""

    noise_state = None


def schedule(name, steps=8):
    """A scheduler with its steps set, and its runs from any place."""
    kind, options = (DETERMINISTIC | {n: r[:2] for n, r in REFUSED.items()})[name]
    own = {} if "flow" in name and kind.startswith("Flow") else BETAS
    scheduler = getattr(diffusers, kind)(**own, **options)
    scheduler.set_timesteps(steps)
    grid = grid_of(scheduler)

    def run(start=0, stop=None):
        def make(first):
            return PipelineSchedule(scheduler, {}, NoHandle(), [1], [5], first=first)

        return run_of(make, grid, start, stop)

    return grid, run


MEAN, SPREAD = 0.3, 0.6


def posterior(x, time):
    """Of the Gaussian N(MEAN, SPREAD^2), in closed form."""
    variance = time.alpha**2 * SPREAD**2 + time.sigma**2
    x_0 = MEAN + time.alpha * SPREAD**2 / variance * (x - time.alpha * MEAN)
    return Posterior(x_0, (x - time.alpha * x_0) / time.sigma)


def exact(z, time):
    """Where the probability-flow ODE leads that Gaussian's quantiles ``z``."""
    return time.alpha * MEAN + math.sqrt(time.alpha**2 * SPREAD**2 + time.sigma**2) * z


def walk(run, grid, x, start, stop):
    for index in range(stop - start):
        x = run.step(index, posterior(x, grid[start + index]), x)
    return x


Z = torch.tensor([-1.5, -0.2, 0.7, 2.0]).reshape(4, 1, 1, 1)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_left_part_way_it_is_where_its_own_trajectory_was(name):
    grid, run = schedule(name)
    x = exact(Z, grid[0])
    whole, states = run(), [x]
    for index in range(grid.steps):
        states.append(whole.step(index, posterior(states[-1], grid[index]), states[-1]))
    for stop in (1, 3, 7):
        assert torch.equal(walk(run(0, stop), grid, x, 0, stop), states[stop])


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("start", [1, 4, 7])
def test_entered_part_way_it_follows_the_flow(name, start):
    """As well as Euler's rule; multistep solvers much better, up to the last step, which is Euler's."""
    grid, run = schedule(name, steps=24)
    x, stop = exact(Z, grid[start]), grid.steps - 1
    found = walk(run(start), grid, x, start, stop)
    wanted = exact(Z, grid[stop])
    by_euler = x
    for i in range(start, stop):
        by_euler = DDIM(0.0)(posterior(by_euler, grid[i]), grid[i], grid[i + 1]).mean
    error, rough = (float((y - wanted).abs().max()) for y in (found, by_euler))
    assert error <= 1.1 * rough + 1e-4
    if "DPM" in name or name in ("UniPC", "flow UniPC", "DEIS"):
        assert error < 0.4 * rough, (error, rough)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_begin_part_way_is_refused_by_name(name):
    grid, run = schedule(name)
    kind, _, message = REFUSED[name]
    with pytest.raises(Refusal, match=f"{kind}.*{message}"):
        run(4)
    if "times in" in message:
        with pytest.raises(Refusal, match=message):
            run(0, 4)
    else:
        assert len(run(0, 4).times) == grid.steps


class Pieces(Search):
    """One sample by the pipeline's own scheduler, in two pieces."""

    def __init__(self, cut):
        self.cut, self.state = cut, None

    @property
    def needs(self):
        return Needs()

    def plan(self, facts):
        cost = Cost(nfe=facts.scheduler_calls, decodes=1, reward_calls=1)
        return Plan(cost, cost, 1)

    def __call__(self, problem):
        x = problem.initial([0])
        x = yield Rollout(x, 0, "scheduler", [0], stop=self.cut)
        self.state = x
        x = yield Rollout(x, self.cut, "scheduler", [0])
        scores = yield Score(x, Stage.FINAL)
        return Outcome(x, scores, torch.zeros(1).double(), [0])


@pytest.mark.parametrize("door", ["replay", "inverted"])
def test_a_pipelines_own_trajectory_cut_in_two(tiny, door):
    """Its state at the cut; then what the scheduler makes of that state when it begins there."""
    pipe = tiny.sd(diffusers.DPMSolverMultistepScheduler(**tiny.SD_BETAS))
    states = []

    def note(pipe, step, timestep, told):
        states.append(told["latents"].clone())
        return told

    pipe(["a cat"], generator=torch.Generator().manual_seed(3), callback_on_step_end=note, **CALL)
    search = Pieces(5)
    steered = SteeredPipeline(pipe, sampler=search, reward=BRIGHT, seed=0, door=door)
    out = steered(["a cat"], generator=torch.Generator().manual_seed(3), **CALL)
    states = [state.detach() for state in states]
    assert float((search.state - states[4]).abs().max()) < 1e-4
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(5)
    model = steered.model(**CALL)
    (handle,) = model.encode(["a cat"])
    x = states[4]
    for timestep, time in zip(scheduler.timesteps[5:], model.grid[5:], strict=False):
        eps = model.denoise(x, [time], [handle]).eps.detach()
        x = scheduler.step(eps, timestep, x).prev_sample
    assert float((out.images - x).abs().max()) < 1e-4
    assert float((x - states[-1]).abs().max()) > 1e-4  # it began with an empty history


@pytest.mark.parametrize("door", ["replay", "inverted"])
def test_a_search_branches_between_two_pieces_of_the_users_scheduler(tiny, door):
    pipe = tiny.sd(diffusers.DPMSolverMultistepScheduler(**tiny.SD_BETAS))
    search = FKSteering(3, start=3, every=1, stop=5, ends="scheduler")
    steered = SteeredPipeline(
        pipe, sampler=search, reward=BRIGHT, strength=Strength(1.0, "raw"), seed=0, door=door
    )
    out = steered(["a cat"], **CALL)
    assert out.steering.usage.nfe == steered.plan(**CALL)["nfe"] == 24
    assert [r["step"] for r in out.steering.results[0].trace.records if "ess" in r] == [3, 4, 8]


def test_searches_refuse_what_cannot_be_cut(tiny):
    search = FKSteering(2, start=3, every=1, stop=5, ends="scheduler")
    options = {"strength": Strength(1.0, "raw"), "seed": 0, "reward": BRIGHT}
    pipe = tiny.sd(diffusers.HeunDiscreteScheduler(**tiny.SD_BETAS))
    with pytest.raises(
        ValueError, match="once a step; the pipeline's calls it 15 times in 8 steps"
    ):
        SteeredPipeline(pipe, sampler=search, **options)(["a cat"], **CALL)
    pipe = tiny.sd(diffusers.EulerAncestralDiscreteScheduler(**tiny.SD_BETAS))
    with pytest.raises(SteeringFailed, match=r"EulerAncestral.* cannot begin part-way, at step 5"):
        SteeredPipeline(pipe, sampler=search, **options)(["a cat"], **CALL)
