"""A private copy of the pipeline's own scheduler, fed through ``(x_0, eps)``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from steering.adapters.checks import Refusal
from steering.adapters.part_way import why_not
from steering.adapters.variance import appended
from steering.prediction import Posterior, output_of
from steering.schedulers import call_times, prediction_of, training_interpolant
from steering.streams import seeded_generator
from steering.times import Time, TimeGrid


class Drawn(Protocol):
    """A prompt's handle, as far as random numbers go."""

    @property
    def noise_state(self) -> tuple[torch.device, Tensor] | None:
        """The user's generator as it goes on after the initial noise, where it serves this row alone."""


class PipelineSchedule:
    """One batch of rows carried by a fresh copy of the pipeline's scheduler, as it configures it.

    Args:
        scheduler: the scheduler as the pipeline configures it, before its first step.
        extra: further arguments of its ``step``.
        handle: the rows' prompt.
        draws: draw ids of the rows.
        seeds: seed of each row's noise, for stochastic schedulers.
        skipped: how many of its listed times the pipeline leaves out at the start.
        restated: whether to step from the state that a posterior speaks of, since the pipeline changes
            states between its steps.
        first: model call to begin with, its history empty.
        learned_variance: whether the pipeline hands over a variance behind the prediction.
    """

    def __init__(
        self,
        scheduler: Any,
        extra: Mapping[str, Any],
        handle: Drawn,
        draws: Sequence[int],
        seeds: Sequence[int],
        *,
        skipped: int = 0,
        restated: bool = False,
        first: int = 0,
        learned_variance: bool = False,
    ) -> None:
        self._scheduler = copy.deepcopy(scheduler)
        self._timesteps = self._scheduler.timesteps[skipped + first :]
        if first:
            _begin_at(self._scheduler, skipped + first)
        self._kind, self._learned_variance = prediction_of(scheduler), learned_variance
        self._training = training_interpolant(scheduler)
        self._options = dict(extra)
        self._handle, self._restated = handle, restated
        self._draws, self._seeds = list(draws), list(seeds)
        self._times = call_times(scheduler)[skipped + first :]
        self._own = first == 0  # a generator of the user's serves the steps from the start
        self._done = 0

    @property
    def scheduler(self) -> Any:
        """The private copy."""
        return self._scheduler

    @property
    def times(self) -> Sequence[Time]:
        """Noise level of each model call, in order."""
        return self._times

    def step(self, index: int, posterior: Posterior, x_t: Tensor) -> Tensor:
        """State after model call ``index``, ``(n, *shape)``.

        Raises:
            ValueError: calls out of order; the scheduler remembers the ones before. Or a posterior
                without the variance that the scheduler reads.
        """
        if index != self._done:
            raise ValueError(f"model call {self._done} comes next, got {index}")
        if self._done == 0 and "generator" in inspect.signature(self._scheduler.step).parameters:
            rows = zip(self._draws, self._seeds, strict=True)
            self._options["generator"] = [
                _generator(self._handle, d, s) if self._own else seeded_generator(s)
                for d, s in rows
            ]
        self._done += 1
        time = self._times[index]
        scale = self._training.scale_from(time)
        trained = Time(time.model_t, time.alpha * scale, time.sigma * scale)
        if self._learned_variance and posterior.variance is None:
            raise ValueError(
                f"a step of {type(self._scheduler).__name__} reads the variance that its network "
                "predicts, and this posterior was made without; use a transition of ours"
            )
        output = appended(output_of(self._kind, posterior, trained), posterior.variance)
        if self._restated:
            x_t = time.alpha * posterior.x_0 + time.sigma * posterior.eps
        after: Any = self._scheduler.step(
            output, self._timesteps[index], x_t, **self._options, return_dict=False
        )
        return torch.as_tensor(after[0]).to(x_t.dtype)


def _begin_at(scheduler: Any, call: int) -> None:
    """Set the place in the list of times of those schedulers that count their steps."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(call)
    if hasattr(scheduler, "_step_index"):
        scheduler._step_index = None


def run_of(
    make: Callable[[int], PipelineSchedule], grid: TimeGrid, start: int, stop: int | None
) -> PipelineSchedule:
    """A scheduler's steps between two places of its grid.

    Args:
        make: fresh steps from a model call on.
        grid: its levels.
        start: index in the grid.
        stop: likewise; None is the end.

    Raises:
        Refusal: the scheduler cannot be entered or left there; the message names it.
    """
    run = make(start)
    if not start and (stop is None or stop == grid.steps):
        return run
    name = type(run.scheduler).__name__
    if len(make(0).times) != grid.steps:
        raise Refusal(
            f"{name} calls its network {len(make(0).times)} times in {grid.steps} steps, so it can be "
            "run from start to end alone; use a transition of ours"
        )
    if start:
        why = why_not(make(start), grid, start)
        if why:
            raise Refusal(f"{name} cannot begin part-way, at step {start}: {why}")
    return run


def _generator(handle: Drawn, draw: int, seed: int) -> torch.Generator:
    """Draw 0 goes on where the user's own generator stood; others have a stream of their own."""
    if draw == 0 and handle.noise_state is not None:
        device, state = handle.noise_state
        generator = torch.Generator(device)
        generator.set_state(state)
        return generator
    return seeded_generator(seed)
