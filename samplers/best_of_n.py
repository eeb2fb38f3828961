"""Best of N: independent samples, the best by reward."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from samplers.initial import InitialNoise, together
from samplers.pool import Pool, one_cost
from samplers.stopping import ExpectedGain
from steering.cost import Cost
from steering.model import Stage
from steering.requests import Request, Rollout, Score, Scores
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.transitions import Transition


@dataclass(frozen=True, eq=False)
class BestOfNState:
    """What a later, larger search needs of an earlier one.

    Attributes:
        owner: seed and key of the prompt that it belongs to.
        totals: reward of every candidate so far, float64 ``(done,)``; draw ids are their places.
        x_0: the best candidate ``(1, *shape)``.
        columns: its named rewards, each ``(1,)``.
    """

    owner: str
    totals: Tensor
    x_0: Tensor
    columns: dict[str, Tensor]

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file."""
        tensors = {f"column {name}": column for name, column in self.columns.items()}
        tensors |= {"totals": self.totals, "x_0": self.x_0}
        plain = {name: t.cpu().contiguous().clone() for name, t in tensors.items()}
        save_file(plain, str(path), metadata={"owner": self.owner})

    @classmethod
    def load(cls, path: str | Path) -> BestOfNState:
        """Read what :meth:`save` wrote."""
        with safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            owner = (file.metadata() or {}).get("owner", "")
        totals, x_0 = tensors.pop("totals"), tensors.pop("x_0")
        columns = {name.removeprefix("column "): t for name, t in tensors.items()}
        return cls(owner, totals, x_0, columns)


