"""Interpolants: how signal and noise are mixed along time, and conversion between them.

Everything is written for ``x_t = alpha(t) x_0 + sigma(t) eps`` with ``t`` in [0, 1] rising with the
noise. ``log_snr(t) = log(alpha^2 / sigma^2)`` falls strictly, so it names a noise level across
interpolants: conversion keeps the log-SNR and rescales the state. Sources: Kingma et al. 2021
(2107.00630) for the log-SNR as the coordinate; Karras et al. 2022 (2206.00364) for VE; Liu et al.
2022 (2209.03003) and Esser et al. 2024 (2403.03206) for the rectified flow and its shift; Nichol and
Dhariwal 2021 (2102.09672) for the cosine.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from steering.times import Time


class Interpolant(ABC):
    """A mixing of signal and noise along ``t`` in [0, 1]."""

    #: the network's time at ``t = 1`` where it is linear in ``t``
    num_train_timesteps: int = 1000

    @abstractmethod
    def alpha(self, t: float) -> float:
        """Signal coefficient at ``t``."""

    @abstractmethod
    def sigma(self, t: float) -> float:
        """Noise coefficient at ``t``."""

    @abstractmethod
    def t_of(self, log_snr: float) -> float:
        """Inverse of :meth:`log_snr`; outside [0, 1] or an error where the path does not reach."""

    @abstractmethod
    def normalise(self, ratio: float) -> tuple[float, float]:
        """``(alpha, sigma)`` on this interpolant with noise-to-signal ``ratio = sigma / alpha``.

        ``ratio`` may be ``inf`` (pure noise). Defined off the grid too.
        """

    def log_snr(self, t: float) -> float:
        """log(alpha^2 / sigma^2) at ``t``, infinite at the ends that have no noise or no signal."""
        return Time(0.0, self.alpha(t), self.sigma(t)).log_snr

    def model_t(self, t: float) -> float:
        """The time that a network trained on this interpolant is told."""
        return t * self.num_train_timesteps

    def time(self, t: float) -> Time:
        """Record of the noise level at ``t`` in [0, 1].

        Raises:
            ValueError: ``t`` outside [0, 1].
        """
        if not 0 <= t <= 1:
            raise ValueError(f"t must lie in [0, 1], got {t}")
        return Time(self.model_t(t), self.alpha(t), self.sigma(t))

    def at(self, log_snr: float) -> Time:
        """Record of the noise level with this log-SNR."""
        return self.time(self.t_of(log_snr))

    def nearest_t(self, log_snr: float) -> float:
        """As :meth:`t_of`, but the end of [0, 1] where the path does not reach so far."""
        if log_snr <= self.log_snr(1.0):
            return 1.0
        return 0.0 if log_snr >= self.log_snr(0.0) else self.t_of(log_snr)

    def scale_from(self, time: Time) -> float:
        """Factor that carries a state at ``time`` (any interpolant) to this one, at equal SNR."""
        ratio = time.sigma / time.alpha if time.alpha > 0 else math.inf
        alpha, sigma = self.normalise(ratio)
        return alpha / time.alpha if time.alpha >= time.sigma else sigma / time.sigma


def convert(x_t: Tensor, time: Time, target: Interpolant) -> tuple[Tensor, Time]:
    """Carry a state to another interpolant at the same signal-to-noise ratio.

    Args:
        x_t: state ``(n, *shape)`` at ``time``.
        time: its noise level; ``model_t`` is kept, since the network did not change.
        target: the interpolant to express it in.

    Returns:
        The rescaled state and its record on ``target``.
    """
    scale = target.scale_from(time)
    return x_t * scale, Time(time.model_t, time.alpha * scale, time.sigma * scale)


class _VariancePreserving(Interpolant):
    """alpha^2 + sigma^2 = 1."""

    def normalise(self, ratio: float) -> tuple[float, float]:
        if math.isinf(ratio):
            return 0.0, 1.0
        norm = math.hypot(1.0, ratio)
        return 1.0 / norm, ratio / norm

    def sigma(self, t: float) -> float:
        return self.normalise(math.exp(-0.5 * self.log_snr(t)))[1]

    def alpha(self, t: float) -> float:
        return self.normalise(math.exp(-0.5 * self.log_snr(t)))[0]

    @abstractmethod
    def log_snr(self, t: float) -> float: ...


@dataclass(frozen=True)
class VPDiscrete(_VariancePreserving):
    """Variance-preserving path of a discrete-time model, from its cumulative alphas.

    Between training steps the log noise-to-signal ratio is interpolated linearly in the step, as
    diffusers' sigma-based schedulers do; where the path ends without signal, the signal-to-noise
    ratio of the last interval is. ``t = 0`` is training step 0 and ``t = 1`` the last.

    Attributes:
        alphas_cumprod: ``alpha_t^2`` for every training step, strictly falling, in (0, 1).
    """

    alphas_cumprod: tuple[float, ...]
    _log_ratio: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        a = np.asarray(self.alphas_cumprod, dtype=np.float64)
        if len(a) < 2 or not (np.all(np.diff(a) < 0) and a[-1] >= 0 and a[0] < 1):
            raise ValueError(
                "alphas_cumprod must fall strictly within [0, 1), "
                f"got {len(a)} values from {a[:1]} to {a[-1:]}"
            )
        with np.errstate(divide="ignore"):
            log_ratio = 0.5 * np.log((1 - a) / a)
        object.__setattr__(self, "_log_ratio", log_ratio)

    @property
    def num_train_timesteps(self) -> int:  # type: ignore[override]
        """Number of training steps."""
        return len(self.alphas_cumprod)

    def model_t(self, t: float) -> float:
        return t * (self.num_train_timesteps - 1)

    def log_snr(self, t: float) -> float:
        position = t * (self.num_train_timesteps - 1)
        low = min(int(position), self.num_train_timesteps - 2)
        weight = position - low
        here, there = self._log_ratio[low : low + 2].tolist()
        if weight in (0, 1):  # exact at training steps, where the last may be infinite
            return -2.0 * (there if weight else here)
        if math.isinf(there):
            return 2.0 * (math.log1p(-weight) - here)
        return -2.0 * ((1 - weight) * here + weight * there)

    def t_of(self, log_snr: float) -> float:
        """Inverse of :meth:`log_snr`.

        Raises:
            ValueError: the model was never trained at this noise level.
        """
        least, most = self.log_snr(1.0), self.log_snr(0.0)
        if not least - 1e-6 <= log_snr <= most + 1e-6:  # schedulers count in float32
            raise ValueError(
                f"log-SNR {log_snr} lies outside the trained range from {least} to {most}"
            )
        last, before = self.num_train_timesteps - 1, float(self._log_ratio[-2])
        if math.isinf(least) and -0.5 * log_snr > before:
            return 1 - math.exp(before + 0.5 * log_snr) / last
        position = np.interp(-0.5 * log_snr, self._log_ratio, np.arange(last + 1.0))
        return float(position) / last


@dataclass(frozen=True)
class VPLinear(_VariancePreserving):
    """Continuous variance-preserving path with linear beta (Song et al. 2020, 2011.13456).

    ``alpha^2 = exp(-T)``, ``T(t) = t beta_min + t^2 (beta_max - beta_min) / 2``.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(f"need 0 < beta_min <= beta_max, got {self.beta_min}, {self.beta_max}")

    def log_snr(self, t: float) -> float:
        if t == 0:
            return math.inf
        integral = t * self.beta_min + 0.5 * t * t * (self.beta_max - self.beta_min)
        return -math.log(math.expm1(integral))

    def t_of(self, log_snr: float) -> float:
        if math.isinf(log_snr) and log_snr > 0:
            return 0.0
        integral = max(-log_snr, 0.0) + math.log1p(math.exp(-abs(log_snr)))
        span = self.beta_max - self.beta_min
        root = math.sqrt(self.beta_min**2 + 2 * span * integral)
        return 2 * integral / (self.beta_min + root)  # stable where span is 0


