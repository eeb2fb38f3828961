"""Rewards with random weights at the sizes of the real ones, beside the published way to score."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torchvision import transforms
from transformers import BatchEncoding, BertTokenizer, BlipConfig, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from rewards import ContrastiveScore, OpenClipEncoder, RewardModel, WeightedSum
from rewards.aesthetic import EmbeddingScore
from rewards.blip import BlipReward, LinearHead
from rewards.image_reward import BlipScore
from rewards.transformers_clip import TransformersEncoder

#: towers of ViT-H/14 in transformers' words, and their tiny stand-in
_H_VISION = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "hidden_act": "gelu",
}
_H_TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "vocab_size": 49408,
    "eos_token_id": 49407,
    "bos_token_id": 49406,
    "hidden_act": "gelu",
}
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
}
_TINY_CLIP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
_HEAD = (1024, 128, 64, 16, 1), (0, 2, 4, 6, 7)
_CHANNELS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Case:
    """A reward, and how the published code scores one picture.

    Attributes:
        reward: ours.
        one: PIL image and prompt to a number.
    """

    reward: RewardModel
    one: Callable[[Image.Image, str], float]


class _Words:
    """CLIP's tokenizer, which open_clip brings along, in the form of transformers."""

    def __init__(self) -> None:
        self.inner = open_clip.SimpleTokenizer()

    def __call__(self, texts: Sequence[str], **_: Any) -> BatchEncoding:
        ids = self.inner(list(texts))
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def _open_clip(model: str, mode: str, quick: bool, device: str, dtype: Any) -> OpenClipEncoder:
    config = _TINY_CLIP if quick else open_clip.get_model_config(model)
    with torch.device(device):
        net = open_clip.CLIP(**config)
    described = asdict(PreprocessCfg(size=224, resize_mode=mode))
    open_clip.set_model_preprocess_cfg(net, described)
    return OpenClipEncoder(net, open_clip.SimpleTokenizer(), dtype=dtype)


def _cosine(encoder: OpenClipEncoder) -> Callable[[Image.Image, str], float]:
    transform = image_transform_v2(
        PreprocessCfg(**open_clip.get_model_preprocess_cfg(encoder.net)), is_train=False
    )
    device, dtype = encoder.place

    def one(picture: Image.Image, prompt: str) -> float:
        pixels = transform(picture)[None].to(device, dtype)
        images = encoder.net.encode_image(pixels, normalize=True)
        texts = encoder.net.encode_text(encoder.tokenizer([prompt]).to(device), normalize=True)
        return float((images @ texts.T)[0, 0])

    return one


def clip(quick: bool, device: str, dtype: Any) -> Case:
    """CLIP score by ViT-L/14."""
    encoder = _open_clip("ViT-L-14", "shortest", quick, device, dtype)
    return Case(ContrastiveScore(encoder), _cosine(encoder))


def hps(quick: bool, device: str, dtype: Any) -> Case:
    """HPS v2: ViT-H/14 of open_clip."""
    encoder = _open_clip("ViT-H-14", "longest", quick, device, dtype)
    return Case(ContrastiveScore(encoder), _cosine(encoder))


def clip_and_aesthetic(quick: bool, device: str, dtype: Any) -> Case:
    """CLIP score and aesthetic score on one ViT-L/14; the published codes run it once for each."""
    encoder = _open_clip("ViT-L-14", "shortest", quick, device, dtype)
    width = encoder.net.visual.output_dim
    head = LinearHead((width, *_HEAD[0]), _HEAD[1]).to(device)
    look, cosine = EmbeddingScore(encoder, head), _cosine(encoder)
    transform = image_transform_v2(
        PreprocessCfg(**open_clip.get_model_preprocess_cfg(encoder.net)), is_train=False
    )

    def one(picture: Image.Image, prompt: str) -> float:
        pixels = transform(picture)[None].to(*encoder.place)
        images = encoder.net.encode_image(pixels, normalize=True).float()
        return cosine(picture, prompt) + float(head(images)[0])

    return Case(WeightedSum({"clip": ContrastiveScore(encoder), "look": look}), one)


def pickscore(quick: bool, device: str, dtype: Any) -> Case:
    """PickScore: ViT-H/14 of transformers."""
    text = {**_H_TEXT, **_TINY} if quick else _H_TEXT
    vision = {**_H_VISION, **_TINY} if quick else _H_VISION
    config = CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=64 if quick else 1024
    )
    with torch.device(device):
        net = CLIPModel(config)
    encoder = TransformersEncoder(net, _Words(), CLIPImageProcessor(), dtype=dtype)
    processor = CLIPImageProcessorPil()

    def one(picture: Image.Image, prompt: str) -> float:
        pixels = processor(images=picture, return_tensors="pt").pixel_values
        told = encoder.tokenizer([prompt]).to(device)
        out = encoder.net(pixel_values=pixels.to(*encoder.place), **told)
        return float(out.logits_per_image[0, 0])

    return Case(ContrastiveScore(encoder), one)


def image_reward(quick: bool, device: str, dtype: Any) -> Case:
    """ImageReward: BLIP's ViT-L/16 and BERT."""
    large = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    vision = {**(_TINY if quick else large), "image_size": 224, "patch_size": 16}
    text = _TINY if quick else {"num_attention_heads": 12}
    config = BlipConfig(text_config=text, vision_config=vision)
    config.head_widths = [config.text_config.hidden_size, *_HEAD[0]]
    config.head_places = _HEAD[1]
    with torch.device(device):
        net = BlipReward(config)
    reward = BlipScore(net, _bert(), dtype=dtype)
    transform = transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(*_CHANNELS),
        ]
    )

    def one(picture: Image.Image, prompt: str) -> float:
        told = reward.tokenizer(
            prompt, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
        ).to(device)
        pixels: Tensor = transform(picture)[None].to(device, getattr(torch, dtype))
        return float(net(pixels, told.input_ids, told.attention_mask)[0])

    return Case(reward, one)


def _bert() -> BertTokenizer:
    """BERT's tokenizer with few words."""
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "ring", "cross"]
        vocabulary.write_text("\n".join(words))
        return BertTokenizer(str(vocabulary))


CASES: dict[str, Callable[[bool, str, Any], Case]] = {
    "clip": clip,
    "clip+aesthetic": clip_and_aesthetic,
    "pickscore": pickscore,
    "hps": hps,
    "image-reward": image_reward,
}
