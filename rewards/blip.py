"""The network behind ImageReward: BLIP's picture-grounded text encoder with a linear head.

Li et al. 2022 (BLIP, https://arxiv.org/abs/2201.12086), Xu et al. 2023 (ImageReward,
https://arxiv.org/abs/2304.05977); built of the BLIP parts of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import BlipConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

_HEAD_WIDTH = 64  #: of every attention head of BERT and of the ViTs of BLIP


class LinearHead(nn.Module):
    """Linear layers in a row without activations, as the heads of ImageReward and LAION are.

    Args:
        widths: of the input, of what lies between, and 1.
        places: index of each layer in the published model, where dropout took places, too.
    """

    def __init__(self, widths: tuple[int, ...], places: tuple[int, ...]) -> None:
        super().__init__()
        layers = zip(places, widths[:-1], widths[1:], strict=True)
        self.layers = nn.ModuleDict({str(i): nn.Linear(a, b) for i, a, b in layers})

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> LinearHead:
        """The head with these tensors, named "layers.<place>.weight" and so on, loaded.

        Raises:
            ValueError: they are no such head.
        """
        weights = {}
        for name, tensor in tensors.items():
            if found := re.fullmatch(r"layers\.(\d+)\.weight", name):
                weights[int(found[1])] = tensor
        places = tuple(sorted(weights))
        widths = (*(weights[i].shape[1] for i in places), 1)
        chained = all(len(weights[i]) == w for i, w in zip(places, widths[1:], strict=True))
        if not places or not chained:
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            raise ValueError(f"expected linear layers that end in one number, got {shapes}")
        head = cls(widths, places)
        head.load_state_dict(dict(tensors))
        return head

    def forward(self, x: Tensor) -> Tensor:
        """One number ``(B,)`` of each row ``(B, D)``."""
        for layer in self.layers.values():
            x = layer(x)
        return x[:, 0]


class BlipReward(nn.Module):
    """Raw scores of pictures with tokenised texts.

    Args:
        config: of both towers, with the head's ``head_widths`` and ``head_places``.
    """

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.mlp = LinearHead(tuple(config.head_widths), tuple(config.head_places))
        self.image_size = int(config.vision_config.image_size)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Raw scores ``(B,)``: pixels ``(B, 3, h, w)``, ids and mask ``(B, length)``."""
        pictures = self.vision_model(pixel_values=pixels).last_hidden_state
        told = self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=pictures,
            encoder_attention_mask=pictures.new_ones(pictures.shape[:2], dtype=torch.long),
        )
        return self.mlp(told.last_hidden_state[:, 0].float())


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors that score, under the names of `BlipReward`.

    Raises:
        ValueError: they are not those of an ImageReward checkpoint.
    """
    rules = [
        (r"^blip\.visual_encoder\.blocks\.(\d+)\.", r"vision_model.encoder.layers.\1."),
        (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
        (r"^blip\.visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
        (r"^blip\.visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
        (r"^blip\.visual_encoder\.norm\.", "vision_model.post_layernorm."),
        (r"^(vision_model\..*)\.attn\.proj\.", r"\1.self_attn.projection."),
        (r"^(vision_model\..*)\.attn\.", r"\1.self_attn."),
        (r"^(vision_model\..*)\.norm([12])\.", r"\1.layer_norm\2."),
        (r"^blip\.text_encoder\.", "text_encoder."),
    ]
    found = {}
    for name, tensor in tensors.items():
        for pattern, target in rules:
            name = re.sub(pattern, target, name)
        # What else is published served the pretraining only.
        if (
            name.startswith(("vision_model.", "text_encoder.", "mlp."))
            and "position_ids" not in name
        ):
            found[name] = tensor
    for part in ("vision_model.", "text_encoder.", "mlp."):
        if not any(name.startswith(part) for name in found):
            raise ValueError(
                f"no tensors of {part[:-1]} among those of the checkpoint ({len(tensors)}, such as "
                f"{', '.join(list(tensors)[:3])}); it is no ImageReward checkpoint"
            )
    return found


def config_of(tensors: Mapping[str, Tensor]) -> BlipConfig:
    """The configuration that published tensors tell by their shapes.

    Raises:
        ValueError: as `renamed`.
    """
    named = renamed(tensors)
    patches = named["vision_model.embeddings.patch_embedding.weight"]
    positions = named["vision_model.embeddings.position_embedding"].shape[1] - 1
    words = named["text_encoder.embeddings.word_embeddings.weight"]
    layer = "text_encoder.encoder.layer.0"
    head = LinearHead.of({k.removeprefix("mlp."): v for k, v in named.items() if k[:4] == "mlp."})
    vision = {
        "hidden_size": len(patches),
        "intermediate_size": len(named["vision_model.encoder.layers.0.mlp.fc1.weight"]),
        "num_hidden_layers": _count(named, r"vision_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(len(patches) // _HEAD_WIDTH, 1),
        "patch_size": patches.shape[-1],
        "image_size": round(positions**0.5) * patches.shape[-1],
        "layer_norm_eps": 1e-6,
    }
    text = {
        "vocab_size": len(words),
        "hidden_size": words.shape[1],
        "intermediate_size": len(named[f"{layer}.intermediate.dense.weight"]),
        "num_hidden_layers": _count(named, r"text_encoder\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": max(words.shape[1] // _HEAD_WIDTH, 1),
        "max_position_embeddings": len(named["text_encoder.embeddings.position_embeddings.weight"]),
    }
    config = BlipConfig(text_config=text, vision_config=vision)
    places = [int(place) for place in head.layers]
    config.head_widths = [head.layers[str(place)].in_features for place in places] + [1]
    config.head_places = places
    return config


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Number of layers by the names of their tensors."""
    return len({found[1] for name in tensors if (found := re.match(pattern, name))})
