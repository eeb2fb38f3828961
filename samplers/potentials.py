"""Feynman-Kac potentials on intermediate rewards, in log space.

All of them apply ``exp(lambda r(x_0))`` in total: what was applied on the way is divided out at the
end, with the reward of the finished sample itself. Source: Singhal et al. 2025 (2501.06848).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steering.search import Problem

PotentialName = Literal["difference", "max", "sum", "smooth"]


@dataclass(frozen=True, eq=False)
class Potential:
    """Memory of one potential, a row a particle; indexing re-indexes after resampling.

    Attributes:
        name: ``"difference"``: G_t = exp lambda (r_t - r_before), which telescopes; ``"max"``:
            G_t = exp lambda max of the rewards so far; ``"sum"``: G_t = exp lambda sum of them;
            ``"smooth"``: differences of a running average of the rewards along the lineage.
        statistic: last reward, running maximum, sum or average, float64 ``(k,)``; NaN before any.
        applied: log of the product of all potentials so far, ``(k,)``.
    """

    name: PotentialName
    statistic: Tensor
    applied: Tensor

    @classmethod
    def start(cls, name: PotentialName, applied: Tensor) -> Potential:
        """Before the first reward; ``applied (k,)`` is what the initial noises were drawn by."""
        return cls(name, torch.full_like(applied, torch.nan), applied)

    def __getitem__(self, rows: Tensor) -> Potential:
        return Potential(self.name, self.statistic[rows], self.applied[rows])

    def step(self, reward: Tensor, lam: float, keep: float = 0.0) -> tuple[Tensor, Potential]:
        """Log-potential of the next intermediate reward ``(k,)``, and the memory after it.

        Args:
            reward: of each particle.
            lam: lambda that applies.
            keep: share of the running average that a ``"smooth"`` potential keeps.
        """
        statistic = self._after(reward, keep)
        if self.name in ("difference", "smooth"):
            target = tilt(statistic, lam)
            return _less(target, self.applied), Potential(self.name, statistic, target)
        log_g = tilt(statistic, lam)
        return log_g, Potential(self.name, statistic, self.applied + log_g)

    def _after(self, reward: Tensor, keep: float) -> Tensor:
        """The statistic with one more reward."""
        if self.name == "difference" or (self.name == "smooth" and keep == 0):
            return reward
        first = torch.isnan(self.statistic)
        before = torch.where(first, reward, self.statistic)
        if self.name == "max":
            return torch.maximum(before, reward)
        if self.name == "sum":
            return torch.where(first, reward, before + reward)
        return torch.where(first, reward, keep * before + (1 - keep) * reward)

    def last(self, reward: Tensor, lam: float) -> Tensor:
        """Terminal correction ``(k,)``: lambda r(x_0) less all that was applied."""
        return _less(tilt(reward, lam), self.applied)


def spread_of(rewards: Tensor) -> float:
    """Standard deviation of the possible rewards among ``(n,)``; 0 where fewer than two are possible."""
    possible = rewards[torch.isfinite(rewards)]
    return float(possible.std()) if len(possible) > 1 else 0.0


def tilt(reward: Tensor, lam: float) -> Tensor:
    """``lambda r``, where minus infinity (an impossible candidate) stays so for lambda 0, too.

    Raises:
        ValueError: the product overflows; it names lambda and the reward.
    """
    product = lam * reward
    if math.isfinite(float(product.sum())):  # one that is not makes the sum so
        return product
    impossible = torch.isneginf(reward)
    product = torch.where(impossible, reward, product)
    if bool((torch.isinf(product) & ~impossible).any()):
        largest = float(reward[~impossible].abs().max())
        raise ValueError(
            f"the potential overflows: lambda {lam:.3g} times a reward of {largest:.3g}; lower the "
            "strength, or give the reward a sensible unit"
        )
    return product


def warn_if_unsteered(problem: Problem) -> None:
    """Say that lambda 0 follows no reward, which the user may not have meant."""
    if problem.lam == 0:
        problem.trace.record(event="lambda is 0")
        warnings.warn(
            "lambda is 0: every particle weighs the same and nothing is steered; raise the strength",
            stacklevel=3,
        )


def _less(target: Tensor, applied: Tensor) -> Tensor:
    """``target - applied``; a particle that already has weight zero stays there."""
    return torch.where(torch.isneginf(applied), torch.zeros_like(target), target - applied)
