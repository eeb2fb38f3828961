"""The times of a scheduler as a driven loop iterates over them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class Loop(Protocol):
    """What times know of the loop that iterates over them.

    Attributes:
        began: whether it does so already.
        stepped: whether the body of the running iteration is past its step.
        turns: steps that were made.
        before: the time before the running one.
        now: the running one.
        after: the next; None where the loop is to end.
    """

    began: bool
    stepped: bool
    turns: int
    before: Tensor | None
    now: Tensor | None
    after: Tensor | None

    def begin(self, times: Tensor) -> None:
        """Note that the pipeline begins to iterate over these times."""


class _Times(torch.Tensor):
    """The scheduler's times, which iterate as the driver wants; operations give plain tensors."""

    loop: Loop

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def _plain(self) -> Tensor:
        return self.as_subclass(torch.Tensor)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        return linked(self._plain().to(*args, **kwargs), self.loop)

    def __iter__(self) -> Iterator[Tensor]:
        loop = self.loop
        if self.ndim == 0 or loop.began:
            yield from self._plain()
            return
        loop.begin(self._plain())
        assert loop.now is not None
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
        return linked(part, loop) if tail else part  # image-to-image goes on from a tail


def linked(times: Tensor, loop: Loop) -> _Times:
    """Times ``(steps,)`` that iterate as this loop is driven."""
    found = times.as_subclass(_Times)
    found.loop = loop
    return found
