"""A private copy of the pipeline's own scheduler, fed through ``(x_0, eps)``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from steering.prediction import Posterior, output_of
from steering.schedulers import call_times, prediction_of, training_interpolant
from steering.streams import seeded_generator
from steering.times import Time


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
    ) -> None:
        self._scheduler = copy.deepcopy(scheduler)
        self._timesteps = self._scheduler.timesteps[skipped:]
        self._kind = prediction_of(scheduler)
        self._training = training_interpolant(scheduler)
        self._options = dict(extra)
        self._handle, self._restated = handle, restated
        self._draws, self._seeds = list(draws), list(seeds)
        self._times = call_times(scheduler)[skipped:]
        self._done = 0

    @property
    def times(self) -> Sequence[Time]:
        """Noise level of each model call, in order."""
        return self._times

    def step(self, index: int, posterior: Posterior, x_t: Tensor) -> Tensor:
        """State after model call ``index``, ``(n, *shape)``.

        Raises:
            ValueError: calls out of order; the scheduler remembers the ones before.
        """
        if index != self._done:
            raise ValueError(f"model call {self._done} comes next, got {index}")
        if self._done == 0 and "generator" in inspect.signature(self._scheduler.step).parameters:
            rows = zip(self._draws, self._seeds, strict=True)
            self._options["generator"] = [_generator(self._handle, d, s) for d, s in rows]
        self._done += 1
        time = self._times[index]
        scale = self._training.scale_from(time)
        trained = Time(time.model_t, time.alpha * scale, time.sigma * scale)
        output = output_of(self._kind, posterior, trained)
        if self._restated:
            x_t = time.alpha * posterior.x_0 + time.sigma * posterior.eps
        after: Any = self._scheduler.step(
            output, self._timesteps[index], x_t, **self._options, return_dict=False
        )
        return torch.as_tensor(after[0]).to(x_t.dtype)


def _generator(handle: Drawn, draw: int, seed: int) -> torch.Generator:
    """Draw 0 goes on where the user's own generator stood; others have a stream of their own."""
    if draw == 0 and handle.noise_state is not None:
        device, state = handle.noise_state
        generator = torch.Generator(device)
        generator.set_state(state)
        return generator
    return seeded_generator(seed)
