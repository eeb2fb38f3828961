"""CLIP score: how well a picture fits its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from rewards.base import Residency, RewardModel
from rewards.embedding import Encoder, Precision
from rewards.encoders import OpenClipSource
from steering.reward import Item


class ContrastiveScore(RewardModel):
    """100 x the cosine between the embeddings of picture and prompt.

    That is the CLIP score of torchmetrics without its cut at zero, which would end the gradient;
    Hessel et al. 2021 (https://arxiv.org/abs/2104.08718) scale the cosine by 2.5 instead.

    Args:
        encoder: embeds both.
        device: as in `RewardModel`.
        residency: as in `RewardModel`.
    """

    name = "clip"
    differentiable = True
    embeds = True
    needs_text = True
    range: tuple[float, float] | None = (-100.0, 100.0)

    def __init__(
        self,
        encoder: Encoder,
        *,
        device: str | None = None,
        residency: Residency = "resident",
    ) -> None:
        super().__init__(device=device, residency=residency)
        self.encoder = encoder

    def featurize(self, item: Item) -> Tensor:
        """The prompt's unit embedding ``(D,)``."""
        return functional.normalize(self.encoder.texts([item.prompt])[0], dim=-1)

    def score(self, media: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Scores ``(B,)``, from -100 to 100."""
        return 100 * self.cosines(media, features)

    def features_of(self, media: Tensor) -> Tensor:
        """Unit embeddings ``(B, D)`` of pictures."""
        return functional.normalize(self.encoder.images(media), dim=-1)

    def cosines(self, media: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Cosines ``(B,)`` between pictures and the prompts of their rows."""
        images = functional.normalize(self.encoder.images(media), dim=-1)
        texts = torch.stack(list(features)).to(images.device)
        return (images * texts).sum(-1)


class CLIPScore(ContrastiveScore):
    """CLIP score by any model of open_clip.

    Its name, the key of its calibration, tells the model: "clip-ViT-L-14-openai".

    Args:
        model: built-in name, hub id or folder; see `OpenClipEncoder.load`, also for what it raises.
        pretrained: tag or file of the weights, with a built-in name.
        allow_pickle: load weights that are not safetensors.
        dtype: precision of the weights.
        device: as in `RewardModel`.
        residency: as in `RewardModel`.
        cache_dir: where downloads are kept instead of the hub's cache.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        *,
        allow_pickle: bool = False,
        dtype: Precision = "float32",
        device: str | None = None,
        residency: Residency = "resident",
        cache_dir: str | None = None,
    ) -> None:
        source = OpenClipSource(
            model, pretrained, allow_pickle, dtype, device, residency, cache_dir
        )
        super().__init__(source.encoder(), device=device, residency=residency)
        words = ("clip", Path(model).name, Path(pretrained).stem if pretrained else "")
        self.name = "-".join(word for word in words if word)
