"""When to stop drawing: the expected gain of one more sample, from the rewards seen so far.

The gain is ``E[max(r_new - r_best, 0)]``, the expected improvement of Bayesian optimisation (Mockus
1975) with independent draws. That compute should follow the prompt is the point of adaptive best-of-N
(Manvi et al. 2024, 2410.02725), which trains a model to foresee the gain; here it is estimated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from scipy import stats
from torch import Tensor

Estimate = Literal["student", "normal", "tail"]
Unit = Literal["spread", "reward", "per_nfe"]


@dataclass(frozen=True)
class ExpectedGain:
    """Stop once one more sample is expected to gain too little.

    Attributes:
        threshold: the least gain that is worth a sample, in ``unit``.
        unit: ``"spread"``: standard deviations of the rewards so far; ``"reward"``: the reward's own
            unit; ``"per_nfe"``: reward a denoiser call.
        least: samples drawn whatever they show, at least 3.
        estimate: law of the next reward: ``"student"``, the posterior predictive of a Gaussian of
            unknown mean and variance; ``"normal"``, the Gaussian of the same mean and variance, which
            gains less where samples are few; ``"tail"``, a generalised Pareto tail beyond the upper
            quarter, for rewards that are no Gaussian (below 32 samples as ``"student"``).
    """

    threshold: float = 0.05
    unit: Unit = "spread"
    least: int = 4
    estimate: Estimate = "student"

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold must not be negative, got {self.threshold}")
        if self.least < 3:
            raise ValueError(f"least must be at least 3 samples, got {self.least}")
        for name, known in (("unit", get_args(Unit)), ("estimate", get_args(Estimate))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")

    def gain(self, rewards: Tensor, nfe: float) -> float:
        """Expected gain of one more sample, in :attr:`unit`.

        Args:
            rewards: so far, ``(n,)``; impossible ones (minus infinity) are drawn again with the
                frequency that was seen.
            nfe: denoiser calls that a sample costs.

        Returns:
            A number not below 0; infinity where fewer than three finite rewards are known.
        """
        known = rewards.double()[torch.isfinite(rewards)]
        if len(known) < 3:
            return math.inf
        spread = float(known.std())
        if not spread > 1e-12 * float(known.abs().max()):  # equal but for rounding
            return 0.0
        gain = len(known) / len(rewards) * _GAINS[self.estimate](known)
        if self.unit == "spread":
            return gain / spread
        return gain / nfe if self.unit == "per_nfe" else gain

    def __call__(self, rewards: Tensor, nfe: float) -> bool:
        """Whether to stop; arguments as in :meth:`gain`."""
        return len(rewards) >= self.least and self.gain(rewards, nfe) < self.threshold


def normal_gain(rewards: Tensor) -> float:
    """Expected gain over the best of ``(n,)`` if the next is Gaussian, with their mean and deviation."""
    mean, std = float(rewards.mean()), float(rewards.std())
    z = (float(rewards.max()) - mean) / std
    return float(std * (stats.norm.pdf(z) - z * stats.norm.sf(z)))


def student_gain(rewards: Tensor) -> float:
    """Expected gain over the best of ``(n,)``, n > 2, under the Gaussian's posterior predictive.

    With the usual flat prior on mean and log-deviation that is a Student t of n - 1 degrees of freedom
    with scale ``s sqrt(1 + 1/n)`` (Gelman et al., Bayesian Data Analysis, section 3.2).
    """
    n = len(rewards)
    scale = float(rewards.std()) * math.sqrt(1 + 1 / n)
    z = (float(rewards.max()) - float(rewards.mean())) / scale
    free = n - 1
    density, beyond = stats.t.pdf(z, free), stats.t.sf(z, free)
    return float(scale * ((free + z * z) / (free - 1) * density - z * beyond))


def tail_gain(rewards: Tensor, share: float = 0.25, fewest: int = 8) -> float:
    """Expected gain over the best of ``(n,)`` by the excesses over a high threshold.

    They are taken to follow a generalised Pareto law (Pickands 1975), fitted by probability-weighted
    moments (Hosking and Wallis 1987).

    Args:
        rewards: so far.
        share: of them that is the tail.
        fewest: excesses below which it is :func:`student_gain`.
    """
    ranked = torch.sort(rewards).values
    count = int(share * len(rewards))
    if count < fewest:
        return student_gain(rewards)
    level = float(ranked[-count - 1])
    excess = ranked[-count:] - level
    places = (torch.arange(count, dtype=torch.float64) + 0.65) / count
    first, second = float(excess.mean()), float(((1 - places) * excess).mean())
    if not first - 2 * second > 0:
        return student_gain(rewards)
    shape = min(2 - first / (first - 2 * second), 0.5)  # beyond it moments do not tell
    scale = (1 - shape) * first
    best = float(excess[-1])
    if abs(shape) < 1e-6:
        mean_excess = scale * math.exp(-best / scale)
    else:
        inside = max(1 + shape * best / scale, 0.0)
        mean_excess = scale / (1 - shape) * inside ** (1 - 1 / shape) if inside else 0.0
    return count / len(rewards) * mean_excess


_GAINS = {"student": student_gain, "normal": normal_gain, "tail": tail_gain}
