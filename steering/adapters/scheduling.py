"""A private copy of the pipeline's own scheduler, fed through ``(x_0, eps)``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steering.adapters.conditioning import Handle
from steering.adapters.replay import Plan
from steering.prediction import Posterior, output_of
from steering.schedulers import call_times, prediction_of, training_interpolant
from steering.streams import seeded_generator
from steering.times import Time


class PipelineSchedule:
    """One batch of rows carried by a fresh copy of the pipeline's scheduler, as it configures it.

    Args:
        plan: what was learned of the pipeline.
        handle: the rows' prompt.
        draws: draw ids of the rows.
        seeds: seed of each row's noise, for stochastic schedulers.
    """

    def __init__(
        self, plan: Plan, handle: Handle, draws: Sequence[int], seeds: Sequence[int]
    ) -> None:
        self._scheduler = copy.deepcopy(plan.scheduler)
        self._timesteps = self._scheduler.timesteps
        self._kind = prediction_of(plan.scheduler)
        self._training = training_interpolant(plan.scheduler)
        self._options = dict(plan.extra)
        self._handle = handle
        self._draws, self._seeds = list(draws), list(seeds)
        self._times = call_times(plan.scheduler)
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
        after: Any = self._scheduler.step(
            output, self._timesteps[index], x_t, **self._options, return_dict=False
        )
        return torch.as_tensor(after[0]).to(x_t.dtype)


def _generator(handle: Handle, draw: int, seed: int) -> torch.Generator:
    """Draw 0 goes on where the user's own generator stood; others have a stream of their own."""
    if draw == 0 and handle.noise_state is not None:
        device, state = handle.noise_state
        generator = torch.Generator(device)
        generator.set_state(state)
        return generator
    return seeded_generator(seed)
