"""What the engine needs of a reward model; the package ``rewards`` holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Item:
    """What a reward may know of a prompt beside the media.

    Attributes:
        prompt: the text.
        metadata: anything else a reward asks for (counts, a class, reference pictures).
    """

    prompt: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Reward(Protocol):
    """Scores media, one number a row, higher is better.

    Declared abilities are class attributes, proved by one shared test.
    """

    name: str
    differentiable: bool
    calls_per_row: int  #: models that look at each row: what a row counts in reward calls

    def prepare(self, item: Item) -> Any:
        """Features of one prompt, computed once and handed back with every row of it."""

    def __call__(self, media: Tensor, features: Sequence[Any]) -> Tensor | Mapping[str, Tensor]:
        """Scores of ``media (B, 3, H, W)`` in [0, 1], with the features of each row.

        Returns:
            ``(B,)`` on the media's device; or named columns of that shape, of which the one named
            like the reward is the total that is searched.
        """
