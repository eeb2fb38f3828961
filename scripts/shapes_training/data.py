"""Training pictures and captions, drawn from a seed; held-out combinations never appear."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from steering.shapes.grammar import SHAPES, parse
from steering.shapes.render import Table, draw, place, tabulate
from steering.shapes.sampling import (
    fill_allowed_colours,
    hard_negative,
    held_out,
    random_scene,
)

_SHARES = {
    "single": 0.04,
    "counting": 0.15,
    "colours": 0.09,
    "two": 0.10,
    "position": 0.09,
    "attributes": 0.23,
    "groups": 0.17,
    "relation": 0.08,
    "chain": 0.05,
}
_CHUNK = 8192
_WAYS = {"left of": (-1.0, 0.0), "right of": (1.0, 0.0), "above": (0.0, -1.0), "below": (0.0, 1.0)}


@dataclass(frozen=True)
class Pictures:
    """N captioned pictures.

    Attributes:
        images: (N, 3, 64, 64) uint8, on the training device.
        captions: N texts.
        layout: (N, 7, 2) mean place (x, y) of every shape, see `shape_places`.
    """

    images: Tensor
    captions: list[str]
    layout: Tensor


def make_pictures(count: int, seed: int, device: str) -> Pictures:
    """Draws about `count` captioned pictures without held-out combinations.

    Args:
        count: Pictures to try; a few per mille are dropped for their colours.
        seed: Fixes captions and pictures (on the same kind of device).
        device: Where to draw and keep them.
    """
    rng = random.Random(seed)
    kinds = rng.choices(list(_SHARES), list(_SHARES.values()), k=count)
    scenes = []
    for kind in kinds:
        scene = random_scene(kind, rng)
        while held_out(scene):
            scene = random_scene(kind, rng)
        scenes.append(scene)
    generator = torch.Generator(device).manual_seed(seed)
    table, good = fill_allowed_colours(tabulate(scenes, device), generator)
    table, rows = table[good], good.nonzero()[:, 0].tolist()
    centres, radii = place(table, generator)
    images = torch.empty(len(rows), 3, 64, 64, dtype=torch.uint8, device=device)
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part] = (draw(table[part], centres[part], radii[part], generator) * 255).round()
    captions = [str(scenes[row]) for row in rows]
    return Pictures(images, captions, shape_places(table, centres))


def shape_places(table: Table, centres: Tensor) -> Tensor:
    """Mean place of each shape from the middle of all objects, in 16 pixels; 0 for absent shapes.

    Args:
        table: B rows.
        centres: (B, 5, 2) in pixels.

    Returns:
        (B, 7, 2).
    """
    present = (table.group >= 0)[..., None].float()
    middle = (centres * present).sum(1, keepdim=True) / present.sum(1, keepdim=True)
    member = one_hot(table.shape, len(SHAPES)).float() * present
    total = member.transpose(1, 2) @ ((centres - middle) / 16)
    return total / member.sum(1).clamp(min=1)[..., None]


def wanted_places(captions: list[str]) -> Tensor:
    """The directions that relations ask of each shape, (N, 7, 2), comparable to `shape_places`."""
    numbers = {caption: index for index, caption in enumerate(dict.fromkeys(captions))}
    places = torch.zeros(len(numbers), len(SHAPES), 2)
    for caption, index in numbers.items():
        scene = parse(caption)
        for relation in scene.relations:
            way = torch.tensor(_WAYS[relation.word])
            places[index, SHAPES.index(scene.groups[relation.subject].shape)] += way
            places[index, SHAPES.index(scene.groups[relation.reference].shape)] -= way
    return places[torch.tensor([numbers[caption] for caption in captions])]


def negative_captions(captions: list[str], seed: int) -> list[str]:
    """One hard negative for every caption."""
    rng = random.Random(seed)
    return [str(hard_negative(parse(caption), rng)) for caption in captions]
