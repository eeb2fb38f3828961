"""Pictures of scenes, drawn in batches by PyTorch on any device.

Shapes come from signed distance functions, so that edges are anti-aliased. Objects never touch (at
least `GAP` pixels stay between their bounding circles), sizes shrink with their number, and every
picture has its own grey background, slight tilts and slight changes of colour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.shapes.grammar import COLOURS, MAX_GROUPS, MAX_OBJECTS, RELATIONS, SHAPES, Scene
from steering.shapes.outlines import SIZE, coverage

GAP = 3.0
MARGIN = 1.5
# The colours of COLOURS, red to pink, as RGB in [0, 1].
PALETTE = (
    (0.90, 0.12, 0.12),
    (0.98, 0.55, 0.08),
    (0.97, 0.92, 0.20),
    (0.15, 0.72, 0.22),
    (0.20, 0.85, 0.90),
    (0.18, 0.30, 0.95),
    (0.58, 0.18, 0.85),
    (1.00, 0.55, 0.78),
)
_RADII = {1: (8.0, 13.0), 2: (8.0, 12.0), 3: (7.5, 10.5), 4: (7.0, 9.5), 5: (7.0, 9.0)}
_TILT = math.radians(8)
_COLOUR_JITTER = 0.04
_BACKGROUND = (0.06, 0.16)
# A relation is drawn clearly: the leading difference exceeds the other by this factor,
# and this many pixels.
_CLEAR_RATIO = 1.25
_CLEAR_PIXELS = 6.0
_PROPOSALS = 24
_ROUNDS = 2000
_SHUFFLES = 8
_CHUNK = 4096


@dataclass(frozen=True)
class Table:
    """The objects of B pictures, as tensors; an absent object has group -1.

    Attributes:
        shape: (B, 5) indices into `SHAPES`.
        colour: (B, 5) indices into `COLOURS`, -1 where the prompt leaves the colour open.
        group: (B, 5) index of the object's group, or -1.
        relations: (B, 2) index into `RELATIONS` of groups (0, 1) and of groups (1, 2), or -1.
    """

    shape: Tensor
    colour: Tensor
    group: Tensor
    relations: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "Table":
        return Table(self.shape[rows], self.colour[rows], self.group[rows], self.relations[rows])

    def __len__(self) -> int:
        return len(self.shape)

    def repeated(self, times: int) -> "Table":
        """Every row so many times, one after the other."""
        parts = (self.shape, self.colour, self.group, self.relations)
        return Table(*(part.repeat_interleave(times, 0) for part in parts))


def render(scenes: Sequence[Scene], *, seed: int, device: str | torch.device = "cpu") -> Tensor:
    """Draws one random picture of every scene.

    Colours that a scene leaves open are drawn at random, object by object.

    Args:
        scenes: B scenes, e.g. from `parse`.
        seed: Fixes everything, for the same scenes on the same kind of device.
        device: Where to compute.

    Returns:
        (B, 3, 64, 64) float32 in [0, 1].

    Raises:
        TypeError: if an entry is not a `Scene`.
        ValueError: if there is no scene.
    """
    generator = torch.Generator(device).manual_seed(seed)
    table = fill_colours(tabulate(scenes, device), generator)
    centres, radii = place(table, generator)
    return draw(table, centres, radii, generator)


def tabulate(scenes: Sequence[Scene], device: str | torch.device = "cpu") -> Table:
    """Writes scenes as tensors; raises as `render`."""
    if len(scenes) == 0:
        raise ValueError("nothing to draw: the list of scenes is empty")
    rows = []
    for scene in scenes:
        if not isinstance(scene, Scene):
            raise TypeError(
                f"expected a Scene, got {type(scene).__name__}: {scene!r}; use parse(prompt)"
            )
        objects = [
            (
                SHAPES.index(group.shape),
                -1 if group.colour is None else COLOURS.index(group.colour),
                index,
            )
            for index, group in enumerate(scene.groups)
            for _ in range(group.count)
        ]
        objects += [(0, 0, -1)] * (MAX_OBJECTS - len(objects))
        words = [RELATIONS.index(relation.word) for relation in scene.relations]
        rows.append(
            [*(value for item in objects for value in item), *words, *[-1] * (2 - len(words))]
        )
    values = torch.tensor(rows, device=device)
    objects_, relations = (
        values[:, : 3 * MAX_OBJECTS].unflatten(1, (MAX_OBJECTS, 3)),
        values[:, 3 * MAX_OBJECTS :],
    )
    shape, colour, group = objects_.unbind(-1)
    return Table(shape, colour, group, relations)


def fill_colours(table: Table, generator: torch.Generator) -> Table:
    """Draws the colours left open, uniformly and object by object."""
    drawn = torch.randint(
        len(COLOURS),
        table.colour.shape,
        generator=generator,
        device=table.colour.device,
        dtype=torch.long,
    )
    return Table(
        table.shape,
        torch.where(table.colour < 0, drawn, table.colour),
        table.group,
        table.relations,
    )


def place(table: Table, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Finds centres and radii such that nothing touches and every relation clearly holds.

    Returns:
        centres (B, 5, 2) as (x, y) in pixels, y downwards, and bounding radii (B, 5) in pixels.

    Raises:
        RuntimeError: if some picture cannot be laid out (never seen with scenes of the grammar).
    """
    device, present = table.shape.device, table.group >= 0
    low, high = torch.tensor([(0.0, 0.0), *_RADII.values()], device=device)[present.sum(1)].unbind(
        1
    )
    centres = torch.zeros(len(table), MAX_OBJECTS, 2, device=device)
    radii = torch.zeros(len(table), MAX_OBJECTS, device=device)
    todo = torch.arange(len(table), device=device)
    for _ in range(_ROUNDS):
        spread = torch.rand(len(todo), MAX_OBJECTS, generator=generator, device=device)
        r = low[todo, None] + (high - low)[todo, None] * spread
        c, free = _throw(r, present[todo], generator)
        c, r, related = _arrange(c, r, table[todo], generator)
        valid = free & related
        done = todo[valid]
        centres[done], radii[done] = c[valid], r[valid]
        todo = todo[~valid]
        if len(todo) == 0:
            return centres, radii
    raise RuntimeError(
        f"found no layout for {len(todo)} of {len(table)} pictures in {_ROUNDS} rounds"
    )


