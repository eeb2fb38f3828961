"""Several rewards as one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from rewards.base import RewardModel
from steering.reward import Item


class WeightedSum(RewardModel):
    """Sum of weight x reward over named members; they share the one decode of each row.

    Scores are named columns: every member's, unweighted, and the total under the ensemble's name.

    Args:
        members: rewards by the name of their column. A member that has columns of its own shows
            them as "member/column".
        weights: of each member, by the same names; 1 where none is given. Weight 0 only reports.
        name: of the total.

    Raises:
        ValueError: no members, a weight that is not finite or belongs to no member, or a member
            named like the total.
    """

    def __init__(
        self,
        members: dict[str, RewardModel],
        weights: dict[str, float] | None = None,
        *,
        name: str = "weighted-sum",
    ) -> None:
        super().__init__()
        weights = weights or {}
        if not members:
            raise ValueError("a weighted sum needs at least one member, got none")
        if name in members:
            raise ValueError(f"the total is named {name!r} like a member; give one another name")
        for member, weight in weights.items():
            if member not in members:
                raise ValueError(f"weight for {member!r}, but the members are {', '.join(members)}")
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {member!r} must be finite, got {weight}")
        self.name = name
        self.weights = {member: float(weights.get(member, 1.0)) for member in members}
        self.members = dict(members)
        searched = [member for label, member in members.items() if self.weights[label]]
        self.differentiable = all(member.differentiable for member in searched)
        self.needs_text = any(member.needs_text for member in members.values())
        self.calls_per_row = sum(member.calls_per_row for member in members.values())
        self.range = _range(members, self.weights)

    def to(self, device: str | torch.device) -> Self:
        """Move every member's weights; returns itself."""
        for member in self.members.values():
            member.to(device)
        return self

    def featurize(self, item: Item) -> tuple[Any, ...]:
        """Every member's features, in order."""
        return tuple(member.prepare(item) for member in self.members.values())

    def score(self, media: Tensor, features: Sequence[tuple[Any, ...]]) -> Mapping[str, Tensor]:
        """Named columns ``(B,)`` and their total."""
        columns: dict[str, Tensor] = {}
        total: Tensor | None = None
        for index, (label, member) in enumerate(self.members.items()):
            weight = self.weights[label]
            scores = member(media, [row[index] for row in features])
            if isinstance(scores, Mapping):
                columns |= {f"{label}/{c}": v for c, v in scores.items() if c != member.name}
                scores = scores[member.name]
            columns[label] = scores
            if weight:  # a member that only reports may be anything, even infinite
                total = weight * scores if total is None else total + weight * scores
        columns[self.name] = media.new_zeros(len(media)) if total is None else total
        return columns


def _range(
    members: Mapping[str, RewardModel], weights: Mapping[str, float]
) -> tuple[float, float] | None:
    low = high = 0.0
    for label, weight in weights.items():
        bounds = members[label].range
        if weight and bounds is None:
            return None
        if weight and bounds is not None:
            ends = weight * bounds[0], weight * bounds[1]
            low, high = low + min(ends), high + max(ends)
    return low, high
