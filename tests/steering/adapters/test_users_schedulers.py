"""Noise search keeps the user's scheduler; step-wise searches walk its grid with our transitions."""

import diffusers
import pytest
import torch
from as_found import state_of

from rewards import PythonFunction
from samplers import BestOfN, FKSteering
from steering.engine import MissingAbility
from steering.pipeline import SteeredPipeline
from steering.prediction import Posterior
from steering.strength import Strength
from steering.transitions import Renoise

PROMPTS = ["a red ring", "two blue cube on the left"]
BRIGHT = PythonFunction(lambda images, prompts: images.mean((1, 2, 3)))
SD = {"num_inference_steps": 4}
FLOW = {"num_inference_steps": 4, "height": 16, "width": 16}

#: On the tiny Stable Diffusion: class and options beside the usual betas.
DISCRETE = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "DDIM clipped": ("DDIMScheduler", {"clip_sample": True}),
    "DDIM parallel": ("DDIMParallelScheduler", {"clip_sample": False}),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}),
    "DDPM trailing": (
        "DDPMScheduler",
        {"clip_sample": False, "timestep_spacing": "trailing"},
    ),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "PNDM Runge-Kutta": ("PNDMScheduler", {"skip_prk_steps": False}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Euler v": ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM multistep": ("DPMSolverMultistepScheduler", {}),
    "DPM multistep third order": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "DPM multistep SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM single-step": ("DPMSolverSinglestepScheduler", {}),
    "DPM single-step SDE": ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "SA": ("SASolverScheduler", {}),
    "KDPM2": ("KDPM2DiscreteScheduler", {}),
    "LCM": ("LCMScheduler", {}),
    "TCD": ("TCDScheduler", {}),
}
FLOWS = {
    "flow Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow Euler shift": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow Euler dynamic": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    "flow Euler stochastic": (
        "FlowMatchEulerDiscreteScheduler",
        {"stochastic_sampling": True},
    ),
    "flow Euler Karras": ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "flow Heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow Heun shift": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "flow LCM": ("FlowMatchLCMScheduler", {"shift": 3.0}),
    "flow DPM": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    ),
    "flow UniPC": (
        "UniPCMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    ),
}
#: Flux and SD3 hand their stochastic schedulers no generator: what they draw is nobody's to repeat.
UNSEEDED = ("flow Euler stochastic", "flow LCM")
#: Their network jumps to a sample, so a guess of theirs is no mean.
CONSISTENCY = ("LCM", "TCD", "flow LCM")
#: No grid of (alpha, sigma), and what is said.
REFUSED = {
    "EDMEulerScheduler": ({}, "unknown convention"),
    "EDMDPMSolverMultistepScheduler": ({}, "unknown convention"),
    "IPNDMScheduler": ({}, "does not say what"),
    "KDPM2AncestralDiscreteScheduler": ({}, "belie"),
    "DPMSolverSDEScheduler": ({}, "evaluates at levels that it does not list"),
}


#: Variants of what is tested already.
SLOW = (
    "DDIM clipped",
    "DDIM parallel",
    "DDPM trailing",
    "Euler Karras",
    "DPM multistep third order",
    "DPM single-step SDE",
    "flow Euler",
    "flow Euler Karras",
    "flow Heun",
)


def cases(but):
    """All schedulers but some; variants are slow tests."""
    names = [name for name in (*DISCRETE, *FLOWS) if name not in but]
    return [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in names]


def made(tiny, name):
    """A tiny pipeline with the scheduler, and the arguments of its calls."""
    if name in DISCRETE:
        kind, options = DISCRETE[name]
        return tiny.sd(getattr(diffusers, kind)(**tiny.SD_BETAS, **options)), SD
    kind, options = FLOWS[name]
    family = tiny.flux if "dynamic" in name or "LCM" in name else tiny.sd3
    return family(scheduler=getattr(diffusers, kind)(**options)), FLOW


def generators():
    """One for each picture, so that stochastic schedulers go on with them."""
    return [torch.Generator().manual_seed(seed) for seed in (5, 6)]


@pytest.mark.parametrize("name", cases(UNSEEDED))
def test_noise_search_keeps_the_scheduler(tiny, name):
    pipe, call = made(tiny, name)
    expected = pipe(prompt=list(PROMPTS), generator=generators(), output_type="pt", **call)[0]
    before, scheduler = state_of(pipe), pipe.scheduler
    steered = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0)
    found = steered(PROMPTS, generator=generators(), output_type="pt", **call).images
    assert float((found - expected).abs().max()) < 1e-4
    assert pipe.scheduler is scheduler
    assert state_of(pipe) == before


