"""Pictures out of a pipeline's own output object, and such an object of pictures."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from steering.adapters.decode import media_of, tensor_of
from steering.adapters.watch import Watched


def pictures_of(found: Watched) -> Tensor:
    """Pictures of a call's output, float32 ``(n, 3, H, W)``.

    Raises:
        TypeError: it holds something else.
    """
    media = media_of(found.output)[1]
    with contextlib.suppress(TypeError, ValueError):
        media = tensor_of(media)
    if not torch.is_tensor(media) or media.ndim != 4 or media.shape[1] != 3:
        what = tuple(media.shape) if hasattr(media, "shape") else type(media).__name__
        raise TypeError(f"a black box must make pictures (n, 3, H, W), got {what}")
    return media.float()


def output_of(kind: type, pictures: Tensor, output_type: str) -> Any:
    """The pipeline's output object of pictures; what it may say beside them is None.

    Args:
        kind: its class.
        pictures: ``(n, 3, H, W)`` in [0, 1].
        output_type: ``"pt"``, ``"np"`` or ``"pil"``.
    """
    media: Any = pictures
    if output_type != "pt":
        media = VaeImageProcessor.pt_to_numpy(pictures)
    if output_type == "pil":
        media = VaeImageProcessor.numpy_to_pil(media)
    first, *others = (field.name for field in fields(kind))
    return kind(**{first: media, **dict.fromkeys(others)})
