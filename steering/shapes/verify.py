"""The exact judge of the world of shapes: does a picture show its prompt?

It has no learned part. Background = median colour; what differs from it is split into connected
components; each becomes a colour (nearest of the palette, if uniform) and a shape (best correlation
with rendered templates, after centring and scaling by moments).

The world is closed: *a picture is right when it shows exactly what its prompt says and nothing
else*. For every kind a number is exact ("a" means one), and an extra or missing object, a blot that
is no known shape, or an object of two colours makes the picture wrong. GenEval demands this only of
counting prompts; here it holds for all kinds, because the models were never shown anything extra.
A colour that the prompt leaves open may be any. Relations compare the groups' mean centres as
`steering.shapes.grammar.Relation` says: no minimal distance, the leading direction counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from steering.shapes.grammar import COLOURS, SHAPES, Scene, parse
from steering.shapes.outlines import SIZE, coverage
from steering.shapes.render import PALETTE

_CONTRAST = 0.3  # RGB distance from the background that makes a pixel part of an object
_SPECK = 6  # smaller components, in pixels, are noise and not objects
_COLOUR_TOLERANCE = 0.25  # RGB distance from the palette
_COLOUR_SPREAD = 0.2  # root mean square RGB distance inside one object
_CORRELATION = 0.88  # with the best template
_GRID = 18  # templates are _GRID x _GRID samples
_REACH = 2.0  # of the template window, in root mean square radii
_PLANE = np.zeros((3, 3, 3), dtype=bool)  # neighbours within one picture of a stack
_PLANE[1] = True
_CROSS = _PLANE & ndimage.generate_binary_structure(3, 1)


@dataclass(frozen=True)
class Seen:
    """One object in a picture.

    Attributes:
        shape: One of `SHAPES`, or None when it resembles none.
        colour: One of `COLOURS`, or None when it is not uniform or far from all.
        x: Horizontal centre in pixels from the left.
        y: Vertical centre in pixels from the top.
        match: Correlation with the best template, at most 1.
        box: Its pixels' extent (left, top, right, bottom), the last two exclusive.
    """

    shape: str | None
    colour: str | None
    x: float
    y: float
    match: float
    box: tuple[int, int, int, int] = (0, 0, 0, 0)


def verify(images: Tensor, prompts: Sequence[str]) -> torch.BoolTensor:
    """Judges whether each picture shows exactly its prompt (see the head of this module).

    Args:
        images: (B, 3, 64, 64) in [0, 1], any float type and device.
        prompts: B prompts of the grammar.

    Returns:
        (B,) bool, on the CPU.

    Raises:
        TypeError, ValueError: for pictures of another form, a different number of prompts, or a
            prompt outside the grammar.
    """
    if isinstance(prompts, str) or len(prompts) != len(images):
        count = "one text" if isinstance(prompts, str) else len(prompts)
        raise ValueError(f"expected a list of {len(images)} prompts, one a picture; got {count}")
    scenes = [parse(prompt) for prompt in prompts]
    seen = see(images)
    return torch.BoolTensor([matches(scene, row) for scene, row in zip(scenes, seen, strict=True)])


def matches(scene: Scene, seen: Sequence[Seen]) -> bool:
    """Whether the objects seen in one picture are exactly those of the scene."""
    if len(seen) != sum(group.count for group in scene.groups):
        return False
    centres = []
    for group in scene.groups:
        own = [
            item
            for item in seen
            if item.colour is not None
            and item.shape == group.shape
            and group.colour in (None, item.colour)
        ]
        if len(own) != group.count:
            return False
        centres.append((sum(o.x for o in own) / len(own), sum(o.y for o in own) / len(own)))
    return all(
        direction(centres[relation.subject], centres[relation.reference]) == relation.word
        for relation in scene.relations
    )


def direction(subject: tuple[float, float], reference: tuple[float, float]) -> str:
    """The relation that holds between two centres (x, y), the leading direction deciding."""
    dx, dy = reference[0] - subject[0], reference[1] - subject[1]
    if abs(dx) >= abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def see(images: Tensor) -> list[list[Seen]]:
    """Finds the objects of pictures.

    Args:
        images: (B, 3, 64, 64) in [0, 1], any float type and device.

    Returns:
        For each picture its objects, in reading order of their first pixel.

    Raises:
        TypeError, ValueError: for pictures of another form, or with values that are not finite.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"expected a float tensor of pictures in [0, 1], got {got}")
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, SIZE, SIZE):
        raise ValueError(f"expected pictures (B, 3, {SIZE}, {SIZE}), got {tuple(images.shape)}")
    pixels = images.detach().float().permute(0, 2, 3, 1).cpu().numpy()
    if not np.isfinite(pixels).all():
        raise ValueError("the pictures hold values that are not finite; decode them in float32")
    labels, offset, paint, kept = _segment(pixels)
    result: list[list[Seen]] = [[] for _ in range(len(pixels))]
    if len(kept) == 0:
        return result
    colours = _name_colours(paint)
    vectors, centres = _normalise(labels, offset, paint, kept)
    shapes, best = _name_shapes(vectors)
    extents = ndimage.find_objects(labels)
    for i, (row, x, y) in enumerate(centres):
        _, down, across = extents[kept[i] - 1]
        box = (across.start, down.start, across.stop, down.stop)
        found = Seen(shapes[i], colours[i], float(x), float(y), float(best[i]), box)
        result[int(row)].append(found)
    return result


