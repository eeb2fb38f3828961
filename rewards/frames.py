"""Rewards of videos: pictures' rewards on their frames, and terms of motion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor

from rewards.base import RewardModel, Scored
from steering.reward import Item

Frames = Literal["mean", "worst", "first", "last"] | int


class VideoReward(RewardModel):
    """Base of the rewards that look at videos ``(B, F, 3, H, W)``, frames in [0, 1] along ``F``."""

    of_videos = True

    def _check_media(self, media: Tensor, features: Sequence[Any]) -> None:
        if isinstance(media, Tensor) and media.ndim == 5 and media.shape[1] > 0:
            super()._check_media(media[:, 0], features)
            return
        got = tuple(media.shape) if isinstance(media, Tensor) else type(media).__name__
        raise ValueError(
            f"reward {self.name!r} expects videos (B, F, 3, H, W), got {got}; a reward of pictures "
            "is used as it is, without OnFrames or a term of motion"
        )


class OnFrames(VideoReward):
    """A reward of pictures on the frames of a video.

    All frames of all videos are scored together, in one batch. The member's columns come along.

    Args:
        reward: of pictures.
        frames: ``"mean"`` of all frames, the ``"worst"`` of them, the ``"first"``, the ``"last"``, or a
            number: the mean of so many, evenly spaced, ends included.

    Raises:
        ValueError: ``frames`` is none of these.
    """

    def __init__(self, reward: RewardModel, frames: Frames = "mean") -> None:
        super().__init__()
        if frames not in ("mean", "worst", "first", "last") and (
            not isinstance(frames, int) or isinstance(frames, bool) or frames < 1
        ):
            raise ValueError(
                "frames must be 'mean', 'worst', 'first', 'last' or a number of at least 1, got "
                f"{frames!r}"
            )
        self.reward, self.frames = reward, frames
        self.name = reward.name
        self.differentiable, self.needs_text = reward.differentiable, reward.needs_text
        self.range, self.calls_per_row = reward.range, reward.calls_per_row

    def to(self, device: str | torch.device) -> Self:
        """Move the member's weights; returns itself."""
        self.reward.to(device)
        return self

    def featurize(self, item: Item) -> Any:
        """The member's features."""
        return self.reward.prepare(item)

    def chosen(self, count: int) -> list[int]:
        """Indices of the frames that are looked at, of ``count``."""
        if isinstance(self.frames, int):
            n = min(self.frames, count)
            return [round(j * (count - 1) / (n - 1)) for j in range(n)] if n > 1 else [0]
        return {"first": [0], "last": [count - 1]}.get(self.frames, list(range(count)))

    def looks_at(self, count: int) -> list[int]:
        """The chosen frames."""
        return self.chosen(count)

    def score(self, media: Tensor, features: Sequence[Any]) -> Scored:
        """Scores ``(B,)`` of videos ``(B, F, 3, H, W)``, or the member's named columns."""
        looked = media[:, self.chosen(media.shape[1])]
        videos, n = looked.shape[:2]
        rows = [feature for feature in features for _ in range(n)]
        scores = self.reward(looked.flatten(0, 1), rows)
        if isinstance(scores, Mapping):
            return {name: self._joined(column, videos) for name, column in scores.items()}
        return self._joined(scores, videos)

    def _joined(self, scores: Tensor, videos: int) -> Tensor:
        by_frame = scores.reshape(videos, -1)
        return by_frame.amin(1) if self.frames == "worst" else by_frame.mean(1)


class MotionAmount(VideoReward):
    """How much moves: mean absolute difference of neighbouring frames, in [0, 1].

    The simplest form of a dynamic degree (VBench, Huang et al. 2024, 2311.17982, measures it by optical
    flow); searched alone it favours flicker, so it belongs beside :class:`MotionSmoothness`.
    """

    name = "motion-amount"
    differentiable = True
    range = (0.0, 1.0)

    def score(self, media: Tensor, features: Sequence[Any]) -> Tensor:
        """``(B,)``; 0 of a single frame."""
        if media.shape[1] < 2:
            return media.flatten(1).sum(1) * 0.0
        return media.diff(dim=1).abs().flatten(1).mean(1)


class MotionSmoothness(VideoReward):
    """How evenly it moves: 1 less the change of differences, in shares of the differences, in [0, 1].

    ``1 - sum |f0 - 2 f1 + f2| / sum (|f1 - f0| + |f2 - f1|)`` over all neighbouring triples and pixels:
    1 where brightness changes at a constant rate or nothing moves, 0 where every change is taken back.
    VBench (2311.17982) measures it by a network that interpolates frames.
    """

    name = "motion-smoothness"
    differentiable = True
    range = (0.0, 1.0)

    def score(self, media: Tensor, features: Sequence[Any]) -> Tensor:
        """``(B,)``; 1 of fewer than three frames."""
        if media.shape[1] < 3:
            return media.flatten(1).sum(1) * 0.0 + 1.0
        changes = media.diff(dim=1)
        rough = changes.diff(dim=1).abs().flatten(1).sum(1)
        sizes = changes.abs()
        whole = (sizes[:, 1:] + sizes[:, :-1]).flatten(1).sum(1)
        moving = whole > 0
        return 1.0 - torch.where(moving, rough / torch.where(moving, whole, 1.0), 0.0)
