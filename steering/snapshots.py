"""Small copies of what a search had scored, kept on request: pictures of the particles over time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from steering.model import Stage

MOST_ROWS = 4096  #: copies kept of one search; beyond them only finished samples are


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What one request of a search for rewards looked like.

    Attributes:
        record: index of the trace's record that was next when the rewards came.
        stage: guess or finished sample.
        rewards: total reward of each row, float64 ``(n,)``.
        pictures: uint8 ``(n, 3, h, w)`` on the CPU.
    """

    record: int
    stage: Stage
    rewards: Tensor
    pictures: Tensor


def shrunk(media: Tensor, side: int) -> Tensor:
    """Copies with a longer side of at most ``side`` pixels, uint8 ``(B, 3, h, w)`` on their device.

    Args:
        media: images ``(B, 3, H, W)`` in [0, 1]; of videos ``(B, frames, 3, H, W)`` the middle frame.
        side: in pixels.

    Raises:
        ValueError: media of another kind.
    """
    images = media.detach()
    if images.ndim == 5:
        images = images[:, images.shape[1] // 2]
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"thumbnails are made of pictures (B, 3, H, W), got media {tuple(media.shape)}; pass "
            "thumbnails=None, on the command line --thumbnails 0"
        )
    longer = max(images.shape[-2:])
    if longer > side:
        size = [max(round(n * side / longer), 1) for n in images.shape[-2:]]
        images = functional.interpolate(images.float(), size, mode="area")
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
