"""Search over paths: take states back up by fresh noise, come down again, keep the best few."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from samplers.initial import at_least_one
from samplers.pool import Pool, check_returns, values
from steering.cost import Cost
from steering.model import Stage
from steering.moves import move
from steering.prediction import Posterior
from steering.requests import Denoise, Request, Rollout, Score
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.times import Time
from steering.transfer import to_device
from steering.transitions import DDIM, Transition

_SNAP = 1e-6  # a level this near to a step of the grid, in steps, is that step


@dataclass(frozen=True, eq=False)
class _Survivors:
    """Rows between two rounds: states ``(n, *shape)``, what the denoiser said of them, their level."""

    x_t: Tensor
    posterior: Posterior | None
    level: float


@dataclass(frozen=True)
class NoisePaths(Search):
    """Search over paths, Paths-N of Ma et al. (2025, 2501.09732).

    ``paths`` noises are carried down to the level ``start``. Each round takes every state up by
    ``forward``, with ``noises`` fresh noises each, carries them down by ``backward``, which is more,
    scores their predicted x_0 and keeps the best ``paths`` of them; so levels fall by backward -
    forward a round. Rounds end at level 0, or where the budget does; what is kept then is carried to
    the end of the grid, and the best finished sample is returned. The paper's settings could not be
    read in full: the defaults are those of the RBF authors' port.

    Levels are shares of the grid that lie ahead: 1 is pure noise, 0 the finished sample; on a uniform
    grid of a flow they are its time. A level between two steps of the grid is a time of its own. Going
    up keeps the marginal law::

        x_s = (alpha_s / alpha_t) x_t + sqrt(sigma_s^2 - (alpha_s sigma_t / alpha_t)^2) z.

    Claims no law: its output is an arg max.

    Attributes:
        paths: N, states kept after each round.
        noises: M, fresh noises for each of them in a round.
        start: level of the first round, in (0, 1).
        forward: levels up in a round; above level 1 it stops at 1.
        backward: levels down in a round, above ``forward``.
        transition: how states are carried down; the paper's is the ODE, ``"ode"`` is DDIM(0.0).
        returns: the ``"best"`` finished sample, or ``"all"`` of them, best first.
    """

    paths: int = 2
    noises: int = 5
    start: float = 0.12
    forward: float = 0.78
    backward: float = 0.81
    transition: Transition | Literal["ode"] = "ode"
    returns: Literal["best", "all"] = "best"

    def __post_init__(self) -> None:
        at_least_one(self, "paths", "noises")
        check_returns(self.returns)
        if not 0 < self.start < 1:
            raise ValueError(f"start must lie in (0, 1), 1 being pure noise, got {self.start}")
        if not 0 < self.forward < self.backward <= 1:
            raise ValueError(
                "a round must come down by more than it goes up: need 0 < forward < backward <= 1, got "
                f"forward={self.forward}, backward={self.backward}"
            )

    @property
    def _transition(self) -> Transition:
        return DDIM(0.0) if isinstance(self.transition, str) else self.transition

    @property
    def needs(self) -> Needs:
        """Times that rise again."""
        return Needs(any_order=True)

    @property
    def ranks(self) -> bool:
        """Candidates of one round are compared with each other, finished ones with all of them."""
        return True

    def rounds(self) -> list[tuple[float, float]]:
        """Levels at the top and at the end of each round."""
        found, level = [], self.start
        while level > 0:
            top = min(level + self.forward, 1.0)
            level = top - self.backward if top - self.backward > 1e-9 else 0.0
            found.append((top, level))
        return found

    def plan(self, facts: Facts) -> Plan:
        """Fewer rounds where the budget is small, then fewer paths, then fewer noises."""
        minimum = self._cost(facts, 1, 1, 0)
        if facts.budget.exceeded_by(minimum) is not None:
            raise BudgetTooSmall(
                f"one finished path costs {minimum}, more than the budget {facts.budget} allows"
            )
        most = len(self.rounds())
        tries = itertools.chain(
            ((self.paths, self.noises, r) for r in range(most, 0, -1)),
            ((p, self.noises, 1) for p in range(self.paths - 1, 0, -1)),
            ((1, m, 1) for m in range(self.noises - 1, 0, -1)),
            ((p, self.noises, 0) for p in range(self.paths, 0, -1)),
        )
        paths, noises, rounds = next(
            t for t in tries if facts.budget.exceeded_by(self._cost(facts, *t)) is None
        )
        settings = {"paths": paths, "noises": noises, "rounds": rounds}
        rows = paths * (noises if rounds else 1)
        return Plan(self._cost(facts, paths, noises, rounds), minimum, rows, settings=settings)

    def _cost(self, facts: Facts, paths: int, noises: int, rounds: int) -> Cost:
        """Of so many rounds, and of finishing what is kept."""

        def walk(above: float, below: float) -> int:
            steps = len(_stops(facts.steps, above, below)) - 1
            return steps * (1 + self._transition.inner_calls)

        scored = Cost(decodes=1, reward_calls=facts.calls_per_row)
        cost, level = paths * Cost(nfe=walk(1.0, self.start)), self.start
        for top, level in self.rounds()[:rounds]:
            seen = int(level > 0)  # a prediction to score; a finished sample needs none
            one = Cost(nfe=walk(top, level) + seen) + scored
            cost = cost + paths * noises * one
        if level > 0:
            known = int(rounds > 0)  # the first call of the last walk was made to score
            cost = cost + paths * (Cost(nfe=walk(level, 0.0) - known) + scored)
        return cost

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Come down to the first level, search round by round, finish."""
        settings = self.plan(problem.facts).settings
        paths, noises, rounds = (settings[n] for n in ("paths", "noises", "rounds"))
        pool, serial = Pool(keep_all=self.returns == "all"), itertools.count()
        x_t = problem.initial(range(paths))
        x_t = yield from self._down(problem, x_t, 1.0, self.start, serial)
        kept, complete = _Survivors(x_t, None, self.start), True
        problem.trace.record(**settings)
        for n, (top, level) in enumerate(self.rounds()[:rounds]):
            if not self._time(problem, paths * noises, top, level):
                problem.trace.record(event="out of time")
                complete = False
                break
            x_t = kept.x_t.repeat_interleave(noises, 0)
            x_t = self._up(problem, x_t, kept.level, top, n)
            x_t = yield from self._down(problem, x_t, top, level, serial)
            if level == 0:
                scores = yield Score(x_t, Stage.FINAL)
                pool.add(x_t, scores)
                problem.trace.record(round=n + 1, level=0.0, reward=pool.values)
                break
            kept = yield from self._select(problem, x_t, level, paths, n)
        if not len(pool):
            x_0 = yield from self._finish(problem, kept, serial)
            pool.add(x_0, (yield Score(x_0, Stage.FINAL)))
        outcome = pool.outcome(complete=complete)
        problem.trace.record(totals=pool.values, chosen=outcome.chosen)
        return outcome

    def _select(
        self, problem: Problem, x_t: Tensor, level: float, paths: int, n: int
    ) -> Generator[Request, Any, _Survivors]:
        """The best rows by the reward of their predicted x_0."""
        posterior = yield Denoise(x_t, _time_at(problem, level))
        value = values((yield Score(posterior.x_0)))
        best = torch.argsort(value, descending=True, stable=True)[:paths]
        problem.trace.record(
            round=n + 1,
            level=level,
            model_t=_time_at(problem, level).model_t,
            reward=value,
            ancestors=best,
        )
        rows = to_device(best, x_t.device)
        return _Survivors(x_t[rows], posterior[rows], level)

    def _up(self, problem: Problem, x_t: Tensor, level: float, top: float, n: int) -> Tensor:
        """Rows with the signal and the noise of a higher level."""
        t, s = _time_at(problem, level), _time_at(problem, top)
        ratio = s.alpha / t.alpha
        std = math.sqrt(max(s.sigma**2 - (ratio * t.sigma) ** 2, 0.0))
        return ratio * x_t + std * problem.noise("proposal", range(len(x_t)), n)

    def _down(
        self, problem: Problem, x_t: Tensor, above: float, below: float, serial: Iterator[int]
    ) -> Generator[Request, Any, Tensor]:
        """Rows carried from one level to a lower one."""
        path = [_time_at(problem, a) for a in _levels(problem.grid.steps, above, below)]
        draws = [next(serial) for _ in range(len(x_t))]
        return (yield Rollout(x_t, 0, self._transition, draws, path))

    def _finish(
        self, problem: Problem, kept: _Survivors, serial: Iterator[int]
    ) -> Generator[Request, Any, Tensor]:
        """Rows carried to the end of the grid; a prediction that was made is not made again."""
        path = [_time_at(problem, a) for a in _levels(problem.grid.steps, kept.level, 0.0)]
        draws, x_t = [next(serial) for _ in range(len(kept.x_t))], kept.x_t
        for step, (t, s) in enumerate(pairwise(path)):
            posterior = kept.posterior if step == 0 else None
            if posterior is None:
                posterior = yield Denoise(x_t, t)
            noise = problem.later("transition", draws, step)
            x_t = yield from move(problem, self._transition, x_t, posterior, t, s, noise)
        return x_t

    def _time(self, problem: Problem, rows: int, top: float, level: float) -> bool:
        """Whether there is time for a round and for finishing one path after it."""
        steps = problem.grid.steps
        one = 1 + self._transition.inner_calls
        finish = Cost(seconds=problem.seconds_for(steps * level * one))
        walk = len(_stops(steps, top, level)) * one
        return problem.affords(Cost(seconds=problem.seconds_for(rows * walk)), holding_back=finish)


def _stops(steps: int, above: float, below: float) -> list[float]:
    """Places on a grid of so many steps, counted from its start, of a walk between two levels."""
    first, last = (steps * (1 - level) for level in (above, below))
    first, last = (round(i) if abs(i - round(i)) < _SNAP else i for i in (first, last))
    between = range(math.floor(first) + 1, math.ceil(last))
    return [first, *between, last]


def _levels(steps: int, above: float, below: float) -> list[float]:
    return [1 - i / steps for i in _stops(steps, above, below)]


def _time_at(problem: Problem, level: float) -> Time:
    """Record of a level: a step of the grid, or a time between two, by the share of noise."""
    place = problem.grid.steps * (1 - level)
    if abs(place - round(place)) < _SNAP:
        return problem.grid[round(place)]
    before = math.floor(place)
    t, s = problem.grid[before : before + 2]
    shares = [a.sigma / (a.alpha + a.sigma) for a in (t, s)]
    share = shares[0] + (place - before) * (shares[1] - shares[0])
    return problem.at(2 * math.log((1 - share) / share))
