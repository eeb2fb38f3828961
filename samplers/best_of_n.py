"""Best of N: independent samples, the best by reward."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from samplers.initial import InitialNoise, together
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
        """Nothing beyond a denoiser, and what its start needs."""
        return together(Needs(), self.start)

    def plan(self, facts: Facts) -> Plan:
        """As many candidates as the budget allows, ``n`` at most."""
        one = self._one(facts)
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

    def _one(self, facts: Facts) -> Cost:
        """Cost of one candidate, rolled out and scored."""
        inner = 0 if self.solver == "scheduler" else self.solver.inner_calls
        calls = facts.scheduler_calls if self.solver == "scheduler" else facts.steps
        return Cost(nfe=calls * (1 + inner), decodes=1, reward_calls=facts.calls_per_row)

    def _begin(self, facts: Facts, n: int) -> Cost:
        """Cost of choosing ``n`` initial noises."""
        return Cost() if self.start is None else self.start.cost(facts, n)

    def _enough(self, problem: Problem, totals: list[Tensor], one: Cost) -> bool:
        """Whether one more candidate is not worth its cost."""
        if self.stop is None or not totals:
            return False
        seen = torch.cat(totals)
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
        plan, one = self.plan(problem.facts), self._one(problem.facts)
        kept = [] if self.state is None else [_earlier(self.state, problem)]
        totals = [] if self.state is None else [self.state.totals]
        first, last = sum(len(t) for t in totals), plan.settings["n"]
        complete, started = True, None
        problem.trace.record(candidates=last)
        if self.start is not None:
            started = yield from self.start(problem, last)
        while first < last and not self._enough(problem, totals, one):
            room = _room(problem, one, self.in_flight) if first else self._first(problem)
            if kept and room < 1:
                complete = False
                break
            draws = range(first, min(first + room, last))
            if started is None:
                x_t, ids = problem.initial(draws), list(draws)
            else:
                x_t, ids = started.x_t[first : draws.stop], started.draws[first : draws.stop]
            x_0 = yield Rollout(x_t, 0, self.solver, ids)
            scores = yield Score(x_0, Stage.FINAL)
            totals.append(scores.total)
            kept.append((x_0, scores) if self.returns == "all" else _best(x_0, scores))
            first = draws.stop
        x_0 = torch.cat([x for x, _ in kept])
        scores = joined([s for _, s in kept])
        order = torch.argsort(scores.total, descending=True, stable=True).tolist()
        chosen = order if self.returns == "all" else order[:1]
        every = torch.cat(totals)
        problem.trace.record(totals=every, chosen=chosen)
        best = scores[torch.tensor(order[:1])]
        state = BestOfNState(_owner(problem), every, x_0[order[:1]].cpu(), best.columns)
        log_w = torch.zeros(len(x_0), dtype=torch.float64)
        return Outcome(x_0, scores, log_w, chosen, complete=complete, extra={"state": state})


def _owner(problem: Problem) -> str:
    return f"{problem.streams.seed}\x1f{problem.streams.prompt_key}"


def _room(problem: Problem, one: Cost, most: int) -> int:
    """How many candidates the budget still affords at once."""
    seconds = Cost(seconds=problem.seconds_for(one.nfe))
    return int(min(problem.facts.budget.times(one + seconds, problem.usage.cost), most))


def _best(x_0: Tensor, scores: Scores) -> tuple[Tensor, Scores]:
    best = int(scores.total.argmax())
    rows = slice(best, best + 1)
    return x_0[rows].clone(), scores[rows]


def _earlier(state: BestOfNState, problem: Problem) -> tuple[Tensor, Scores]:
    if state.owner != _owner(problem):
        raise ValueError(
            "the saved state belongs to another prompt or seed; a state goes on with the search that "
            "left it, one prompt at a time"
        )
    return state.x_0.to(problem.device), Scores(state.totals.max().reshape(1), state.columns)


def joined(parts: list[Scores]) -> Scores:
    """Scores of several parts as one, in the columns that all of them have."""
    names = set.intersection(*(set(p.columns) for p in parts))
    columns = {name: torch.cat([p.columns[name] for p in parts]) for name in sorted(names)}
    return Scores(torch.cat([p.total for p in parts]), columns)
