"""Transitions ``x_s | x_t`` between two explicit times, and the Gaussian ones of every day.

Other transitions have files of their own: the SDEs of a flow in :mod:`steering.flow_sde`, and the one
that needs further denoiser calls inside a step in :mod:`steering.glass`. A search makes a step of any of
them by :func:`steering.moves.move`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steering.prediction import Posterior
from steering.times import Time


@dataclass(frozen=True, eq=False)
class Gaussian:
    """An isotropic Gaussian for each row.

    Attributes:
        mean: ``(n, *shape)``.
        std: one standard deviation for all rows.
    """

    mean: Tensor
    std: float

    def sample(self, noise: Tensor) -> Tensor:
        """``mean + std * noise`` for standard normal ``noise (n, *shape)``."""
        return self.mean if self.std == 0 else self.mean + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of each row, float64 ``(n,)``.

        Raises:
            ValueError: the transition is deterministic (std 0) and has no density.
        """
        if self.std == 0:
            raise ValueError(
                "a deterministic transition (std 0) has no density; use eta > 0, or leave the last "
                "noise-free step out"
            )
        z = (x.double() - self.mean.double()) / self.std
        dim = z[0].numel()
        return -0.5 * z.flatten(1).square().sum(1) - dim * (
            math.log(self.std) + 0.5 * math.log(2 * math.pi)
        )


class Transition(ABC):
    """How a state moves to a less noisy time; :func:`steering.moves.move` makes the step."""

    reads_means: ClassVar[bool] = (
        True  #: whether it is right for an x_0 that is a posterior mean alone
    )

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether two draws from one state differ."""

    @property
    @abstractmethod
    def inner_calls(self) -> int:
        """Denoiser calls of a step beyond the one at ``x_t``; 0 if the law is Gaussian."""


class GaussianTransition(Transition):
    """A transition whose law is known as soon as ``x_t`` is denoised, density included."""

    @abstractmethod
    def __call__(self, posterior: Posterior, t: Time, s: Time) -> Gaussian:
        """Law of ``x_s`` given the denoised ``x_t``."""


def check_falls(t: Time, s: Time) -> None:
    """Refuse a step that does not lose noise.

    Raises:
        ValueError: ``s`` is not less noisy than ``t``.
    """
    if not t.log_snr < s.log_snr:
        raise ValueError(
            f"a transition goes to less noise, got {t} to {s}; give the noisier time first"
        )


@dataclass(frozen=True)
class DDIM(GaussianTransition):
    """The DDIM family (Song et al. 2020, 2010.02502), on any interpolant.

    ``x_s = alpha_s x_0 + sqrt(sigma_s^2 - std^2) eps + std z`` with
    ``std = eta sigma_s sqrt(1 - SNR_t / SNR_s)``: eta 0 is the ODE, eta 1 the ancestral (DDPM)
    transition. Rescaling the state changes nothing but the unit.

    Attributes:
        eta: share of the ancestral noise, in [0, 1].
    """

    eta: float = 1.0
    inner_calls: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}")

    @property
    def stochastic(self) -> bool:
        """Whether eta is positive."""
        return self.eta > 0

    def std(self, t: Time, s: Time) -> float:
        """Standard deviation of ``x_s`` given ``x_t``.

        Raises:
            ValueError: ``s`` is not less noisy than ``t``.
        """
        check_falls(t, s)
        if s.sigma == 0:
            return 0.0
        kept = 0.0 if t.alpha == 0 else math.exp(t.log_snr - s.log_snr)
        return self.eta * s.sigma * math.sqrt(max(1.0 - kept, 0.0))

    def __call__(self, posterior: Posterior, t: Time, s: Time) -> Gaussian:
        """Law of ``x_s`` given the denoised ``x_t``; ``posterior`` rows are ``(n, *shape)``."""
        std = self.std(t, s)
        direction = math.sqrt(max(s.sigma**2 - std**2, 0.0))
        return Gaussian(torch.add(s.alpha * posterior.x_0, posterior.eps, alpha=direction), std)


@dataclass(frozen=True)
class Renoise(GaussianTransition):
    """Full re-noising, ``x_s = alpha_s x_0 + sigma_s z``: nothing of the old noise is kept.

    The step of consistency models (LCM: Luo et al. 2023, 2310.04378; TCD: Zheng et al. 2024,
    2402.19159), whose x_0 is a sample. With a posterior mean in its place the marginals are not kept,
    however many steps are taken: what the mean lacks of the data's spread is lost at every step.
    """

    reads_means: ClassVar[bool] = False
    stochastic: ClassVar[bool] = True
    inner_calls: ClassVar[int] = 0

    def __call__(self, posterior: Posterior, t: Time, s: Time) -> Gaussian:
        """Law of ``x_s`` given the denoised ``x_t``; ``posterior`` rows are ``(n, *shape)``.

        Raises:
            ValueError: ``s`` is not less noisy than ``t``.
        """
        check_falls(t, s)
        return Gaussian(s.alpha * posterior.x_0, s.sigma)
