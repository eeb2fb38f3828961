"""Random movies of moving shapes."""

import random

from steering.shapes.grammar import COLOURS, SHAPES, Group
from steering.shapes.motion import KINDS, PACES, WAYS, Mover, Movie

_OPEN_COLOUR = 0.1  # share of movers without a colour
_STILL = 0.15  # share of movers that stand still
_PACED = 0.25  # of two movers, share of those with a pace


def random_movie(kind: str, rng: random.Random) -> Movie:
    """Draws a movie of one kind.

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; use one of {', '.join(KINDS)}")
    while True:
        movers = tuple(_mover(kind, rng) for _ in range(2 if kind == "two" else 1))
        if len(movers) == 1 or movers[0].group.excludes(movers[1].group):
            return Movie(movers)


def _mover(kind: str, rng: random.Random) -> Mover:
    colour = None if rng.random() < _OPEN_COLOUR else rng.choice(COLOURS)
    group = Group(1, rng.choice(SHAPES), colour)
    if kind != "pace" and rng.random() < _STILL:
        return Mover(group)
    paced = kind == "pace" or (kind == "two" and rng.random() < _PACED)
    return Mover(group, rng.choice(list(WAYS)), rng.choice(PACES) if paced else None)
