"""CLIP-like models of transformers: CLIP, SigLIP and their kin, by hub id or folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from rewards.base import Residency
from rewards.caching import fingerprint, shared
from rewards.clip import ContrastiveScore
from rewards.embedding import Encoder, Precision
from rewards.preprocessing import Preprocess
from rewards.weights import from_transformers


class TransformersEncoder(Encoder):
    """Embeds pictures and texts by a model of transformers.

    Args:
        net: a model with get_image_features and get_text_features.
        tokenizer: its tokenizer.
        processor: its image processor; how it resizes and normalises is done on tensors.
        dtype: precision of the weights.

    Raises:
        ValueError: the model is of another kind, or the processor does something else.
    """

    def __init__(
        self, net: Any, tokenizer: Any, processor: Any, *, dtype: Precision = "float32"
    ) -> None:
        if not hasattr(net, "get_image_features") or not hasattr(net, "get_text_features"):
            raise ValueError(
                f"{type(net).__name__} does not embed pictures and texts in one space; give a model "
                "like CLIPModel or SiglipModel"
            )
        super().__init__(net, Preprocess.from_processor(processor), dtype)
        self.net: Any
        self.tokenizer = tokenizer
        self.length = int(net.config.text_config.max_position_embeddings)

    @classmethod
    def load(
        cls,
        model: str,
        processor: str | None = None,
        *,
        allow_pickle: bool = False,
        dtype: Precision = "float32",
        cache_dir: str | None = None,
    ) -> TransformersEncoder:
        """Load by hub id or folder.

        Args:
            model: of the weights.
            processor: of tokenizer and image processor; None: the same.
            allow_pickle: load weights that are not safetensors.
            dtype: precision of the weights.
            cache_dir: where downloads are kept instead of the hub's cache.

        Raises:
            ValueError, WeightsUnavailable: as `rewards.weights.from_transformers`.
        """
        tools = processor or model
        net = from_transformers(
            AutoModel.from_pretrained,
            model,
            allow_pickle=allow_pickle,
            dtype=getattr(torch, dtype),
            cache_dir=cache_dir,
        )
        images = from_transformers(AutoImageProcessor.from_pretrained, tools, cache_dir=cache_dir)
        texts = from_transformers(AutoTokenizer.from_pretrained, tools, cache_dir=cache_dir)
        return cls(net, texts, images, dtype=dtype)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Embeddings ``(B, D)`` of preprocessed pictures."""
        device, dtype = self.place
        return _tensor(self.net.get_image_features(pixel_values=pixels.to(device, dtype))).float()

    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings ``(n, D)`` of texts."""
        # Padded to the full length: SigLIP was trained so, and CLIP does not look beyond its end token.
        told = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        ).to(self.place[0])
        return _tensor(self.net.get_text_features(**told)).float()


def _tensor(features: Any) -> Tensor:
    """The embeddings: what the method returns is a tensor or an object, by version."""
    return features if isinstance(features, Tensor) else features.pooler_output


class TransformersCLIPScore(ContrastiveScore):
    """CLIP score by a model of transformers: CLIP, SigLIP (Zhai et al. 2023, 2303.15343), ...

    Args:
        model: hub id or folder.
        processor: hub id or folder of tokenizer and image processor; None: the model's.
        output: "cosine": 100 x the cosine, as `CLIPScore`; "logit": the model's own logit, which for
            SigLIP is that of picture and text being a pair.
        allow_pickle: load weights that are not safetensors.
        dtype: precision of the weights.
        device: as in `RewardModel`.
        residency: as in `RewardModel`.
        cache_dir: where downloads are kept instead of the hub's cache.

    Raises:
        ValueError, WeightsUnavailable: as `TransformersEncoder.load`; or another output.
    """

    def __init__(
        self,
        model: str,
        processor: str | None = None,
        *,
        output: Literal["cosine", "logit"] = "cosine",
        allow_pickle: bool = False,
        dtype: Precision = "float32",
        device: str | None = None,
        residency: Residency = "resident",
        cache_dir: str | None = None,
    ) -> None:
        if output not in ("cosine", "logit"):
            raise ValueError(f"output is cosine or logit, got {output!r}")
        place = (device, residency, cache_dir, allow_pickle)
        encoder = shared(
            (model, processor, dtype, place, fingerprint(model), fingerprint(processor)),
            lambda: TransformersEncoder.load(
                model, processor, allow_pickle=allow_pickle, dtype=dtype, cache_dir=cache_dir
            ),
        )
        super().__init__(encoder, device=device, residency=residency)
        self.output = output
        self.name = f"clip-{Path(model).name}"
        if output == "logit":
            self.range = None

    def score(self, media: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Scores ``(B,)``."""
        cosines = self.cosines(media, features)
        if self.output == "cosine":
            return 100 * cosines
        net: Any = self.encoder.net
        logits = cosines * net.logit_scale.float().exp().to(cosines.device)
        bias = getattr(net, "logit_bias", None)
        return logits if bias is None else logits + bias.float().to(cosines.device)
