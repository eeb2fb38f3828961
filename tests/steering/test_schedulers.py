"""Time records against diffusers' own schedulers."""

import copy
import math

import diffusers
import pytest
import torch

from steering.interpolants import RectifiedFlow, VPDiscrete
from steering.prediction import posterior_of
from steering.schedulers import (
    UnsupportedScheduler,
    call_times,
    grid_of,
    prediction_of,
    training_interpolant,
)
from steering.transitions import DDIM

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

CASES = {
    "ddim": (diffusers.DDIMScheduler, {**BETAS, "steps_offset": 1, "set_alpha_to_one": False}),
    "ddim trailing": (diffusers.DDIMScheduler, {**BETAS, "timestep_spacing": "trailing"}),
    "ddpm": (diffusers.DDPMScheduler, BETAS),
    "pndm": (diffusers.PNDMScheduler, {**BETAS, "skip_prk_steps": True}),
    "lcm": (diffusers.LCMScheduler, BETAS),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, BETAS),
    "dpm++ karras": (diffusers.DPMSolverMultistepScheduler, {**BETAS, "use_karras_sigmas": True}),
    "dpm++ flow": (diffusers.DPMSolverMultistepScheduler, {**FLOW, "flow_shift": 3.0}),
    "unipc": (diffusers.UniPCMultistepScheduler, BETAS),
    "deis": (diffusers.DEISMultistepScheduler, BETAS),
    "euler": (diffusers.EulerDiscreteScheduler, BETAS),
    "euler karras": (diffusers.EulerDiscreteScheduler, {**BETAS, "use_karras_sigmas": True}),
    "euler leading": (
        diffusers.EulerDiscreteScheduler,
        {**BETAS, "timestep_spacing": "leading", "steps_offset": 1},
    ),
    "euler zero snr": (
        diffusers.EulerDiscreteScheduler,
        {**BETAS, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
    "heun": (diffusers.HeunDiscreteScheduler, BETAS),
    "lms": (diffusers.LMSDiscreteScheduler, BETAS),
    "kdpm2": (diffusers.KDPM2DiscreteScheduler, BETAS),
    "flow": (diffusers.FlowMatchEulerDiscreteScheduler, {}),
    "flow shift": (diffusers.FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
    "flow heun": (diffusers.FlowMatchHeunDiscreteScheduler, {"shift": 3.0}),
}


def made(name, steps=10):
    kind, options = CASES[name]
    scheduler = kind(**options)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("name", CASES)
def test_levels_are_those_of_the_schedulers_own_noising(name):
    scheduler = made(name)
    calls = call_times(scheduler)
    assert [t.model_t for t in calls] == scheduler.timesteps.double().tolist()
    one, zero = torch.ones(1), torch.zeros(1)
    known = {}
    for time, t in zip(calls, scheduler.timesteps, strict=True):
        known.setdefault(float(t), []).append((time, t))
    for found in known.values():
        if len(found) > 1 or hasattr(scheduler, "sigmas_interpol"):
            continue  # looked up by time, so a repeated time is ambiguous
        time, t = found[0]
        if hasattr(scheduler, "scale_noise"):
            alpha = scheduler.scale_noise(one, t[None], zero)
            sigma = scheduler.scale_noise(zero, t[None], one)
        else:
            alpha = scheduler.add_noise(one, zero, t[None])
            sigma = scheduler.add_noise(zero, one, t[None])
        assert time.alpha == pytest.approx(float(alpha), abs=1e-5)
        assert time.sigma == pytest.approx(float(sigma), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_scale_to_training_is_the_input_scaling(name):
    scheduler = made(name)
    training = training_interpolant(scheduler)
    for time, t in zip(call_times(scheduler)[:1], scheduler.timesteps[:1], strict=True):
        scaled = 1.0
        if hasattr(scheduler, "scale_model_input"):
            scaled = float(copy.deepcopy(scheduler).scale_model_input(torch.ones(1), t))
        assert training.scale_from(time) == pytest.approx(scaled, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_grid_ends_where_the_scheduler_ends(name):
    scheduler = made(name)
    grid = grid_of(scheduler)
    assert grid[0] == call_times(scheduler)[0]
    if getattr(scheduler, "final_alpha_cumprod", None) is not None and name != "lcm":
        assert grid[-1].alpha ** 2 == pytest.approx(float(scheduler.final_alpha_cumprod))
    elif torch.is_tensor(getattr(scheduler, "sigmas", None)):
        ratio = grid[-1].sigma / grid[-1].alpha
        assert ratio == pytest.approx(float(scheduler.sigmas[-1]), abs=1e-6)
    else:
        assert grid[-1].sigma == 0


def test_repeated_calls_are_one_level():
    for name, calls in (("pndm", 11), ("heun", 19), ("kdpm2", 19), ("flow heun", 19)):
        scheduler = made(name)
        assert len(call_times(scheduler)) == calls
        assert grid_of(scheduler).steps in (9, 10)


def test_zero_terminal_signal():
    scheduler = diffusers.DDIMScheduler(
        **BETAS, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(4)
    assert grid_of(scheduler)[0].log_snr == -math.inf


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_our_ddim_step_is_diffusers_ddim_step(prediction):
    scheduler = diffusers.DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction
    )
    scheduler.set_timesteps(10)
    grid = grid_of(scheduler)
    generator = torch.Generator().manual_seed(0)
    for index, t in enumerate(scheduler.timesteps):
        if index == grid.steps:
            break
        x, output = torch.randn(2, 2, 4, 8, 8, generator=generator)
        posterior = posterior_of(prediction_of(scheduler), output, x, grid[index])
        ours = DDIM(0.0)(posterior, grid[index], grid[index + 1]).mean
        own = scheduler.step(output, t, x, return_dict=False)[0]
        assert float((ours - own).abs().max()) < 1e-5 * float(own.std().clamp_min(1))


@pytest.mark.parametrize("options", [{}, {"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_our_ddim_step_is_the_flow_euler_step(options):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**options)
    extra = {"mu": 0.9} if "use_dynamic_shifting" in options else {}
    scheduler.set_timesteps(10, **extra)
    grid = grid_of(scheduler)
    generator = torch.Generator().manual_seed(0)
    for index, t in enumerate(scheduler.timesteps):
        x, output = torch.randn(2, 2, 16, 8, generator=generator)
        posterior = posterior_of(prediction_of(scheduler), output, x, grid[index])
        ours = DDIM(0.0)(posterior, grid[index], grid[index + 1]).mean
        own = scheduler.step(output, t, x, return_dict=False)[0]
        assert float((ours - own).abs().max()) < 1e-5


def test_training_interpolants():
    assert training_interpolant(made("flow shift")) == RectifiedFlow()
    assert training_interpolant(made("dpm++ flow")) == RectifiedFlow()
    assert isinstance(training_interpolant(made("euler")), VPDiscrete)
    short = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=100)
    assert training_interpolant(short).time(1.0).model_t == 100
    assert prediction_of(short) == "flow_prediction"


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (diffusers.EDMEulerScheduler(), "unknown convention"),
        (diffusers.IPNDMScheduler(), "neither sigmas"),
        (diffusers.DPMSolverMultistepInverseScheduler(), "does not lose noise"),
        (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "does not lose noise"),
        (diffusers.KDPM2AncestralDiscreteScheduler(), "belie"),
        (
            diffusers.EulerDiscreteScheduler(
                timestep_type="continuous", prediction_type="v_prediction"
            ),
            "continuous",
        ),
    ],
)
def test_unmapped_schedulers_are_refused_by_name(scheduler, reason):
    scheduler.set_timesteps(5)
    with pytest.raises(UnsupportedScheduler, match=reason) as caught:
        grid_of(scheduler)
    assert type(scheduler).__name__ in str(caught.value)
    assert "supported are DDIM" in str(caught.value)


def test_unset_times_and_predictions():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.timesteps = None
    with pytest.raises(UnsupportedScheduler, match="set_timesteps"):
        call_times(scheduler)
    with pytest.raises(ValueError, match="epsilon"):
        prediction_of(diffusers.DDIMScheduler(prediction_type="score"))
    with pytest.raises(UnsupportedScheduler, match="use_flow_sigmas"):
        prediction_of(diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"))
