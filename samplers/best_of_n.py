"""Best of N: independent samples, the best by reward."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from steering.cost import Cost
from steering.model import Stage
from steering.requests import Request, Rollout, Score, Scores
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.transitions import Transition


@dataclass(frozen=True, eq=False)
class BestOfNState:
    """What a later, larger search needs of an earlier one.

    Attributes:
        totals: reward of every candidate so far, float64 ``(done,)``; draw ids are their places.
        x_0: the best candidate ``(1, *shape)``.
    """

    totals: Tensor
    x_0: Tensor

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file."""
        save_file({"totals": self.totals, "x_0": self.x_0.cpu().contiguous()}, str(path))

    @classmethod
    def load(cls, path: str | Path) -> BestOfNState:
        """Read what :meth:`save` wrote."""
        tensors = load_file(str(path))
        return cls(tensors["totals"], tensors["x_0"])


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
        returns: ``"best"``, or ``"all"`` candidates, best first.
        state: an earlier search of the same prompt and seed to go on from, or None.
    """

    n: int = 4
    solver: Transition | Literal["scheduler"] = "scheduler"
    in_flight: int = 16
    returns: Literal["best", "all"] = "best"
    state: BestOfNState | None = None

    def __post_init__(self) -> None:
        for name in ("n", "in_flight"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 candidate, got {getattr(self, name)}")
        if self.returns not in ("best", "all"):
            raise ValueError(f"returns must be 'best' or 'all', got {self.returns!r}")
        if self.state is not None and self.returns == "all":
            raise ValueError("a resumed search kept only its best candidate; use returns='best'")

    @property
    def needs(self) -> Needs:
        """Nothing beyond a denoiser."""
        return Needs()

    def plan(self, facts: Facts) -> Plan:
        """As many candidates as the budget allows, ``n`` at most."""
        calls = facts.scheduler_calls if self.solver == "scheduler" else facts.steps
        one = Cost(nfe=calls, decodes=1, reward_calls=facts.calls_per_row)
        done = 0 if self.state is None else len(self.state.totals)
        n = int(min(self.n - done, facts.budget.times(one)))
        if n < 1 and not done:
            raise BudgetTooSmall(
                f"one candidate costs {one}, more than the budget {facts.budget} allows"
            )
        n = max(n, 0)
        return Plan(n * one, one, min(n, self.in_flight), settings={"n": done + n})

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Roll out and score, some candidates at a time."""
        plan = self.plan(problem.facts)
        kept = [] if self.state is None else [_earlier(self.state, problem)]
        totals = [] if self.state is None else [self.state.totals]
        first, last = sum(len(t) for t in totals), plan.settings["n"]
        complete = True
        problem.trace.record(candidates=last)
        while first < last:
            draws = range(first, min(first + self.in_flight, last))
            if kept and not _affords(problem, plan.minimum, len(draws)):
                complete = False
                break
            x_0 = yield Rollout(problem.initial(draws), 0, self.solver, draws)
            scores = yield Score(x_0, Stage.FINAL)
            totals.append(scores.total)
            kept.append((x_0, scores) if self.returns == "all" else _best(x_0, scores))
            first = draws.stop
        x_0 = torch.cat([x for x, _ in kept])
        scores = _joined([s for _, s in kept])
        order = torch.argsort(scores.total, descending=True, stable=True).tolist()
        chosen = order if self.returns == "all" else order[:1]
        every = torch.cat(totals)
        problem.trace.record(totals=every, chosen=chosen)
        state = BestOfNState(every, x_0[order[:1]].cpu())
        log_w = torch.zeros(len(x_0), dtype=torch.float64)
        return Outcome(x_0, scores, log_w, chosen, complete=complete, extra={"state": state})


def _affords(problem: Problem, one: Cost, rows: int) -> bool:
    seconds = Cost(seconds=problem.seconds_for(rows * one.nfe))
    return problem.affords(rows * one + seconds)


def _best(x_0: Tensor, scores: Scores) -> tuple[Tensor, Scores]:
    best = int(scores.total.argmax())
    rows = slice(best, best + 1)
    return x_0[rows].clone(), scores[rows]


def _earlier(state: BestOfNState, problem: Problem) -> tuple[Tensor, Scores]:
    total = state.totals.max().reshape(1)
    return state.x_0.to(problem.device), Scores(total, {})


def _joined(parts: list[Scores]) -> Scores:
    names = set.intersection(*(set(p.columns) for p in parts))
    columns = {name: torch.cat([p.columns[name] for p in parts]) for name in sorted(names)}
    return Scores(torch.cat([p.total for p in parts]), columns)
