"""States in, predictions out: rows grouped by prompt and time, and each group through a loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steering.adapters.checks import Refusal, relative, tolerance
from steering.adapters.inverted import InvertedLoop, Turn
from steering.adapters.levels import Levels
from steering.adapters.loop_facts import LoopFacts
from steering.adapters.loop_networks import LoopNetworks
from steering.adapters.loop_prompts import LoopHandle
from steering.adapters.loop_rows import Asked, LoopCalls, Open, Pool
from steering.adapters.loop_start import LoopStart
from steering.times import Time

_MOST_ROWS = 8  # rows of a call; more would mostly be padding


class LoopTurns:
    """Lets the loop's body see states.

    Args:
        calls: begins loops of the pipeline.
        facts: how they can be used.
        start: how they start.
        levels: noise levels of the network.

    Attributes:
        fixed: whether every turn has the most rows, so that no bit depends on how rows were packed.
    """

    def __init__(
        self, calls: LoopCalls, facts: LoopFacts, start: LoopStart, levels: Levels
    ) -> None:
        self._calls, self._facts, self._start, self._levels = calls, facts, start, levels
        self.fixed = False
        self.most = 1 if facts.way is None else _MOST_ROWS
        self._pool = Pool(self._begin, facts.visited)
        self._listed = [float(t) for t in facts.visited]
        if not facts.any_order and len(set(self._listed)) < len(self._listed):
            raise Refusal("its loop must go in sequence, and its scheduler lists a time twice")

    def __call__(
        self, x_t: Tensor, times: Sequence[Time], handles: Sequence[LoopHandle]
    ) -> tuple[Tensor, Tensor]:
        """States ``(B, *shape)`` as the body made them of ``x_t``, and its predictions; float32.

        Raises:
            ValueError: a time off the grid where the loop counts its turns.
        """
        states: list[Tensor] = [x_t] * len(x_t)
        outputs: list[Tensor] = [x_t] * len(x_t)
        for places in self._pieces(x_t, times, handles):
            rows, time, handle = x_t[places], times[places[0]], handles[places[0]]
            seen, predicted = self._served(rows, time, handle)
            for place, state, output in zip(places, seen, predicted, strict=True):
                states[place], outputs[place] = state, output
        return torch.stack(states), torch.stack(outputs)

    def _pieces(
        self, x_t: Tensor, times: Sequence[Time], handles: Sequence[LoopHandle]
    ) -> Iterator[list[int]]:
        """Rows that may share a turn: of one prompt, at one time, and not too many."""
        groups: dict[object, list[int]] = {}
        for i, (time, handle) in enumerate(zip(times, handles, strict=True)):
            own = id(handle) if self._is_first(x_t[i], time, handle) else None
            groups.setdefault((handle.asked.key, time, own), []).append(i)
        for members in groups.values():
            for first in range(0, len(members), self.most):
                yield members[first : first + self.most]

    def _is_first(self, x: Tensor, time: Time, handle: LoopHandle) -> bool:
        """Whether the pipeline's own first turn answers: no body has changed that state before it."""
        return (
            self._facts.changes
            and handle.initial is not None
            and time.model_t == self._listed[0]
            and torch.equal(x, handle.initial[0])
        )

    def _served(self, x: Tensor, time: Time, handle: LoopHandle) -> tuple[Tensor, Tensor]:
        if self._is_first(x[0], time, handle):
            if handle.first is None:
                handle.first = self._own_first(handle)
                self._calls.tally.setup -= 1
                self._calls.tally.asked += len(x)
            return x, handle.first.expand(len(x), *handle.first.shape[1:])
        rows = self.most if self.fixed else 1 << (len(x) - 1).bit_length()
        scale, factor = self._scales(time)
        own = torch.cat([x, x[:1].expand(rows - len(x), *x.shape[1:])]) * scale
        given = self._facts.given(own).to(self._facts.dtype)
        if self._facts.any_order:
            loop = self._pool.any(handle.asked, rows).loop
            turn = loop.predict(given, self._told(time), factor=factor)
        else:
            loop, turn = self._in_sequence(given, own, time, handle.asked, factor)
        if torch.is_grad_enabled():
            loop.close()  # its frame would hold the graph
        self._calls.tally.asked += len(x)
        self._calls.tally.padding += rows - len(x)
        seen = self._facts.taken(turn.sample)[: len(x)].float()
        return seen / scale, self._facts.taken(turn.output)[: len(x)].float()

    def _scales(self, time: Time) -> tuple[float, float]:
        """From a state to the scheduler's own convention, and from there to what the network sees."""
        training = self._levels.training
        if not self._facts.scales:
            return training.scale_from(time), 1.0
        return 1.0 / time.alpha, training.scale_from(
            Time(time.model_t, 1.0, time.sigma / time.alpha)
        )

    def _told(self, time: Time) -> Tensor:
        """The time as the loop lists it, or as a number between."""
        if time.model_t in self._listed:
            return self._facts.visited[self._listed.index(time.model_t)]
        return torch.tensor(time.model_t, dtype=torch.float32)

    def _in_sequence(
        self, given: Tensor, own: Tensor, time: Time, asked: Asked, factor: float
    ) -> tuple[InvertedLoop, Turn]:
        """The turn whose number is that of the time, and its loop."""
        if time.model_t not in self._listed:
            raise ValueError(f"the loop counts its turns and knows no time {time.model_t}")
        position = self._listed.index(time.model_t)
        if position:
            kept = self._pool.at(position, asked, len(own))
            told = self._facts.visited[position]
            return kept.loop, kept.loop.predict(given, told, factor=factor)
        assert self._start.latents is not None
        latents = (own / self._start.latents).to(self._facts.dtype)
        kept = Open(*self._begin(asked, len(own), dry=False, latents=latents))
        turn = kept.loop.first
        self._calls.tally.setup -= len(own)  # this first turn was asked for
        if not relative(turn.sample, given) <= 4 * tolerance(self._facts.dtype):
            raise RuntimeError("the pipeline did not start from the latents= that it was given")
        self._pool.keep(asked, len(own), kept)
        return kept.loop, turn

    def close(self) -> None:
        """End all suspended calls; the next turn begins others."""
        self._pool.close()

    def _own_first(self, handle: LoopHandle) -> Tensor:
        loop, _ = self._calls.begin(handle.asked, 1, "prompts")
        with loop:
            return self._facts.taken(loop.first.output).float()

    def _begin(
        self, asked: Asked, rows: int, *, dry: bool = True, latents: Tensor | None = None
    ) -> tuple[InvertedLoop, LoopNetworks]:
        changed: dict[str, Any] = {} if latents is None else {"latents": latents}
        way = self._facts.way or "prompts"
        return self._calls.begin(asked, rows, way, dry=dry, **changed)