@dataclass(frozen=True)
class _Paint:
    """Mean colour of components (K, 3) as shift from the background, background (K, 3), spread (K,)."""

    shift: np.ndarray
    ground: np.ndarray
    spread: np.ndarray


def _segment(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, _Paint, np.ndarray]:
    """Labels (B, H, W), pixels less background (B, H, W, 3), the paint and the kept labels (K,)."""
    ground = np.median(pixels.reshape(len(pixels), -1, 3), axis=1)
    offset = pixels - ground[:, None, None, :]
    mask = np.square(offset).sum(-1) > _CONTRAST**2
    labels, count = ndimage.label(mask, structure=_PLANE)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    kept = np.flatnonzero(areas >= _SPECK)
    # Colours come from pixels away from the edge; small blots without any keep all their pixels.
    inner = ndimage.binary_erosion(mask, structure=_CROSS)
    small = np.bincount(labels[inner], minlength=count + 1) == 0
    inner |= mask & small[labels]
    index, values = labels[inner], offset[inner]
    weight = np.square(values).sum(-1)  # full coverage counts most
    total = np.maximum(np.bincount(index, weight, count + 1), 1e-12)
    shift = (
        np.stack([np.bincount(index, weight * v, count + 1) for v in values.T], -1) / total[:, None]
    )
    error = np.square(values - shift[index]).sum(-1)
    spread = np.sqrt(np.bincount(index, weight * error, count + 1) / total)
    first = np.zeros(count + 1, dtype=int)
    where = np.flatnonzero(labels)
    first[labels.ravel()[where]] = where // (SIZE * SIZE)
    return labels, offset, _Paint(shift[kept], ground[first[kept]], spread[kept]), kept


def _name_colours(paint: _Paint) -> list[str | None]:
    distance = np.linalg.norm((paint.shift + paint.ground)[:, None] - np.array(PALETTE), axis=-1)
    nearest = distance.argmin(1)
    good = (distance.min(1) < _COLOUR_TOLERANCE) & (paint.spread < _COLOUR_SPREAD)
    return [COLOURS[n] if g else None for n, g in zip(nearest, good, strict=True)]


