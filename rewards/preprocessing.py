"""Resize, crop and normalise pictures as tensors, as the models' own PIL code does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import functional as tv
from torchvision.transforms.functional import InterpolationMode

_MODES = ("shortest", "longest", "squash")
_PIL_CODES = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Preprocess:
    """The road from pictures in [0, 1] to a vision model's input; differentiable.

    Equal to the PIL transforms of open_clip, torchvision and transformers, their roundings to 8 bits
    included: without those the scores of noisy pictures move by several percent of their spread. The
    gradient passes through the roundings as if they were not there.

    Attributes:
        size: height and width of the model's input, pixels.
        mean: of each channel.
        std: of each channel.
        interpolation: ``"bicubic"`` or ``"bilinear"``, antialiased.
        resize_mode: which edge is fitted: ``"shortest"`` (the rest is cropped), ``"longest"`` (the
            rest is padded) or ``"squash"`` (both, the aspect is lost).
        fill: grey of the padding, in [0, 1].
        edge: length that the shortest edge is fitted to before the crop; None: that of ``size``.
        crop: where the crop starts if it lies between two pixels: ``"round"`` as torchvision does
            (half to even), or ``"floor"`` as transformers does.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill: float = 0.0
    edge: int | None = None
    crop: str = "round"

    def __post_init__(self) -> None:
        if self.resize_mode not in _MODES:
            raise ValueError(f"resize_mode is one of {', '.join(_MODES)}; got {self.resize_mode!r}")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"interpolation is bicubic or bilinear; got {self.interpolation!r}")
        if self.crop not in ("round", "floor"):
            raise ValueError(f"crop is round or floor; got {self.crop!r}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocess:
        """From open_clip's preprocess_cfg (size, mean, std, interpolation, resize_mode, fill_color)."""
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else size
        return cls(
            size=(height, width),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
            resize_mode=config["resize_mode"],
            fill=config["fill_color"] / 255,
        )

    @classmethod
    def from_processor(cls, processor: Any) -> Preprocess:
        """From an image processor of transformers that resizes, maybe crops, and normalises.

        Raises:
            ValueError: it does something else.
        """
        config = processor.to_dict()
        size = {k: v for k, v in dict(config.get("size") or {}).items() if v}
        crop = {k: v for k, v in dict(config.get("crop_size") or {}).items() if v}
        kind, cropped = type(processor).__name__, bool(config.get("do_center_crop"))
        known = (
            config.get("do_resize")
            and config.get("do_rescale")
            and not config.get("do_pad")
            and abs(config["rescale_factor"] * 255 - 1) < 1e-6
            and config.get("resample") in _PIL_CODES
            and (set(size) == {"height", "width"} or (set(size) == {"shortest_edge"} and cropped))
        )
        if not known:
            told = {k: config.get(k) for k in ("size", "crop_size", "resample", "rescale_factor")}
            raise ValueError(
                f"{kind} is not a resize to (height, width) or by the shortest edge with a crop, "
                f"bicubic or bilinear, but {told}; its model needs a reward class of its own"
            )
        squash = "height" in size
        if squash and cropped and crop != size:
            raise ValueError(
                f"{kind} resizes to {size} and crops to {crop}; give one size for both"
            )
        target = size if squash else crop
        normalised = config.get("do_normalize")
        return cls(
            size=(target["height"], target["width"]),
            mean=tuple(config["image_mean"]) if normalised else (0.0,) * 3,
            std=tuple(config["image_std"]) if normalised else (1.0,) * 3,
            interpolation=_PIL_CODES[int(config["resample"])],
            resize_mode="squash" if squash else "shortest",
            edge=None if squash else size["shortest_edge"],
            crop="floor",
        )

    def __call__(self, media: Tensor) -> Tensor:
        """Model input ``(B, 3, *size)`` of pictures ``(B, 3, H, W)`` in [0, 1]; float32 or wider."""
        media = media if media.dtype == torch.float64 else media.float()
        return tv.normalize(self._crop(self._resize(media)), list(self.mean), list(self.std))

    def _resize(self, media: Tensor) -> Tensor:
        height, width = self._target(media.shape[-2], media.shape[-1])
        if (height, width) == tuple(media.shape[-2:]):
            return media
        mode = InterpolationMode(self.interpolation)
        # PIL starts from 8 bits, goes by rows, then by columns, and keeps 8 bits after each.
        levels = _rounded(media * 255)
        for size in ([media.shape[-2], width], [height, width]):
            if size != list(levels.shape[-2:]):
                levels = _rounded(tv.resize(levels, size, mode, antialias=True))
        return levels / 255

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """Size after the resize; the roundings are those of the PIL transforms."""
        if self.resize_mode == "squash":
            return self.size
        ratios = height / self.size[0], width / self.size[1]
        square = self.size[0] == self.size[1]
        if self.resize_mode == "shortest" and (square or self.edge is not None):
            short, edge = min(height, width), self.edge or self.size[0]
            return int(edge * height / short), int(edge * width / short)
        ratio = min(ratios) if self.resize_mode == "shortest" else max(ratios)
        return round(height / ratio), round(width / ratio)

    def _crop(self, media: Tensor) -> Tensor:
        missing = [
            max(want - have, 0) for want, have in zip(self.size, media.shape[-2:], strict=True)
        ]
        if any(missing):
            top, left = (m // 2 for m in missing)
            bottom, right = ((m + 1) // 2 for m in missing)
            media = tv.pad(media, [left, top, right, bottom], fill=self.fill)
        if self.crop == "round":
            return tv.center_crop(media, list(self.size))
        top, left = (
            (have - want) // 2 for have, want in zip(media.shape[-2:], self.size, strict=True)
        )
        return tv.crop(media, top, left, *self.size)


def _rounded(levels: Tensor) -> Tensor:
    """Nearest of the levels 0 to 255, halves upwards; bicubic weights overshoot, so clipped.

    The gradient is that of the clipping alone (straight-through). Without one, in place.
    """
    if not levels.requires_grad:
        return levels.clamp_(0, 255).add_(0.5).floor_()
    clipped = levels.clamp(0, 255)
    return clipped + ((clipped + 0.5).floor() - clipped).detach()
