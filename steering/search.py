"""A search, said once for one prompt: the problem it is given, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from steering.cost import Budget, Cost, Usage
from steering.paths import SamplingPath
from steering.requests import Request, Scores
from steering.streams import Streams
from steering.times import Time, TimeGrid
from steering.trace import Trace

#: A running search: yields requests, is sent their results, returns its outcome.
SearchRun: TypeAlias = Generator[Request, Any, "Outcome"]


class BudgetTooSmall(ValueError):
    """The budget does not allow one finished, scored candidate."""


@dataclass(frozen=True)
class Plan:
    """What a search will cost for one prompt.

    Attributes:
        cost: the whole search; an upper bound where ``exact`` is False.
        minimum: one finished, scored candidate.
        rows: rows of the state alive at once, for the memory estimate.
        exact: whether ``cost`` is what will be spent if no budget intervenes.
        settings: what the search settled on to fit the budget (fewer particles, say).
    """

    cost: Cost
    minimum: Cost
    rows: int
    exact: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    """Abilities that a search cannot do without; checked before anything runs."""

    stochastic: bool = False
    gradients: bool = False
    time_per_row: bool = False
    any_order: bool = False
    posterior_mean: bool = False
    any_rows: bool = False
    density: bool = False  #: a fixed target: refuses rewards that depend on the set (mean rank)
    denoises: bool = True  #: steps of its own, beside roll-outs by the pipeline's own scheduler
    embeddings: bool = False  #: the reward's features of pictures

    def __or__(self, other: Needs) -> Needs:
        """What either of two parts of a search needs."""
        return Needs(*(getattr(self, f.name) or getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Facts:
    """What can be known of a problem before any model is loaded to a device.

    Attributes:
        steps: transitions of the time grid.
        scheduler_calls: model calls that one trajectory of the pipeline's own scheduler makes.
        calls_per_row: what a scored row counts in reward calls.
        budget: the most one prompt may cost.
        elements: numbers in one state; None where no model was loaded to tell.
    """

    steps: int
    scheduler_calls: int
    calls_per_row: int = 1
    budget: Budget = field(default_factory=Budget)
    elements: int | None = None


@dataclass(frozen=True, eq=False)
class Noise:
    """Standard normal rows of one purpose and step that are not drawn yet; calling it draws them.

    Attributes:
        streams: the search's random numbers.
        purpose: of the numbers.
        draws: draw id of each row.
        step: of the numbers.
        shape: of one row.
        device: where the rows go.
    """

    streams: Streams
    purpose: str
    draws: Sequence[int]
    step: int
    shape: tuple[int, ...]
    device: torch.device

    def __call__(self) -> Tensor:
        """``(len(draws), *shape)`` on the device."""
        return self.streams.normal(self.purpose, self.draws, self.step, self.shape, self.device)

    def fill(self, out: np.ndarray) -> None:
        """Draw into ``out``, of the same shape."""
        self.streams.fill(out, self.purpose, self.draws, self.step)

    def forget(self) -> None:
        """Let the same rows be drawn again, for what was drawn came to nothing."""
        self.streams.forget(self.purpose, self.draws, self.step)


def _no_model(log_snr: float) -> Time:
    raise ValueError(
        f"the noise level of log-SNR {log_snr} was asked of a problem that knows no model; give it "
        "at=model.at"
    )


@dataclass
class Problem:
    """One prompt to search for. It says nothing about which pipeline it is.

    Attributes:
        prompt: the text, for messages.
        shape: shape of one state.
        device: where states live.
        grid: the time grid.
        lam: lambda, the inverse temperature of the target p(x_0) exp(lambda r(x_0)), in raw units.
        spread: standard deviation of the reward over base samples, from a calibration; None where
            there is none.
        streams: this search's random numbers.
        facts: what planning needs.
        trace: where the search records what it decides.
        usage: what this search has spent so far; only the engine writes it.
        initial_std: standard deviation of the state at ``grid[0]``.
        origin: what noise is added to there, ``(1, *shape)``: a noised picture; None for nothing.
        reached: 1 where that noise reaches the state and 0 where the picture is kept, ``(1, *shape)``;
            None: it reaches all.
        given: states at ``grid[0]`` that the user or the pipeline's generator decided, for the first
            draws, ``(m, *shape)``; None where the streams decide all.
        at: the model's time record of any log-SNR, for steps that leave the grid.
    """

    prompt: str
    shape: tuple[int, ...]
    device: torch.device
    grid: TimeGrid
    lam: float
    streams: Streams
    facts: Facts
    trace: Trace
    usage: Usage
    initial_std: float = 1.0
    origin: Tensor | None = None
    reached: Tensor | None = None
    given: Tensor | None = None
    spread: float | None = None
    at: Callable[[float], Time] = _no_model

    def initial(self, draws: Sequence[int]) -> Tensor:
        """States at ``grid[0]`` for these draw ids, ``(len(draws), *shape)``."""
        known = 0 if self.given is None else len(self.given)
        fresh = [d for d in draws if d >= known]
        noise = self.started(self.noise("initial", fresh, 0))
        if self.given is None:
            return noise
        drawn = iter(noise)
        given = self.given.to(self.device, torch.float32)
        return torch.stack([given[d] if d < known else next(drawn) for d in draws])

    def started(self, noise: Tensor) -> Tensor:
        """States at ``grid[0]`` of unit noise ``(n, *shape)``."""
        if self.reached is not None:
            noise = noise * self.reached.to(noise)
        x_t = noise * self.initial_std
        return x_t if self.origin is None else x_t + self.origin.to(x_t)

    def unit(self, x_t: Tensor) -> Tensor:
        """The unit noise of states at ``grid[0]``: the inverse of :meth:`started`."""
        if self.origin is not None:
            x_t = x_t - self.origin.to(x_t)
        return x_t / self.initial_std

    def noise(self, purpose: str, draws: Sequence[int], step: int) -> Tensor:
        """Standard normal rows ``(len(draws), *shape)`` of the purpose, draw ids and step."""
        return self.streams.normal(purpose, draws, step, self.shape, self.device)

    def later(self, purpose: str, draws: Sequence[int], step: int) -> Noise:
        """The rows of :meth:`noise`, not drawn yet: for a step, whose noise all searches draw as one."""
        return Noise(self.streams, purpose, draws, step, self.shape, self.device)

    def affords(self, cost: Cost, *, holding_back: Cost | None = None) -> bool:
        """Whether ``cost`` still fits the budget beside what is held back to finish a candidate."""
        if self.facts.budget.unlimited:
            return True
        total = self.usage.cost + cost + (holding_back or Cost())
        return self.facts.budget.exceeded_by(total) is None

    def seconds_for(self, nfe: float) -> float:
        """Seconds that this many denoiser rows will take, from those spent so far."""
        return nfe * self.usage.seconds / self.usage.nfe if self.usage.nfe else 0.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a search returns for one prompt.

    Attributes:
        x_0: finished states ``(n, *shape)``, all that the search kept.
        scores: their rewards, FINAL stage.
        log_w: log-weights ``(n,)``; zeros where the candidates are not weighted.
        chosen: rows of ``x_0`` to hand to the user, best or drawn first.
        log_z: estimate of the log normalising constant E[exp(lambda r)], or None.
        complete: False where a budget cut the search short: it then claims no law.
        extra: anything a search wants to hand over beside (resumable state, say).
    """

    x_0: Tensor
    scores: Scores
    log_w: Tensor
    chosen: list[int]
    log_z: float | None = None
    complete: bool = True
    extra: dict[str, Any] = field(default_factory=dict)


class Search(ABC):
    """A search for one prompt. Thin and stateless: options are its fields (a frozen dataclass)."""

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """Abilities it cannot do without."""

    @property
    def path(self) -> SamplingPath | None:
        """Interpolant along which it samples; None is the scheduler's own grid.

        A search makes it an option by a field ``path: SamplingPath | None = None`` (with a default).
        """
        return None

    @property
    def ranks(self) -> bool:
        """Whether it compares candidates by mean ranks where the reward asks for them.

        Any other search is refused such a reward, whose scores say nothing one by one.
        """
        return False

    @abstractmethod
    def plan(self, facts: Facts) -> Plan:
        """What it will cost, made to fit the budget.

        Raises:
            BudgetTooSmall: one finished, scored candidate does not fit.
        """

    @abstractmethod
    def __call__(self, problem: Problem) -> SearchRun:
        """Run: yield requests, receive results, return the outcome."""
