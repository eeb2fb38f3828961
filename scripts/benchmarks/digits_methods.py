"""Searches of the comparison on real digits, by name, and how each one's samples are weighed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

import samplers
from samplers import DAS, SMC, TDS, AutoSMC, BestOfN, BootstrapSMC, TemperedSMC
from steering.search import BudgetTooSmall, Search
from steering.transitions import DDIM

#: Where trees branch and the particle search looks, in shares of the way: pure noise, and four more
#: (Jain et al. 2025, 2506.20701: 50, 40, 30, 20 and 10 of 50 steps left, for trees and SMC alike).
BRANCHINGS = (0.0, 0.2, 0.4, 0.6, 0.8)
IN_FLIGHT = 512
#: Fields by which a tree search may bound itself: the budget is to be the only bound.
_BOUNDS = ("rollouts", "nfe")
_TURNS = 32  # of a tree search, were all its roll-outs whole: more would leave calls half empty

Weigh = Callable[[Tensor, Tensor], Tensor]


class NotThere(LookupError):
    """A search that this version of the package does not have."""


def trajectories(nfe: int, steps: int) -> int:
    """Whole trajectories that the budget pays for.

    Raises:
        BudgetTooSmall: not one.
    """
    if nfe < steps:
        raise BudgetTooSmall(f"{nfe} denoiser calls pay for no trajectory of {steps} steps")
    return nfe // steps


def looks(steps: int) -> list[int]:
    """Steps of the grid at :data:`BRANCHINGS`."""
    return sorted({round(share * steps) for share in BRANCHINGS})


def _independent(nfe: int, steps: int) -> Search:
    n = trajectories(nfe, steps)
    return BestOfN(n, solver=DDIM(1.0), in_flight=min(n, IN_FLIGHT), returns="all")


def _smc(nfe: int, steps: int) -> Search:
    return BootstrapSMC(trajectories(nfe, steps), steps=tuple(looks(steps)), returns="all")


def _particles(kind: type[SMC]) -> Callable[[int, int], Search]:
    return lambda nfe, steps: kind(trajectories(nfe, steps), returns="all")


def _tree(**settings: Any) -> Callable[[int, int], Search]:
    """Diffusion tree sampling with its own defaults and these; the budget alone ends it.

    What is made raises :class:`NotThere` where the package has no ``samplers.DTS`` with such options.
    """

    def make(nfe: int, steps: int) -> Search:
        kind: Any = getattr(samplers, "DTS", None)
        if kind is None:
            raise NotThere("this version of the package has no samplers.DTS")
        known = {f.name for f in fields(kind)}
        if not known >= settings.keys():
            raise NotThere(f"samplers.DTS has no options {sorted(settings.keys() - known)}")
        options = dict.fromkeys(known.intersection(_BOUNDS), nfe) | settings
        if "in_flight" in known:
            options["in_flight"] = max(8, trajectories(nfe, steps) // _TURNS)
        return kind(returns="all", **options)

    return make


#: Searches by name, made for a number of denoiser calls on a grid of so many steps. All walk by DDIM(1).
SEARCHES: dict[str, Callable[[int, int], Search]] = {
    "independent": _independent,
    "smc": _smc,
    "smc-every": _particles(BootstrapSMC),
    "tempered": _particles(TemperedSMC),
    "auto": _particles(AutoSMC),
    "tds": _particles(TDS),
    "das": _particles(DAS),
    "dts": _tree(),
    "dts-published": _tree(weights="count", widening=2.0),
}


def even(log_w: Tensor, rewards: Tensor) -> Tensor:
    """Every sample counts the same."""
    return torch.full_like(rewards, 1 / len(rewards))


def own(log_w: Tensor, rewards: Tensor) -> Tensor:
    """The search's own weights."""
    return torch.softmax(log_w, 0)


def tilted(log_w: Tensor, rewards: Tensor) -> Tensor:
    """Importance weights of unsteered samples."""
    return torch.softmax(log_w + rewards, 0)


def best_of(group: int) -> Weigh:
    """The best of each whole group of consecutive samples; of all, where they are fewer."""

    def weigh(log_w: Tensor, rewards: Tensor) -> Tensor:
        size = min(group, len(rewards))
        groups = rewards[: len(rewards) // size * size].view(-1, size)
        winners = groups.argmax(1) + size * torch.arange(len(groups))
        weights = torch.zeros_like(rewards)
        weights[winners] = 1 / len(groups)
        return weights

    return weigh


@dataclass(frozen=True)
class Method:
    """A search, and what its samples count.

    Attributes:
        search: of :data:`SEARCHES`; methods of one search share its runs.
        weigh: from log-weights and rewards, each float64 ``(n,)``, to weights that sum to 1.
        conditional: whether the model is told the digit, which leaves nothing to steer.
    """

    search: str
    weigh: Weigh = own
    conditional: bool = False


_NAMED = {
    "base": Method("independent", even),
    "conditional": Method("independent", even, conditional=True),
    "weighted": Method("independent", tilted),
    **{name: Method(name) for name in SEARCHES if name != "independent"},
}
#: What is compared if nothing else is asked for; those of one search share its cost.
DEFAULT = ["base", "conditional", "weighted", "best-of-4", "best-of-16", "best-of-64"]
DEFAULT += ["smc", "auto", "das", "tds", "dts", "dts-published"]


def method(name: str) -> Method:
    """A method by name; ``best-of-G`` keeps the best of each G samples.

    Raises:
        ValueError: an unknown name.
    """
    if name in _NAMED:
        return _NAMED[name]
    head, _, group = name.rpartition("-")
    if head == "best-of" and group.isdigit() and int(group) > 0:
        return Method("independent", best_of(int(group)))
    raise ValueError(f"unknown sampler {name!r}; known are {', '.join(_NAMED)} and best-of-G")
