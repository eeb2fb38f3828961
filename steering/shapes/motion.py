"""Prompts of moving shapes: their grammar, and the movies they mean.

::

    movie = mover [" and " mover]
    mover = group " moving " way [" slowly" | " quickly"] | group " standing still"
    group = ("a" | "an") [" " colour] " " shape
    way   = "left" | "right" | "up" | "down"
"""

import re
from dataclasses import dataclass

from steering.shapes.grammar import Group, Scene, parse, read

FRAMES = 8
#: Unit vectors (x, y) in pixels, y downwards.
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
PACES = ("slowly", "quickly")
KINDS = ("one", "pace", "two")
MAX_MOVERS = 2

_STILL = "standing still"
_MOVER = re.compile(rf"^(.+) (?:moving ({'|'.join(WAYS)})(?: ({'|'.join(PACES)}))?|{_STILL})$")


@dataclass(frozen=True)
class Mover:
    """One shape and how it moves, at an even pace along a straight line.

    Attributes:
        group: The shape, e.g. "a red circle"; its count is 1.
        way: One of `WAYS`, or None for a shape that stands still.
        pace: One of `PACES`, or None when the prompt leaves it open.

    Raises:
        ValueError: for several shapes, an unknown way or pace, or a pace without a way.
    """

    group: Group
    way: str | None = None
    pace: str | None = None

    def __post_init__(self) -> None:
        if self.group.count != 1:
            raise ValueError(f"one shape moves at a time, got {str(self.group)!r}; write 'a ...'")
        if self.way is not None and self.way not in WAYS:
            raise ValueError(f"unknown way {self.way!r}; known ways: {', '.join(WAYS)}")
        if self.pace is not None and (self.pace not in PACES or self.way is None):
            raise ValueError(
                f"a pace is {' or '.join(PACES)}, of a shape that moves; got {self.pace!r}"
            )

    def __str__(self) -> str:
        if self.way is None:
            return f"{self.group} {_STILL}"
        return " ".join([str(self.group), "moving", self.way, *([self.pace] if self.pace else [])])


@dataclass(frozen=True)
class Movie:
    """What a prompt asks for: one or two movers.

    Raises:
        ValueError: for another number of movers, or two that could be taken for each other.
    """

    movers: tuple[Mover, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.movers) <= MAX_MOVERS:
            raise ValueError(f"a movie has 1 to {MAX_MOVERS} movers, got {len(self.movers)}")
        self.scene  # noqa: B018  raises where the shapes cannot be told apart

    def __str__(self) -> str:
        return " and ".join(map(str, self.movers))

    @property
    def scene(self) -> Scene:
        """What each frame shows, e.g. "a red circle and a blue star"."""
        return Scene(tuple(mover.group for mover in self.movers))

    @property
    def kind(self) -> str:
        """One of `KINDS`: one mover without or with a pace, or two movers."""
        if len(self.movers) == 2:
            return "two"
        return "one" if self.movers[0].pace is None else "pace"


def parse_motion(prompt: str) -> Movie:
    """Reads a prompt of the grammar above.

    Args:
        prompt: E.g. "a red circle moving left". Case and outer blanks do not matter.

    Returns:
        The movie, whose `str` is the prompt again.

    Raises:
        TypeError: if the prompt is not text.
        ValueError: if it is outside the grammar; the message quotes the part that was not understood.
    """
    return read(prompt, _movie)


def _movie(text: str) -> Movie:
    return Movie(tuple(_mover(part) for part in text.split(" and ")))


def _mover(text: str) -> Mover:
    found = _MOVER.match(text)
    if found is None:
        raise ValueError(
            f"{text!r} is not a moving shape such as 'a red circle moving left', "
            f"'a ring moving up slowly' or 'a star {_STILL}'"
        )
    what, way, pace = found.groups()
    [group] = parse(what).groups
    return Mover(group, way, pace)
