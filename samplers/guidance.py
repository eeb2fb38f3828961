"""Proposals that follow the gradient of the reward, with weights corrected for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.transitions import Gaussian


@dataclass(frozen=True)
class Gradient:
    """A transition whose mean is shifted along the gradient of the reward.

    ``q(x_s | x_t) = N(mean + scale lambda_s std^2 grad, std^2)`` with the gradient of r(predicted x_0)
    by x_t, through denoiser, decoder and reward; the particle's weight is multiplied by p / q. Where
    the transition has no noise nothing is shifted. Wu et al. 2023 (TDS, 2306.17775); Kim et al. 2025
    (DAS, 2501.05803), whose code keeps gradients of the old order after resampling: here they are
    re-indexed with everything else.

    Attributes:
        scale: share of the gradient, 1 in both papers.
        largest: cap on the shift in standard deviations per square root of dimension, so that the
            noise of one step always covers it; None: no cap. Weights are exact in any case.
    """

    scale: float = 1.0
    largest: float | None = None

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, got {self.scale}; leave the gradient out")
        if self.largest is not None and not self.largest > 0:
            raise ValueError(f"largest must be positive or None, got {self.largest}")

    def propose(
        self, law: Gaussian, gradient: Tensor, lam: float, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draw from the shifted law.

        Args:
            law: the unsteered transition of ``n`` rows, with noise.
            gradient: d reward / d x_t ``(n, *shape)``.
            lam: lambda at the time that is stepped to.
            noise: standard normal ``(n, *shape)``.

        Returns:
            ``x_s (n, *shape)`` and ``log p - log q`` of each row, float64 on the CPU ``(n,)``.
        """
        push = (self.scale * lam * law.std) * gradient.float()  # in standard deviations
        if self.largest is not None:
            norm = push.flatten(1).norm(dim=1) / math.sqrt(push[0].numel())
            factor = (self.largest / norm.clamp(min=1e-30)).clamp(max=1.0)
            push = push * factor.reshape(-1, *[1] * (push.ndim - 1))
        a, z = push.double().flatten(1), noise.double().flatten(1)
        correction = -(a * z).sum(1) - 0.5 * a.square().sum(1)
        return law.mean + law.std * (push + noise), correction.cpu()


def checked(gradient: Tensor | None, step: int) -> Tensor:
    """The gradient of a step's look.

    Raises:
        ValueError: it is not finite.
    """
    assert gradient is not None, "a look was asked for gradients and brought none"
    if not bool(torch.isfinite(gradient).all()):
        raise ValueError(
            f"the gradient of the reward is not finite at step {step}; compute in float32, or leave "
            "the gradient proposal out"
        )
    return gradient
