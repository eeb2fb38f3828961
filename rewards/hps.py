"""Human Preference Score v2: a CLIP tuned on choices between generated pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from rewards.base import Residency
from rewards.caching import fingerprint, shared
from rewards.clip import ContrastiveScore
from rewards.conversion import hps_config
from rewards.embedding import Precision
from rewards.encoders import OpenClipEncoder
from rewards.weights import find_weights

_FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class HPSv2(ContrastiveScore):
    """HPS v2 (Wu et al. 2023, https://arxiv.org/abs/2306.09341): the cosine itself, about 0.2 to 0.3.

    Pictures are fitted by their longest edge and padded black, as the published code does. That code
    publishes pickles; ``python -m rewards.conversion HPS_v2.1_compressed.pt FOLDER --layout hps`` makes
    the folder that is loaded here.

    Args:
        model: such a folder, the published file, or a hub id.
        version: which of the published files a hub id means.
        allow_pickle: load the published file itself, with weights_only.
        dtype: precision of the weights.
        device: as in `RewardModel`.
        residency: as in `RewardModel`.
        cache_dir: where downloads are kept instead of the hub's cache.

    Raises:
        FileNotFoundError, ValueError, WeightsUnavailable: as `rewards.weights.find_weights`.
    """

    range = (-1.0, 1.0)

    def __init__(
        self,
        model: str = "xswu/HPSv2",
        *,
        version: Literal["v2.0", "v2.1"] = "v2.1",
        allow_pickle: bool = False,
        dtype: Precision = "float32",
        device: str | None = None,
        residency: Residency = "resident",
        cache_dir: str | None = None,
    ) -> None:
        if version not in _FILES:
            raise ValueError(f"version is one of {', '.join(_FILES)}; got {version!r}")
        weights = find_weights(
            model,
            ("open_clip_model.safetensors", _FILES[version]),
            layout="hps",
            allow_pickle=allow_pickle,
            cache_dir=cache_dir,
        )
        encoder = shared(
            ("hps", fingerprint(str(weights)), dtype, device, residency),
            lambda: OpenClipEncoder.of_file(weights, hps_config(), dtype=dtype),
        )
        super().__init__(encoder, device=device, residency=residency)
        self.name = f"hps-{version}"

    def score(self, media: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Scores ``(B,)``, from -1 to 1."""
        return self.cosines(media, features)
