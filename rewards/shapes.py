"""Rewards of the embedded world of shapes: its neural score, and the judge that knows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rewards.base import RewardModel
from rewards.clip import ContrastiveScore
from rewards.encoders import OpenClipEncoder, Precision
from steering import shapes
from steering.reward import Item


class ShapesCLIP(ContrastiveScore):
    """CLIP score by the embedded open_clip model: good but fallible, as real rewards are.

    Args:
        dtype: precision of the weights.
        device: as in `RewardModel`.

    Raises:
        FileNotFoundError: the installation lacks the weights.
    """

    name = "shapes-clip"

    def __init__(self, *, dtype: Precision = "float32", device: str | None = None) -> None:
        super().__init__(load_shapes_encoder(dtype), device=device)


class ShapesVerifier(RewardModel):
    """1 where the picture truly shows its prompt, else 0; pictures are 64 x 64 pixels.

    It reads the picture by segmentation and template matching, so nothing that fools a neural
    reward fools it: meant as the held-out judge, though it can be searched on too.
    """

    name = "shapes-verifier"
    needs_text = True
    range = (0.0, 1.0)

    def featurize(self, item: Item) -> str:
        """The prompt, known to be within the grammar of `steering.shapes.parse`.

        Raises:
            ValueError: it is not.
        """
        shapes.parse(item.prompt)
        return item.prompt

    def score(self, media: Tensor, features: Sequence[str]) -> Tensor:
        """Verdicts ``(B,)``, 0 or 1."""
        return shapes.verify(media, list(features)).to(media.device).float()


def load_shapes_encoder(dtype: Precision = "float32") -> OpenClipEncoder:
    """The embedded CLIP model; raises as `ShapesCLIP`."""
    net, tokenizer = shapes.load_clip()
    return OpenClipEncoder(net, tokenizer, dtype=dtype)
