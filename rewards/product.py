"""Several rewards multiplied: all of them must be good."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rewards.base import RewardModel
from rewards.ensemble import Ensemble


class Product(Ensemble):
    """Product of reward ** power over named members, none of which may be negative.

    Suits rewards that are probabilities, accuracies or other scores from zero up; one that is zero
    makes the product zero, whatever the others say. Scores are named columns: every member's own, and
    the total under the ensemble's name.

    Args:
        members: rewards by the name of their column. A member that has columns of its own shows
            them as "member/column".
        powers: of each member, by the same names; 1 where none is given, 0 only reports.
        name: of the total.

    Raises:
        ValueError: no members, a power that is not finite, below 0 or of no member, a member named
            like the total, or one whose range begins below 0.
    """

    def __init__(
        self,
        members: dict[str, RewardModel],
        powers: dict[str, float] | None = None,
        *,
        name: str = "product",
    ) -> None:
        super().__init__(members, powers, name=name, word="power")
        self.powers = self._factors
        for label, power in self.powers.items():
            if power < 0:
                raise ValueError(f"the power of {label!r} must be 0 or more, got {power}")
        for label, member in self.searched.items():
            if member.range is not None and member.range[0] < 0:
                raise ValueError(
                    f"{label!r} ranges from {member.range[0]:g}, and a product needs scores from 0 up; "
                    "take a WeightedSum"
                )
        bounds = [(m.range, self.powers[label]) for label, m in self.searched.items()]
        known = [(span, power) for span, power in bounds if span is not None]
        if len(known) == len(bounds):
            low, high = (math.prod(span[end] ** power for span, power in known) for end in (0, 1))
            self.range = low, high

    def score(self, media: Tensor, features: Sequence[tuple[Any, ...]]) -> Mapping[str, Tensor]:
        """Named columns ``(B,)`` and their product.

        Raises:
            ValueError: a member's score is negative.
        """
        columns = self.columns(media, features)
        total = media.new_ones(len(media))
        for label in self.searched:
            scores, power = columns[label], self.powers[label]
            if bool((scores < 0).any()):
                raise ValueError(
                    f"{label!r} scored {float(scores.min()):g}, and a product needs scores from 0 up; "
                    "take a WeightedSum"
                )
            total = total * (scores if power == 1 else scores**power)
        columns[self.name] = total
        return columns
