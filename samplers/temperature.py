"""How lambda grows along the way: what share of the tilt applies to an intermediate reward.

Whatever the schedule, the finished sample counts with lambda itself and the weights make up the
difference, so every schedule has the same target. What differs is the noise: an intermediate reward
that says little of the final one should weigh little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from samplers.cloud import Cloud
from steering.times import TimeGrid

TemperatureName = Literal["constant", "signal", "exponential", "adaptive"]


@dataclass(frozen=True, eq=False)
class Look:
    """What is known when rewards are looked at, before they weigh.

    Attributes:
        grid: the time grid.
        step: index in it of the states that were scored.
        lam: lambda of the target.
        cloud: the particles as they are; ``cloud.lam`` is lambda at the last look, 0 at the first.
        reward: intermediate rewards ``(k,)``.
    """

    grid: TimeGrid
    step: int
    lam: float
    cloud: Cloud
    reward: Tensor


class Temperature(Protocol):
    """A schedule of lambda."""

    #: known before any reward is, so that the estimate of the normalising constant is unbiased
    fixed: bool

    def __call__(self, look: Look) -> float:
        """Lambda that applies at a look, between 0 and ``look.lam``."""


@dataclass(frozen=True)
class Constant:
    """Lambda throughout: the untempered potentials of Feynman-Kac steering (2501.06848)."""

    fixed = True

    def __call__(self, look: Look) -> float:
        return look.lam


@dataclass(frozen=True)
class Signal:
    """``lambda (alpha^2 / (alpha^2 + sigma^2)) ** power``: linear in alpha-bar on a VP path.

    Attributes:
        power: above 0; larger ones wait longer.
    """

    power: float = 1.0
    fixed = True

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise ValueError(f"power must be positive, got {self.power}")

    def __call__(self, look: Look) -> float:
        t = look.grid[look.step]
        return look.lam * (t.alpha**2 / (t.alpha**2 + t.sigma**2)) ** self.power


@dataclass(frozen=True)
class Exponential:
    """``lambda min((1 + rate)^i - 1, 1)``, ``i`` in hundredths of the grid.

    Kim et al. 2025 (DAS, 2501.05803), whose chains have 100 steps; Zhang et al. 2025 (BFS, 2505.23614)
    raise the tilt the same way.

    Attributes:
        rate: above 0; .008 reaches lambda after 87 hundredths.
    """

    rate: float = 0.008
    fixed = True

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"rate must be positive, got {self.rate}")

    def __call__(self, look: Look) -> float:
        return look.lam * min((1 + self.rate) ** (100 * look.step / look.grid.steps) - 1, 1.0)


@dataclass(frozen=True)
class Adaptive:
    """The largest lambda, not below the last one, that keeps a share of the effective sample size.

    Solved anew at each look (Kim et al. 2025, 2501.05803, call it adaptive tempering). The schedule
    depends on the particles, so the normalising constant is biased by O(1 / k).

    Attributes:
        ess: share of the present effective sample size to keep, in (0, 1).
    """

    ess: float = 0.9
    fixed = False

    def __post_init__(self) -> None:
        if not 0 < self.ess < 1:
            raise ValueError(f"ess must lie in (0, 1), got {self.ess}")

    def __call__(self, look: Look) -> float:
        cloud = look.cloud
        if look.lam == 0 or len(cloud) == 1:
            return look.lam
        least = self.ess * cloud.weights.ess

        def kept(lam: float) -> bool:
            log_g, _ = cloud.potential.step(look.reward, lam)
            return cloud.weights.times(log_g).ess >= least

        if kept(look.lam):
            return look.lam
        low, high = cloud.lam, look.lam
        for _ in range(30):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if kept(middle) else (low, middle)
        return low


TEMPERATURES: dict[str, Temperature] = {
    "constant": Constant(),
    "signal": Signal(),
    "exponential": Exponential(),
    "adaptive": Adaptive(),
}


def temperature_of(choice: Temperature | str) -> Temperature:
    """A schedule itself, or the one of that name with its defaults.

    Raises:
        ValueError: an unknown name.
    """
    if not isinstance(choice, str):
        return choice
    if choice not in TEMPERATURES:
        raise ValueError(f"temperature must be one of {tuple(TEMPERATURES)}, got {choice!r}")
    return TEMPERATURES[choice]
