"""One level of a tree of frames: how wide it is, and who judges it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from samplers.pool import others_beaten
from steering.reward import Reward

Verifiers: TypeAlias = Reward | Mapping[str, Reward]


@dataclass(frozen=True)
class ChunkLevel:
    """How a tree of frames makes and chooses the videos that are longer by one more chunk.

    Attributes:
        verifiers: a reward of videos ``(B, F, 3, H, W)``, or several by name. They see all frames so
            far, so that seams between chunks are judged, too; `rewards.OnFrames` looks at some.
        branch: children of each video that was kept on the level before; on the first level: of none.
        keep: most videos that are kept, of all children of a prompt together.
        weights: of verifiers by name, 1 where none is given. Videos are compared by the weighted mean of
            their ranks among the level's, whatever the verifiers' units; 0 only reports.

    Raises:
        ValueError: widths below 1, no verifiers, weights that make no sense, or a verifier that has no
            score of a video.
    """

    verifiers: Verifiers
    branch: int = 1
    keep: int = 1
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("branch", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 video, got {getattr(self, name)}")
        if not self.members:
            raise ValueError("a level needs at least one verifier, got none")
        for name, reward in self.members.items():
            _check(name, reward)
        for name, weight in self.weights.items():
            if name not in self.members:
                known = ", ".join(self.members)
                raise ValueError(f"weight for {name!r}, but the verifiers are {known}")
            if not 0 <= weight < math.inf:
                raise ValueError(
                    f"the weight of {name!r} must be at least 0 and finite, got {weight}"
                )
        if not any(self._weight(name) for name in self.members):
            raise ValueError(f"all weights are 0, so nothing is chosen by: {dict(self.weights)}")

    @classmethod
    def stages(
        cls,
        chunks: int,
        *,
        first: Verifiers,
        middle: Verifiers,
        last: Verifiers,
        branch: tuple[int, int, int] = (8, 2, 2),
        keep: int = 2,
    ) -> list[ChunkLevel]:
        """Levels of a whole video, which branch only where the verifiers change.

        As in Video-T1 (Liu et al. 2025, 2503.18942): the first chunk is judged as a picture, those in
        the middle by how they move, the last as a whole video.

        Args:
            chunks: of the video. Of one alone there is the last stage only, with the first's branches;
                of two there is none in the middle.
            first: verifiers of the first chunk.
            middle: of the chunks between.
            last: of the whole video.
            branch: children where each stage begins.
            keep: videos kept on every level but the last, which keeps one.

        Raises:
            ValueError: no chunks, or not three branches.
        """
        if chunks < 1:
            raise ValueError(f"chunks must be at least 1, got {chunks}")
        if len(branch) != 3:
            raise ValueError(f"branch holds the children of three stages, got {branch}")
        if chunks == 1:
            return [cls(last, branch[0])]
        middles = [cls(middle, branch[1] if i == 0 else 1, keep) for i in range(chunks - 2)]
        return [cls(first, branch[0], keep), *middles, cls(last, branch[2])]

    @property
    def members(self) -> dict[str, Reward]:
        """The verifiers by name."""
        one = self.verifiers
        return dict(one) if isinstance(one, Mapping) else {one.name: one}

    @property
    def calls_per_row(self) -> int:
        """Reward calls of one video."""
        return sum(reward.calls_per_row for reward in self.members.values())

    def values(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Weighted mean rank of each video, float64 ``(n,)``: 1 best by all, 0 worst by all.

        A rank is the share of the others that a video is better than, ties counting half.

        Args:
            columns: scores ``(n,)`` by verifier.
        """
        others = max(len(next(iter(columns.values()))) - 1, 1)
        weights = {name: self._weight(name) for name in columns}
        parts = [weights[name] * others_beaten(column.double()) for name, column in columns.items()]
        return torch.stack(parts).sum(0) / (others * sum(weights.values()))

    def _weight(self, name: str) -> float:
        return float(self.weights.get(name, 1.0))


def _check(name: str, reward: Reward) -> None:
    if getattr(reward, "ranked", None) is not None:
        raise ValueError(
            f"verifier {name!r} ranks candidates among each other and has no score of its own; name "
            "its members instead: a level ranks them itself"
        )
    if getattr(reward, "of_videos", True) is False:
        raise ValueError(
            f"verifier {name!r} scores pictures, but a level is judged by videos; wrap it in "
            "rewards.OnFrames(reward, 'first'), or 'mean', 'worst', 'last'"
        )
