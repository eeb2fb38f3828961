"""Best-first search: of all unfinished samples the most promising goes on next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from samplers.initial import at_least_one
from samplers.potentials import spread_of
from samplers.segments import segment
from steering.cost import Budget, Cost
from steering.model import Stage
from steering.paths import SamplingPath
from steering.prediction import Posterior
from steering.requests import Denoise, Request, Score, Scores
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.transitions import DDIM, Transition

Run = Generator[Request, Any, Any]


class Node(NamedTuple):
    """An unfinished sample.

    Attributes:
        depth: number of the branching depth at which it is.
        x_t: its state ``(1, *shape)``.
        posterior: what the denoiser said of it.
        value: reward of its predicted x_0.
        draw: id of the noise it was drawn with.
    """

    depth: int
    x_t: Tensor
    posterior: Posterior
    value: float
    draw: int


@dataclass
class _Book:
    """What a search has so far: the frontier, the finished samples, the cost, the next draw id."""

    frontier: list[tuple[float, int, Node]] = field(default_factory=list)
    finished: list[tuple[Tensor, Scores]] = field(default_factory=list)
    spent: Cost = field(default_factory=Cost)
    serial: Any = field(default_factory=itertools.count)


@dataclass(frozen=True)
class BestFirst(Search):
    """A frontier of unfinished samples, the best of which branches next.

    After A* decoding of language models (Chatziveroglou 2025, 2505.13672): a sample's priority is the
    reward of its predicted x_0 plus a bonus for how far it has come, so that the search goes down
    before it goes wide. Each takes ``children`` further ways down to the next branching depth, where
    they are scored; below the last depth they are finished. It ends when the calls are spent or
    nothing is left, and always holds back what one finished sample costs. Greedy: it claims no law.

    Attributes:
        nfe: denoiser calls, at most.
        roots: samples of pure noise to begin with.
        children: of each sample that is expanded.
        depth_bonus: bonus of a sample on its last branching depth, in units of the spread (standard
            deviation) of the first rewards; in proportion for others.
        branching: where samples branch, as what is left of the grid: 1 is pure noise.
        in_flight: samples expanded at once.
        transition: how states move, ``"ddim"`` is DDIM(1.0); it must draw noise.
        path: interpolant to sample along; None is the pipeline's own grid.
        returns: the ``"best"`` finished sample, or ``"all"``, best first.
    """

    nfe: int = 400
    roots: int = 8
    children: int = 2
    depth_bonus: float = 1.0
    branching: tuple[float, ...] = (1.0, 0.8, 0.6, 0.4, 0.2)
    in_flight: int = 2
    transition: Transition | Literal["ddim"] = "ddim"
    path: SamplingPath | None = None
    returns: Literal["best", "all"] = "best"

    def __post_init__(self) -> None:
        at_least_one(self, "nfe", "roots", "children", "in_flight")
        if self.returns not in ("best", "all"):
            raise ValueError(f"returns must be 'best' or 'all', got {self.returns!r}")
        if (
            not self.branching
            or self.branching[0] != 1
            or not all(0 < f <= 1 for f in self.branching)
        ):
            raise ValueError(
                f"branching must be shares of the grid that are left, the first of them 1, got "
                f"{self.branching}"
            )
        if not self._transition.stochastic:
            raise ValueError(
                f"BestFirst branches by noise, but {self._transition} is deterministic: all children "
                "of a sample would be the same; use a transition with noise, such as DDIM(1.0)"
            )

    @property
    def _transition(self) -> Transition:
        return DDIM(1.0) if isinstance(self.transition, str) else self.transition

    @property
    def needs(self) -> Needs:
        """A noisy transition, and rewards that do not depend on the set."""
        return Needs(stochastic=True, density=True)

    def indices(self, steps: int) -> list[int]:
        """Indices of the grid at which samples branch, and its end."""
        return [*sorted({min(round((1 - f) * steps), steps - 1) for f in self.branching}), steps]

    def _piece(self, facts: Facts, depth: int) -> Cost:
        """Of one child of a sample at a depth: its way down, and its own score."""
        at = self.indices(facts.steps)
        length, last = at[depth + 1] - at[depth], depth + 2 == len(at)
        nfe = length * (1 + self._transition.inner_calls) - last
        return Cost(nfe=nfe, decodes=1, reward_calls=facts.calls_per_row)

    def _finish(self, facts: Facts, depth: int) -> Cost:
        pieces = range(depth, len(self.indices(facts.steps)) - 1)
        return sum((self._piece(facts, d) for d in pieces), Cost())

    def _limit(self, facts: Facts) -> Budget:
        nfe = self.nfe if facts.budget.nfe is None else min(self.nfe, facts.budget.nfe)
        return replace(facts.budget, nfe=nfe)

    def plan(self, facts: Facts) -> Plan:
        """At most its calls; fewer roots where they would leave none to finish one.

        Raises:
            BudgetTooSmall: one sample cannot be finished.
        """
        limit = self._limit(facts)
        root = Cost(nfe=1, decodes=1, reward_calls=facts.calls_per_row)
        way = self._finish(facts, 0)
        roots = int(min(self.roots, limit.times(root, way)))
        if roots < 1 or limit.exceeded_by(root + way) is not None:
            raise BudgetTooSmall(
                f"one finished sample costs {root + way}, more than nfe={self.nfe} and the budget "
                f"{facts.budget} allow"
            )
        assert limit.nfe is not None
        least = min(self._piece(facts, d).nfe for d in range(len(self.indices(facts.steps)) - 1))
        decodes = roots + (limit.nfe - roots) // max(least, 1)
        counts = [decodes, *(c for c in (limit.decodes,) if c is not None)]
        calls = [decodes * facts.calls_per_row]
        calls += [c for c in (limit.reward_calls,) if c is not None]
        cost = Cost(nfe=limit.nfe, decodes=min(counts), reward_calls=min(calls))
        rows = max(roots, self.in_flight * self.children)
        return Plan(cost, root + way, rows, exact=False, settings={"roots": roots})

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Expand the best until nothing more can be paid for."""
        facts, book = problem.facts, _Book()
        roots = self.plan(facts).settings["roots"]
        problem.trace.record(roots=roots)
        draws = [next(book.serial) for _ in range(roots)]
        x_t = problem.initial(draws)
        posterior = yield Denoise(x_t, problem.grid[0])
        scores = yield Score(posterior.x_0)
        book.spent += roots * Cost(nfe=1, decodes=1, reward_calls=facts.calls_per_row)
        spread = spread_of(scores.total)
        problem.trace.record(step=0, reward=scores.total, nodes=draws, parents=[-1] * roots)
        self._push(book, 0, x_t, posterior, scores, draws, spread, facts)
        while book.frontier:
            tasks = self._affordable(problem, book)
            if not tasks and book.finished:
                break
            if not tasks:  # what was held back finishes the best of the deepest
                deepest = max(book.frontier, key=lambda entry: (entry[2].depth, entry[2].value))
                book.frontier.remove(deepest)
                heapq.heapify(book.frontier)
                tasks = [(deepest[2], 1)]
            yield from self._expand(problem, book, tasks, spread)
        x_0 = torch.cat([x for x, _ in book.finished])
        names = book.finished[0][1].columns
        columns = {n: torch.cat([s.columns[n] for _, s in book.finished]) for n in names}
        total = torch.cat([s.total for _, s in book.finished])
        order = torch.argsort(total, descending=True, stable=True).tolist()
        chosen = order if self.returns == "all" else order[:1]
        problem.trace.record(finished=len(x_0), chosen=chosen)
        log_w = torch.zeros(len(x_0), dtype=torch.float64)
        return Outcome(x_0, Scores(total, columns), log_w, chosen)

    def _push(
        self, book: _Book, depth: int, x: Tensor, said: Posterior, scores: Scores,
        draws: Sequence[int], spread: float, facts: Facts,
    ) -> None:  # fmt: skip
        last = max(len(self.indices(facts.steps)) - 2, 1)
        for j, value in enumerate(scores.total.tolist()):
            node = Node(depth, x[j : j + 1], said[j : j + 1], value, draws[j])
            priority = value + self.depth_bonus * spread * depth / last
            heapq.heappush(book.frontier, (-priority, next(book.serial), node))

    def _affordable(self, problem: Problem, book: _Book) -> list[tuple[Node, int]]:
        """The next samples to expand, with children, beside what finishing one costs."""
        facts, spent = problem.facts, book.spent
        tasks: list[tuple[Node, int]] = []
        limit = self._limit(facts)
        while book.frontier and len(tasks) < self.in_flight:
            node = book.frontier[0][2]
            held = Cost() if book.finished else self._finish(facts, 0)
            piece = self._piece(facts, node.depth)
            count = int(min(self.children, limit.times(piece, spent + held)))
            late = book.spent.nfe and not problem.affords(
                Cost(seconds=problem.seconds_for(count * piece.nfe + held.nfe))
            )
            if count < 1 or late:
                break
            heapq.heappop(book.frontier)
            tasks.append((node, count))
            spent = spent + count * piece
        return tasks

    def _expand(
        self, problem: Problem, book: _Book, tasks: Sequence[tuple[Node, int]], spread: float
    ) -> Run:
        """Children of the chosen samples, those of one depth together."""
        at, facts = self.indices(problem.grid.steps), problem.facts
        for depth in sorted({node.depth for node, _ in tasks}):
            parents = [n for n, count in tasks if n.depth == depth for _ in range(count)]
            x_t = torch.cat([n.x_t for n in parents])
            said = Posterior(
                torch.cat([n.posterior.x_0 for n in parents]),
                torch.cat([n.posterior.eps for n in parents]),
            )
            draws = [next(book.serial) for _ in parents]
            ends = (at[depth], at[depth + 1])
            x_s = yield from segment(problem, self._transition, x_t, said, ends, draws)
            book.spent += len(parents) * self._piece(facts, depth)
            if depth + 2 == len(at):
                scores = yield Score(x_s, Stage.FINAL)
                book.finished.append((x_s, scores))
            else:
                said = yield Denoise(x_s, problem.grid[at[depth + 1]])
                scores = yield Score(said.x_0)
                self._push(book, depth + 1, x_s, said, scores, draws, spread, facts)
            problem.trace.record(
                step=ends[1],
                depth=depth + 1,
                reward=scores.total,
                nodes=draws,
                parents=[n.draw for n in parents],
            )
