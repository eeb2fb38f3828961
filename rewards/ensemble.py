"""Several rewards as one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from rewards.base import RewardModel
from steering.reward import Item


class Ensemble(RewardModel):
    """Base of rewards over named members, which share the one decode of each row.

    Scores are named columns: every member's own, and the total under the ensemble's name.

    Args:
        members: rewards by the name of their column. A member that has columns of its own shows
            them as "member/column".
        factors: how much each counts, by the same names; 1 where none is given. 0 only reports.
        name: of the total.
        word: what a factor is called in messages.

    Raises:
        ValueError: no members, a factor that is not finite or belongs to no member, or a member
            that is named like the total or has no score of its own (a mean rank).
    """

    def __init__(
        self,
        members: dict[str, RewardModel],
        factors: dict[str, float] | None,
        *,
        name: str,
        word: str,
    ) -> None:
        super().__init__()
        factors = factors or {}
        if not members:
            raise ValueError(f"a {name} needs at least one member, got none")
        if name in members:
            raise ValueError(f"the total is named {name!r} like a member; give one another name")
        for member, factor in factors.items():
            if member not in members:
                raise ValueError(f"{word} for {member!r}, but the members are {', '.join(members)}")
            if not math.isfinite(factor):
                raise ValueError(f"the {word} of {member!r} must be finite, got {factor}")
        for member, model in members.items():
            if getattr(model, "ranked", None) is not None:
                raise ValueError(
                    f"member {member!r} ranks candidates among each other and has no score of its own; "
                    "name its members instead"
                )
        self.name = name
        self.members = dict(members)
        self._factors = {member: float(factors.get(member, 1.0)) for member in members}
        self.differentiable = all(member.differentiable for member in self.searched.values())
        self.embeds = any(member.embeds for member in self.searched.values())
        self.needs_text = any(member.needs_text for member in members.values())
        self.calls_per_row = sum(member.calls_per_row for member in members.values())
        self.of_videos = any(member.of_videos for member in members.values())

    @property
    def searched(self) -> dict[str, RewardModel]:
        """The members that count."""
        return {label: member for label, member in self.members.items() if self._factors[label]}

    def to(self, device: str | torch.device) -> Self:
        """Move every member's weights; returns itself."""
        for member in self.members.values():
            member.to(device)
        return self

    def _check_media(self, media: Tensor, features: Sequence[Any]) -> None:
        videos = self.of_videos and isinstance(media, Tensor) and media.ndim == 5 and media.shape[1]
        super()._check_media(media[:, 0] if videos else media, features)

    def looks_at(self, count: int) -> set[int] | None:
        """The frames that any member looks at; None: all."""
        looks = [member.looks_at(count) for member in self.members.values()]
        known = [look for look in looks if look is not None]
        return set().union(*known) if len(known) == len(looks) else None

    def featurize(self, item: Item) -> tuple[Any, ...]:
        """Every member's features, in order."""
        return tuple(member.prepare(item) for member in self.members.values())

    def features_of(self, media: Tensor) -> Tensor:
        """Those of the first searched member that has any."""
        first = next(member for member in self.searched.values() if member.embeds)
        return first.embed(media)

    def columns(self, media: Tensor, features: Sequence[tuple[Any, ...]]) -> dict[str, Tensor]:
        """Every member's scores ``(B,)`` by its name, and its own columns."""
        columns: dict[str, Tensor] = {}
        for index, (label, member) in enumerate(self.members.items()):
            scores = member(media, [row[index] for row in features])
            if isinstance(scores, Mapping):
                columns |= {f"{label}/{c}": v for c, v in scores.items() if c != member.name}
                scores = scores[member.name]
            columns[label] = scores
        return columns


class WeightedSum(Ensemble):
    """Sum of weight x reward over named members; they share the one decode of each row.

    Scores are named columns: every member's, unweighted, and the total under the ensemble's name.

    Args:
        members: rewards by the name of their column. A member that has columns of its own shows
            them as "member/column".
        weights: of each member, by the same names; 1 where none is given. Weight 0 only reports.
        name: of the total.

    Raises:
        ValueError: no members, a weight that is not finite or belongs to no member, or a member
            that is named like the total or has no score of its own (a mean rank).
    """

    def __init__(
        self,
        members: dict[str, RewardModel],
        weights: dict[str, float] | None = None,
        *,
        name: str = "weighted-sum",
    ) -> None:
        super().__init__(members, weights, name=name, word="weight")
        self.weights = self._factors
        self.range = _range(members, self.weights)

    def score(self, media: Tensor, features: Sequence[tuple[Any, ...]]) -> Mapping[str, Tensor]:
        """Named columns ``(B,)`` and their total."""
        columns = self.columns(media, features)
        # a member that only reports may be anything, even infinite
        parts = [self.weights[label] * columns[label] for label in self.searched]
        columns[self.name] = sum(parts[1:], parts[0]) if parts else media.new_zeros(len(media))
        return columns


class MeanRank(WeightedSum):
    """Named members whose candidates are compared by the mean of their ranks, whatever their units.

    The verifier ensemble of Ma et al. (2025, 2501.09732; how they treat ties could not be verified:
    here ties share their mean rank). A rank depends on the candidates beside it, so it is no score of
    a picture: a search ranks all that it has seen of one prompt (:mod:`samplers.pool`) and writes the
    mean rank, from 0 (worst by every member) to 1 (best by every member), in the place of the total,
    which is 0 until then. Searches with a fixed target refuse it.

    Args:
        members: rewards by the name of their column. A member that has columns of its own shows
            them as "member/column".
        name: of the mean rank.

    Raises:
        ValueError: no members, or a member that is named like the total or is itself a mean rank.
    """

    def __init__(self, members: dict[str, RewardModel], *, name: str = "mean-rank") -> None:
        super().__init__(members, dict.fromkeys(members, 0.0), name=name)
        self.differentiable = False
        self.range = (0.0, 1.0)
        self.ranked = tuple(members)


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
