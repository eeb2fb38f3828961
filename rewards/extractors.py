"""CLIP and Inception models in the forms that torchmetrics takes, from local files where asked.

Pictures are uint8 ``(B, 3, H, W)`` here, as torchmetrics and the models' own preprocessing expect.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards.encoders import OpenClipEncoder, WeightsUnavailable

SHAPES = "shapes-clip"
INCEPTION = "inception"
_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


class ClipPair(nn.Module):
    """A CLIP model with its preprocessing: ``lambda: (pair, pair.processor)`` suits torchmetrics.

    Args:
        images: embeds preprocessed pictures, ``(B, 3, h, w)`` to ``(B, D)``.
        texts: embeds ``(input_ids, attention_mask)``.
        processor: takes ``images=`` or ``text=`` and returns a mapping of tensors.
        net: the module behind both.
    """

    config = None  # torchmetrics looks there for a text length

    def __init__(self, net: Any, images: Any, texts: Any, processor: Any) -> None:
        super().__init__()
        self.net, self.processor = net, processor
        self._images, self._texts = images, texts

    def get_image_features(self, pixels: Tensor) -> Tensor:
        """Embeddings ``(B, D)``, not normalised."""
        return self._images(pixels)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings ``(n, D)``, not normalised."""
        return self._texts(input_ids, attention_mask)


class ImageFeatures(nn.Module):
    """The image half of a pair as a feature extractor, as in Kynkäänniemi et al. 2022 (2203.06026)."""

    def __init__(self, pair: ClipPair) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, pictures: Tensor) -> Tensor:
        """Features ``(B, D)`` of pictures, uint8 ``(B, 3, H, W)``."""
        pixels = self.pair.processor(images=list(pictures.cpu()), return_tensors="pt")[
            "pixel_values"
        ]
        with torch.no_grad():
            return self.pair.get_image_features(pixels.to(next(self.parameters()).device))


def load_pair(name: str) -> ClipPair:
    """Load a CLIP model for evaluation.

    Args:
        name: "shapes-clip" (embedded); "NAME:TAG" of open_clip ("ViT-L-14:openai"), its hub id with
            the prefix "hf-hub:", or its folder; a hub id of transformers
            ("openai/clip-vit-large-patch14") or its folder.

    Raises:
        ValueError, FileNotFoundError: unknown name, incomplete folder, unsafe weights.
        WeightsUnavailable: the files can neither be downloaded nor found.
    """
    if name == SHAPES:
        from rewards.shapes import load_shapes_encoder

        return _open_clip_pair(load_shapes_encoder())
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if (local and (folder / "open_clip_config.json").is_file()) or name.startswith("hf-hub:"):
        return _open_clip_pair(OpenClipEncoder.load(name))
    if local or "/" in name:
        return _transformers_pair(str(folder) if local else name)
    model, _, tag = name.partition(":")
    return _open_clip_pair(OpenClipEncoder.load(model, tag or None))


def inception_distance(weights: str | None = None) -> nn.Module:
    """FID over Inception features (Heusel et al. 2017, https://arxiv.org/abs/1706.08500).

    Args:
        weights: file with the Inception weights of torch-fidelity; None downloads it once.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
        FileNotFoundError: there is no such file.
        WeightsUnavailable: it can neither be downloaded nor found, or is not what it should be.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if weights is not None:
        _check_plain(Path(weights).expanduser())
    try:
        return FrechetInceptionDistance(feature_extractor_weights_path=weights)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "FID over Inception features needs torch-fidelity "
            "(pip install 'diffusion-steering[metrics]'); or take the features of a CLIP model, "
            f"say --features {SHAPES}"
        ) from error
    except (OSError, RuntimeError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_FILE
        raise WeightsUnavailable(
            f"cannot load the Inception weights: {error}\n"
            f"Without a network put {_INCEPTION_FILE} (torch-fidelity's release v0.2.0 on GitHub) at "
            f"{place}, or give its place as --features {INCEPTION}:FILE; or take the features of a "
            f"CLIP model, say --features {SHAPES}"
        ) from error


def _check_plain(path: Path) -> None:
    """Refuse a file that holds more than tensors: torch-fidelity would unpickle anything."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r} with Inception weights")
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise WeightsUnavailable(
            f"{path} is not a plain file of PyTorch weights: {error}"
        ) from error


def _open_clip_pair(encoder: OpenClipEncoder) -> ClipPair:
    def processor(
        *, images: Sequence[Tensor] | None = None, text: Sequence[str] | None = None, **_: Any
    ) -> dict[str, Tensor]:
        if images is not None:
            return {"pixel_values": encoder.preprocess(torch.stack(list(images)) / 255)}
        tokens = encoder.tokenizer(list(text or ()))
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    def texts(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return encoder.net.encode_text(input_ids).float()

    return ClipPair(encoder.net, encoder.encode_pixels, texts, processor)


def _transformers_pair(name: str) -> ClipPair:
    from transformers import CLIPModel, CLIPProcessor

    try:
        net = CLIPModel.from_pretrained(name, use_safetensors=True).eval().requires_grad_(False)
        processor = CLIPProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise WeightsUnavailable(
            f"cannot load the CLIP model {name!r} by transformers: {error}\n"
            "Without a network it must be in the hub's cache already; else copy config.json, "
            "model.safetensors and the tokenizer and processor files to a folder and give that folder"
        ) from error

    # The heads' outputs are taken from the towers: what get_image_features returns (a tensor, or an
    # object that torchmetrics cannot take) depends on the version of transformers.
    def images(pixels: Tensor) -> Tensor:
        return net.visual_projection(net.vision_model(pixel_values=pixels).pooler_output)

    def texts(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        outputs = net.text_model(input_ids=input_ids, attention_mask=attention_mask)
        return net.text_projection(outputs.pooler_output)

    return ClipPair(net, images, texts, processor)
