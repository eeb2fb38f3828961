"""Best of N with early rejection: the worse part is dropped before it is finished."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from samplers.gate import Gate, learned
from samplers.initial import at_least_one
from samplers.keep import Keep, keeper, kept
from samplers.pool import joined
from samplers.values import Predicted, Value
from steering.clarity import Clarity
from steering.cost import Budget, Cost
from steering.model import Stage
from steering.moves import move
from steering.paths import SamplingPath
from steering.requests import Denoise, Request, Score, Scores
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.transitions import DDIM, Transition
from steering.watching import in_time, steps_of, watch

ODE = DDIM(0.0)


@dataclass(frozen=True)
class Halving(Search):
    """N candidates, of which at some steps the worse part is dropped by the reward of the predicted x_0.

    Successive halving (Jamieson and Talwalkar 2016, 1502.07943) with early rejection (2508.01969, for
    language models): a score of a prefix correlates with the final one, so most candidates need not be
    finished. When it does is measured, if a :class:`Gate` is given: a rejection that lies before the
    first trusted step waits for it, and there is none where nothing is trusted. Claims no law: its
    output is an arg max over all finished samples.

    With a gate that learns, what a budget leaves is known only after the pilot: the plan is an upper
    bound, and the search then starts as many candidates, ``n`` at most, as can be finished.

    Attributes:
        n: candidates at the start, those of a pilot included.
        steps: when candidates are dropped: steps (0 is pure noise) or shares of the grid.
        share: of the candidates that each rejection keeps, rounded up.
        keep: which they are: ``"best"``, or a rule of :mod:`samplers.keep`.
        value: what an intermediate state is worth: a :mod:`samplers.values` estimate.
        gate: when intermediate rewards are trusted; None trusts them at all ``steps``.
        transition: how states move; the default is noise-free, so that a candidate is its first noise.
        path: interpolant to sample along; None is the pipeline's own grid.
        returns: the ``"best"`` finished candidate, or ``"all"`` of them, best first.
    """

    n: int = 16
    steps: Sequence[int | float] = (0.3, 0.5)
    share: float = 0.5
    keep: Keep | Literal["best"] = "best"
    value: Value | Literal["predicted"] = "predicted"
    gate: Gate | None = None
    transition: Transition = ODE
    path: SamplingPath | None = None
    returns: Literal["best", "all"] = "best"

    def __post_init__(self) -> None:
        at_least_one(self, "n")
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {self.share}")
        if any(v < 0 for v in self.steps):
            raise ValueError(f"steps must not be negative, got {list(self.steps)}")
        for name, known in (("keep", "best"), ("value", "predicted")):
            option = getattr(self, name)
            if isinstance(option, str) and option != known:
                raise ValueError(f"{name} must be {known!r} or a rule, got {option!r}")
        if self.gate is not None and self.gate.clarity is not None and self._value != Predicted():
            raise ValueError(
                "a saved clarity says when the reward of the predicted x_0 is trusted, not "
                f"{self.value}; leave value at 'predicted', or let the gate learn (clarity=None)"
            )
        if self.returns not in ("best", "all"):
            raise ValueError(f"returns must be 'best' or 'all', got {self.returns!r}")

    @property
    def _value(self) -> Value:
        return Predicted() if isinstance(self.value, str) else self.value

    @property
    def _learns(self) -> bool:
        """Whether the gate is learned on the way."""
        return self.gate is not None and self.gate.clarity is None

    @property
    def needs(self) -> Needs:
        """Nothing beyond a denoiser, unless features decide who is kept."""
        return Needs(embeddings=keeper(self.keep).embeds)

    # ---- what it costs

    def plan(self, facts: Facts) -> Plan:
        """As many candidates as the budget allows, ``n`` at most.

        Raises:
            BudgetTooSmall: one candidate does not fit.
        """
        one = self._descent(facts, 1, {})
        if facts.budget.exceeded_by(one) is not None:
            raise BudgetTooSmall(
                f"one candidate costs {one}, more than the budget {facts.budget} allows"
            )
        if self._learns:
            return self._bound(facts, one)
        known = None if self.gate is None else self.gate.known
        rungs = self._rungs(facts.steps, known)
        n = self._most(facts, rungs, self.n, Cost())
        exact = keeper(self.keep).fills or not rungs
        cost = self._descent(facts, n, rungs)
        return Plan(cost, one, n, exact, settings={"n": n, "rejections": sorted(rungs)})

    def _bound(self, facts: Facts, one: Cost) -> Plan:
        """Where the gate is learned: all are finished if it never opens."""
        pilot = self._pilot(facts)
        most = self._piloted(facts, pilot)
        rest = self.n - pilot
        if rest:
            rungs = self._rungs(facts.steps, None)
            scored = sum(
                (self._value.cost(i, facts.steps, facts.calls_per_row) for i in rungs), Cost()
            )
            most += rest * (one + scored)
        cost = _at_most(most, facts.budget)
        rows = max(pilot, rest)
        return Plan(cost, one, rows, exact=False, settings={"n": self.n, "pilot": pilot})

    def _rungs(self, steps: int, clarity: Clarity | None) -> dict[int, float]:
        """Share of the candidates that is kept at each step where some are dropped."""
        rungs: dict[int, float] = {}
        first: int | None = 0
        if clarity is not None and self.gate is not None:
            if clarity.steps != steps:
                raise ValueError(
                    f"the gate's clarity was measured on a grid of {clarity.steps} steps, but this one "
                    f"has {steps}; measure it for this scheduler and number of steps"
                )
            first = clarity.trusted(self.gate.threshold)
        if first is None or not self.steps:
            return {}
        for i in steps_of(self.steps, steps):
            at = max(i, first)
            rungs[at] = rungs.get(at, 1.0) * self.share
        return rungs

    def _descent(self, facts: Facts, n: int, rungs: Mapping[int, float]) -> Cost:
        """Of ``n`` candidates carried to the end through the rejections."""
        total, inner, begun = Cost(), self.transition.inner_calls, 0
        for i in sorted(rungs):
            if n == 1:
                break
            total += n * (i + 1 - begun) * Cost(nfe=1)
            total += n * self._value.cost(i, facts.steps, facts.calls_per_row)
            total += n * (i - begun) * Cost(nfe=inner)
            n, begun = _kept(n, rungs[i]), i + 1
            total += n * Cost(nfe=inner)
        rest = facts.steps - begun
        ended = Cost(rest * (1 + inner), decodes=1, reward_calls=facts.calls_per_row)
        return total + n * ended

    def _piloted(self, facts: Facts, pilot: int) -> Cost:
        """Of the pilot."""
        one = self._descent(facts, 1, {})
        for i in [] if self.gate is None else steps_of(self.gate.levels, facts.steps):
            one += self._value.cost(i, facts.steps, facts.calls_per_row)
        return pilot * one

    def _pilot(self, facts: Facts) -> int:
        """Candidates of the pilot: 0 where three do not fit, or none is left to be rejected."""
        if self.gate is None or not self._learns or self.n <= self.gate.pilot:
            return 0
        for pilot in range(self.gate.pilot, 2, -1):
            if not facts.budget.exceeded_by(self._piloted(facts, pilot)):
                return pilot
        return 0

    def _most(self, facts: Facts, rungs: Mapping[int, float], n: int, spent: Cost) -> int:
        """Most candidates, ``n`` at most, that what is left of the budget pays for."""

        def too_dear(more: int) -> bool:
            total = spent + self._descent(facts, more + 1, rungs)
            return facts.budget.exceeded_by(total) is not None

        return bisect_left(range(n), True, key=too_dear)

    # ---- the search

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Pilot, if the gate learns; then all others, of whom the worse are dropped on the way."""
        settings = self.plan(problem.facts).settings
        problem.trace.record(**settings)
        pilot, complete = settings.get("pilot", 0), True
        known = None if self.gate is None else self.gate.known
        parts: list[tuple[Tensor, Scores]] = []
        if known is not None:
            known.check(problem.grid)
        if pilot and self.gate is not None:
            seen = yield from watch(
                problem, pilot, self.gate.levels, self.transition, foresee=self._value
            )
            parts.append((seen.x_0, seen.scores))
            known, complete = learned(problem, seen), seen.complete
        rungs = self._opened(problem, known)
        last = pilot + self._rest(problem, rungs, settings["n"] - pilot, bool(parts))
        if last > pilot:
            x_0, complete = yield from self._carried(problem, range(pilot, last), rungs)
            scores = yield Score(x_0, Stage.FINAL)
            parts.append((x_0, scores))
        x_0, scores = torch.cat([x for x, _ in parts]), joined([s for _, s in parts])
        order = torch.argsort(scores.total, descending=True, stable=True).tolist()
        chosen = order if self.returns == "all" else order[:1]
        problem.trace.record(step=problem.grid.steps, reward=scores.total, chosen=chosen)
        log_w = torch.zeros(len(x_0), dtype=torch.float64)
        extra = {"clarity": known}
        return Outcome(x_0, scores, log_w, chosen, complete=complete, extra=extra)

    def _opened(self, problem: Problem, known: Clarity | None) -> dict[int, float]:
        """The rejections that the gate lets through."""
        if self.gate is not None and known is None:  # no pilot, or one that told nothing
            return {}
        rungs = self._rungs(problem.grid.steps, known)
        if self.gate is not None and known is not None:
            trusted = known.trusted(self.gate.threshold)
            problem.trace.record(event="gate", trusted=trusted, correlation=list(known.ranked))
        return rungs

    def _rest(self, problem: Problem, rungs: Mapping[int, float], most: int, finished: bool) -> int:
        """Candidates that what is left of the budget pays for."""
        spent = problem.usage.cost
        counted = Cost(spent.nfe, spent.decodes, spent.reward_calls, spent.backwards)
        n = self._most(problem.facts, rungs, most, counted)
        left = problem.facts.budget.seconds
        one = problem.seconds_for(problem.grid.steps * (1 + self.transition.inner_calls))
        if left is None or not finished or not one:
            return n
        return min(n, max(int((left - spent.seconds) / one), 0))

    def _carried(
        self, problem: Problem, draws: Sequence[int], rungs: Mapping[int, float]
    ) -> Generator[Request, Any, tuple[Tensor, bool]]:
        """Candidates carried to the end; returns those that are left, and whether time sufficed."""
        grid, ids, complete = problem.grid, torch.tensor(list(draws)), True
        x_t = problem.initial(draws)
        for i in range(grid.steps):
            calls = len(ids) * (1 + self.transition.inner_calls)
            if len(ids) > 1 and not in_time(problem, calls, i):
                problem.trace.record(step=i, event="out of time", ancestors=ids[:1])
                x_t, ids, complete = x_t[:1], ids[:1], False
            posterior, rows = (yield Denoise(x_t, grid[i])), None
            if i in rungs and len(ids) > 1:
                value, most = self._value(problem, posterior, i), _kept(len(ids), rungs[i])
                reward, rows = yield from kept(keeper(self.keep), value, posterior.x_0, most)
                ids = ids[rows]
                problem.trace.record(step=i, model_t=grid[i].model_t, reward=reward, ancestors=ids)
            noise = problem.later("transition", ids.tolist(), i)
            t, s = grid[i], grid[i + 1]
            x_t = yield from move(problem, self.transition, x_t, posterior, t, s, noise, rows=rows)
        return x_t, complete


def _kept(n: int, share: float) -> int:
    """Candidates that a rejection leaves of ``n``."""
    return max(math.ceil(share * n - 1e-9), 1)


def _at_most(cost: Cost, budget: Budget) -> Cost:
    """A cost, cut to what a budget lets be spent."""
    limits = {f.name: getattr(budget, f.name) for f in fields(budget)}
    return Cost(
        **{
            name: getattr(cost, name) if most is None else min(getattr(cost, name), most)
            for name, most in limits.items()
        }
    )
