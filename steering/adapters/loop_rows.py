"""Loops for the rows of one prompt: how its pipeline is called, and which suspended call serves next."""

from __future__ import annotations

import copy
import functools
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from steering.adapters.asking import Pair, ask
from steering.adapters.capture import arguments, quiet_generator
from steering.adapters.inverted import InvertedLoop
from steering.adapters.loop_networks import LoopNetworks, Memory, Tally

#: How a call is asked for several rows of one prompt: by a list of prompts, or images of one prompt.
Way = Literal["prompts", "images"]
_ENCODED = 64  # prompts whose encodings are kept
_OPEN = 32  # suspended calls that are kept
_MOST_ROWS = 8  # rows of a call; more would mostly be padding


@dataclass(frozen=True, eq=False)
class Asked:
    """One row's share of a call.

    Attributes:
        pair: its prompt and negative prompt.
        random: device of its generator, and where that stands when the call begins; None for our own.
    """

    pair: Pair
    random: tuple[torch.device, Tensor] | None = None

    @functools.cached_property
    def key(self) -> Hashable:
        """Equal for rows whose calls are alike."""
        if self.random is None:
            return self.pair
        device, state = self.random
        return self.pair, str(device), bytes(state.tolist())

    def generator(self) -> torch.Generator:
        """A generator of the row's own, at that state."""
        if self.random is None:
            return quiet_generator()
        device, state = self.random
        generator = torch.Generator(device)
        generator.set_state(state)
        return generator


class LoopCalls:
    """Begins loops of a pipeline.

    Args:
        pipe: the pipeline; left as it was.
        call: its arguments shared by all prompts.

    Attributes:
        memory: the form of its networks' answers.
        tally: rows that went through its loops.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        self.pipe, self._call = pipe, dict(call)
        self.memory, self.tally = Memory(), Tally()
        self._encoded: OrderedDict[Any, list[Any]] = OrderedDict()
        #: further arguments of the pipeline's own unpacking of latents, once it was seen
        self.unpacking: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def begin(
        self,
        asked: Asked,
        rows: int,
        way: Way,
        *,
        dry: bool = False,
        parts: Mapping[str, Any] | None = None,
        **changed: Any,
    ) -> tuple[InvertedLoop, LoopNetworks]:
        """A loop of rows that are all alike, with the stand-ins of its networks.

        Args:
            asked: what each row asks for.
            rows: how many.
            way: how the pipeline is asked for them.
            dry: whether the first turn is not to cost anything.
            parts: parts of the pipeline to replace.
            changed: further arguments of the call.
        """
        asking = (
            ask(self.pipe, [asked.pair] * rows)
            if way == "prompts"
            else ask(self.pipe, [asked.pair], rows)
        )
        generators = [asked.generator() for _ in range(rows)]
        kwargs = arguments(
            self.pipe,
            self._call,
            generator=generators if rows > 1 else generators[0],
            return_dict=True,
            **asking,
            **changed,
        )
        return self.start(kwargs, rows, (asked.pair, rows, way), dry=dry, parts=parts)

    def start(
        self,
        kwargs: Mapping[str, Any],
        rows: int,
        key: Any,
        *,
        dry: bool,
        parts: Mapping[str, Any] | None = None,
    ) -> tuple[InvertedLoop, LoopNetworks]:
        """A loop with these arguments; calls of one key encode the same prompts."""
        networks = LoopNetworks(self.pipe, rows, self.memory, dry=dry)
        own: dict[str, Any] = dict(parts or {})
        if hasattr(self.pipe, "encode_prompt"):
            own["encode_prompt"] = self._memoised(key)
        if hasattr(self.pipe, "_unpack_latents"):
            own["_unpack_latents"] = self._watched_unpacking
        loop = InvertedLoop(self.pipe, kwargs, networks=networks, parts=own)
        if networks.worked:
            self.tally.setup += rows
        return loop, networks

    def _memoised(self, key: Any) -> Callable[..., Any]:
        """The pipeline's own encoding, done once a key."""
        known = self._encoded.setdefault(key, [])
        self._encoded.move_to_end(key)
        if len(self._encoded) > _ENCODED:
            self._encoded.popitem(last=False)
        calls = itertools.count()
        scratch = copy.copy(self.pipe)  # some pipelines note the LoRA scale on themselves

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            index = next(calls)
            if index == len(known):
                known.append(scratch.encode_prompt(*args, **kwargs))
            return pytree.tree_map(lambda x: x, known[index])  # containers of its own

        return encode_prompt

    def _watched_unpacking(self, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.unpacking = (args, kwargs)
        return self.pipe._unpack_latents(latents, *args, **kwargs)


@dataclass(eq=False)
class Open:
    """A suspended call that is kept."""

    loop: InvertedLoop
    networks: LoopNetworks


class Pool:
    """Suspended calls of rows that are alike; those idle longest are ended where there are too many.

    Args:
        begin: begins a call of some rows, dry.
        visited: times that a call lists; after as many turns it is begun anew, so that no index of the
            loop is beyond what the pipeline prepared.
    """

    def __init__(
        self, begin: Callable[[Asked, int], tuple[InvertedLoop, LoopNetworks]], visited: Tensor
    ) -> None:
        self._begin, self._visited = begin, visited
        self._open: OrderedDict[int, tuple[Hashable, Open]] = OrderedDict()

    def any(self, asked: Asked, rows: int) -> Open:
        """A call of these rows that has turns left."""
        return self._take(asked, rows, range(1, max(len(self._visited), 2)))

    def at(self, position: int, asked: Asked, rows: int) -> Open:
        """A call of these rows whose next turn is number ``position``; brought there dry."""
        found = self._take(asked, rows, range(1, position + 1))
        found.networks.dry = True
        while found.loop.turns < position:
            found.loop.predict(found.loop.first.sample, self._visited[found.loop.turns])
        found.networks.dry = False
        return found

    def keep(self, asked: Asked, rows: int, kept: Open) -> None:
        """Keep a call that was begun elsewhere."""
        self._open[id(kept)] = _key(asked, rows), kept
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)[1][1].loop.close()

    def close(self) -> None:
        """End all calls."""
        while self._open:
            self._open.popitem()[1][1].loop.close()

    def _take(self, asked: Asked, rows: int, turns: range) -> Open:
        """The call of these rows that is furthest on within ``turns``, or a new one."""
        key = _key(asked, rows)
        self._open = OrderedDict((n, e) for n, e in self._open.items() if not e[1].loop.ended)
        fit = [
            (kept.loop.turns, number)
            for number, (own, kept) in self._open.items()
            if own == key and kept.loop.turns in turns
        ]
        if fit:
            number = max(fit)[1]
            self._open.move_to_end(number)
            found = self._open[number][1]
        else:
            found = Open(*self._begin(asked, rows))
            self.keep(asked, rows, found)
        found.networks.dry = False
        return found


def _key(asked: Asked, rows: int) -> Hashable:
    return asked.key, rows, threading.get_ident()  # greenlets stay in their thread
