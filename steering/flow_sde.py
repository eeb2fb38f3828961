"""SDEs that share their marginals with a flow's ODE, for any diffusion coefficient g(t) >= 0.

With time running from noise to data, ``dx = -[u - g^2 s / 2] dt + g dw`` has the marginals of the ODE
``dx = -u dt`` for every g (Song et al. 2020, 2011.13456; for flows Ma et al. 2024, 2401.08740). Velocity
and score come from the denoiser: ``u = alpha' x_0 + sigma' eps``, ``s = -eps / sigma``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Literal, get_args

import numpy as np
import torch

from steering.interpolants import Interpolant, RectifiedFlow
from steering.prediction import Posterior
from steering.times import Time
from steering.transitions import Gaussian, GaussianTransition, check_falls

Diffusion = Literal["square", "linear", "constant", "zero", "ancestral", "largest"]
Discretisation = Literal["exact", "euler"]

SCALES = {
    "square": 3.0,
    "linear": 2.0,
    "constant": 1.0,
    "zero": 0.0,
    "ancestral": 1.0,
    "largest": 1.0,
}
_POWERS = {"square": 2, "linear": 1, "constant": 0, "zero": 0}
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_STEP = 1e-6  # of the difference quotients


@dataclass(frozen=True)
class FlowSDE(GaussianTransition):
    """The SDE with a flow's marginals, over one step.

    ``"exact"`` holds the prediction ``(x_0, eps)`` fixed over the step and solves the rest exactly: the
    noise decays by ``rho = exp(-1/2 int g^2 / sigma^2 dt)`` and
    ``x_s = alpha_s x_0 + sigma_s (rho eps + sqrt(1 - rho^2) z)``. It is stable for every g.

    ``"euler"`` is Euler-Maruyama in the interpolant's own time and scale, as most published code has it.
    Its step is stable while eps keeps a weight that is not negative, that is, while g^2 times the step
    is at most ``2 sigma (sigma - sigma' step)``; where g is larger it is lowered to that limit.

    In both, a step onto no noise takes the mean ``alpha_s x_0`` and draws nothing. The error of the
    final law is of first order in the step on even steps, with two exceptions. ``"constant"`` in the
    exact form is of order 1/2 on a rectified flow, since g / sigma is not square-integrable down to no
    noise. Euler's ``"largest"`` grows with the number of steps, so that it is a chain of Langevin steps
    rather than one SDE: 0.6 measured.

    With guidance the base law is that of the guided chain, whatever g is: marginals are equal for the
    score of one law, and a guided prediction is the score of none.

    Attributes:
        g: shape of g(t), with t rising with the noise from 0 to 1: ``"square"`` is ``scale t^2`` (scale
            3: rollover budget forcing, Kim et al. 2025, 2503.19385), ``"linear"`` ``scale t``,
            ``"constant"`` ``scale``, ``"zero"`` the ODE. ``"ancestral"`` is
            ``g^2 = -scale^2 sigma^2 d log SNR / dt``: the noise that the forward process adds, so the
            exact step of scale 1 is DDIM(1). ``"largest"`` is the largest stable one: Euler's limit
            above; in the exact form, which has no limit, the ancestral one, since more noise than the
            forward process added loses spread that the mean of x_0 does not hold.
        scale: factor of g; None is the default of the shape (:data:`SCALES`).
        interpolant: the path in whose time g and Euler's step are meant; the records that a step is
            given may be in any scale.
        discretisation: ``"exact"`` or ``"euler"``.
    """

    g: Diffusion = "square"
    scale: float | None = None
    interpolant: Interpolant = field(default_factory=RectifiedFlow)
    discretisation: Discretisation = "exact"
    inner_calls: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.g not in get_args(Diffusion):
            raise ValueError(f"g must be one of {get_args(Diffusion)}, got {self.g!r}")
        if self.discretisation not in get_args(Discretisation):
            raise ValueError(
                f"discretisation must be one of {get_args(Discretisation)}, got "
                f"{self.discretisation!r}"
            )
        if self.scale is not None and not 0 <= self.scale < math.inf:
            raise ValueError(
                f"g must not be negative, got scale={self.scale}; 0 is the ODE, None the default "
                f"{SCALES[self.g]} of g={self.g!r}"
            )

    @property
    def factor(self) -> float:
        """The scale, or the default of the shape."""
        return SCALES[self.g] if self.scale is None else self.scale

    @property
    def stochastic(self) -> bool:
        """Whether g is anything but zero."""
        return self.g != "zero" and self.factor > 0

    def __call__(self, posterior: Posterior, t: Time, s: Time) -> Gaussian:
        """Law of ``x_s`` given the denoised ``x_t``; ``posterior`` rows are ``(n, *shape)``.

        Raises:
            ValueError: ``s`` is not less noisy than ``t``.
        """
        clean, noise, std = weights(self, t, s)
        return Gaussian(torch.add(clean * posterior.x_0, posterior.eps, alpha=noise), std)

    def g_squared(self, t: float) -> float:
        """``g(t)^2`` of the shapes that do not depend on the step; infinite at pure noise if ancestral.

        Raises:
            ValueError: Euler's largest, which is a property of the step.
        """
        if self.g in _POWERS:
            shape = 0.0 if self.g == "zero" else t ** (2 * _POWERS[self.g])
            return self.factor**2 * shape
        if self.g == "largest" and self.discretisation == "euler":
            raise ValueError("Euler's largest g depends on the step, not on the time alone")
        alpha, sigma = self.interpolant.alpha(t), self.interpolant.sigma(t)
        d_alpha, d_sigma = rates(self.interpolant, t)
        if alpha == 0:
            return math.inf if self.factor > 0 else 0.0
        return 2 * self.factor**2 * sigma * (d_sigma - sigma * d_alpha / alpha)


@lru_cache(maxsize=4096)
def weights(sde: FlowSDE, t: Time, s: Time) -> tuple[float, float, float]:
    """Weights of x_0 and eps in the mean of ``x_s``, and its standard deviation.

    Raises:
        ValueError: ``s`` is not less noisy than ``t``.
    """
    check_falls(t, s)
    if s.sigma == 0:
        return s.alpha, 0.0, 0.0
    if sde.discretisation == "euler":
        return _euler(sde, t, s)
    rho = math.exp(-0.5 * _decay(sde, t, s))
    return s.alpha, rho * s.sigma, s.sigma * math.sqrt(1 - rho * rho)


def _decay(sde: FlowSDE, t: Time, s: Time) -> float:
    """``int g^2 / sigma^2 dt`` over the step; infinite from pure noise if ancestral."""
    if not sde.stochastic:
        return 0.0
    if sde.g in ("ancestral", "largest"):
        return sde.factor**2 * (s.log_snr - t.log_snr)
    path = sde.interpolant
    late, early = path.nearest_t(s.log_snr), path.nearest_t(t.log_snr)
    half, middle = 0.5 * (early - late), 0.5 * (early + late)
    at = [(middle + half * float(node)) for node in _NODES]
    values = [sde.g_squared(u) / path.sigma(u) ** 2 for u in at]
    return half * float(np.dot(_WEIGHTS, values))


def _euler(sde: FlowSDE, t: Time, s: Time) -> tuple[float, float, float]:
    """Euler-Maruyama on the interpolant, then carried to the scale of ``s``."""
    path = sde.interpolant
    early, late = path.nearest_t(t.log_snr), path.nearest_t(s.log_snr)
    step, sigma = early - late, path.sigma(early)
    d_alpha, d_sigma = rates(path, early)
    clean, noise = path.alpha(early) - d_alpha * step, sigma - d_sigma * step
    variance = limit = max(2 * sigma * noise, 0.0)
    if sde.g == "largest":
        variance = sde.factor**2 * limit
    elif step > 0:
        variance = sde.g_squared(early) * step
    variance = min(variance, limit)
    noise -= 0.5 * variance / sigma
    there = path.alpha(late), path.sigma(late)
    unit = s.alpha / there[0] if there[0] >= there[1] else s.sigma / there[1]
    return unit * clean, unit * noise, unit * math.sqrt(variance)


def rates(path: Interpolant, t: float) -> tuple[float, float]:
    """Derivatives of alpha and sigma by ``t``, by difference quotients within [0, 1]."""
    low, high = max(t - _STEP, 0.0), min(t + _STEP, 1.0)
    width = high - low
    return (
        (path.alpha(high) - path.alpha(low)) / width,
        (path.sigma(high) - path.sigma(low)) / width,
    )