@dataclass(frozen=True)
class BestOfN(Search):
    """Draw ``n`` independent samples and keep the best by reward.

    Candidate 0 starts from what the pipeline itself would start from, so ``n = 1`` is the pipeline.
    Claims no law: its output is an arg max. Also called random search over noise (Ma et al. 2025,
    2501.09732).

    Attributes:
        n: number of candidates.
        solver: ``"scheduler"`` is the pipeline's own; a transition walks the time grid.
        in_flight: candidates carried at once, which bounds memory.
        start: chooses the initial noises; None draws them afresh.
        returns: ``"best"``, or ``"all"`` candidates, best first.
        state: an earlier search of the same prompt and seed to go on from, or None.
        stop: draws no more once one more candidate is expected to gain too little; asked after every
            ``in_flight`` of them. None draws all.
    """

    n: int = 4
    solver: Transition | Literal["scheduler"] = "scheduler"
    in_flight: int = 16
    start: InitialNoise | None = None
    returns: Literal["best", "all"] = "best"
    state: BestOfNState | None = None
    stop: ExpectedGain | None = None

    def __post_init__(self) -> None:
        for name in ("n", "in_flight"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 candidate, got {getattr(self, name)}")
        if self.returns not in ("best", "all"):
            raise ValueError(f"returns must be 'best' or 'all', got {self.returns!r}")
        if self.state is not None and self.returns == "all":
            raise ValueError("a resumed search kept only its best candidate; use returns='best'")
        if self.state is not None and self.start is not None:
            raise ValueError(
                "a resumed search goes on with fresh noises, which a start would choose otherwise; use "
                "start=None"
            )

    @property
    def needs(self) -> Needs:
        """Nothing beyond a pipeline that can be called, and what its start needs."""
        return together(Needs(denoises=self.solver != "scheduler"), self.start)

    @property
    def ranks(self) -> bool:
        """Unless a start chooses, or an end is decided, by scores."""
        return self.start is None and self.stop is None

    def plan(self, facts: Facts) -> Plan:
        """As many candidates as the budget allows, ``n`` at most."""
        one = one_cost(facts, self.solver)
        done = 0 if self.state is None else len(self.state.totals)
        if self.start is None:
            n = int(min(self.n - done, facts.budget.times(one)))
        else:
            costs = ((n, self._begin(facts, n) + n * one) for n in range(self.n, 0, -1))
            n = next((n for n, cost in costs if facts.budget.exceeded_by(cost) is None), 0)
        minimum = one + self._begin(facts, 1)
        if n < 1 and not done:
            raise BudgetTooSmall(
                f"one candidate costs {minimum}, more than the budget {facts.budget} allows"
            )
        n = max(n, 0)
        cost = n * one + self._begin(facts, n)
        exact = self.stop is None
        return Plan(cost, minimum, min(n, self.in_flight), exact, settings={"n": done + n})

    def _begin(self, facts: Facts, n: int) -> Cost:
        """Cost of choosing ``n`` initial noises."""
        return Cost() if self.start is None else self.start.cost(facts, n)

    def _totals(self, pool: Pool) -> Tensor:
        """Rewards of all candidates, those of an earlier search first."""
        earlier = [] if self.state is None else [self.state.totals]
        return torch.cat([*earlier, *([pool.values] if len(pool) else [])])

    def _enough(self, problem: Problem, seen: Tensor, one: Cost) -> bool:
        """Whether one more candidate is not worth its cost."""
        if self.stop is None:
            return False
        enough = self.stop(seen, one.nfe)
        if enough:
            gain = self.stop.gain(seen, one.nfe)
            problem.trace.record(event="enough", candidates=len(seen), gain=gain)
        return enough

    def _first(self, problem: Problem) -> int:
        """Candidates of the first turn: one where time counts and nothing is known of it yet."""
        return 1 if problem.facts.budget.seconds is not None else self.in_flight

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Roll out and score, some candidates at a time."""
        plan, one = self.plan(problem.facts), one_cost(problem.facts, self.solver)
        earlier = None if self.state is None else _earlier(self.state, problem)
        pool = Pool(keep_all=self.returns == "all")
        done = 0 if self.state is None else len(self.state.totals)
        first, last, started = done, plan.settings["n"], None
        problem.trace.record(candidates=last)
        if self.start is not None:
            started = yield from self.start(problem, last)
        enough = done > 0 and self._enough(problem, self._totals(pool), one)
        while first < last and not enough:
            room = _room(problem, one, self.in_flight) if first else self._first(problem)
            if first and room < 1:
                break
            draws = range(first, min(first + room, last))
            if started is None:
                x_t, ids = problem.initial(draws), list(draws)
            else:
                x_t, ids = started.x_t[first : draws.stop], started.draws[first : draws.stop]
            x_0 = yield Rollout(x_t, 0, self.solver, ids)
            pool.add(x_0, (yield Score(x_0, Stage.FINAL)))
            first = draws.stop
            enough = self._enough(problem, self._totals(pool), one)
        return self._outcome(problem, pool, earlier, complete=enough or first == last)

    def _outcome(
        self, problem: Problem, pool: Pool, earlier: Outcome | None, *, complete: bool
    ) -> Outcome:
        """The best of this search and of an earlier one, and what a later one needs."""
        if len(pool) and pool.scores is not None and pool.scores.ranked is not None:
            if earlier is not None:
                raise ValueError(
                    "a search by mean rank cannot go on from a state, which holds no ranks; use "
                    "state=None"
                )
            outcome = pool.outcome(complete=complete)
            problem.trace.record(totals=pool.values, chosen=outcome.chosen)
            return outcome
        every = self._totals(pool)
        if earlier is not None and int(every.argmax()) < len(every) - len(pool):
            outcome = replace(earlier, complete=complete)
        else:
            outcome = pool.outcome(complete=complete)
        top = outcome.chosen[0]
        columns = outcome.scores[slice(top, top + 1)].columns
        best = outcome.x_0[top : top + 1].clone()  # the others' memory is not held by it
        state = BestOfNState(_owner(problem), every, best, columns)
        problem.trace.record(totals=every, chosen=outcome.chosen)
        return replace(outcome, extra={"state": state})


def _owner(problem: Problem) -> str:
    return f"{problem.streams.seed}\x1f{problem.streams.prompt_key}"


def _room(problem: Problem, one: Cost, most: int) -> int:
    """How many candidates the budget still affords at once."""
    seconds = Cost(seconds=problem.seconds_for(one.nfe))
    return int(min(problem.facts.budget.times(one + seconds, problem.usage.cost), most))


def _earlier(state: BestOfNState, problem: Problem) -> Outcome:
    """The best of an earlier search."""
    if state.owner != _owner(problem):
        raise ValueError(
            "the saved state belongs to another prompt or seed; a state goes on with the search that "
            "left it, one prompt at a time"
        )
    scores = Scores(state.totals.max().reshape(1), state.columns)
    return Outcome(state.x_0.to(problem.device), scores, torch.zeros(1).double(), [0])
