"""Evolutionary search: parents, mutations and survivors among initial noises and states on the way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from samplers.initial import at_least_one
from samplers.pool import Pool, check_returns, finished, one_cost
from samplers.walks import walked
from steering.cost import Cost
from steering.model import Stage
from steering.requests import Request, Score
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.transitions import DDIM, Transition


@dataclass(frozen=True, eq=False)
class _Parents:
    """States at one index of the grid, ``(1, *shape)`` each, and the places in the pool they led to."""

    states: list[Tensor] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def add(self, rows: Tensor, places: Sequence[int]) -> None:
        """Take in one row a place."""
        self.states.extend(x.clone() for x in rows[: len(places)].split(1))
        self.places.extend(places)


@dataclass(frozen=True)
class EvoSearch(Search):
    """Generations of mutants of the noises and states that led to the best samples.

    EvoSearch (He et al. 2025, 2505.17618). The first generation are fresh noises.
    Each later one belongs to a time of the schedule: its parents are all states that any roll-out so
    far had at that time, each worth the reward of the finished sample that it led to. Some are
    continued as they are (elites), others are mutated, and all are carried to the end and scored; their
    states at the later times of the schedule join the parents there. Mutants are::

        sqrt(1 - beta^2) x + beta e     of an initial noise, which keeps N(0, I);
        x + spread std e                of a state on the way, std being the noise of the ancestral
                                        (DDPM) transition into that state.

    The second adds variance, and so leaves the law of p by a little; ``spread`` scales it. The paper
    keeps the state before step i for a parent at step i; so does this, where the released code keeps
    the one after it and enters it at step i all the same. An elite that is walked on without noise
    would come out the same: with a deterministic solver elites cost nothing and all are mutants. Claims
    no law: its output is an arg max.

    Attributes:
        schedule: times of the later generations, as rising shares of the grid that lie behind, in [0,
            1).
        populations: roll-outs of the first generation, then of the one at each time of the schedule; all
            are scaled down together, and late ones dropped, if the budget does not allow them.
        elites: best parents that each later generation continues as they are.
        tournament: share of the parents that meet for the place of a mutant's parent, in (0, 1]; the
            best of them wins.
        beta: size of a mutation of the initial noise, in (0, 1].
        spread: size of a mutation on the way, in units of the transition's noise.
        solver: how states are walked, ``"ddim"`` is DDIM(1.0); ``"scheduler"``, the pipeline's own, is
            for schedules of initial noises alone (0).
        in_flight: candidates carried at once.
        returns: the ``"best"`` finished sample over all generations, or ``"all"``, best first.
    """

    schedule: Sequence[float] = (0.0, 0.4, 0.6, 0.8)
    populations: Sequence[int] = (42, 26, 26, 26, 30)
    elites: int = 5
    tournament: float = 0.9
    beta: float = 0.2
    spread: float = 1.0
    solver: Transition | Literal["ddim", "scheduler"] = "ddim"
    in_flight: int = 16
    returns: Literal["best", "all"] = "best"

    def __post_init__(self) -> None:
        at_least_one(self, "in_flight")
        check_returns(self.returns)
        rising = list(self.schedule) == sorted(self.schedule)
        if not self.schedule or not rising or not all(0 <= s < 1 for s in self.schedule):
            raise ValueError(
                f"schedule must be rising shares of the grid in [0, 1), got {self.schedule}"
            )
        if len(self.populations) != len(self.schedule) + 1 or min(self.populations) < 1:
            raise ValueError(
                "populations must be counts above 0, one for the first generation and one for each of "
                f"the {len(self.schedule)} times of the schedule, got {self.populations}"
            )
        if self.elites < 0:
            raise ValueError(f"elites must not be negative, got {self.elites}")
        if not 0 < self.tournament <= 1:
            raise ValueError(f"tournament must be a share in (0, 1], got {self.tournament}")
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must lie in (0, 1], got {self.beta}")
        if not self.spread > 0:
            raise ValueError(f"spread must be positive, got {self.spread}")
        if self.solver == "scheduler" and any(self.schedule):
            raise ValueError(
                "the pipeline's own scheduler starts at the grid's start only, so there is no parent on "
                f"the way for schedule={self.schedule}; use zeros, or a transition as the solver"
            )

    @property
    def _solver(self) -> Transition | Literal["scheduler"]:
        return DDIM(1.0) if self.solver == "ddim" else self.solver

    @property
    def needs(self) -> Needs:
        """Times that rise again, if states on the way are parents."""
        return Needs(any_order=self.solver != "scheduler")

    @property
    def ranks(self) -> bool:
        """Parents are compared among all that was seen."""
        return True

    def plan(self, facts: Facts) -> Plan:
        """Smaller populations where the budget is small, then fewer generations."""
        minimum = one_cost(facts, self._solver)
        if facts.budget.exceeded_by(minimum) is not None:
            raise BudgetTooSmall(
                f"one candidate costs {minimum}, more than the budget {facts.budget} allows"
            )
        first, count = self.populations[0], len(self.populations)
        scaled = (
            [max(n * share // first, 1) for n in self.populations] for share in range(first, 0, -1)
        )
        tries = itertools.chain(scaled, ([1] * n for n in range(count - 1, 0, -1)))
        sizes = next(s for s in tries if facts.budget.exceeded_by(self._cost(facts, s)) is None)
        rows = min(max(sizes), self.in_flight)
        return Plan(self._cost(facts, sizes), minimum, rows, settings={"populations": sizes})

    def _indices(self, steps: int) -> list[int]:
        """Index in the grid of each generation's parents; the first has none."""
        return [0, *(min(round(share * steps), steps - 1) for share in self.schedule)]

    def _cost(self, facts: Facts, sizes: Sequence[int]) -> Cost:
        """Of generations of so many roll-outs."""
        whole, total = one_cost(facts, self._solver), Cost()
        for size, i in zip(sizes, self._indices(facts.steps), strict=False):
            share = (facts.steps - i) / facts.steps
            nfe = whole.nfe if i == 0 else round(whole.nfe * share)
            total = total + size * Cost(nfe, whole.decodes, whole.reward_calls)
        return total

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """The first generation, then one a time of the schedule."""
        sizes = self.plan(problem.facts).settings["populations"]
        indices = self._indices(problem.grid.steps)[: len(sizes)]
        parents: dict[int, _Parents] = {i: _Parents() for i in indices}
        pool, serial, complete = Pool(keep_all=self.returns == "all"), itertools.count(), True
        problem.trace.record(populations=sizes, indices=indices)
        for n, (i, size) in enumerate(zip(indices, sizes, strict=True)):
            draws = [next(serial) for _ in range(size)]
            if n == 0:
                x_t, chosen = problem.initial(draws), list[int]()
            else:
                x_t, chosen = self._children(problem, parents[i], pool, draws, i, n)
            places = yield from self._roll_out(problem, parents, pool, x_t, draws, i)
            problem.trace.record(
                generation=n,
                index=i,
                model_t=problem.grid[i].model_t,
                ancestors=chosen,
                reward=pool.values[places],
                best=pool.values.max(),
            )
            if len(places) < size:
                problem.trace.record(event="out of time")
                complete = False
                break
        outcome = pool.outcome(complete=complete)
        problem.trace.record(totals=pool.values, chosen=outcome.chosen)
        return outcome

    def _children(
        self, problem: Problem, parents: _Parents, pool: Pool, draws: Sequence[int], i: int, n: int
    ) -> tuple[Tensor, list[int]]:
        """Elites as they are and mutants of tournament winners; with their parents' places."""
        value = pool.values[parents.places]
        order = torch.argsort(value, descending=True, stable=True)
        solver = self._solver
        stochastic = not isinstance(solver, str) and solver.stochastic
        elites = order[: min(self.elites, len(draws) - 1) if stochastic else 0].tolist()
        mutants = draws[len(elites) :]
        winners = list(self._winners(problem, order, len(mutants), n))
        x_t = torch.cat([parents.states[j] for j in elites + winners])
        noise = problem.noise("mutation", mutants, i)
        mutated = x_t[len(elites) :]
        if i == 0:
            kept = math.sqrt(1 - self.beta**2) * problem.unit(mutated)
            mutated = problem.started(kept + self.beta * noise)
        else:
            std = DDIM(1.0).std(problem.grid[i - 1], problem.grid[i])
            mutated = mutated + self.spread * std * noise
        places = [parents.places[j] for j in elites + winners]
        return torch.cat([x_t[: len(elites)], mutated]), places

    def _winners(self, problem: Problem, order: Tensor, count: int, n: int) -> Iterator[int]:
        """Best of a random share of the parents, for each mutant."""
        size = max(round(self.tournament * len(order)), 1)
        for k in range(count):
            uniforms = problem.streams.uniform("tournament", k, n, len(order))
            met = uniforms.argsort()[:size]  # places in the order of merit
            yield int(order[int(met.min())])

    def _roll_out(
        self,
        problem: Problem,
        parents: dict[int, _Parents],
        pool: Pool,
        x_t: Tensor,
        draws: Sequence[int],
        i: int,
    ) -> Generator[Request, Any, list[int]]:
        """Walk to the end, score, and keep the states that later generations may start from."""
        solver, places = self._solver, list[int]()
        if isinstance(solver, str):
            places = yield from finished(problem, pool, x_t, draws, solver, self.in_flight)
            parents[0].add(x_t, places)
            return places
        while len(places) < len(x_t) and (room := self._room(problem, i, bool(len(pool)))):
            rows = slice(len(places), len(places) + room)
            noise = partial(problem.noise, "transition", list(draws[rows]))
            walk = yield from walked(problem, solver, i, x_t[rows], noise, stored=parents)
            scores = yield Score(walk.x_0, Stage.FINAL)
            found = pool.add(walk.x_0, scores)
            for index, states in walk.states.items():
                parents[index].add(states, found)
            places += found
        return places

    def _room(self, problem: Problem, i: int, started: bool) -> int:
        """Rows that there is time for at once; one where time counts and nothing is known of it."""
        if problem.facts.budget.seconds is None:
            return self.in_flight
        if not started:
            return 1
        seconds = problem.seconds_for(problem.grid.steps - i)
        fits = problem.facts.budget.times(Cost(seconds=seconds), problem.usage.cost)
        return int(min(fits, self.in_flight))
