"""Depth-first search: one sample, which goes back to more noise where it does not promise enough."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from samplers.initial import at_least_one
from samplers.segments import noised
from steering.cost import Budget, Cost
from steering.model import Stage
from steering.moves import move
from steering.paths import SamplingPath
from steering.requests import Denoise, Request, Score, Scores
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.transitions import DDIM, Transition

Run = Generator[Request, Any, Any]


@dataclass
class _Chain:
    """One sample on its way.

    Attributes:
        x_t: its state ``(1, *shape)``.
        draw: draw id of its noise; a new one after each return.
        index: of the grid, where it is.
        spent: what it has cost.
        seen: number of its last look among all; -1 before the first.
    """

    x_t: Tensor
    draw: int
    index: int = 0
    spent: Cost = field(default_factory=Cost)
    seen: int = -1


@dataclass(frozen=True)
class DepthFirst(Search):
    """Depth-first search with thresholds (2505.23614): look, go on, or go back and try again.

    Where the reward of the predicted x_0 is not above the threshold of that noise level, fresh noise
    takes the sample back by ``back`` of the grid and it is denoised again from there; so with finished
    samples, of which one above its threshold ends the chain. Where no thresholds are given nothing says
    that a finished sample is good enough: chains then go on until the calls are spent. Going back is
    only allowed if what is left still finishes the sample. The best finished sample of all is returned.
    Greedy: it claims no law.

    Attributes:
        nfe: denoiser calls over all chains, at most.
        chains: independent samples, carried at once, which share the calls.
        looks: where predictions are scored, as what is left of the grid, in (0, 1).
        thresholds: one a look, then one for finished samples, in units of the reward; None: at a look
            the running quantile of the rewards seen there, for finished samples one that none meets.
        quantile: which one.
        back: how far a sample goes back, as a share of the grid.
        transition: how states move, ``"ddim"`` is DDIM(1.0).
        path: interpolant to sample along; None is the pipeline's own grid.
        returns: the ``"best"`` finished sample, or ``"all"``, best first.
    """

    nfe: int = 400
    chains: int = 2
    looks: tuple[float, ...] = (0.6, 0.4, 0.2)
    thresholds: tuple[float, ...] | None = None
    quantile: float = 0.5
    back: float = 0.3
    transition: Transition | Literal["ddim"] = "ddim"
    path: SamplingPath | None = None
    returns: Literal["best", "all"] = "best"

    def __post_init__(self) -> None:
        at_least_one(self, "nfe", "chains")
        if self.returns not in ("best", "all"):
            raise ValueError(f"returns must be 'best' or 'all', got {self.returns!r}")
        if not all(0 < f < 1 for f in self.looks) or sorted(self.looks)[::-1] != list(self.looks):
            raise ValueError(
                f"looks must be shares of the grid that are left, falling, in (0, 1), got {self.looks}"
            )
        if self.thresholds is not None and len(self.thresholds) != len(self.looks) + 1:
            raise ValueError(
                f"thresholds must be one a look and one for finished samples, {len(self.looks) + 1} "
                f"in all, got {len(self.thresholds)}"
            )
        for name in ("quantile", "back"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in (0, 1), got {getattr(self, name)}")

    @property
    def _transition(self) -> Transition:
        return DDIM(1.0) if isinstance(self.transition, str) else self.transition

    @property
    def needs(self) -> Needs:
        """Times per row and in any order; rewards that do not depend on the set."""
        return Needs(time_per_row=self.chains > 1, any_order=True, density=True)

    def _at(self, steps: int) -> dict[int, int]:
        """Number of the look at each index of the grid that has one; the end is the last."""
        found = {min(round((1 - f) * steps), steps - 1): j for j, f in enumerate(self.looks)}
        return found | {steps: len(self.looks)}

    def _finish(self, facts: Facts, index: int) -> Cost:
        """Of the way from an index to a finished, scored sample."""
        looked = sum(index <= i for i in self._at(facts.steps))
        nfe = (facts.steps - index) * (1 + self._transition.inner_calls)
        return Cost(nfe=nfe, decodes=looked, reward_calls=looked * facts.calls_per_row)

    def _share(self, facts: Facts, chains: int) -> Budget:
        """The budget of each chain."""
        nfe = self.nfe if facts.budget.nfe is None else min(self.nfe, facts.budget.nfe)
        budget = replace(facts.budget, nfe=nfe, seconds=None)
        names = ("nfe", "decodes", "reward_calls")
        shares = {n: getattr(budget, n) for n in names if getattr(budget, n) is not None}
        return replace(budget, **{n: max(v // chains, 1) for n, v in shares.items()})

    def plan(self, facts: Facts) -> Plan:
        """At most its calls, and fewer chains where they would not all finish.

        Raises:
            BudgetTooSmall: one sample cannot be finished.
        """
        one = self._finish(facts, 0)
        for chains in range(self.chains, 0, -1):
            share = self._share(facts, chains)
            if share.exceeded_by(one) is None:
                assert share.nfe is not None
                most = 2 * share.nfe  # a look and an end a call
                looked = min([most, *(v for v in (share.decodes,) if v is not None)])
                calls = [looked * facts.calls_per_row]
                calls += [v for v in (share.reward_calls,) if v is not None]
                cost = Cost(nfe=share.nfe, decodes=looked, reward_calls=min(calls))
                return Plan(chains * cost, one, chains, exact=False, settings={"chains": chains})
        raise BudgetTooSmall(
            f"one sample costs {one}, more than nfe={self.nfe} and the budget {facts.budget} allow"
        )

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Step all chains, look where it is due, and send back what does not promise enough."""
        count = self.plan(problem.facts).settings["chains"]
        share, serial = self._share(problem.facts, count), itertools.count(count)
        problem.trace.record(chains=count)
        start = problem.initial(range(count))
        live, looks = [_Chain(start[j : j + 1], j) for j in range(count)], itertools.count()
        seen: list[list[float]] = [[] for _ in range(len(self.looks) + 1)]
        finished: list[tuple[Tensor, Scores]] = []
        while live:
            x_t = torch.cat([c.x_t for c in live])
            said = yield Denoise(x_t, [problem.grid[c.index] for c in live])
            at = self._at(problem.grid.steps)
            for c in live:
                c.spent += Cost(nfe=1)
            due = [j for j, c in enumerate(live) if c.index in at]
            values = {}
            if due:
                scores = yield Score(said.x_0[due])
                values = dict(zip(due, scores.total.tolist(), strict=True))
                _looked(problem, [live[j] for j in due], scores, looks)
            for j, c in enumerate(live):
                if j in values and self._back(problem, c, at, values[j], seen, share, serial):
                    continue
                t, s = problem.grid[c.index], problem.grid[c.index + 1]
                noise = problem.later("transition", [c.draw], c.index)
                c.x_t = yield from move(
                    problem, self._transition, c.x_t, said[j : j + 1], t, s, noise
                )
                c.spent += Cost(nfe=self._transition.inner_calls)
                c.index += 1
            live = yield from self._ended(problem, live, at, seen, share, serial, finished, looks)
        return self._outcome(problem, finished)

    def _back(
        self, problem: Problem, c: _Chain, at: dict[int, int], value: float,
        seen: list[list[float]], share: Budget, serial: Iterator[int],
    ) -> bool:  # fmt: skip
        """Send a chain back if its value is not above the threshold and the calls allow it."""
        look, facts = at[c.index], problem.facts
        c.spent += Cost(decodes=1, reward_calls=facts.calls_per_row)
        delta = self._threshold(look, seen[look])
        seen[look].append(value)
        if value > delta:
            return False
        steps = max(round(self.back * facts.steps), 1)
        target = max(c.index - steps, 0)
        if share.exceeded_by(c.spent + self._finish(facts, target)) is not None:
            return False
        late = Cost(seconds=problem.seconds_for(self._finish(facts, target).nfe))
        if not problem.affords(late):
            return False
        draw = next(serial)
        noise = problem.noise("proposal", [draw], 0)
        problem.trace.record(event="back", start=c.index, to=target, reward=value)
        c.x_t, c.draw = noised(problem, c.x_t, c.index, target, noise), draw
        c.index = target
        return True

    def _threshold(self, look: int, seen: list[float]) -> float:
        if self.thresholds is not None:
            return self.thresholds[look]
        if look == len(self.looks):  # finished
            return math.inf
        possible = torch.tensor([v for v in seen if math.isfinite(v)], dtype=torch.float64)
        return float(possible.quantile(self.quantile)) if len(possible) else -math.inf

    def _ended(
        self, problem: Problem, live: list[_Chain], at: dict[int, int], seen: list[list[float]],
        share: Budget, serial: Iterator[int], finished: list[tuple[Tensor, Scores]],
        looks: Iterator[int],
    ) -> Run:  # fmt: skip
        """Score what has come to the end; the chains that go on, those sent back included."""
        ended = [c for c in live if c.index == problem.grid.steps]
        if not ended:
            return live
        scores = yield Score(torch.cat([c.x_t for c in ended]), Stage.FINAL)
        _looked(problem, ended, scores, looks)
        gone = []
        for j, c in enumerate(ended):
            finished.append((c.x_t, scores[j : j + 1]))
            value = float(scores.total[j])
            if not self._back(problem, c, at, value, seen, share, serial):
                gone.append(id(c))
        return [c for c in live if id(c) not in gone]

    def _outcome(self, problem: Problem, finished: list[tuple[Tensor, Scores]]) -> Outcome:
        x_0 = torch.cat([x for x, _ in finished])
        names = finished[0][1].columns
        columns = {n: torch.cat([s.columns[n] for _, s in finished]) for n in names}
        total = torch.cat([s.total for _, s in finished])
        order = torch.argsort(total, descending=True, stable=True).tolist()
        chosen = order if self.returns == "all" else order[:1]
        problem.trace.record(finished=len(x_0), chosen=chosen)
        return Outcome(
            x_0, Scores(total, columns), torch.zeros(len(x_0), dtype=torch.float64), chosen
        )


def _looked(
    problem: Problem, chains: Sequence[_Chain], scores: Scores, looks: Iterator[int]
) -> None:
    """Record a look at some chains, which may be at different steps of the grid."""
    steps = sorted({c.index for c in chains})
    nodes = [next(looks) for _ in chains]
    problem.trace.record(
        step=steps[0] if len(steps) == 1 else None,
        reward=scores.total,
        nodes=nodes,
        parents=[c.seen for c in chains],
    )
    for c, node in zip(chains, nodes, strict=True):
        c.seen = node
