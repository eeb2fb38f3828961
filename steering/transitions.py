"""Gaussian transitions ``x_s | x_t`` between two explicit times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

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


class Transition(Protocol):
    """How a state moves from one time to a less noisy one."""

    @property
    def stochastic(self) -> bool:
        """Whether two draws from one state differ."""

    def __call__(self, posterior: Posterior, t: Time, s: Time) -> Gaussian:
        """Law of ``x_s`` given the denoised ``x_t``."""


@dataclass(frozen=True)
class DDIM:
    """The DDIM family (Song et al. 2020, 2010.02502), on any interpolant.

    ``x_s = alpha_s x_0 + sqrt(sigma_s^2 - std^2) eps + std z`` with
    ``std = eta sigma_s sqrt(1 - SNR_t / SNR_s)``: eta 0 is the ODE, eta 1 the ancestral (DDPM)
    transition. Rescaling the state changes nothing but the unit.

    Attributes:
        eta: share of the ancestral noise, in [0, 1].
    """

    eta: float = 1.0

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
        if not t.log_snr < s.log_snr:
            raise ValueError(f"a transition goes to less noise, got {t} to {s}")
        if s.sigma == 0:
            return 0.0
        kept = 0.0 if t.alpha == 0 else math.exp(t.log_snr - s.log_snr)
        return self.eta * s.sigma * math.sqrt(max(1.0 - kept, 0.0))

    def __call__(self, posterior: Posterior, t: Time, s: Time) -> Gaussian:
        """Law of ``x_s`` given the denoised ``x_t``; ``posterior`` rows are ``(n, *shape)``."""
        std = self.std(t, s)
        direction = math.sqrt(max(s.sigma**2 - std**2, 0.0))
        return Gaussian(torch.add(s.alpha * posterior.x_0, posterior.eps, alpha=direction), std)
