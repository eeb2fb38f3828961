"""One search in flight: its generator, what it waits for, and what it has spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from steering.cost import Budget, Cost, Usage
from steering.model import Model
from steering.requests import Denoise, Move, Render, Request, Rollout, Score
from steering.reward import Item, Reward
from steering.rollout import Carry, rollout
from steering.search import Facts, Outcome, Problem, Search
from steering.stepping import OnStep, check_going_on, ended_steps
from steering.streams import Streams
from steering.trace import Trace
from steering.transfer import to_device


@dataclass(frozen=True, eq=False)
class Job:
    """One prompt to search for.

    Attributes:
        item: the prompt and what rewards may know of it.
        key: its key for random numbers, see :func:`steering.streams.prompt_keys`.
        search: the search to run.
        conditioning: the model's handle for the prompt.
        seed: seed of the run.
        lam: lambda in raw reward units.
        spread: standard deviation of the reward over base samples; None where it was not measured.
        budget: the most that this prompt may cost.
    """

    item: Item
    key: str
    search: Search
    conditioning: Any = None
    seed: int = 0
    lam: float = 1.0
    budget: Budget = field(default_factory=Budget)
    spread: float | None = None


@dataclass(eq=False)
class JobResult:
    """What became of a job.

    Attributes:
        job: the job.
        outcome: what the search returned; None if it failed.
        media: final media of the chosen rows, by the pipeline's own tail.
        held_out: rewards of the chosen rows that were never searched on, name to list.
        usage: what it spent.
        trace: what it decided.
        error: why it failed; None if it did not.
    """

    job: Job
    outcome: Outcome | None
    media: list[Any]
    held_out: dict[str, list[float]]
    usage: Usage
    trace: Trace
    error: Exception | None = None


class SearchFailed(RuntimeError):
    """A search raised; the message names its prompt. ``__cause__`` is the original error."""


class BudgetExceeded(RuntimeError):
    """A search asked for more than its budget allows."""


@dataclass(frozen=True, eq=False)
class Report:
    """Internal: held-out rewards of finished rows ``(n, *shape)``."""

    x_0: Any


_SERVED = (Denoise, Move, Score, Carry, Render, Report)


class Live:
    """A running search, advanced by the engine one request at a time.

    Args:
        job: what to run.
        problem: the problem it is given.
        model: for roll-outs by the pipeline's own scheduler.
        rewards: what is searched, by name; they prepare their features of the prompt.
        held_out: what judges the chosen rows, by name.
        on_step: told of each step.
    """

    def __init__(
        self,
        job: Job,
        problem: Problem,
        model: Model,
        rewards: Mapping[str, Reward],
        held_out: Mapping[str, Reward],
        on_step: OnStep | None = None,
    ) -> None:
        self.job = job
        self.problem = problem
        self.features: dict[str, Any] = {}
        self.request: Request | Report | Carry | None = None
        self.result: JobResult | None = None
        self._model, self._on_step = model, on_step
        self._by_scheduler = False  # whether its own scheduler made the last step
        self._unlimited = job.budget.unlimited
        self._stack: list[Generator[Any, Any, Any]] = [self._whole(rewards, held_out)]
        self._media: list[Any] = []
        self._held_out: dict[str, list[float]] = {}

    @property
    def usage(self) -> Usage:
        """What the search has spent."""
        return self.problem.usage

    def advance(self, response: Any = None) -> None:
        """Hand over the answer to the last request, and run until the next one or the end."""
        self._run(_sender(response))

    def fail(self, error: Exception) -> None:
        """Raise an error inside the search, where its request was made."""
        self._run(_thrower(error))

    def _run(self, action: Callable[[Generator[Any, Any, Any]], Any]) -> None:
        self.request = None
        while self._stack:
            top = self._stack[-1]
            try:
                request = action(top)
                if not isinstance(request, Rollout):
                    if type(request) not in _SERVED:
                        raise TypeError(
                            f"{type(self.job.search).__name__} yielded {request!r}; a search yields "
                            "Denoise, Rollout, Score, Render or what steering.moves.move asks for"
                        )
                    self._check_budget(request)
                    self._tell(request)
                    self.request = request
                    return
                self._by_scheduler = request.solver == "scheduler"
                steps = rollout(
                    request, self.problem, self._model, self.job.conditioning, self._on_step
                )
                self._stack.append(steps)
                action = _sender(None)
            except StopIteration as stop:
                self._stack.pop()
                value = stop.value
                if not self._stack:
                    self._end(value, None)
                    return
                action = _sender(value)
            except Exception as error:  # noqa: BLE001 - a search may raise anything; others go on
                self._stack.pop()
                if not self._stack:
                    self._end(None, error)
                    return
                action = _thrower(error)

    def _tell(self, request: Any) -> None:
        """Tell of the steps that ended before this request.

        Raises:
            Interrupted: the user ends the run.
            TypeError: the user changed states of a step of the search's own.
        """
        if self._on_step is None:
            return
        check_going_on(self._on_step)
        if not isinstance(request, Denoise | Score):
            return
        if self._by_scheduler:  # the roll-out tells by itself
            self._by_scheduler = isinstance(request, Denoise) and len(self._stack) > 1
            return
        for step, timestep, x in ended_steps(self.problem, request):
            known = x.detach().clone()
            after = self._on_step(step, timestep, x.detach())
            check_going_on(self._on_step)
            if not (torch.equal(after, known) and torch.equal(x.detach(), known)):
                raise TypeError(
                    f"callback_on_step_end changed the latents of step {step}, which "
                    f"{type(self.job.search).__name__} makes by transitions of its own; only searches "
                    "over noise follow such changes"
                )

    def _check_budget(self, request: Any) -> None:
        """Raise where a counted limit would be passed: a bug of the search, not of the user."""
        if self._unlimited or isinstance(request, Move):
            return
        cost = Cost()
        if isinstance(request, Denoise):
            cost = Cost(nfe=len(request.x_t))
        elif isinstance(request, Carry):
            cost = Cost(nfe=len(request.x_t) * self.problem.facts.scheduler_calls)
        elif isinstance(request, Score):
            rows = len(request.x_0)
            cost = Cost(decodes=rows, reward_calls=rows * self.problem.facts.calls_per_row)
        spent = self.usage.cost
        counted = Cost(spent.nfe, spent.decodes, spent.reward_calls, spent.backwards)
        over = self.job.budget.exceeded_by(counted + cost)
        if over is not None:
            raise BudgetExceeded(
                f"{type(self.job.search).__name__} asked for {cost} beside {counted} spent, over the "
                f"budget's {over}={getattr(self.job.budget, over)}; its plan() must keep within it"
            )

    def _whole(
        self, rewards: Mapping[str, Reward], held_out: Mapping[str, Reward]
    ) -> Generator[Any, Any, Outcome]:
        """The search; then its chosen rows are rendered, and judged by what it never saw."""
        for name, reward in {**rewards, **held_out}.items():
            self.features[name] = reward.prepare(self.job.item)
        outcome = yield from self.job.search(self.problem)
        if outcome.chosen:
            rows = torch.tensor(outcome.chosen)
            chosen = outcome.x_0[to_device(rows, outcome.x_0.device)]
            self._media = yield Render(chosen)
            if held_out:
                self._held_out = yield Report(chosen)
        self.features.clear()
        return outcome

    def _end(self, outcome: Outcome | None, error: Exception | None) -> None:
        if error is not None:
            failure = SearchFailed(f"prompt {self.job.item.prompt!r}: {error}")
            failure.__cause__ = error
            error = failure
        self.result = JobResult(
            self.job, outcome, self._media, self._held_out, self.usage, self.problem.trace, error
        )


def _sender(value: Any) -> Callable[[Generator[Any, Any, Any]], Any]:
    return lambda generator: generator.send(value)


def _thrower(error: Exception) -> Callable[[Generator[Any, Any, Any]], Any]:
    return lambda generator: generator.throw(error)


def new_problem(job: Job, model: Model, calls_per_row: int) -> Problem:
    """The problem of a job: what its search is told, its grid laid along the path that it samples."""
    path = job.search.path
    elements = math.prod(model.shape)
    facts = Facts(model.grid.steps, model.scheduler_calls(), calls_per_row, job.budget, elements)
    return Problem(
        prompt=job.item.prompt,
        shape=model.shape,
        device=model.device,
        grid=model.grid if path is None else path.lay(model.grid, model.at),
        lam=job.lam,
        streams=Streams(job.seed, job.key),
        facts=facts,
        trace=Trace(),
        usage=Usage(),
        initial_std=model.initial_std,
        origin=getattr(model, "origin", None),
        reached=getattr(model, "reached", None),
        given=getattr(job.conditioning, "initial", None),
        spread=job.spread,
        at=model.at,
    )
