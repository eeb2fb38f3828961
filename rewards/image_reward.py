"""ImageReward: human preference of a picture for its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, BlipConfig

from rewards.base import Residency, RewardModel
from rewards.blip import BlipReward, config_of, renamed
from rewards.embedding import Precision
from rewards.preprocessing import Preprocess
from rewards.weights import find_weights, from_transformers, load_tensors
from steering.reward import Item, scoring_call

_NAMES = ("model.safetensors", "ImageReward.safetensors", "ImageReward.pt")
_LENGTH = 35  #: tokens of a text, as the published code cuts it
_MEAN, _STD = (
    0.16717362830052426,
    1.0333394966054072,
)  #: of the raw scores, published with the model
_CHANNELS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class BlipScore(RewardModel):
    """Score by a network of ImageReward's form.

    Args:
        net: the network; it is frozen and set to evaluation.
        tokenizer: BERT's.
        dtype: precision of the towers; the head is float32.
        device: as in `RewardModel`.
        residency: as in `RewardModel`.
    """

    name = "image-reward"
    differentiable = True
    needs_text = True

    def __init__(
        self,
        net: BlipReward,
        tokenizer: Any,
        *,
        dtype: Precision = "float32",
        device: str | None = None,
        residency: Residency = "resident",
    ) -> None:
        super().__init__(device=device, residency=residency)
        self.net, self.tokenizer = net.eval().requires_grad_(False), tokenizer
        for tower in (net.vision_model, net.text_encoder):
            tower.to(getattr(torch, dtype))
        self.preprocess = Preprocess((net.image_size, net.image_size), *_CHANNELS)

    def featurize(self, item: Item) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask of the prompt, each ``(35,)``."""
        told = self.tokenizer(
            item.prompt,
            padding="max_length",
            truncation=True,
            max_length=_LENGTH,
            return_tensors="pt",
        )
        return told.input_ids[0], told.attention_mask[0]

    def score(self, media: Tensor, features: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Scores ``(B,)``."""
        held = next(self.net.parameters())
        with scoring_call() as memo:
            pixels = memo.get(self.preprocess, media, lambda: self.preprocess(media))
        ids, mask = (
            torch.stack(list(part)).to(held.device) for part in zip(*features, strict=True)
        )
        return (self.net(pixels.to(held), ids, mask) - _MEAN) / _STD


class ImageReward(BlipScore):
    """ImageReward (Xu et al. 2023, https://arxiv.org/abs/2304.05977), about 0 +- 1 over its data.

    The published file is a pickle; ``python -m rewards.conversion ImageReward.pt FOLDER --layout
    image-reward`` makes the folder that is loaded here.

    Args:
        model: such a folder, the published file, or a hub id.
        tokenizer: hub id or folder of BERT's tokenizer; None takes the model's folder if it holds one,
            else "google-bert/bert-base-uncased".
        allow_pickle: load the published file itself, with weights_only.
        dtype: precision of the towers; the head is float32.
        device: as in `RewardModel`.
        residency: as in `RewardModel`.
        cache_dir: where downloads are kept instead of the hub's cache.

    Raises:
        FileNotFoundError, ValueError, WeightsUnavailable: as `rewards.weights.find_weights`.
    """

    def __init__(
        self,
        model: str = "THUDM/ImageReward",
        *,
        tokenizer: str | None = None,
        allow_pickle: bool = False,
        dtype: Precision = "float32",
        device: str | None = None,
        residency: Residency = "resident",
        cache_dir: str | None = None,
    ) -> None:
        weights = find_weights(
            model, _NAMES, layout="image-reward", allow_pickle=allow_pickle, cache_dir=cache_dir
        )
        super().__init__(
            _network(weights),
            _tokenizer(tokenizer, weights.parent, cache_dir),
            dtype=dtype,
            device=device,
            residency=residency,
        )


def _tokenizer(name: str | None, folder: Path, cache_dir: str | None) -> Any:
    own = any((folder / file).is_file() for file in ("tokenizer.json", "vocab.txt"))
    chosen = name or (str(folder) if own else "google-bert/bert-base-uncased")
    return from_transformers(AutoTokenizer.from_pretrained, chosen, cache_dir=cache_dir)


def _network(weights: Path) -> BlipReward:
    tensors = load_tensors(weights)
    described = weights.parent / "config.json"
    if weights.suffix == ".safetensors" and described.is_file():
        config = BlipConfig.from_pretrained(weights.parent)
    else:
        config, tensors = config_of(tensors), renamed(tensors)
    net = BlipReward(config)
    missing, unexpected = net.load_state_dict(tensors, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"{weights} is no ImageReward checkpoint: it lacks {missing[:3]} and has {unexpected[:3]} "
            "too much"
        )
    return net
