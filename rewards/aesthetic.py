"""LAION's aesthetic predictor: how much people like the look of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from rewards.base import Residency, RewardModel
from rewards.blip import LinearHead
from rewards.embedding import Encoder, Precision
from rewards.encoders import OpenClipSource
from rewards.weights import find_weights, load_tensors

_NAMES = ("aesthetic-model.safetensors", "aesthetic.safetensors", "aesthetic-model.pth")


class EmbeddingScore(RewardModel):
    """A linear head on the unit embedding of a picture; the prompt is not looked at.

    Args:
        encoder: embeds; its forward is shared with other rewards on it.
        head: makes a number of an embedding; float32, frozen.
        device: as in `RewardModel`.
        residency: as in `RewardModel`.
    """

    name = "aesthetic"
    differentiable = True
    embeds = True

    def __init__(
        self,
        encoder: Encoder,
        head: LinearHead,
        *,
        device: str | None = None,
        residency: Residency = "resident",
    ) -> None:
        super().__init__(device=device, residency=residency)
        self.encoder, self.head = encoder, head.float().eval().requires_grad_(False)

    def score(self, media: Tensor, features: Sequence[Any]) -> Tensor:
        """Scores ``(B,)``."""
        return self.head(functional.normalize(self.encoder.images(media), dim=-1))

    def features_of(self, media: Tensor) -> Tensor:
        """Unit embeddings ``(B, D)`` of pictures."""
        return functional.normalize(self.encoder.images(media), dim=-1)


class AestheticScore(EmbeddingScore):
    """LAION's aesthetic score (Schuhmann et al. 2022), about 1 to 10.

    One linear layer or several on the unit embedding of CLIP ViT-L/14; that encoder's forward is
    shared with a `CLIPScore` of the same model. The prompt is not looked at.

    Args:
        head: file, folder or hub id of the head. The published ones are pickles:
            ``python -m rewards.conversion FILE.pth FILE.safetensors`` converts them.
        model: name, hub id or folder of the CLIP that it was trained on, as in `CLIPScore`.
        pretrained: tag or file of that CLIP's weights, with a built-in name.
        allow_pickle: load a published head itself, with weights_only.
        dtype: precision of the CLIP; the head is float32.
        device: as in `RewardModel`.
        residency: as in `RewardModel`.
        cache_dir: where downloads are kept instead of the hub's cache.

    Raises:
        FileNotFoundError, ValueError, WeightsUnavailable: as `rewards.weights.find_weights` and
            `OpenClipEncoder.load`; or the head does not fit the CLIP.
    """

    def __init__(
        self,
        head: str = "trl-lib/ddpo-aesthetic-predictor",
        model: str = "ViT-L-14",
        pretrained: str | None = "openai",
        *,
        allow_pickle: bool = False,
        dtype: Precision = "float32",
        device: str | None = None,
        residency: Residency = "resident",
        cache_dir: str | None = None,
    ) -> None:
        file = find_weights(head, _NAMES, allow_pickle=allow_pickle, cache_dir=cache_dir)
        tensors = load_tensors(file)
        if set(tensors) == {"weight", "bias"}:  # the older heads: one layer without a name
            tensors = {f"layers.0.{name}": tensor for name, tensor in tensors.items()}
        loaded = LinearHead.of(tensors)
        source = OpenClipSource(model, pretrained, False, dtype, device, residency, cache_dir)
        encoder = source.encoder()
        width = next(iter(loaded.layers.values())).in_features
        found = getattr(encoder.net.visual, "output_dim", width)
        if found != width:
            raise ValueError(
                f"the head {head!r} takes embeddings of {width} numbers, those of {model!r} have "
                f"{found}; give the CLIP that the head was trained on"
            )
        super().__init__(encoder, loaded, device=device, residency=residency)
