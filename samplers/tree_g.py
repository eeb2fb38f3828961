"""TreeG: a few active samples branch at every step, and the best of all branches stay."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from samplers.initial import at_least_one
from samplers.segments import repeated
from steering.cost import Cost
from steering.model import Stage
from steering.moves import move
from steering.paths import SamplingPath
from steering.prediction import Posterior
from steering.requests import Denoise, Request, Score
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.times import Time
from steering.transfer import to_device
from steering.transitions import DDIM, Transition


@dataclass(frozen=True)
class TreeG(Search):
    """Branch and select, TreeG (Guo et al. 2025, 2502.11420), without gradients.

    In the space of x_t each active sample draws branches one transition on, each branch is denoised
    and the reward of its prediction decides; what was predicted serves the next step. In the space of
    x_0 the branches are perturbed predictions, scored as they are, so that only the active samples are
    denoised. Greedy: it claims no law.

    Attributes:
        active: samples kept after every step.
        branches: branches of each.
        space: ``"x_t"`` or ``"x_0"``.
        spread: standard deviation of perturbed predictions, over the standard deviation of what the
            noise level leaves open, sigma / sqrt(alpha^2 + sigma^2); only in the space of x_0. One
            branch of each sample is its prediction itself.
        transition: how states move, ``"ddim"`` is DDIM(1.0); it must draw noise.
        path: interpolant to sample along; None is the pipeline's own grid.
        returns: the ``"best"`` finished sample, or ``"all"`` active ones, best first.
    """

    active: int = 2
    branches: int = 4
    space: Literal["x_t", "x_0"] = "x_t"
    spread: float = 0.3
    transition: Transition | Literal["ddim"] = "ddim"
    path: SamplingPath | None = None
    returns: Literal["best", "all"] = "best"

    def __post_init__(self) -> None:
        at_least_one(self, "active", "branches")
        for name, known in (("space", ("x_t", "x_0")), ("returns", ("best", "all"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if not self.spread > 0:
            raise ValueError(f"spread must be positive, got {self.spread}")
        if not self._transition.stochastic:
            raise ValueError(
                f"TreeG branches by noise, but {self._transition} is deterministic: all branches of a "
                "sample would be the same; use a transition with noise, such as DDIM(1.0)"
            )

    @property
    def _transition(self) -> Transition:
        return DDIM(1.0) if isinstance(self.transition, str) else self.transition

    @property
    def needs(self) -> Needs:
        """A noisy transition."""
        return Needs(stochastic=True)

    def plan(self, facts: Facts) -> Plan:
        """As many active samples as fit, and one with fewer branches where not even one does."""
        tries = [(a, self.branches) for a in range(self.active, 0, -1)]
        tries += [(1, b) for b in range(self.branches - 1, 0, -1)]
        minimum = self._cost(facts, 1, 1)
        for active, branches in tries:
            cost = self._cost(facts, active, branches)
            if facts.budget.exceeded_by(cost) is None:
                settings = {"active": active, "branches": branches}
                return Plan(cost, minimum, active * branches, settings=settings)
        raise BudgetTooSmall(
            f"one sample without branches costs {minimum}, more than the budget {facts.budget} allows"
        )

    def _cost(self, facts: Facts, active: int, branches: int) -> Cost:
        inner, rows = self._transition.inner_calls, active * branches
        looked = Cost(decodes=1, reward_calls=facts.calls_per_row)
        if self.space == "x_0":
            nfe = Cost(nfe=active * facts.steps * (1 + inner))
            return nfe + rows * facts.steps * looked + active * looked
        nfe = Cost(nfe=active + rows * (facts.steps * (1 + inner) - 1))
        return nfe + rows * facts.steps * looked

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Branch and select at every step."""
        settings = self.plan(problem.facts).settings
        active, branches = settings["active"], settings["branches"]
        problem.trace.record(**settings)
        x_t = problem.initial(range(active))
        parents = torch.arange(active).repeat_interleave(branches)
        known: Posterior | None = None
        kept = torch.arange(active)  # of what is known, the rows that go on
        for i in range(problem.grid.steps):
            t, s = problem.grid[i], problem.grid[i + 1]
            if known is None:
                known = yield Denoise(x_t, t)
            if self.space == "x_0":
                known = yield from self._perturbed(problem, x_t, known, i, parents)
                rows = torch.arange(active)
            else:
                rows = kept[parents]
            draws = range(len(rows))
            noise = problem.later("transition", draws, i)
            x_t = yield from move(problem, self._transition, x_t, known, t, s, noise, rows=rows)
            known = None
            if self.space == "x_t" and i + 1 < problem.grid.steps:
                known = yield Denoise(x_t, s)
                scores = yield Score(known.x_0)
                kept = _best(scores.total, active)
                problem.trace.record(step=i, reward=scores.total, ancestors=parents[kept])
        scores = yield Score(x_t, Stage.FINAL)
        order = torch.argsort(scores.total, descending=True, stable=True).tolist()
        chosen = order[:active] if self.returns == "all" else order[:1]
        problem.trace.record(reward=scores.total, chosen=chosen)
        return Outcome(x_t, scores, torch.zeros(len(x_t), dtype=torch.float64), chosen)

    def _perturbed(
        self, problem: Problem, x_t: Tensor, known: Posterior, i: int, parents: Tensor
    ) -> Generator[Request, Any, Posterior]:
        """The best of perturbed predictions: as many as there are active samples, one of each."""
        t, active = problem.grid[i], len(x_t)
        branches = len(parents) // active
        std = self.spread * t.sigma / (t.alpha**2 + t.sigma**2) ** 0.5
        noise = std * problem.noise("proposal", range(len(parents)), i)
        noise[::branches] = 0.0
        guesses = repeated(known, parents).x_0 + noise
        scores = yield Score(guesses)
        best = scores.total.reshape(active, branches).argmax(1)
        rows = torch.arange(active) * branches + best
        problem.trace.record(step=i, reward=scores.total, ancestors=rows)
        x_0 = guesses[to_device(rows, guesses.device)]
        return Posterior(x_0, known.eps if _unchanged(t) else (x_t - t.alpha * x_0) / t.sigma)


def _unchanged(t: Time) -> bool:
    return t.sigma == 0


def _best(rewards: Tensor, count: int) -> Tensor:
    return torch.argsort(rewards, descending=True, stable=True)[:count]
