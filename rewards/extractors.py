"""CLIP and Inception models in the forms that torchmetrics takes, from local files where asked.

Pictures are uint8 ``(B, 3, H, W)`` here, as torchmetrics and the models' own preprocessing expect.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from rewards.encoders import OpenClipEncoder, WeightsUnavailable

SHAPES = "shapes-clip"
INCEPTION = "inception"
VGG = "vgg16"
_FIDELITY_FILES = {  # the names that torch.hub keeps them under, and where they come from
    INCEPTION: (
        "weights-inception-2015-12-05-6726825d.pth",
        "torch-fidelity's release v0.2.0 on GitHub",
    ),
    VGG: ("vgg16-397923af.pth", "torchvision's, from download.pytorch.org/models"),
}


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

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings ``(n, D)`` of texts, not normalised; what is too long is cut."""
        tokens = self.processor(
            text=list(prompts), return_tensors="pt", padding=True, truncation=True
        )
        device = next(self.net.parameters()).device
        with torch.no_grad():
            return self.get_text_features(
                tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
            )


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


def fidelity_features(name: str, weights: str | None = None) -> nn.Module:
    """A network of torch-fidelity; maps uint8 pictures to a tuple of features.

    "inception" gives ``(B, 2048)`` and the logits ``(B, 1008)`` without bias, resized like TensorFlow's
    original (Heusel et al. 2017, https://arxiv.org/abs/1706.08500); "vgg16" gives ``(B, 4096)``, the
    features of precision and recall (Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991).

    Args:
        name: "inception" or "vgg16".
        weights: file with its weights, safetensors or .pth; None downloads them once.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
        FileNotFoundError: there is no such file.
        WeightsUnavailable: it can neither be downloaded nor found, or is not what it should be.
    """
    path = None if weights is None else Path(weights).expanduser()
    if path is not None:
        _check_plain(path)
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the features {name!r} need torch-fidelity (pip install 'diffusion-steering[metrics]'); "
            f"or take those of a CLIP model, say --features {SHAPES}"
        ) from error
    kinds = {
        INCEPTION: (FeatureExtractorInceptionV3, ["2048", "logits_unbiased"]),
        VGG: (FeatureExtractorVGG16, ["fc2_relu"]),
    }
    kind, layers = kinds[name]
    try:
        with TemporaryDirectory() as folder:
            if path is not None and path.suffix == ".safetensors":
                scratch = Path(folder) / "weights.pth"  # torch-fidelity reads that form only
                torch.save(load_file(path), scratch)
                path = scratch
            return kind(name, layers, None if path is None else str(path), verbose=False)
    except (OSError, RuntimeError) as error:
        raise WeightsUnavailable(_where_to_put(name, error)) from error


def _where_to_put(name: str, error: Exception) -> str:
    file, source = _FIDELITY_FILES[name]
    place = Path(torch.hub.get_dir()) / "checkpoints" / file
    digest = file.removesuffix(".pth").rsplit("-", 1)[1]
    return (
        f"cannot load the {name} weights: {error}\n"
        f"Without a network put {file} ({source}; its SHA-256 begins with {digest}) at {place}, or give "
        f"its place as --features {name}:FILE. A safetensors file is taken, too: python -c 'import "
        f'torch; from safetensors.torch import save_file as save; save(torch.load("{file}", '
        'weights_only=True), "weights.safetensors")\'. Or take the features of a CLIP model, say '
        f"--features {SHAPES}"
    )


def _check_plain(path: Path) -> None:
    """Refuse a file that holds more than tensors: torch-fidelity would unpickle anything."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r} with weights of the features")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                return
        torch.load(path, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
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
