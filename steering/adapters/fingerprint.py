"""What tells the values of two calls apart, large ones included."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
import torch


def fingerprint(value: Any) -> str:
    """A text that equal values share and others do not; ``repr`` abbreviates large arrays.

    Args:
        value: an argument of a pipeline: numbers, texts, tensors, arrays, pictures, and containers of
            them. Any other object is told by its ``repr``.
    """
    if torch.is_tensor(value):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"tensor {value.dtype} {tuple(value.shape)} {value.device} {_digest(raw.tobytes())}"
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"array {value.dtype} {value.shape} {_digest(value.tobytes())}"
    if isinstance(value, PIL.Image.Image):
        return f"picture {value.mode} {value.size} {_digest(value.tobytes())}"
    if isinstance(value, Mapping):
        inside = (f"{key!r}: {fingerprint(entry)}" for key, entry in value.items())
        return f"{{{', '.join(inside)}}}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(map(fingerprint, value))})"
    return repr(value)


def _digest(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=16).hexdigest()
