"""The pipeline's own loop body as the denoiser: its call is suspended in each ``scheduler.step``.

The call runs in a greenlet on a shallow copy of the pipeline, with a private scheduler whose ``step``
hands the prediction to the driver; the driver answers with the state that the step returns and the
time of the next. Nothing of the loop is replaced, so whatever a pipeline does around its network
(control networks, blending with a picture, guidance of any form) is done as the pipeline does it.
The batch is fixed by the call, and all its rows are at one time.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import GreenletExit, greenlet
from torch import Tensor

from steering.adapters.capture import private_copy
from steering.adapters.checks import Refusal
from steering.adapters.stand import StepOutput, patch


@dataclass(frozen=True, eq=False)
class Turn:
    """What the loop body made of one state.

    Attributes:
        output: the pipeline's prediction, guidance included, ``(rows, *shape)``.
        timestep: the scheduler's time that the body was told.
        sample: the state that it saw, ``(rows, *shape)``.
    """

    output: Tensor
    timestep: Tensor
    sample: Tensor


class InvertedLoop:
    """A pipeline's call, driven from outside; a context manager that ends what it began.

    The pipeline is left as it was found, while suspended too and after an error.

    Args:
        pipe: the pipeline.
        kwargs: arguments of its call; they decide the prompts and the number of rows.

    Attributes:
        first: prediction of the pipeline's own first state at its first time.
        grid: times that the scheduler listed, ``(steps,)``.
        rows: rows that went through the loop body so far, the first turn included.

    Raises:
        Refusal: the call ends without a step of its scheduler, or its step has an unknown form.
    """

    def __init__(self, pipe: Any, kwargs: Mapping[str, Any]) -> None:
        self._pipe, self._kwargs = pipe, dict(kwargs)
        self._scheduler = copy.deepcopy(pipe.scheduler)
        self._clean: Any = None
        self.grid = torch.empty(0)
        self.rows = 0
        self.turns = 0
        self.began = False  #: whether the pipeline iterates over its times
        self.stepped = False  #: whether the body of the running iteration is past its step
        self.before: Tensor | None = None
        self.now: Tensor | None = None
        self.after: Tensor | None = None
        self._watch()
        self._greenlet = greenlet(self._run)
        reached = self._switch()
        if not isinstance(reached, Turn):
            raise Refusal(f"{type(pipe).__name__} ended without a scheduler step")
        self.first = reached

    def __enter__(self) -> InvertedLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def predict(self, x_t: Tensor, timestep: Tensor | float) -> Turn:
        """Let the body see a state at a time.

        Args:
            x_t: state ``(rows, *shape)`` of as many rows as the call has.
            timestep: one time for all rows; where the scheduler scales its input, a time of its grid.

        Raises:
            ValueError: another shape than that of the call's rows.
            RuntimeError: the loop has ended.
        """
        self._check(x_t)
        turn = self._switch((x_t, torch.as_tensor(timestep, device=self.grid.device)))
        if not isinstance(turn, Turn):
            raise RuntimeError(
                f"{type(self._pipe).__name__} left its loop after {self.turns} turns"
            )
        return turn

    def finish(self, x_0: Tensor) -> Any:
        """Hand over finished states ``(rows, *shape)``; returns the pipeline's own output."""
        self._check(x_0)
        output = self._switch((x_0, None))
        if isinstance(output, Turn):
            self.close()
            raise RuntimeError(f"{type(self._pipe).__name__} does not end when its times do")
        return output

    def close(self) -> None:
        """End the suspended call; harmless when it has ended."""
        if not self._greenlet.dead:
            enabled = torch.is_grad_enabled()
            try:
                self._greenlet.throw(GreenletExit)
            finally:
                torch.set_grad_enabled(enabled)

    def _check(self, x: Tensor) -> None:
        if self._greenlet.dead:
            raise RuntimeError("this loop has ended; begin another")
        if x.shape != self.first.sample.shape:
            raise ValueError(
                f"the loop's rows are {tuple(self.first.sample.shape)}, got {tuple(x.shape)}; the "
                "batch of an inverted loop is fixed by its call"
            )

    def _switch(self, *message: Any) -> Any:
        enabled = torch.is_grad_enabled()
        try:
            return self._greenlet.switch(*message)
        finally:
            torch.set_grad_enabled(enabled)  # the pipeline's no_grad is its own

    # ---- the pipeline's side

    def _run(self) -> Any:
        with private_copy(self._pipe, self._scheduler, {}) as twin:
            return twin(**self._kwargs)

    def _watch(self) -> None:
        scheduler = self._scheduler
        set_timesteps, self._signature = scheduler.set_timesteps, inspect.signature(scheduler.step)

        def listed(*args: Any, **kwargs: Any) -> None:
            set_timesteps(*args, **kwargs)
            self.grid = torch.as_tensor(scheduler.timesteps).clone()
            self._clean = copy.deepcopy(self._pipe.scheduler)
            own = ("step", "set_timesteps", "scale_model_input")
            state = {k: v for k, v in scheduler.__dict__.items() if k not in own}
            self._clean.__dict__.update(copy.deepcopy(state))
            scheduler.timesteps = _linked(self.grid.clone(), self)

        patch(scheduler, "set_timesteps", listed)
        patch(scheduler, "step", self._step)
        if hasattr(scheduler, "scale_model_input"):
            patch(scheduler, "scale_model_input", self._scale)

    def _scale(self, sample: Tensor, timestep: Any = None, *args: Any) -> Tensor:
        """The scheduler's own scaling, found by the time and not by how many steps were made."""
        if hasattr(self._clean, "_step_index"):
            self._clean._step_index = self._clean._begin_index = None
        return torch.as_tensor(self._clean.scale_model_input(sample, timestep, *args))

    def _step(self, *args: Any, **kwargs: Any) -> StepOutput:
        bound = self._signature.bind(*args, **kwargs).arguments
        if not {"sample", "model_output", "timestep"} <= bound.keys():
            raise Refusal(
                f"{type(self._scheduler).__name__}.step takes {', '.join(bound)}; an inverted loop "
                "needs a prediction, a time and a state"
            )
        sample = bound["sample"]
        self.rows += len(sample)
        self.turns += 1
        turn = Turn(bound["model_output"], torch.as_tensor(bound["timestep"]), sample)
        enabled = torch.is_grad_enabled()
        driver = greenlet.getcurrent().parent
        assert driver is not None
        x, self.after = driver.switch(turn)
        torch.set_grad_enabled(enabled)
        self.stepped = True
        self._note_index()
        x = x.to(sample.dtype)
        return StepOutput((x, x))

    def _note_index(self) -> None:
        """Adding noise to a picture within the loop reads the index of the time to come."""
        if self.after is not None and hasattr(self._scheduler, "_step_index"):
            found = (self.grid == self.after.to(self.grid)).nonzero()
            if len(found):
                self._scheduler._step_index = int(found[0])


