"""Videos that are made chunk by chunk: what is kept of one, and what makes the next chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from steering.cost import Cost
from steering.reward import Item


@dataclass(frozen=True, eq=False)
class Prefix:
    """The first chunks of one video; those that share a beginning share its memory.

    Attributes:
        chunks: how many there are.
        latents: what the generator goes on from, in a layout of its own; None before the first.
        parts: frames in [0, 1], each ``(F, 3, H, W)``, one after the other; empty: not decoded.
    """

    chunks: int = 0
    latents: Tensor | None = None
    parts: tuple[Tensor, ...] = ()

    @property
    def video(self) -> Tensor:
        """All frames ``(F, 3, H, W)`` in [0, 1].

        Raises:
            ValueError: they were not decoded.
        """
        if not self.parts:
            raise ValueError(
                f"a prefix of {self.chunks} chunks holds no frames; extend it with frames=True"
            )
        home = self.parts[-1].device  # earlier ones may come from a file
        return torch.cat([part.to(home) for part in self.parts])


@dataclass(frozen=True, eq=False)
class Extended:
    """Prefixes that are longer by a chunk, and what each of these chunks cost.

    Attributes:
        prefixes: one for each that was given, in that order.
        costs: of each, counted where it was made.
    """

    prefixes: list[Prefix]
    costs: list[Cost]


@runtime_checkable
class Continue(Protocol):
    """Makes the next chunk of a video from what is kept of it."""

    chunks: int | None  #: how many a whole video has; None: as many as are asked for

    def cost(self, chunk: int, *, frames: bool) -> Cost:
        """The most that making one chunk costs, the ``chunk``-th of its video, from 0.

        With ``frames`` the extended prefix has frames; a generator that cannot but decode counts
        its decodes without it, too.
        """

    def extend(
        self,
        prefixes: Sequence[Prefix],
        items: Sequence[Item],
        seeds: Sequence[int],
        *,
        frames: bool,
    ) -> Extended:
        """Each prefix with one more chunk; an empty one gets its first.

        The seeds, below 2^63, decide all that is random of a row, whatever its neighbours.
        """
