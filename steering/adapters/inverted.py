"""The pipeline's own loop body as the denoiser: its call is suspended in each ``scheduler.step``.

The call runs in a greenlet on a shallow copy of the pipeline, with a private scheduler whose ``step``
hands the prediction to the driver; the driver answers with the state that the step returns and the
time of the next. Nothing of the loop is replaced, so whatever a pipeline does around its network
(control networks, blending with a picture, guidance of any form) is done as the pipeline does it.
The batch is fixed by the call, and all its rows are at one time.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import GreenletExit, greenlet
from torch import Tensor

from steering.adapters.capture import twin_of
from steering.adapters.checks import Refusal
from steering.adapters.loop_networks import LoopNetworks
from steering.adapters.loop_state import OwnState
from steering.adapters.loop_times import linked
from steering.adapters.stand import StepOutput, patch

_OWN = ("step", "set_timesteps", "scale_model_input")


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
        networks: stands in for its networks; by default all of them work.
        parts: further parts of the pipeline to replace while the call runs.

    Attributes:
        first: prediction of the pipeline's own first state at its first time.
        grid: times that the scheduler listed, ``(steps,)``.
        visited: those that the pipeline iterates over (image-to-image leaves the first out).
        scheduler: the scheduler as it stood before the first step.
        extra: further arguments of its first ``step``.
        turns: how often the body ran, the first turn included.
        rows: rows that went through it.

    Raises:
        Refusal: the call ends without a step of its scheduler, or its step has an unknown form.
    """

    def __init__(
        self,
        pipe: Any,
        kwargs: Mapping[str, Any],
        *,
        networks: LoopNetworks | None = None,
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        self._pipe, self._kwargs = pipe, dict(kwargs)
        self._networks = networks or LoopNetworks(pipe)
        self._parts = {**self._networks.stands, **(parts or {})}
        self._own = OwnState(pipe)
        self._scheduler = copy.deepcopy(pipe.scheduler)
        self._clean: Any = None
        self._factor: float | None = None
        self.grid = self.visited = torch.empty(0)
        self.scheduler: Any = None
        self.extra: dict[str, Any] = {}
        self.rows = 0
        self.turns = 0
        self.began = False  #: whether the pipeline iterates over its times
        self.stepped = False  #: whether the body of the running iteration is past its step
        self.before: Tensor | None = None
        self.now: Tensor | None = None
        self.after: Tensor | None = None
        self._watch()
        self._thread = threading.get_ident()
        self._greenlet = greenlet(self._run)
        reached = self._switch()
        if not isinstance(reached, Turn):
            raise Refusal(f"{type(pipe).__name__} ended without a scheduler step")
        self.first = reached

    def __enter__(self) -> InvertedLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_greenlet"):
            self.close()

    @property
    def ended(self) -> bool:
        """Whether nothing more can be asked of it."""
        return bool(self._greenlet.dead)

    def predict(
        self, x_t: Tensor, timestep: Tensor | float, *, factor: float | None = None
    ) -> Turn:
        """Let the body see a state at a time. Gradients pass where they are switched on.

        Args:
            x_t: state ``(rows, *shape)`` of as many rows as the call has.
            timestep: one time for all rows.
            factor: by which the state is scaled for the network, where the scheduler scales it; None
                leaves that to the scheduler, which knows the times of its grid alone.

        Raises:
            ValueError: another shape than that of the call's rows.
            RuntimeError: the loop has ended.
        """
        self._check(x_t)
        self._factor = factor
        told = torch.as_tensor(timestep, device=self.grid.device)
        turn = self._switch((x_t, told, torch.is_grad_enabled()))
        if not isinstance(turn, Turn):
            raise RuntimeError(
                f"{type(self._pipe).__name__} left its loop after {self.turns} turns"
            )
        return turn

    def finish(self, x_0: Tensor) -> Any:
        """Hand over finished states ``(rows, *shape)``; returns the pipeline's own output."""
        self._check(x_0)
        output = self._switch((x_0, None, False))
        if isinstance(output, Turn):
            self.close()
            raise RuntimeError(f"{type(self._pipe).__name__} does not end when its times do")
        return output

    def close(self) -> None:
        """End the suspended call; harmless when it has ended."""
        if self._greenlet.dead or self._thread != threading.get_ident():
            return  # a call of another thread ends with that thread
        with self._around(), contextlib.suppress(GreenletExit):
            self._greenlet.throw(GreenletExit)

    def _check(self, x: Tensor) -> None:
        if self._greenlet.dead:
            raise RuntimeError("this loop has ended; begin another")
        if x.shape != self.first.sample.shape:
            raise ValueError(
                f"the loop's rows are {tuple(self.first.sample.shape)}, got {tuple(x.shape)}; the "
                "batch of an inverted loop is fixed by its call"
            )

    def _switch(self, *message: Any) -> Any:
        with self._around():
            return self._greenlet.switch(*message)

    @contextlib.contextmanager
    def _around(self) -> Iterator[None]:
        """The pipeline's own states within; those of the driver without."""
        self._greenlet.parent = greenlet.getcurrent()
        enabled = torch.is_grad_enabled()
        try:
            with self._own.active():
                yield
        finally:
            torch.set_grad_enabled(enabled)  # the pipeline's no_grad is its own

    # ---- the pipeline's side

    def _run(self) -> Any:
        with twin_of(self._pipe, self._scheduler, self._parts) as twin:
            return twin(**self._kwargs)

    def _watch(self) -> None:
        scheduler = self._scheduler
        set_timesteps, self._signature = scheduler.set_timesteps, inspect.signature(scheduler.step)

        def listed(*args: Any, **kwargs: Any) -> None:
            set_timesteps(*args, **kwargs)
            self.grid = torch.as_tensor(scheduler.timesteps).clone()
            self._clean = self._unpatched()
            scheduler.timesteps = linked(self.grid.clone(), self)

        patch(scheduler, "set_timesteps", listed)
        patch(scheduler, "step", self._step)
        if hasattr(scheduler, "scale_model_input"):
            patch(scheduler, "scale_model_input", self._scale)

    def _unpatched(self) -> Any:
        """The scheduler as it stands, with its own methods and plain times."""
        clean = copy.deepcopy(self._pipe.scheduler)
        state = {k: v for k, v in self._scheduler.__dict__.items() if k not in _OWN}
        clean.__dict__.update(copy.deepcopy({**state, "timesteps": self.grid}))
        return clean

    def _scale(self, sample: Tensor, timestep: Any = None, *args: Any) -> Tensor:
        """The driver's factor, or the scheduler's scaling, found by time and not by steps made."""
        if self._factor is not None:
            return (sample * self._factor).to(sample.dtype)
        if hasattr(self._clean, "_step_index"):
            self._clean._step_index = self._clean._begin_index = None
        return torch.as_tensor(self._clean.scale_model_input(sample, timestep, *args))

    def _step(self, *args: Any, **kwargs: Any) -> StepOutput:
        bound = dict(self._signature.bind(*args, **kwargs).arguments)
        if not {"sample", "model_output", "timestep"} <= bound.keys():
            raise Refusal(
                f"{type(self._scheduler).__name__}.step takes {', '.join(bound)}; an inverted loop "
                "needs a prediction, a time and a state"
            )
        sample = bound.pop("sample")
        turn = Turn(bound.pop("model_output"), torch.as_tensor(bound.pop("timestep")), sample)
        if self.turns == 0:
            self.scheduler = self._unpatched()
            self.extra = {k: v for k, v in bound.items() if k not in ("generator", "return_dict")}
        self.rows += len(sample)
        self.turns += 1
        self._networks.turn_ends()
        driver = greenlet.getcurrent().parent
        assert driver is not None
        x, self.after, grad = driver.switch(turn)
        torch.set_grad_enabled(grad)
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

    def begin(self, times: Tensor) -> None:
        """The pipeline begins to iterate over these times."""
        self.began, self.visited, self.now = True, times.clone(), times[0]
        self._networks.loop_begins()