@pytest.mark.parametrize("name", UNSEEDED)
def test_noise_that_the_pipeline_cannot_repeat_is_repeatable(tiny, name):
    pipe, call = made(tiny, name)
    call = {**call, "output_type": "pt"}
    twice = [pipe(prompt=list(PROMPTS), generator=generators(), **call)[0] for _ in range(2)]
    assert float((twice[0] - twice[1]).abs().max()) > 1e-2
    before = state_of(pipe)

    def found(seed, given):
        steered = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=seed)
        return steered(PROMPTS, generator=given, **call).images

    assert torch.equal(found(0, generators()), found(1, generators()))  # theirs go on

    def shared(seed):
        return found(seed, generators()[0])

    assert torch.equal(shared(0), shared(0))
    assert float((shared(0) - shared(1)).abs().max()) > 1e-2
    assert state_of(pipe) == before


@pytest.mark.parametrize("name", CONSISTENCY)
def test_searches_that_read_guesses_as_means_refuse_consistency_maps(tiny, name):
    pipe, call = made(tiny, name)
    steered = SteeredPipeline(pipe, sampler=FKSteering(3, start=2), reward=BRIGHT, seed=0)
    with pytest.raises(MissingAbility, match="consistency map"):
        steered(PROMPTS[:1], **call)


@pytest.mark.parametrize("name", CONSISTENCY)
def test_full_renoising_walks_the_grid_of_a_consistency_map(tiny, name):
    pipe, call = made(tiny, name)
    search = FKSteering(3, start=1, every=1, transition=Renoise())
    steered = SteeredPipeline(
        pipe, sampler=search, reward=BRIGHT, strength=Strength(1.0, "raw"), seed=0
    )
    out = steered(PROMPTS[:1], output_type="pt", **call)
    assert out.steering.usage.nfe == 3 * steered.model(output_type="pt", **call).grid.steps
    assert bool(out.images.isfinite().all())


@pytest.mark.parametrize("name", ["LCM", "flow LCM"])
def test_full_renoising_is_the_step_of_the_consistency_scheduler(tiny, name):
    """Of many draws from one state, by the scheduler itself and by the transition, the law."""
    pipe, call = made(tiny, name)
    model = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT).model(**call)
    (handle,) = model.encode(PROMPTS[:1])
    t, s = model.grid[0], model.grid[1]
    x = torch.randn((1, *model.shape), generator=generators()[0]) * model.initial_std
    posterior = model.denoise(x, [t], [handle])
    law, n = Renoise()(posterior, t, s), 64
    run = model.scheduler_run(handle, range(1, n + 1), range(n))
    rows = Posterior(posterior.x_0.expand(n, *model.shape), posterior.eps.expand(n, *model.shape))
    found = run.step(0, rows, x.expand(n, *model.shape))
    scaled = ((found - law.mean) / law.std).flatten()
    size = scaled.numel() ** 0.5
    assert abs(float(scaled.mean())) < 4 / size
    assert abs(float(scaled.std()) - 1) < 4 / size


@pytest.mark.parametrize("name", cases(CONSISTENCY))
def test_a_search_by_steps_walks_the_schedulers_grid(tiny, name):
    pipe, call = made(tiny, name)
    pipe(prompt=list(PROMPTS), **call)  # text encoders hook themselves when they are first called
    before = state_of(pipe)
    search = FKSteering(3, start=2, every=1)
    steered = SteeredPipeline(
        pipe, sampler=search, reward=BRIGHT, strength=Strength(1.0, "raw"), seed=0
    )
    out = steered(PROMPTS[:1], output_type="pt", **call)
    steps = steered.model(output_type="pt", **call).grid.steps
    assert out.steering.usage.nfe == 3 * steps
    assert bool(out.images.isfinite().all())
    assert steered.plan(PROMPTS[:1], **call)["nfe"] == out.steering.usage.nfe
    assert state_of(pipe) == before


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_grid_is_refused_by_name(tiny, name):
    options, reason = REFUSED[name]
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    pipe = tiny.sd(getattr(diffusers, name)(**options))
    before = state_of(pipe)
    steered = SteeredPipeline(
        pipe, sampler=FKSteering(2), reward=BRIGHT, strength=Strength(1.0, "raw"), seed=0
    )
    with pytest.raises(ValueError, match=rf"{name} .*{reason}.*; supported are DDIM, DDPM, PNDM"):
        steered(PROMPTS[:1], **SD)
    assert state_of(pipe) == before
