"""Random scenes, their hard negatives, and the combinations that training never renders."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import combinations

import torch
from torch import Tensor

from steering.shapes.grammar import (
    COLOURS,
    EASY_KINDS,
    HARD_KINDS,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    Group,
    Relation,
    Scene,
)
from steering.shapes.render import Table, fill_colours

_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_HELD_COLOURED = 4  # of the 56 coloured shapes
_HELD_SHAPE_PAIRS = 2  # of the 21 pairs of shapes
_HELD_SHARE = 0.05  # of the pairs of coloured shapes
_EDITS = {
    "single": ("shape",),
    "two": ("shape",),
    "counting": ("count",),
    "colours": ("colour",),
    "position": ("flip",),
    "attributes": ("swap", "colour"),
    "groups": ("swap", "count"),
    "relation": ("flip", "swap", "count"),
    "chain": ("flip", "swap"),
}


def random_scene(kind: str, rng: random.Random) -> Scene:
    """Draws a scene of one kind.

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind not in (*EASY_KINDS, *HARD_KINDS):
        raise ValueError(
            f"unknown kind {kind!r}; use one of {', '.join((*EASY_KINDS, *HARD_KINDS))}"
        )
    while True:
        sizes, colour_share, relations = _form(kind, rng)
        groups = tuple(
            Group(
                count,
                rng.choice(SHAPES),
                rng.choice(COLOURS) if rng.random() < colour_share else None,
            )
            for count in sizes
        )
        links = tuple(Relation(i, rng.choice(RELATIONS), i + 1) for i in range(relations))
        # Ambiguous, too many, or of another kind: draw again.
        if sum(sizes) > MAX_OBJECTS or not all(a.excludes(b) for a, b in combinations(groups, 2)):
            continue
        scene = Scene(groups, links)
        if scene.kind == kind:
            return scene


def _form(kind: str, rng: random.Random) -> tuple[list[int], float, int]:
    """Counts of the groups, chance of a group to be coloured, number of relations."""
    match kind:
        case "single" | "colours":
            return [1], float(kind == "colours"), 0
        case "counting":
            return [rng.randint(2, MAX_OBJECTS)], rng.choice((0.0, 1.0)), 0
        case "two" | "attributes":
            return [1, 1], float(kind == "attributes"), 0
        case "position":
            return [1, 1], 0.0, 1
        case "groups":
            sizes = [rng.randint(1, 3) for _ in range(rng.randint(2, 3))]
            return sizes, rng.choice((0.0, 0.5, 1.0, 1.0)), 0
        case "relation":
            return [rng.randint(1, 3), rng.randint(1, 3)], rng.choice((0.0, 0.5, 1.0)), 1
        case _:
            sizes = [1, 1, 1] if rng.random() < 0.6 else [rng.randint(1, 2) for _ in range(3)]
            return sizes, rng.choice((0.0, 0.5, 1.0)), 2


def hard_negative(scene: Scene, rng: random.Random) -> Scene:
    """A scene that differs in one detail, such that no picture shows both.

    By kind: another shape ("single", "two"), a count off by one ("counting"), another colour
    ("colours"), swapped colours ("attributes"), an opposite relation ("position"), or one of these.
    """
    names = list(_EDITS[scene.kind])
    rng.shuffle(names)
    for name in [*names, "shape"]:
        options = list(_edits(scene, name, rng))
        if options:
            return rng.choice(options)
    raise AssertionError(f"no edit of {scene} found")  # a shape can always be exchanged


