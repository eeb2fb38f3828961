"""PickScore: which of several pictures users pick for a prompt."""

from __future__ import annotations

from rewards.base import Residency
from rewards.embedding import Precision
from rewards.transformers_clip import TransformersCLIPScore


class PickScore(TransformersCLIPScore):
    """PickScore (Kirstain et al. 2023, https://arxiv.org/abs/2305.01569): a tuned CLIP's logit.

    About 20, with a spread of about 1.

    Args:
        model: hub id or folder of the weights.
        processor: hub id or folder of tokenizer and image processor; None: those that the authors
            name for their weights, or a given folder's own.
        allow_pickle: load weights that are not safetensors.
        dtype: precision of the weights.
        device: as in `RewardModel`.
        residency: as in `RewardModel`.
        cache_dir: where downloads are kept instead of the hub's cache.

    Raises:
        ValueError, WeightsUnavailable: as `TransformersEncoder.load`.
    """

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = None,
        *,
        allow_pickle: bool = False,
        dtype: Precision = "float32",
        device: str | None = None,
        residency: Residency = "resident",
        cache_dir: str | None = None,
    ) -> None:
        if processor is None and model == "yuvalkirstain/PickScore_v1":
            processor = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
        super().__init__(
            model,
            processor,
            output="logit",
            allow_pickle=allow_pickle,
            dtype=dtype,
            device=device,
            residency=residency,
            cache_dir=cache_dir,
        )
        self.name = "pickscore"
