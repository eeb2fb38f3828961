"""Feynman-Kac potentials on intermediate rewards, in log space.

All of them apply ``exp(lambda r(x_0))`` in total: what was applied on the way is divided out at the
end, with the reward of the finished sample itself. Source: Singhal et al. 2025 (2501.06848).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PotentialName = Literal["difference", "max", "sum"]


@dataclass(frozen=True, eq=False)
class Potential:
    """Memory of one potential, a row a particle; indexing re-indexes after resampling.

    Attributes:
        name: ``"difference"``: G_t = exp lambda (r_t - r_before), which telescopes; ``"max"``:
            G_t = exp lambda max of the rewards so far; ``"sum"``: G_t = exp lambda sum of them.
        statistic: running maximum or sum of rewards, float64 ``(k,)``.
        applied: log of the product of all potentials so far, ``(k,)``.
    """

    name: PotentialName
    statistic: Tensor
    applied: Tensor

    @classmethod
    def start(cls, name: PotentialName, applied: Tensor) -> Potential:
        """Before the first reward; ``applied (k,)`` is what the initial noises were drawn by."""
        lowest = torch.full_like(applied, -torch.inf)
        return cls(name, lowest if name == "max" else torch.zeros_like(applied), applied)

    def __getitem__(self, rows: Tensor) -> Potential:
        return Potential(self.name, self.statistic[rows], self.applied[rows])

    def step(self, reward: Tensor, lam: float) -> tuple[Tensor, Potential]:
        """Log-potential of the next intermediate reward ``(k,)``, and the memory after it."""
        if self.name == "difference":
            log_g = _less(tilt(reward, lam), self.applied)
            return log_g, Potential(self.name, reward, tilt(reward, lam))
        statistic = (
            torch.maximum(self.statistic, reward) if self.name == "max" else self.statistic + reward
        )
        log_g = tilt(statistic, lam)
        return log_g, Potential(self.name, statistic, self.applied + log_g)

    def last(self, reward: Tensor, lam: float) -> Tensor:
        """Terminal correction ``(k,)``: lambda r(x_0) less all that was applied."""
        return _less(tilt(reward, lam), self.applied)


def tilt(reward: Tensor, lam: float) -> Tensor:
    """``lambda r``, where minus infinity (an impossible candidate) stays so for lambda 0, too.

    Raises:
        ValueError: the product overflows; it names lambda and the reward.
    """
    product = lam * reward
    if bool(torch.isfinite(product).all()):
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


def _less(target: Tensor, applied: Tensor) -> Tensor:
    """``target - applied``; a particle that already has weight zero stays there."""
    return torch.where(torch.isneginf(applied), torch.zeros_like(target), target - applied)
