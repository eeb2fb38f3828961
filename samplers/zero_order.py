"""Zero-order search: walk from initial noise to better initial noise near by, without gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from samplers.initial import at_least_one
from samplers.pool import Pool, check_returns, finished, one_cost
from steering.requests import Request
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.transitions import Transition


@dataclass(frozen=True)
class ZeroOrder(Search):
    """Move to the best neighbour of the best noise so far, if it is better (Ma et al. 2025, 2501.09732).

    Each round draws neighbours around a pivot, carries them to the end of the grid and scores the
    finished samples; the best becomes the pivot, which stays where it is if none is better. A neighbour
    lies at a fixed angle from the pivot in a uniformly drawn direction and has its norm::

        y = cos |n| n^ + sqrt(1 - cos^2) |n| w,   w a unit vector orthogonal to n.

    The paper's neighbours are n + lambda d; that they keep the norm, as Gaussian noise in many
    dimensions has nearly one norm, is an idea of the open re-implementation (tt-scale-flux). Candidate
    0 starts from what the pipeline itself would start from. Claims no law: its output is an arg max.

    Attributes:
        rounds: rounds after the first pivots; fewer if the budget does not allow them.
        neighbours: drawn around each pivot in a round.
        cosine: of the angle between a pivot and its neighbours, in [-1, 1): near 1 the search is local,
            at 0 neighbours have nothing in common with the pivot.
        chains: pivots side by side, each with its own neighbours, so that calls are full.
        solver: ``"scheduler"`` is the pipeline's own; a transition walks the time grid. With noise on
            the way a neighbour may be better by luck alone.
        in_flight: candidates carried at once, which bounds memory.
        returns: the ``"best"`` over all rounds, or ``"all"`` candidates, best first.
    """

    rounds: int = 4
    neighbours: int = 4
    cosine: float = 0.95
    chains: int = 1
    solver: Transition | Literal["scheduler"] = "scheduler"
    in_flight: int = 16
    returns: Literal["best", "all"] = "best"

    def __post_init__(self) -> None:
        at_least_one(self, "rounds", "neighbours", "chains", "in_flight")
        check_returns(self.returns)
        if not -1 <= self.cosine < 1:
            raise ValueError(
                f"cosine must lie in [-1, 1), got {self.cosine}: at 1 a neighbour is the pivot itself"
            )

    @property
    def needs(self) -> Needs:
        """Nothing beyond a pipeline that can be called."""
        return Needs(denoises=self.solver != "scheduler")

    @property
    def ranks(self) -> bool:
        """Pivots and neighbours are compared among all that was seen."""
        return True

    def plan(self, facts: Facts) -> Plan:
        """Fewer rounds where the budget is small, then fewer neighbours, then fewer chains."""
        one = one_cost(facts, self.solver)
        most = facts.budget.times(one)
        if most < 1:
            raise BudgetTooSmall(
                f"one candidate costs {one}, more than the budget {facts.budget} allows"
            )
        chains = int(min(self.chains, most))
        rounds = int(min(self.rounds, (most - chains) // (chains * self.neighbours)))
        neighbours = self.neighbours
        if not rounds and most >= 2 * chains:
            rounds, neighbours = 1, int((most - chains) // chains)
        settings = {"chains": chains, "rounds": rounds, "neighbours": neighbours}
        rows = min(self.in_flight, chains * (neighbours if rounds else 1))
        return Plan(chains * (1 + rounds * neighbours) * one, one, rows, settings=settings)

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Score the first pivots, then neighbours of the best, round by round."""
        settings = self.plan(problem.facts).settings
        chains, neighbours = settings["chains"], settings["neighbours"]
        pool, serial = Pool(keep_all=self.returns == "all"), itertools.count(chains)
        pivots, draws = problem.initial(range(chains)), list(range(chains))
        places = yield from finished(problem, pool, pivots, draws, self.solver, self.in_flight)
        problem.trace.record(**settings, reward=pool.values)
        complete = len(places) == chains
        for n in range(settings["rounds"] if complete else 0):
            draws = [next(serial) for _ in range(chains * neighbours)]
            around = pivots.repeat_interleave(neighbours, 0)
            noise = problem.noise("neighbour", draws, n)
            x_t = problem.started(neighbours_of(problem.unit(around), noise, self.cosine))
            found = yield from finished(problem, pool, x_t, draws, self.solver, self.in_flight)
            value = pool.values
            for row, place in enumerate(found):
                chain = row // neighbours
                if value[place] > value[places[chain]]:
                    pivots[chain], places[chain] = x_t[row], place
            problem.trace.record(
                round=n + 1, ancestors=places, reward=value[places], best=value.max()
            )
            if len(found) < len(draws):
                problem.trace.record(event="out of time")
                complete = False
                break
        outcome = pool.outcome(complete=complete)
        problem.trace.record(totals=pool.values, chosen=outcome.chosen)
        return outcome


def neighbours_of(pivots: Tensor, noise: Tensor, cosine: float) -> Tensor:
    """Points at a given angle from the pivots, on their spheres.

    Args:
        pivots: ``(n, *shape)``, none of them 0.
        noise: standard normal rows ``(n, *shape)``, which decide the directions.
        cosine: of the angle.

    Raises:
        ValueError: a state of one number, which has no neighbours of equal norm.
    """
    flat, direction = pivots.flatten(1), noise.flatten(1)
    if flat.shape[1] < 2:
        raise ValueError(
            "a state of one number has no neighbours of equal norm; use BestOfN, or ZeNO"
        )
    norm = flat.norm(dim=1, keepdim=True)
    unit = flat / norm
    direction = direction - (direction * unit).sum(1, keepdim=True) * unit
    direction = direction / direction.norm(dim=1, keepdim=True)
    return (norm * (cosine * unit + math.sqrt(1 - cosine**2) * direction)).reshape(pivots.shape)
