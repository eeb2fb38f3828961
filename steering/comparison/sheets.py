"""Thumbnails of a search on one sheet, and pictures as data URIs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from steering.comparison.genealogy import Looked
from steering.snapshots import Snapshot


def sheet(snapshots: Sequence[Snapshot]) -> tuple[Image.Image, list[Looked], int]:
    """All thumbnails side by side in reading order.

    Returns:
        The sheet, what each request for rewards put on it, and the number of its columns.
    """
    looks, first = [], 0
    for s in snapshots:
        looks.append(Looked(s.record, tuple(s.rewards.tolist()), first))
        first += len(s.rewards)
    cells = np.concatenate([s.pictures.permute(0, 2, 3, 1).numpy() for s in snapshots])
    columns = math.ceil(math.sqrt(len(cells)))
    return _joined(cells, columns), looks, columns


def picked(
    path: Path, columns: int, count: int, numbers: Sequence[int]
) -> tuple[str, int, tuple[int, int]]:
    """Some thumbnails of a sheet on a smaller one.

    Args:
        path: the sheet.
        columns: of the sheet.
        count: thumbnails on it.
        numbers: which to take.

    Returns:
        The smaller sheet as a data URI, its columns, and width and height of a thumbnail.
    """
    with Image.open(path) as whole:
        pixels = np.asarray(whole.convert("RGB"))
    height, width = pixels.shape[0] // math.ceil(count / columns), pixels.shape[1] // columns
    cells = np.stack(
        [
            pixels[(n // columns) * height :, (n % columns) * width :][:height, :width]
            for n in numbers
        ]
    )
    few = math.ceil(math.sqrt(len(cells)))
    return data_uri(_joined(cells, few), quality=72), few, (width, height)


def data_uri(picture: Image.Image, *, side: int | None = None, quality: int = 80) -> str:
    """A picture as the text of a WebP file.

    Args:
        picture: any.
        side: longer side in pixels at most; None leaves it as it is.
        quality: of the file, 0 to 100.
    """
    picture = picture.convert("RGB")
    if side is not None and max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="WEBP", quality=quality, method=6)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _joined(cells: np.ndarray, columns: int) -> Image.Image:
    """Pictures ``(n, h, w, 3)`` in rows of ``columns``; what is left over is black."""
    count, height, width, _ = cells.shape
    rows = math.ceil(count / columns)
    whole = np.zeros((rows * columns, height, width, 3), np.uint8)
    whole[:count] = cells
    grid = whole.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(rows * height, columns * width, 3))
