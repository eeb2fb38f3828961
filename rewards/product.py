"""Several rewards multiplied: all of them must be good."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from rewards.base import RewardModel
from steering.reward import Item


class Product(RewardModel):
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
        super().__init__()
        powers = powers or {}
        if not members:
            raise ValueError("a product needs at least one member, got none")
        if name in members:
            raise ValueError(f"the total is named {name!r} like a member; give one another name")
        for label, power in powers.items():
            if label not in members:
                raise ValueError(f"power for {label!r}, but the members are {', '.join(members)}")
            if not (math.isfinite(power) and power >= 0):
                raise ValueError(f"the power of {label!r} must be 0 or more, got {power}")
        self.name = name
        self.powers = {label: float(powers.get(label, 1.0)) for label in members}
        self.members = dict(members)
        searched = {label: m for label, m in members.items() if self.powers[label]}
        for label, member in searched.items():
            if member.range is not None and member.range[0] < 0:
                raise ValueError(
                    f"{label!r} ranges from {member.range[0]:g}, and a product needs scores from 0 up; "
                    "take a WeightedSum"
                )
        self.differentiable = all(member.differentiable for member in searched.values())
        self.needs_text = any(member.needs_text for member in members.values())
        self.calls_per_row = sum(member.calls_per_row for member in members.values())
        bounds = [(m.range, self.powers[label]) for label, m in searched.items()]
        known = [(span, power) for span, power in bounds if span is not None]
        if len(known) == len(bounds):
            low, high = (math.prod(span[end] ** power for span, power in known) for end in (0, 1))
            self.range = low, high

    def to(self, device: str | torch.device) -> Self:
        """Move every member's weights; returns itself."""
        for member in self.members.values():
            member.to(device)
        return self

    def featurize(self, item: Item) -> tuple[Any, ...]:
        """Every member's features, in order."""
        return tuple(member.prepare(item) for member in self.members.values())

    def score(self, media: Tensor, features: Sequence[tuple[Any, ...]]) -> Mapping[str, Tensor]:
        """Named columns ``(B,)`` and their product.

        Raises:
            ValueError: a member's score is negative.
        """
        columns: dict[str, Tensor] = {}
        total: Tensor | None = None
        for index, (label, member) in enumerate(self.members.items()):
            scores = member(media, [row[index] for row in features])
            if isinstance(scores, Mapping):
                columns |= {f"{label}/{c}": v for c, v in scores.items() if c != member.name}
                scores = scores[member.name]
            columns[label] = scores
            power = self.powers[label]
            if power:
                if bool((scores < 0).any()):
                    raise ValueError(
                        f"{label!r} scored {float(scores.min()):g}, and a product needs scores from 0 "
                        "up; take a WeightedSum"
                    )
                factor = scores if power == 1 else scores**power
                total = factor if total is None else total * factor
        columns[self.name] = media.new_ones(len(media)) if total is None else total
        return columns
