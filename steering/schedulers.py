"""Time records out of any diffusers scheduler whose time steps are set.

A scheduler's state is ``x_t = alpha x_0 + sigma eps`` with coefficients of its own: the discrete ones
(DDIM, PNDM, DDPM, LCM, TCD) take both from ``alphas_cumprod``, the multistep solvers (DPM-Solver++,
UniPC, DEIS) from their ``sigmas``, Euler and its kin carry ``alpha = 1``, flow matching
``alpha = 1 - sigma``. Whichever is assumed is checked against the scheduler's own way of adding
noise, so that an unknown convention is refused and never guessed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from steering.interpolants import Interpolant, RectifiedFlow, VPDiscrete
from steering.prediction import Prediction, known_prediction
from steering.times import Time, TimeGrid

_SUPPORTED = (
    "DDIM, DDPM, PNDM, LCM, TCD, DPMSolverMultistep, DPMSolverSinglestep, UniPCMultistep, "
    "DEISMultistep, SASolver, EulerDiscrete, EulerAncestralDiscrete, HeunDiscrete, LMSDiscrete, "
    "KDPM2Discrete, FlowMatchEulerDiscrete, FlowMatchHeunDiscrete, FlowMatchLCM"
)
_PROBE_TOLERANCE = 1e-4  # float32 arithmetic of the schedulers, far below any wrong convention
_TIME_TOLERANCE = 1.01  # some schedulers truncate the time that the network is told


class UnsupportedScheduler(ValueError):
    """A scheduler whose noise levels cannot be stated as (alpha, sigma)."""

    def __init__(self, scheduler: Any, reason: str) -> None:
        super().__init__(f"{type(scheduler).__name__} {reason}; supported are {_SUPPORTED}")


@dataclass(frozen=True)
class _Flow(RectifiedFlow):
    """A rectified flow whose network counts to another number than 1000."""

    num_train_timesteps: int = 1000


def is_flow(scheduler: Any) -> bool:
    """Whether the state is ``(1 - sigma) x_0 + sigma eps``."""
    return hasattr(scheduler, "scale_noise") or bool(
        getattr(scheduler.config, "use_flow_sigmas", False)
    )


def prediction_of(scheduler: Any) -> Prediction:
    """What the scheduler says that its network predicts.

    Raises:
        ValueError: unknown prediction type; the message lists the known ones.
        UnsupportedScheduler: the type does not go with the scheduler's noise levels.
    """
    stated = getattr(scheduler.config, "prediction_type", None)
    if stated is None and is_flow(scheduler):
        return "flow_prediction"
    if stated is None:
        raise UnsupportedScheduler(scheduler, "does not say what its network predicts")
    kind = known_prediction(str(stated))
    if kind == "flow_prediction" and not is_flow(scheduler):
        raise UnsupportedScheduler(
            scheduler, "is set to prediction_type='flow_prediction' without use_flow_sigmas=True"
        )
    return kind


def training_interpolant(scheduler: Any) -> Interpolant:
    """The path that the scheduler's network was trained on.

    Raises:
        UnsupportedScheduler: neither a flow nor a discrete variance-preserving schedule.
    """
    if is_flow(scheduler):
        steps = int(scheduler.config.num_train_timesteps)
        return RectifiedFlow() if steps == 1000 else _Flow(num_train_timesteps=steps)
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise UnsupportedScheduler(scheduler, "has no alphas_cumprod and is no flow matching")
    if getattr(scheduler.config, "timestep_type", "discrete") == "continuous":
        raise UnsupportedScheduler(scheduler, "has timestep_type='continuous'")
    return VPDiscrete(tuple(torch.as_tensor(alphas, dtype=torch.float64).tolist()))


def call_times(scheduler: Any) -> list[Time]:
    """Noise level of every model call of one trajectory, in order.

    PNDM, Heun and KDPM2 call twice around some steps, so levels may repeat.

    Raises:
        UnsupportedScheduler: time steps are not set, or the state's convention is unknown.
    """
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None or len(timesteps) == 0:
        raise UnsupportedScheduler(scheduler, "has no time steps yet: call set_timesteps first")
    levels = _call_levels(scheduler, len(timesteps))
    steps = torch.as_tensor(timesteps).cpu().double().tolist()
    times = [Time(t, alpha, sigma) for t, (alpha, sigma) in zip(steps, levels, strict=True)]
    _check_convention(scheduler, times[0])
    training = training_interpolant(scheduler)
    if any(abs(_told(training, t.log_snr) - t.model_t) > _TIME_TOLERANCE for t in times):
        raise UnsupportedScheduler(scheduler, "tells its network times that its noise levels belie")
    return times


def grid_of(scheduler: Any) -> TimeGrid:
    """Noise levels that a trajectory passes, from the noisiest to the end point.

    Raises:
        UnsupportedScheduler: as :func:`call_times`, or noise does not fall along the trajectory.
    """
    calls = call_times(scheduler)
    alpha, sigma = _end_level(scheduler)
    log_snr = Time(0.0, alpha, sigma).log_snr
    end = Time(_told(training_interpolant(scheduler), log_snr), alpha, sigma)
    # KDPM2 evaluates between its levels at every second call; those are no levels of the grid
    times = calls[::2] if hasattr(scheduler, "sigmas_interpol") else calls
    kept = times[:1]
    for time in [*times[1:], end]:
        if time.log_snr > kept[-1].log_snr:
            kept.append(time)
    if len(kept) < 2 or kept[-1].log_snr != end.log_snr or calls[-1].log_snr < calls[0].log_snr:
        raise UnsupportedScheduler(scheduler, "does not lose noise along its time steps")
    return TimeGrid(tuple(kept))


def time_at(training: Interpolant, log_snr: float) -> Time:
    """Record of a noise level on a training path, with the time that the network is told.

    Args:
        training: the path that the network was trained on.
        log_snr: log(alpha^2 / sigma^2); beyond the trained ends the end's time is told.
    """
    alpha, sigma = training.normalise(math.exp(-0.5 * log_snr))
    return Time(_told(training, log_snr), alpha, sigma)


def _told(training: Interpolant, log_snr: float) -> float:
    """Time that the network is told at a noise level; beyond the trained ends, at the end."""
    bounded = min(max(log_snr, training.log_snr(1.0)), training.log_snr(0.0))
    return training.at(bounded).model_t


def _call_levels(scheduler: Any, calls: int) -> list[tuple[float, float]]:
    """(alpha, sigma) of each model call."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or not torch.is_tensor(sigmas):
        return _discrete_levels(scheduler)
    if hasattr(scheduler, "mid_point_sigma"):
        raise UnsupportedScheduler(scheduler, "evaluates at levels that it does not list")
    level = _level_from_sigma(scheduler)
    values = sigmas.cpu().double().tolist()[:calls]
    if hasattr(scheduler, "sigmas_interpol"):
        between = scheduler.sigmas_interpol.cpu().double().tolist()
        values[1::2] = between[1:calls:2]
    return [level(value) for value in values]


