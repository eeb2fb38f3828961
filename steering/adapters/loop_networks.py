"""Networks of a loop whose call is driven from outside: at work and counted, or answering dry."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from steering.adapters.capture import networks_of
from steering.adapters.stand import Stand, first_output


@dataclass
class Tally:
    """Rows that went through loop bodies with their networks at work.

    Attributes:
        asked: rows that a search asked for.
        padding: rows that filled the fixed batch beside them.
        setup: rows of turns that nobody asked for: when a model is built, and where a loop begins.
    """

    asked: int = 0
    padding: int = 0
    setup: int = 0


@dataclass
class Memory:
    """The form of what networks answered, by name, place in a turn and rows of the call: zeros."""

    answers: dict[tuple[str, int, int], Any] = field(default_factory=dict)


class LoopNetworks:
    """Stand-ins for a pipeline's networks during one call.

    Before the loop begins all networks work. In the loop they work, or, while ``dry``, answer zeros in
    the form of what they answered in the same place of an earlier turn of as many rows, which costs
    nothing.

    Args:
        pipe: the pipeline.
        rows: rows of this call.
        memory: earlier answers, shared by the calls of a pipeline.
        dry: whether to begin dry.

    Attributes:
        worked: whether a network worked in the last turn.
        passes: rows of the network called last in that turn, over the rows of the call.
    """

    def __init__(
        self, pipe: Any, rows: int = 1, memory: Memory | None = None, *, dry: bool = False
    ) -> None:
        self._memory = memory or Memory()
        self._rows = rows
        self.dry, self.worked, self.passes = dry, False, 1
        self._in_loop = False
        self._calls: list[tuple[str, Any, bool]] = []
        self.stands = {n: Stand(n, m, self._on_call) for n, m in networks_of(pipe).items()}

    def loop_begins(self) -> None:
        """From now on networks belong to the loop."""
        self._in_loop = True
        self._calls.clear()

    def turn_ends(self) -> None:
        """A step of the scheduler was reached."""
        self.worked = any(worked for *_, worked in self._calls)
        if self.worked:
            last = self._calls[-1][0]
            count = sum(_rows_of(raw) for name, raw, _ in self._calls if name == last)
            self.passes = max(math.ceil(count / self._rows), 1)
        self._calls.clear()

    def _on_call(
        self, name: str, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not self._in_loop:
            return network(*args, **kwargs)
        place = name, sum(called == name for called, *_ in self._calls), self._rows
        known = self._memory.answers.get(place)
        if self.dry and known is not None:
            raw = pytree.tree_map(lambda x: x, known)  # containers of its own
            self._calls.append((name, raw, False))
            return raw
        raw = network(*args, **kwargs)
        if known is None:
            self._memory.answers[place] = pytree.tree_map(_zeros, raw)
        self._calls.append((name, raw, True))
        return raw


def _zeros(x: Any) -> Any:
    return torch.zeros_like(x) if torch.is_tensor(x) else x


def _rows_of(raw: Any) -> int:
    """Rows of a network's output; 0 where it has none."""
    try:
        return len(first_output(raw))
    except (TypeError, KeyError, IndexError):
        return 0