def _normalise(
    labels: np.ndarray, offset: np.ndarray, paint: _Paint, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coverage around each component at a standard size.

    Returns:
        Unit vectors (K, _GRID ** 2) without mean, and (K, 3) as (picture, x, y).
    """
    # One pixel beyond the mask, faint edges belong to the object too.
    owner = ndimage.maximum_filter(labels, size=(1, 3, 3))
    slot = np.full(labels.max() + 1, -1)
    slot[kept] = np.arange(len(kept))
    row, y, x = np.nonzero(slot[owner] >= 0)
    own = slot[owner[row, y, x]]
    shift = paint.shift[own]
    cover = (offset[row, y, x] * shift).sum(-1) / np.square(shift).sum(-1)
    cover = np.clip(cover, 0, 1)
    covers = np.zeros(labels.shape, dtype=np.float32)
    covers[row, y, x] = cover
    owned = np.full(labels.shape, -1)
    owned[row, y, x] = own
    mass = np.bincount(own, cover, len(kept))
    centre_x = np.bincount(own, cover * x, len(kept)) / mass
    centre_y = np.bincount(own, cover * y, len(kept)) / mass
    square = np.square(x - centre_x[own]) + np.square(y - centre_y[own])
    radius = np.sqrt(np.bincount(own, cover * square, len(kept)) / mass)
    picture = np.zeros(len(kept), dtype=int)
    picture[own] = row
    vectors = _sample(covers, owned, picture, centre_x, centre_y, radius)
    return vectors, np.stack([picture, centre_x + 0.5, centre_y + 0.5], -1)


def _sample(
    covers: np.ndarray,
    owned: np.ndarray,
    picture: np.ndarray,
    centre_x: np.ndarray,
    centre_y: np.ndarray,
    radius: np.ndarray,
) -> np.ndarray:
    """Bilinear samples of each object's own coverage on the template grid, (K, _GRID ** 2)."""
    axis = np.linspace(-_REACH, _REACH, _GRID)
    grid_y, grid_x = np.meshgrid(axis, axis, indexing="ij")
    x = centre_x[:, None] + radius[:, None] * grid_x.ravel()
    y = centre_y[:, None] + radius[:, None] * grid_y.ravel()
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    rows, own = picture[:, None], np.arange(len(picture))[:, None]
    vectors = np.zeros(x.shape)
    for dy in (0, 1):
        for dx in (0, 1):
            column, line = left + dx, top + dy
            inside = (column >= 0) & (column < SIZE) & (line >= 0) & (line < SIZE)
            column, line = column.clip(0, SIZE - 1), line.clip(0, SIZE - 1)
            inside &= owned[rows, line, column] == own
            weight = (1 - np.abs(x - left - dx)) * (1 - np.abs(y - top - dy))
            vectors += inside * weight * covers[rows, line, column]
    vectors -= vectors.mean(1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _name_shapes(vectors: np.ndarray) -> tuple[list[str | None], np.ndarray]:
    similarity = (vectors @ _templates().T).reshape(len(vectors), len(SHAPES), -1).max(-1)
    nearest, best = similarity.argmax(1), similarity.max(1)
    return [
        SHAPES[n] if b >= _CORRELATION else None for n, b in zip(nearest, best, strict=True)
    ], best


@cache
def _templates() -> np.ndarray:
    """Every shape at several sizes, tilts and offsets, normalised; (7 * T, _GRID ** 2)."""
    sizes, tilts, shifts = (
        torch.tensor([7.0, 9.0, 11.5]),
        torch.tensor([-0.14, -0.05, 0.05, 0.14]),
        3,
    )
    size, tilt = torch.meshgrid(sizes, tilts, indexing="ij")
    size, tilt = size.ravel().repeat(shifts), tilt.ravel().repeat(shifts)
    # Fixed sub-pixel offsets, different for every copy.
    steps = torch.arange(len(size)) * 0.618
    centres = SIZE / 2 + torch.stack([steps % 1, (steps * 0.618) % 1], -1)
    cover = torch.cat([coverage(index, centres, size, tilt) for index in range(len(SHAPES))])
    offset = cover[..., None].expand(-1, -1, -1, 3).numpy()
    kept = np.arange(1, len(cover) + 1)
    labels = np.where(offset[..., 0] > _CONTRAST, kept[:, None, None], 0)
    ones = np.ones((len(cover), 3))
    return _normalise(labels, offset, _Paint(ones, ones, ones[:, 0]), kept)[0]
