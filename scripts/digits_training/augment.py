"""Small random shifts, turns and scales, drawn and applied on the pictures' own device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """How far pictures are moved, each by its own uniform draw.

    Attributes:
        shift: pixels, each way.
        turn: degrees, each way.
        scale: share of the size, each way.
    """

    shift: float = 0.0
    turn: float = 0.0
    scale: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """Moved pictures ``(B, 1, H, W)`` in [0, 1]; outside is black."""
        with torch.autocast(images.device.type, enabled=False):  # places need single precision
            return self._moved(images)

    def _moved(self, images: Tensor) -> Tensor:
        count, side = len(images), images.shape[-1]
        # One draw for all four numbers: few kernels, and nothing that a CUDA graph cannot hold.
        x, y, turn, scale = (2 * torch.rand(4, count, device=images.device) - 1).unbind()
        angle, size = turn * self.turn * torch.pi / 180, 1 + scale * self.scale
        cos, sin = size * angle.cos(), size * angle.sin()
        x, y = (2 * self.shift / side) * x, (2 * self.shift / side) * y
        theta = torch.stack([cos, -sin, x, sin, cos, y], -1).view(count, 2, 3)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False)


#: For the denoiser: little, since what it is shown is what it draws.
GENTLE = Augmentation(shift=1.0, turn=5.0, scale=0.04)
#: For classifiers, which must generalise from 4,000 pictures.
STRONG = Augmentation(shift=2.5, turn=15.0, scale=0.12)
