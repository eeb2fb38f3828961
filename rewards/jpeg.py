"""JPEG compressibility."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.io import encode_jpeg

from rewards.base import RewardModel


class JPEGCompressibility(RewardModel):
    """Minus the size of the picture as a JPEG file, in kilobytes (1,000 bytes).

    The smooth-picture reward of Black et al. 2023 (DDPO, https://arxiv.org/abs/2305.13301). With a
    weight of -1 in a `WeightedSum` it asks for detail instead.

    Args:
        quality: of the encoder, 1 to 100.

    Raises:
        ValueError: another quality.
    """

    name = "jpeg"
    range = (-float("inf"), 0.0)

    def __init__(self, quality: int = 95) -> None:
        super().__init__()
        if not 1 <= quality <= 100:
            raise ValueError(f"a JPEG quality is 1 to 100, got {quality}")
        self.quality = quality

    def score(self, media: Tensor, features: Sequence[Any]) -> Tensor:
        """Scores ``(B,)`` in kilobytes, below zero."""
        pictures = (media.clamp(0, 1) * 255).round().to("cpu", torch.uint8)
        files = [encode_jpeg(picture.contiguous(), quality=self.quality) for picture in pictures]
        return torch.tensor([-file.numel() / 1000 for file in files], device=media.device)