def _discrete_levels(scheduler: Any) -> list[tuple[float, float]]:
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise UnsupportedScheduler(scheduler, "has neither sigmas nor alphas_cumprod")
    steps = torch.as_tensor(scheduler.timesteps).cpu().long()
    return [_from_alpha_cumprod(a) for a in alphas.cpu()[steps].double().tolist()]


def _from_alpha_cumprod(value: float) -> tuple[float, float]:
    return math.sqrt(value), math.sqrt(max(1.0 - value, 0.0))


def _level_from_sigma(scheduler: Any) -> Callable[[float], tuple[float, float]]:
    """How one entry of ``scheduler.sigmas`` becomes (alpha, sigma)."""
    if is_flow(scheduler):
        return lambda sigma: (1.0 - sigma, sigma)
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise UnsupportedScheduler(scheduler, "has sigmas of an unknown convention")
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):  # variance preserving, sigma / alpha listed
        return lambda ratio: (1.0 / math.hypot(1.0, ratio), ratio / math.hypot(1.0, ratio))
    return lambda sigma: (1.0, sigma)


def _end_level(scheduler: Any) -> tuple[float, float]:
    """(alpha, sigma) after the last step."""
    sigmas = getattr(scheduler, "sigmas", None)
    if torch.is_tensor(sigmas):
        return _level_from_sigma(scheduler)(float(sigmas[-1]))
    final = getattr(scheduler, "final_alpha_cumprod", None)
    if type(scheduler).__name__ == "LCMScheduler" or final is None:
        return 1.0, 0.0  # LCM and DDPM return the clean state itself at their last step
    return _from_alpha_cumprod(float(final))


def _check_convention(scheduler: Any, time: Time) -> None:
    """Compare the first level with the scheduler's own noising of ones and zeros."""
    probe = copy.deepcopy(scheduler)
    for name in ("_step_index", "_begin_index"):
        if hasattr(probe, name):
            setattr(probe, name, None)
    one, zero = torch.ones(1), torch.zeros(1)
    first = torch.as_tensor(probe.timesteps)[:1].cpu()
    if hasattr(probe, "scale_noise"):
        alpha = probe.scale_noise(one, first, zero)
        sigma = probe.scale_noise(zero, first, one)
    elif hasattr(probe, "add_noise"):
        alpha, sigma = probe.add_noise(one, zero, first), probe.add_noise(zero, one, first)
    else:
        raise UnsupportedScheduler(scheduler, "has no way to add noise, so it cannot be checked")
    scale = max(1.0, time.sigma)
    wrong = max(abs(float(alpha) - time.alpha), abs(float(sigma) - time.sigma)) / scale
    if not wrong <= _PROBE_TOLERANCE:
        raise UnsupportedScheduler(
            scheduler,
            f"noises by ({float(alpha):.5g}, {float(sigma):.5g}) where ({time.alpha:.5g}, "
            f"{time.sigma:.5g}) was expected",
        )
