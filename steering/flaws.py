"""What is wrong with a picture, and the three parts of a repair: planner, editor and painter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from steering.cost import Cost
from steering.reward import Item

#: (left, top, right, bottom) as fractions of width and height, in [0, 1]
Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class Flaw:
    """One thing that is wrong with a picture, and what to do about it.

    Attributes:
        kind: what sort of flaw: "missing", "extra", "wrong", "relation" or a planner's own word.
        instruction: the edit as an order in words ("turn the blue ring into a red ring").
        target: what the boxes ought to show; empty where nothing, or where it cannot be said.
        boxes: where the edit may change the picture; empty: everywhere.

    Raises:
        ValueError: a box that is empty or not within [0, 1].
    """

    kind: str
    instruction: str
    target: str = ""
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        for box in self.boxes:
            left, top, right, bottom = box
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ValueError(
                    f"a box is (left, top, right, bottom) with 0 <= left < right <= 1 and the like, "
                    f"as fractions of the picture; got {box}"
                )

    def mask(self, height: int, width: int, margin: float = 0.0) -> Tensor:
        """1 where the edit may change the picture, else 0, float ``(1, height, width)``.

        Args:
            height: of the picture in pixels.
            width: of the picture in pixels.
            margin: added around each box, as a fraction of the picture.
        """
        if not self.boxes:
            return torch.ones(1, height, width)
        y = (torch.arange(height) + 0.5) / height
        x = (torch.arange(width) + 0.5) / width
        mask = torch.zeros(1, height, width)
        for left, top, right, bottom in self.boxes:
            inside_y = (y > top - margin) & (y < bottom + margin)
            inside_x = (x > left - margin) & (x < right + margin)
            mask[0] = torch.maximum(mask[0], (inside_y[:, None] & inside_x[None]).float())
        return mask


@dataclass(frozen=True, eq=False)
class Painted:
    """Pictures, and what each of them cost.

    Attributes:
        pictures: ``(B, 3, H, W)`` in [0, 1].
        costs: of each picture, counted where it was made.
        rewards: of each picture by the painter's own ``reward``, where it searched by one; a repair
            by the same reward takes them as they are.
    """

    pictures: Tensor
    costs: list[Cost]
    rewards: list[float] | None = None


@runtime_checkable
class Planner(Protocol):
    """A judge that lists what is wrong."""

    calls_per_row: int  #: judge calls that a picture counts

    def plan(self, pictures: Tensor, items: Sequence[Item]) -> list[list[Flaw]]:
        """Flaws of each picture ``(B, 3, H, W)`` in [0, 1], the first to be mended first.

        An empty list says that nothing is wrong.
        """


@runtime_checkable
class Editor(Protocol):
    """Changes pictures as flaws ask for."""

    def cost(self) -> Cost:
        """The most that one edit costs."""

    def edit(
        self,
        pictures: Tensor,
        items: Sequence[Item],
        flaws: Sequence[Flaw],
        seeds: Sequence[int],
    ) -> Painted:
        """Each picture ``(B, 3, H, W)`` with its flaw mended, or not: the reward will tell.

        The seeds, below 2^63, decide all that is random of a row, whatever its neighbours.
        """


@runtime_checkable
class Painter(Protocol):
    """Makes pictures from nothing."""

    def cost(self) -> Cost:
        """The most that one picture costs."""

    def paint(self, items: Sequence[Item], keys: Sequence[str]) -> Painted:
        """One picture of each item; the key decides all that is random of a row."""
