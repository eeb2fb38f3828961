"""How lambda grows along the way: what share of the tilt applies to an intermediate reward.

Whatever the schedule, the finished sample counts with lambda itself and the weights make up the
difference, so every schedule has the same target. What differs is the noise: an intermediate reward
that says little of the final one should weigh little.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from samplers.cloud import Cloud
from steering.times import TimeGrid

TemperatureName = Literal["constant", "signal", "exponential", "adaptive", "auto"]


@dataclass(frozen=True, eq=False)
class Look:
    """What is known when rewards are looked at, before they weigh.

    Attributes:
        grid: the time grid.
        step: index in it of the states that were scored.
        lam: lambda of the target.
        cloud: the particles as they are; ``cloud.lam`` is lambda at the last look, 0 at the first, and
            ``cloud.memory`` what the schedule remembers.
        reward: intermediate rewards ``(k,)``.
        spread: standard deviation of the reward over base samples; None where it was not measured.
    """

    grid: TimeGrid
    step: int
    lam: float
    cloud: Cloud
    reward: Tensor
    spread: float | None = None

    @property
    def signal(self) -> float:
        """``alpha^2 / (alpha^2 + sigma^2)``, the alpha-bar of a VP path."""
        t = self.grid[self.step]
        return t.alpha**2 / (t.alpha**2 + t.sigma**2)


class Temperature(ABC):
    """A schedule of lambda. Thin: options are its fields."""

    #: known before any reward is, so that the estimate of the normalising constant is unbiased
    fixed: bool = True

    def remember(self, look: Look) -> Any:
        """What to remember of a look, beside what ``look.cloud.memory`` holds; asked before lambda."""
        return None

    @abstractmethod
    def __call__(self, look: Look) -> float:
        """Lambda that applies at a look; ``look.cloud.memory`` already knows of it."""


@dataclass(frozen=True)
class Constant(Temperature):
    """Lambda throughout: the untempered potentials of Feynman-Kac steering (2501.06848)."""

    def __call__(self, look: Look) -> float:
        return look.lam


@dataclass(frozen=True)
class Signal(Temperature):
    """``lambda (alpha^2 / (alpha^2 + sigma^2)) ** power``: linear in alpha-bar on a VP path.

    Attributes:
        power: above 0; larger ones wait longer.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise ValueError(f"power must be positive, got {self.power}")

    def __call__(self, look: Look) -> float:
        return look.lam * look.signal**self.power


@dataclass(frozen=True)
class Exponential(Temperature):
    """``lambda min((1 + rate)^i - 1, 1)``, ``i`` in hundredths of the grid.

    Kim et al. 2025 (DAS, 2501.05803), whose chains have 100 steps; Zhang et al. 2025 (BFS, 2505.23614)
    raise the tilt the same way.

    Attributes:
        rate: above 0; .008 reaches lambda after 87 hundredths.
    """

    rate: float = 0.008

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"rate must be positive, got {self.rate}")

    def __call__(self, look: Look) -> float:
        return look.lam * min((1 + self.rate) ** (100 * look.step / look.grid.steps) - 1, 1.0)


@dataclass(frozen=True)
class Adaptive(Temperature):
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
            return cloud.weights.times(log_g, may_die=True).ess >= least  # the look refuses them

        if kept(look.lam):
            return look.lam
        low, high = cloud.lam, look.lam
        for _ in range(30):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if kept(middle) else (low, middle)
        return low


@dataclass(frozen=True)
class Auto(Temperature):
    """Lambda damped early by how strong the tilt is, as the soft value of a Gaussian would be.

    ``lambda_t = lambda / (1 + a (1 - rho^2))`` with ``rho^2 = 2 A / (1 + A)``, ``A`` the share of signal
    alpha^2 / (alpha^2 + sigma^2). For a quadratic reward on Gaussian data the soft value is the reward
    of the predicted x_0 damped by the curvature times the variance that is left, which rho measures.
    How much is left to damp goes by the strength S = lambda x spread of the reward over base samples:
    ``a = max(floor, damping (S / 1.4)^p - 1)``, p = min(1, sqrt(k) / 8): on Gaussian mixtures the slope
    of the soft value on lambda r is close to 1.4 / S at high noise, for tilts from weak to very strong.
    Few particles need a stronger early tilt than that (p < 1): their self-normalised weights are biased
    towards the base law. Where the spread was not measured it is estimated in the run, from the spread
    of the particles' rewards early on divided by that of their predictions.

    The constants were fitted on the four problems in the plane, with seeds apart from those reported
    (see docs/samplers/auto.md). This schedule is this package's own.

    Attributes:
        damping: above 0; 1 follows the Gaussian formula.
        floor: least ``a``, in (-1, 0]; below 0 a weak tilt is applied early more than in full.
        until: the in-run estimate uses looks whose predictions have less than this share of the
            variance of x_0.
    """

    damping: float = 0.65
    floor: float = -0.35
    until: float = 0.25
    fixed = False

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ValueError(f"damping must be positive, got {self.damping}")
        if not -1 < self.floor <= 0:
            raise ValueError(f"floor must lie in (-1, 0], got {self.floor}")

    def remember(self, look: Look) -> Any:
        """Sum and number of the in-run estimates of S^2 so far."""
        total, count = look.cloud.memory or (0.0, 0)
        possible = torch.isfinite(look.reward)  # an impossible candidate says nothing of the spread
        if look.spread is not None or int(possible.sum()) < 2:
            return total, count
        clear = _clarity(look)
        if clear < self.until or not count:
            w = look.cloud.weights.normalised * possible
            w, r = w / w.sum().clamp(min=1e-300), torch.where(possible, look.reward, 0.0)
            variance = float(w @ (r - w @ r).square()) * len(w) / (len(w) - 1)
            total, count = total + look.lam**2 * variance / clear, count + 1
        return total, count

    def strength(self, look: Look) -> float:
        """S, measured or estimated."""
        if look.spread is not None:
            return abs(look.lam) * look.spread
        total, count = look.cloud.memory or (0.0, 0)
        return math.sqrt(total / count) if count else 0.0

    def __call__(self, look: Look) -> float:
        p = min(1.0, math.sqrt(len(look.cloud)) / 8)
        a = max(self.floor, self.damping * (self.strength(look) / 1.4) ** p - 1)
        return look.lam / (1 + a * (1 - 2 * look.signal / (1 + look.signal)))


def _clarity(look: Look) -> float:
    """Share of the variance of x_0 that the predictions of the particles show, in (0, 1].

    The variance v of x_0 is not known before the end; for Gaussian data the predictions have
    ``V = v^2 A / (v A + 1 - A)``, which is solved for v.
    """
    x_0, w = look.cloud.known.x_0.double().flatten(1), look.cloud.weights.normalised
    w = w.to(x_0.device)
    shown = float((w @ (x_0 - w @ x_0).square()).mean()) * len(w) / (len(w) - 1)
    a = max(look.signal, 1e-12)
    whole = (shown * a + math.sqrt((shown * a) ** 2 + 4 * a * shown * (1 - a))) / (2 * a)
    return min(max(shown / max(whole, 1e-12), 1e-12), 1.0)


TEMPERATURES: dict[str, Temperature] = {
    "constant": Constant(),
    "signal": Signal(),
    "exponential": Exponential(),
    "adaptive": Adaptive(),
    "auto": Auto(),
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