def _edits(scene: Scene, name: str, rng: random.Random) -> Iterator[Scene]:
    groups = scene.groups
    changed: list[tuple[Group, ...]] = []
    if name == "flip":
        for i, relation in enumerate(scene.relations):
            flipped = replace(relation, word=_OPPOSITE[relation.word])
            yield Scene(groups, (*scene.relations[:i], flipped, *scene.relations[i + 1 :]))
    if name == "swap":
        for i, j in combinations(range(len(groups)), 2):
            a, b = groups[i], groups[j]
            if a.shape != b.shape and None not in (a.colour, b.colour) and a.colour != b.colour:
                swapped = list(groups)
                swapped[i], swapped[j] = replace(a, colour=b.colour), replace(b, colour=a.colour)
                changed.append(tuple(swapped))
    for i, group in enumerate(groups):
        options: list[Group] = []
        if name == "colour" and group.colour:
            options = [replace(group, colour=c) for c in COLOURS if c != group.colour]
        if name == "count":
            counts = (c for c in (group.count - 1, group.count + 1) if 1 <= c <= MAX_OBJECTS)
            options = [replace(group, count=count) for count in counts]
        if name == "shape":
            used = {g.shape for g in groups}
            options = [replace(group, shape=s) for s in SHAPES if s not in used]
        changed += [(*groups[:i], option, *groups[i + 1 :]) for option in options]
    rng.shuffle(changed)
    for candidate in changed:
        distinct = all(a.excludes(b) for a, b in combinations(candidate, 2))
        if distinct and sum(g.count for g in candidate) <= MAX_OBJECTS:
            yield Scene(candidate, scene.relations)


def held_out(scene: Scene) -> bool:
    """Whether training never renders this scene: it fixes a held-out combination (`held_out_pairs`)."""
    table = held_out_pairs()
    for group in scene.groups:
        if group.colour and bool(table[(code := _code(group)), code]):
            return True
    for a, b in combinations(scene.groups, 2):
        if _shape_pair(a.shape, b.shape) in _held_shape_pairs():
            return True
        if a.colour and b.colour and bool(table[_code(a), _code(b)]):
            return True
    return False


@cache
def held_out_pairs() -> Tensor:
    """Which coloured shapes training never renders, alone (diagonal) or in one picture.

    Chosen by a hash of the names: 4 coloured shapes, 2 pairs of shapes in any colours, and 5 % of
    the other pairs of coloured shapes.

    Returns:
        (56, 56) bool, symmetric; coloured shape = 8 * index of the shape + index of the colour.
    """
    names = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
    table = torch.zeros(len(names), len(names), dtype=torch.bool)
    for i, j in combinations(range(len(names)), 2):
        a, b = SHAPES[i // len(COLOURS)], SHAPES[j // len(COLOURS)]
        held = _hash(f"{names[i]} with {names[j]}") < _HELD_SHARE
        held |= _shape_pair(a, b) in _held_shape_pairs()
        table[i, j] = table[j, i] = held
    taken: list[str] = []
    for name in sorted(names, key=_hash):
        if len(taken) < 2 * _HELD_COLOURED and not set(name.split()) & set(taken):
            taken += name.split()
            table[names.index(name)] = table[:, names.index(name)] = True
    return table


def fill_allowed_colours(
    table: Table, generator: torch.Generator, rounds: int = 32
) -> tuple[Table, Tensor]:
    """Draws open colours such that no held-out combination appears.

    Returns:
        The table without open colours, and (B,) bool: which rows avoid every held-out combination.
    """
    held = held_out_pairs().to(table.shape.device)
    filled = fill_colours(table, generator)
    bad = _shows(filled, held)
    for _ in range(rounds):
        again = fill_colours(table, generator)
        colour = torch.where(bad[:, None], again.colour, filled.colour)
        filled = Table(table.shape, colour, table.group, table.relations)
        bad = _shows(filled, held)
    return filled, ~bad


def _shows(table: Table, held: Tensor) -> Tensor:
    code = table.shape * len(COLOURS) + table.colour
    present = table.group >= 0
    both = present[:, :, None] & present[:, None, :]
    return (held[code[:, :, None], code[:, None, :]] & both).any(-1).any(-1)


def _code(group: Group) -> int:
    return SHAPES.index(group.shape) * len(COLOURS) + COLOURS.index(group.colour or COLOURS[0])


def _shape_pair(a: str, b: str) -> tuple[str, ...]:
    return tuple(sorted((a, b)))


@cache
def _held_shape_pairs() -> frozenset[tuple[str, ...]]:
    pairs = sorted(
        (_shape_pair(a, b) for a, b in combinations(SHAPES, 2)),
        key=lambda pair: _hash("-".join(pair)),
    )
    return frozenset(pairs[:_HELD_SHAPE_PAIRS])


def _hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, on every machine."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