@dataclass(frozen=True)
class Cosine(_VariancePreserving):
    """``alpha = cos(pi t / 2)``, ``sigma = sin(pi t / 2)``."""

    def log_snr(self, t: float) -> float:
        if t in (0, 1):
            return math.inf if t == 0 else -math.inf
        return -2.0 * math.log(math.tan(0.5 * math.pi * t))

    def t_of(self, log_snr: float) -> float:
        if math.isinf(log_snr):
            return 0.0 if log_snr > 0 else 1.0
        return 2.0 / math.pi * math.atan(math.exp(-0.5 * log_snr))


@dataclass(frozen=True)
class RectifiedFlow(Interpolant):
    """``alpha = 1 - s``, ``sigma = s`` with the shifted time ``s = shift t / (1 + (shift - 1) t)``."""

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"shift must be positive, got {self.shift}")

    def sigma(self, t: float) -> float:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def alpha(self, t: float) -> float:
        return (1 - t) / (1 + (self.shift - 1) * t)

    def model_t(self, t: float) -> float:
        return self.sigma(t) * self.num_train_timesteps

    def t_of(self, log_snr: float) -> float:
        sigma = self.normalise(math.exp(-0.5 * log_snr))[1]
        return sigma / (self.shift + (1 - self.shift) * sigma)

    def normalise(self, ratio: float) -> tuple[float, float]:
        if math.isinf(ratio):
            return 0.0, 1.0
        return 1.0 / (1.0 + ratio), ratio / (1.0 + ratio)


@dataclass(frozen=True)
class VarianceExploding(Interpolant):
    """``alpha = 1`` and Karras' noise levels, ``sigma^(1/rho)`` linear in ``t``.

    ``model_t`` is ``log(sigma) / 4``, the time that models of Karras et al. are told.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"need 0 < sigma_min < sigma_max, got {self.sigma_min}, {self.sigma_max}"
            )

    def alpha(self, t: float) -> float:
        return 1.0

    def sigma(self, t: float) -> float:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return float((low + t * (high - low)) ** self.rho)

    def model_t(self, t: float) -> float:
        return 0.25 * math.log(self.sigma(t))

    def t_of(self, log_snr: float) -> float:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (math.exp(-0.5 * log_snr / self.rho) - low) / (high - low)

    def normalise(self, ratio: float) -> tuple[float, float]:
        if math.isinf(ratio):
            raise ValueError("a variance-exploding path never reaches pure noise (alpha = 0)")
        return 1.0, ratio