def _throw(radii: Tensor, present: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places objects one by one at the first of some random points that is free; (centres, success)."""
    batch, device = len(radii), radii.device
    centres = torch.zeros(batch, MAX_OBJECTS, 2, device=device)
    success = torch.ones(batch, dtype=torch.bool, device=device)
    for i in range(MAX_OBJECTS):
        reach = (SIZE / 2 - MARGIN - radii[:, i])[:, None, None]
        points = torch.rand(batch, _PROPOSALS, 2, generator=generator, device=device)
        points = SIZE / 2 + (2 * points - 1) * reach
        distance = (points[:, :, None] - centres[:, None, :i]).norm(dim=-1)
        needed = radii[:, None, :i] + radii[:, i, None, None] + GAP
        free = ((distance >= needed) | ~present[:, None, :i]).all(-1)
        first = free.int().argmax(1)
        centres[:, i] = points[torch.arange(batch, device=device), first]
        success &= free.any(1) | ~present[:, i]
    return centres, success


def group_centres(centres: Tensor, group: Tensor) -> Tensor:
    """(B, 3, 2) mean centre of every group, from (B, 5, 2) centres and (B, 5) group indices."""
    member = (group[:, None] == torch.arange(MAX_GROUPS, device=group.device)[:, None]).to(
        centres.dtype
    )
    return member @ centres / member.sum(-1, keepdim=True).clamp(min=1)


def _arrange(
    centres: Tensor, radii: Tensor, table: Table, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Shuffles which object lies where until the relations hold; (centres, radii, success)."""
    for _ in range(_SHUFFLES):
        turned = _turn(centres, table)
        related = _related(turned, table)
        keys = torch.rand(radii.shape, generator=generator, device=radii.device)
        # Absent objects stay at the end, arrangements that succeeded stay as they are.
        order = torch.where(related[:, None], 0.0, keys).masked_fill(table.group < 0, 2.0)
        order = order.argsort(dim=1, stable=True)
        centres = turned.gather(1, order[:, :, None].expand_as(turned))
        radii = radii.gather(1, order)
    return centres, radii, _related(centres, table)


def _turn(centres: Tensor, table: Table) -> Tensor:
    """Rotates layouts by quarter turns until the first relation holds, which spares most rejections."""
    means = group_centres(centres, table.group)
    dx, dy = (means[:, 1] - means[:, 0]).unbind(-1)
    # Quarter turns (x, y) -> (-y, x), counted from "reference to the right of the subject".
    has = torch.where(dx.abs() > dy.abs(), torch.where(dx > 0, 0, 2), torch.where(dy > 0, 1, 3))
    wants = torch.tensor([0, 2, 1, 3, 0], device=centres.device)[table.relations[:, 0]]
    turns = torch.where(table.relations[:, 0] < 0, 0, (wants - has) % 4)
    offset = centres - SIZE / 2
    x, y = offset.unbind(-1)
    options = torch.stack([offset, torch.stack([-y, x], -1), -offset, torch.stack([y, -x], -1)])
    return options[turns, torch.arange(len(turns), device=turns.device)] + SIZE / 2


def _related(centres: Tensor, table: Table) -> Tensor:
    """(B,) whether every relation of the table clearly holds."""
    means = group_centres(centres, table.group)
    result = torch.ones(len(table), dtype=torch.bool, device=centres.device)
    for index in range(2):
        word = table.relations[:, index]
        dx, dy = (means[:, index + 1] - means[:, index]).unbind(-1)
        ahead = torch.stack([dx, -dx, dy, -dy, dx], -1).gather(1, (word % 5)[:, None])[:, 0]
        across = torch.where(word < 2, dy.abs(), dx.abs())
        result &= (word < 0) | ((ahead > _CLEAR_PIXELS) & (ahead > _CLEAR_RATIO * across))
    return result


@dataclass(frozen=True)
class Looks:
    """What differs from picture to picture beside the places; B rows.

    Attributes:
        grey: (B, 1, 1, 1) background in [0, 1].
        tilt: (B, 5) of the objects, in radians.
        paint: (B, 5, 3) colours of the objects in [0, 1].
    """

    grey: Tensor
    tilt: Tensor
    paint: Tensor

    def repeated(self, times: int) -> "Looks":
        """Every row so many times, one after the other."""
        return Looks(*(v.repeat_interleave(times, 0) for v in (self.grey, self.tilt, self.paint)))


def draw(table: Table, centres: Tensor, radii: Tensor, generator: torch.Generator) -> Tensor:
    """Paints objects at given places.

    Args:
        table: B rows without open colours.
        centres: (B, 5, 2) in pixels.
        radii: (B, 5) in pixels.
        generator: For background, tilt and change of colour.

    Returns:
        (B, 3, 64, 64) float32 in [0, 1].
    """
    return paint(table, centres, radii, draw_looks(table, generator))


def draw_looks(table: Table, generator: torch.Generator) -> Looks:
    """Draws backgrounds, tilts and slight changes of colour of B rows without open colours."""
    device, batch = table.shape.device, len(table)
    low, high = _BACKGROUND
    grey = low + (high - low) * torch.rand(batch, 1, 1, 1, generator=generator, device=device)
    tilt = _TILT * (2 * torch.rand(batch, MAX_OBJECTS, generator=generator, device=device) - 1)
    jitter = 2 * torch.rand(batch, MAX_OBJECTS, 3, generator=generator, device=device) - 1
    colours = torch.tensor(PALETTE, device=device)[table.colour] + _COLOUR_JITTER * jitter
    return Looks(grey, tilt, colours.clamp(0, 1))


def paint(table: Table, centres: Tensor, radii: Tensor, looks: Looks) -> Tensor:
    """As `draw`, with given looks."""
    batch = len(table)
    images = looks.grey.repeat(1, 3, SIZE, SIZE)
    for start in range(0, batch, _CHUNK):
        rows = slice(start, start + _CHUNK)
        chunk, part = images[rows], table[rows]
        grey, tilt, colours = looks.grey[rows], looks.tilt[rows], looks.paint[rows]
        for index in range(len(SHAPES)):
            row, slot = torch.nonzero((part.shape == index) & (part.group >= 0), as_tuple=True)
            if len(row) > 0:
                cover = coverage(
                    index, centres[rows][row, slot], radii[rows][row, slot], tilt[row, slot]
                )
                contrast = colours[row, slot] - grey[row, :, 0, 0]
                chunk.index_add_(0, row, cover[:, None] * contrast[:, :, None, None])
    return images.clamp_(0, 1)
