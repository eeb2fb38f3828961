"""Rewards of the embedded moving shapes: neural, by colour, and the judge that knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rewards.frames import Frames, OnFrames, VideoReward
from rewards.shapes import ShapesCLIP, load_shapes_encoder
from steering import shapes
from steering.reward import Item
from steering.shapes.grammar import COLOURS
from steering.shapes.motion import MAX_MOVERS, WAYS, Mover
from steering.shapes.render import PALETTE

_NEAR = 0.12  # RGB distance at which a pixel counts little
_MASS = 1.0  # pixels in the middle of the picture, which decide where nothing has the colour
_PACE = {"slowly": 1.4, "quickly": 3.2}  # pixels a frame
_MOVING = 1.2  # pixels a frame, from which on more is no better where no pace is asked for


class MotionVerifier(VideoReward):
    """1 where a video shows its prompt in every frame and moves as it says, else 0.

    The held-out judge of moving shapes, `steering.shapes.verify_motion`. Beside its verdict it has two
    columns: ``frames``, the share of frames that show the shapes, and ``motion``, 1 where the shapes
    move as asked over those frames.
    """

    name = "motion-verifier"
    needs_text = True
    range = (0.0, 1.0)

    def featurize(self, item: Item) -> str:
        """The prompt, known to be within the grammar of `steering.shapes.parse_motion`.

        Raises:
            ValueError: it is not.
        """
        shapes.parse_motion(item.prompt)
        return item.prompt

    def score(self, media: Tensor, features: Sequence[str]) -> Mapping[str, Tensor]:
        """Columns ``(B,)`` of videos ``(B, F, 3, 64, 64)``."""
        verdict = shapes.judge_motion(media, list(features))
        columns = {
            self.name: verdict.right.float(),
            "frames": verdict.shows.float().mean(1),
            "motion": verdict.moves.float(),
        }
        return {name: column.to(media.device) for name, column in columns.items()}


class ShapesFrames(OnFrames):
    """The embedded CLIP on the frames of a video, against the shapes of its prompt without their motion.

    Args:
        frames: as in `OnFrames`.
    """

    def __init__(self, frames: Frames = "mean") -> None:
        super().__init__(ShapesCLIP(), frames)
        self.name = "shapes-frames"

    def featurize(self, item: Item) -> Any:
        """Embedding of what each frame should show, e.g. "a red circle"; raises as the grammar."""
        return super().featurize(replace(item, prompt=str(shapes.parse_motion(item.prompt).scene)))


class ShapesConsistency(VideoReward):
    """How alike the frames are: mean cosine of the embedded CLIP's features of each to the first.

    The subject consistency of VBench (Huang et al. 2024, 2311.17982) in its simplest form; a video in
    which nothing moves is the most consistent.
    """

    name = "shapes-consistency"
    differentiable = True
    range = (-1.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = load_shapes_encoder()

    def score(self, media: Tensor, features: Sequence[Any]) -> Tensor:
        """``(B,)``; 1 of a single frame."""
        seen = self.encoder.images(media.flatten(0, 1))
        seen = functional.normalize(seen, dim=-1).unflatten(0, media.shape[:2])
        alike = (seen[:, 1:] * seen[:, :1]).sum(-1)
        return alike.mean(1) if media.shape[1] > 1 else alike.sum(1) + 1.0


class ColourMotion(VideoReward):
    """Whether the colours of the prompt move as it says; differentiable, and blind to shapes.

    Each mover's centre in each frame is the mean place of the pixels weighed by how near they are to its
    colour (without a colour: by how far from the background), its velocity the slope of a line through
    the centres. Going the way counts up to 1, the other way down to -1, less what goes sideways; a pace
    wants its own speed; a shape that stands still loses a point a pixel and frame. The mean over movers.
    """

    name = "colour-motion"
    differentiable = True
    needs_text = True
    range = (-1.0, 1.0)

    def featurize(self, item: Item) -> Tensor:
        """What is asked of each mover, ``(2, 8)`` as in `_asked`; raises as the grammar."""
        movers = shapes.parse_motion(item.prompt).movers
        rows = [_asked(mover) for mover in movers]
        return torch.tensor([*rows, *[[0.0] * len(rows[0])] * (MAX_MOVERS - len(rows))])

    def score(self, media: Tensor, features: Sequence[Tensor]) -> Tensor:
        """``(B,)`` of videos ``(B, F, 3, H, W)``; a single frame moves nowhere."""
        asked = torch.stack(list(features)).to(media)
        colour, coloured, way, pace, there = asked.split((3, 1, 2, 1, 1), -1)
        velocity = _velocities(media, colour, coloured[..., 0] > 0)
        ahead = (velocity * way).sum(-1, keepdim=True)
        sideways = (velocity - ahead * way).abs().sum(-1, keepdim=True)
        free = (ahead / _MOVING).clamp(-1, 1)
        paced = 1 - (ahead - pace).abs() / pace.clamp(min=1)
        moving = torch.where(pace > 0, paced, free) - sideways / _MOVING
        still = 1 - velocity.abs().sum(-1, keepdim=True)
        moves = way.abs().sum(-1, keepdim=True) > 0
        good = torch.where(moves, moving, still).clamp(-1, 1)
        return (good * there).sum((1, 2)) / there.sum((1, 2))


def _asked(mover: Mover) -> list[float]:
    """Colour (3), whether there is one, way (2), pixels a frame or 0, and 1 for a mover."""
    colour = mover.group.colour
    paint = (0.0, 0.0, 0.0) if colour is None else PALETTE[COLOURS.index(colour)]
    way = WAYS.get(mover.way or "", (0, 0))
    return [*paint, float(colour is not None), *way, _PACE.get(mover.pace or "", 0.0), 1.0]


def _velocities(media: Tensor, colour: Tensor, coloured: Tensor) -> Tensor:
    """Velocities (x, y) ``(B, M, 2)`` in pixels a frame of what has M colours ``(B, M, 3)``."""
    frames, height, width = media.shape[1], media.shape[3], media.shape[4]
    video = media.transpose(1, 2)[:, None]  # (B, 1, 3, F, H, W)
    ground = video.detach().flatten(-2).median(-1).values[..., None, None]
    near = (video - colour[..., None, None, None]).square().sum(2)
    far = (video - ground).square().sum(2)
    weight = torch.where(
        coloured[..., None, None, None],
        (-near / (2 * _NEAR**2)).exp(),
        1 - (-far / (2 * _NEAR**2)).exp(),
    )
    x, y, clock = (
        torch.arange(n, device=media.device, dtype=media.dtype) - (n - 1) / 2
        for n in (width, height, frames)
    )
    mass = weight.sum((-2, -1)) + _MASS  # (B, M, F)
    centre = torch.stack([(weight.sum(-2) * x).sum(-1), (weight.sum(-1) * y).sum(-1)], -1)
    centre = centre / mass[..., None]
    return (clock[:, None] * centre).sum(-2) / clock.square().sum().clamp(min=1.0)
