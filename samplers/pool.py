"""All candidates that a search has seen, comparable by total or by mean rank, the best of them kept."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from steering.cost import Cost
from steering.model import Stage
from steering.requests import Request, Rollout, Score, Scores
from steering.search import Facts, Outcome, Problem
from steering.transitions import Transition

Solver = Transition | Literal["scheduler"]


def values(scores: Scores) -> Tensor:
    """What candidates are compared by, float64 ``(n,)``, higher is better.

    The total; or, where the reward asks for ranks, the mean over its columns of the share of the others
    that a candidate is better than, ties counting half (1: best by every column). Impossible
    candidates, whose total is minus infinity, stay behind all others.
    """
    if scores.ranked is None:
        return scores.total
    table = _table(scores)
    shares = sum(
        (others_beaten(column) for column in table.T.contiguous()), torch.zeros(len(table)).double()
    )
    ranks = shares / (len(scores.ranked) * max(len(table) - 1, 1))
    return torch.where(torch.isneginf(scores.total), scores.total, ranks)


def joined(parts: Sequence[Scores]) -> Scores:
    """Scores one after the other; columns that all of them have."""
    names = set.intersection(*(set(p.columns) for p in parts))
    columns = {name: torch.cat([p.columns[name] for p in parts]) for name in sorted(names)}
    return Scores(torch.cat([p.total for p in parts]), columns, ranked=parts[0].ranked)


@dataclass(eq=False)
class Pool:
    """Finished candidates of one search, in the order in which they were seen.

    Scores of all are kept; states only of those that may still turn out the best. By total that is
    the best one. By mean rank, which every further candidate may change, it is those that no other one
    beats in every column.

    Attributes:
        keep_all: keep every state.
        scores: of all candidates; None before the first.
    """

    keep_all: bool = False
    scores: Scores | None = None
    _states: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return 0 if self.scores is None else len(self.scores.total)

    def add(self, x_0: Tensor, scores: Scores) -> list[int]:
        """Take in finished candidates ``(n, *shape)``; returns their places in the pool."""
        first = len(self)
        self.scores = scores if self.scores is None else joined([self.scores, scores])
        places = list(range(first, len(self)))
        candidates = self._states | dict(zip(places, x_0.split(1), strict=True))
        kept = set(candidates) if self.keep_all else self._undominated(list(candidates))
        self._states = {
            i: x if i in self._states else x.clone() for i, x in candidates.items() if i in kept
        }
        return places

    @property
    def values(self) -> Tensor:
        """What all candidates are compared by, ranked anew among all, float64 ``(n,)``."""
        assert self.scores is not None
        return values(self.scores)

    @property
    def best(self) -> int:
        """Place of the best candidate, the first of equals."""
        return int(self.values.argmax())

    def outcome(self, *, complete: bool, **extra: Any) -> Outcome:
        """The best candidate, or all of them with the best first chosen."""
        assert self.scores is not None
        places = sorted(self._states) if self.keep_all else [self.best]
        found = self.values
        rows = torch.tensor(places)
        scores = _with_values(self.scores, found)[rows]
        order = torch.argsort(found[rows], descending=True, stable=True).tolist()
        x_0 = torch.cat([self._states[i] for i in places])
        log_w = torch.zeros(len(x_0), dtype=torch.float64)
        return Outcome(x_0, scores, log_w, order, complete=complete, extra=extra)

    def _undominated(self, places: list[int]) -> Collection[int]:
        """Those of the places that are no worse than any other in some column, the first of equals."""
        assert self.scores is not None
        table = _table(self.scores[torch.tensor(places)])
        no_worse = (table[:, None] >= table[None]).all(-1)  # row beats or equals column
        earlier = torch.ones_like(no_worse).triu(1)
        beaten = (no_worse & (~no_worse.T | earlier)).any(0)
        return {place for place, out in zip(places, beaten.tolist(), strict=True) if not out}


def one_cost(facts: Facts, solver: Solver) -> Cost:
    """Of one candidate, rolled out from the start of the grid and scored."""
    calls = facts.scheduler_calls
    if not isinstance(solver, str):
        calls = facts.steps * (1 + solver.inner_calls)
    return Cost(nfe=calls, decodes=1, reward_calls=facts.calls_per_row)


def check_returns(returns: str) -> None:
    """Refuse what a search over noise cannot hand over.

    Raises:
        ValueError: neither ``"best"`` nor ``"all"``.
    """
    if returns not in ("best", "all"):
        raise ValueError(f"returns must be 'best' or 'all', got {returns!r}")


def finished(
    problem: Problem, pool: Pool, x_t: Tensor, draws: Sequence[int], solver: Solver, in_flight: int
) -> Generator[Request, Any, list[int]]:
    """Roll out noises, score the samples and pool them.

    Args:
        problem: whose grid.
        pool: what they are added to.
        x_t: states at ``grid[0]``, ``(n, *shape)``.
        draws: a draw id a row.
        solver: how they are rolled out.
        in_flight: rows carried at once.

    Returns:
        Their places in the pool; fewer than ``n`` where the time ran out.
    """
    places: list[int] = []
    one = one_cost(problem.facts, solver)
    while len(places) < len(x_t):
        room = in_flight
        if problem.facts.budget.seconds is not None:
            seconds = Cost(seconds=problem.seconds_for(one.nfe))
            fits = problem.facts.budget.times(seconds, problem.usage.cost)
            room = int(min(fits, in_flight)) if len(pool) else 1
        if room < 1:
            break
        rows = slice(len(places), len(places) + room)
        x_0 = yield Rollout(x_t[rows], 0, solver, list(draws[rows]))
        scores = yield Score(x_0, Stage.FINAL)
        places += pool.add(x_0, scores)
    return places


def _table(scores: Scores) -> Tensor:
    """Columns that candidates are compared in, float64 ``(n, m)``; impossible rows are all -inf."""
    names = scores.ranked
    columns = [scores.total] if names is None else [scores.columns[name] for name in names]
    table = torch.stack(columns, 1)
    return torch.where(torch.isneginf(scores.total)[:, None], -torch.inf, table)


def others_beaten(column: Tensor) -> Tensor:
    """How many of the others each is better than, ties counting half, float64 ``(n,)``."""
    ordered = column.sort().values
    below = torch.searchsorted(ordered, column)
    up_to = torch.searchsorted(ordered, column, right=True)
    return (below + up_to - 1).double() / 2


def _with_values(scores: Scores, found: Tensor) -> Scores:
    """Scores with the mean ranks in the place of the total, and of the column that repeats it."""
    if scores.ranked is None:
        return scores
    same = {n: c for n, c in scores.columns.items() if n in scores.ranked or "/" in n}
    others = {n: found for n in scores.columns if n not in same}
    return Scores(found, same | others, ranked=scores.ranked)
