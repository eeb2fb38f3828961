"""The transition of a diffusion model itself, not a Gaussian in its place: a flow inside a step.

Two states of one trajectory are ``x_t = alpha_t x_0 + sigma_t eps_t`` and the like at ``s``, with
noises of correlation rho. Then ``x_s - rho (sigma_s / sigma_t) x_t = a x_0 + b xi`` with
``a = alpha_s - rho sigma_s alpha_t / sigma_t``, ``b = sigma_s sqrt(1 - rho^2)`` and a noise ``xi`` that,
given ``x_0``, is independent of ``x_t``. So ``p(x_s | x_t)`` is what a flow ``y = A x_0 + B xi`` from
pure noise to ``(a, b)`` samples if it denoises given ``x_t``, too. Two independent Gaussian looks at
``x_0`` are as good as one whose signal-to-noise ratio is the sum of theirs: the same network answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from steering.prediction import Posterior
from steering.requests import Denoise
from steering.times import Time
from steering.transitions import Transition, check_falls


@dataclass(frozen=True)
class GLASS(Transition):
    """GLASS flows (Holderrieth et al. 2025, 2509.25170): ``p(x_s | x_t)`` by an inner ODE.

    The first inner call would be the posterior at ``x_t``, which the caller has; a step costs
    ``inner - 1`` further calls. With one inner step it is DDIM: eta 1 for ``"ddpm"``, the Euler step of
    the ODE for rho 1. As inner steps grow it becomes the exact transition, also over wide steps and onto
    no noise, where it draws from ``p(x_0 | x_t)``. A rho of 1 with several inner steps is the transition
    with one noise all along and x_0 drawn anew, which only tends to the ODE as outer steps become small.
    With a fixed rho below 1 what the inner steps leave of error does not vanish as outer steps become
    small, since every one of them renews the noise; with ``"ddpm"`` it does.

    It is exact for the law whose posterior mean the network predicts. With guidance there is no such
    law; what is sampled is the guided chain with these inner steps.

    Attributes:
        rho: correlation of the noises at ``t`` and ``s``, in [0, 1]; ``"ddpm"`` is
            ``alpha_t sigma_s / (sigma_t alpha_s)``, that of the Markov chain. The paper's experiments
            use 0.4.
        inner: inner steps M.
    """

    rho: float | Literal["ddpm"] = "ddpm"
    inner: int = 4

    def __post_init__(self) -> None:
        if self.rho != "ddpm" and not (isinstance(self.rho, float | int) and 0 <= self.rho <= 1):
            raise ValueError(f"rho must lie in [0, 1] or be 'ddpm', got {self.rho!r}")
        if self.inner < 1:
            raise ValueError(f"inner must be at least 1 step, got {self.inner}")

    @property
    def stochastic(self) -> bool:
        """Whether two draws from one state differ: not with rho 1 in a single inner step."""
        return self.rho != 1 or self.inner > 1

    @property
    def inner_calls(self) -> int:
        """Denoiser calls of a step beyond the one at ``x_t``."""
        return self.inner - 1

    def correlation(self, t: Time, s: Time) -> float:
        """Correlation of the noises at two times."""
        if self.rho == "ddpm":
            return t.alpha * s.sigma / (t.sigma * s.alpha)
        return float(self.rho)

    def solve(
        self,
        at: Callable[[float], Time],
        x_t: Tensor,
        posterior: Posterior,
        t: Time,
        s: Time,
        noise: Callable[[], Tensor],
        *,
        keep_graph: bool = False,
    ) -> Generator[Denoise, Posterior, Tensor]:
        """One step; arguments as in :func:`steering.moves.move`.

        Yields:
            ``inner - 1`` requests, each at one time that lies beyond ``t``.

        Returns:
            Rows ``(n, *shape)`` at ``s``.

        Raises:
            ValueError: ``s`` is not less noisy than ``t``.
        """
        check_falls(t, s)
        rho = self.correlation(t, s)
        carried = rho * s.sigma / t.sigma
        levels = inner_levels(t, (s.alpha - carried * t.alpha, _rest(rho) * s.sigma), self.inner)
        single = self.inner == 1 and levels[-1][1] == 0
        y = torch.zeros_like(x_t) if single else noise()
        x_0 = posterior.x_0
        for (clean, rough), (next_clean, next_rough) in pairwise(levels):
            if clean > 0:
                snr = (t.alpha / t.sigma) ** 2 + (clean / rough) ** 2
                time = at(math.log(snr))
                with torch.set_grad_enabled(keep_graph):
                    look = (t.alpha / t.sigma**2) * x_t + (clean / rough**2) * y
                    state = (time.alpha / snr) * look
                x_0 = (yield Denoise(state, time, keep_graph)).x_0
            with torch.set_grad_enabled(keep_graph):
                kept = next_rough / rough
                y = (next_clean - kept * clean) * x_0 + kept * y
        with torch.set_grad_enabled(keep_graph):
            return carried * x_t + y


def inner_levels(t: Time, goal: tuple[float, float], steps: int) -> list[tuple[float, float]]:
    """Coefficients ``(A, B)`` of the inner flow, from ``(0, 1)`` to the goal ``(a, b)``.

    They are spaced evenly in the angle ``arctan(1 / sqrt(snr))`` of what ``x_t`` and ``y`` say of
    ``x_0`` together, from 90 degrees at pure noise to 0 without noise. On Gaussian data that leaves less
    error than even steps in log-SNR or in the time of a rectified flow.
    """
    a, b = goal
    outer = t.alpha / t.sigma
    start = math.atan2(1, outer)
    end = 0.0 if b == 0 else math.atan2(1, math.hypot(outer, a / b))
    levels = [(0.0, 1.0)]
    for i in range(1, steps):
        reached = 1 / math.tan(start + (end - start) * i / steps)
        own = math.sqrt(max(reached**2 - outer**2, 0.0))
        norm = math.hypot(1.0, own)
        levels.append((own / norm, 1 / norm))
    return [*levels, (a, b)]


def _rest(rho: float) -> float:
    return math.sqrt(max(1 - rho * rho, 0.0))