class _Times(torch.Tensor):
    """The scheduler's times, which iterate as the driver wants; operations give plain tensors."""

    loop: InvertedLoop

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def _plain(self) -> Tensor:
        return self.as_subclass(torch.Tensor)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        return _linked(self._plain().to(*args, **kwargs), self.loop)

    def __iter__(self) -> Iterator[Tensor]:
        loop = self.loop
        if self.ndim == 0 or loop.began:
            yield from self._plain()
            return
        loop.began, loop.now = True, self._plain()[0]
        yield loop.now
        while loop.after is not None:
            loop.before, loop.now, loop.stepped = loop.now, loop.after, False
            yield loop.now

    def __len__(self) -> int:
        loop, listed = self.loop, len(self._plain())
        if not loop.stepped:
            return listed
        return loop.turns if loop.after is None else max(listed, loop.turns + 1)

    def __getitem__(self, index: Any) -> Any:
        """Entries beside the running one are the times before and after it, wherever those lie."""
        loop = self.loop
        if loop.began and isinstance(index, int) and index >= 0:
            running = loop.turns - 1 if loop.stepped else loop.turns
            found = {running - 1: loop.before, running: loop.now, running + 1: loop.after}
            if found.get(index) is not None:
                return found[index]
        part = self._plain()[index]
        tail = isinstance(index, slice) and index.stop is None and index.step is None
        return _linked(part, loop) if tail else part  # image-to-image goes on from a tail


def _linked(times: Tensor, loop: InvertedLoop) -> _Times:
    linked = times.as_subclass(_Times)
    linked.loop = loop
    return linked
