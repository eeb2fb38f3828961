"""Folders of pictures: files, sizes, what is written inside them, and their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def list_pictures(folder: str | Path) -> list[Path]:
    """All pictures under a folder, sorted by path.

    Raises:
        NotADirectoryError: there is no such folder.
        FileNotFoundError: it holds no picture.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise NotADirectoryError(f"there is no folder {str(folder)!r} of pictures")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{str(folder)!r} holds no pictures ({', '.join(_SUFFIXES)})")
    return found


def common_size(pictures: Sequence[Path]) -> tuple[int, int]:
    """Height and width that all pictures have; reads the files' heads only.

    Raises:
        ValueError: two differ, or a file is not a picture.
    """
    sizes: dict[tuple[int, int], Path] = {}
    for path in pictures:
        with _open(path) as picture:
            sizes.setdefault((picture.height, picture.width), path)
        if len(sizes) > 1:
            (first, one), (second, other) = sizes.items()
            raise ValueError(
                f"pictures differ in size: {one} is {first[1]} x {first[0]}, {other} is "
                f"{second[1]} x {second[0]}; put pictures of one size in a folder"
            )
    return next(iter(sizes))


def read_metadata(path: Path) -> dict[str, str]:
    """Texts written in a picture file by keyword: prompt, seed, sampler, scores, version of ours."""
    with _open(path) as picture:
        return {str(k): v for k, v in picture.info.items() if isinstance(v, str)}


def load_pictures(paths: Sequence[Path]) -> Tensor:
    """Pictures of one size, uint8 ``(B, 3, H, W)``; greys and palettes become RGB."""
    rows = []
    for path in paths:
        with _open(path) as picture:
            rows.append(torch.from_numpy(np.array(picture.convert("RGB"))))
    return torch.stack(rows).permute(0, 3, 1, 2).contiguous()


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that can be read") from error
