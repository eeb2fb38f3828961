"""GenEval: does a picture hold the objects, counts, colours and positions that its prompt names?

Ghosh et al. 2023 (https://arxiv.org/abs/2310.11513). Its six kinds of prompts are one form here: what
must be there, and what must not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards.detectors import Boxes, Detected

COLOURS = (
    *("red", "orange", "yellow", "green", "blue"),
    *("purple", "pink", "brown", "black", "white"),
)
RELATIONS = ("left of", "right of", "above", "below")

_REACH = 0.1  #: share of both objects' sizes that an offset must exceed to count as one


@dataclass(frozen=True)
class Wanted:
    """Objects that must be there.

    Attributes:
        kind: their class.
        count: how many at least; the surest so many are looked at.
        colour: of each of them, or None.
        relation: of each of them to each object of an earlier group, or None.
        target: index of that group.
    """

    kind: str
    count: int = 1
    colour: str | None = None
    relation: str | None = None
    target: int = 0


@dataclass(frozen=True)
class Spec:
    """What one prompt asks for.

    Attributes:
        include: what must be there, all of it.
        exclude: class and number from which on there are too many.
        counting: the prompt is about numbers, so that only sure objects count.
    """

    include: tuple[Wanted, ...]
    exclude: tuple[tuple[str, int], ...] = ()
    counting: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class once, in order."""
        named = [w.kind for w in self.include] + [kind for kind, _ in self.exclude]
        return tuple(dict.fromkeys(named))

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Spec:
        """From a line of GenEval's own prompt files: "include", "exclude" and "tag".

        Raises:
            ValueError: another form; names what is wrong and what was expected.
        """
        clauses = metadata.get("include")
        if not isinstance(clauses, Sequence) or isinstance(clauses, str) or not clauses:
            raise ValueError(
                'GenEval needs metadata like {"include": [{"class": "dog", "count": 1}]}, as in its '
                f"prompt files; got the keys {', '.join(map(str, metadata)) or 'none'}"
            )
        include = tuple(_wanted(clause, i) for i, clause in enumerate(clauses))
        exclude = tuple(_named(clause) for clause in metadata.get("exclude") or ())
        return cls(include, exclude, metadata.get("tag") == "counting")


def _named(clause: Any) -> tuple[str, int]:
    kind = clause.get("class") if isinstance(clause, Mapping) else None
    count = clause.get("count", 1) if isinstance(clause, Mapping) else 0
    whole = isinstance(count, int) and not isinstance(count, bool) and count >= 1
    if not isinstance(kind, str) or not kind.strip() or not whole:
        raise ValueError(f"expected a class and a count of at least 1, got {clause!r}")
    return kind, count


def _wanted(clause: Any, index: int) -> Wanted:
    kind, count = _named(clause)
    colour, position = clause.get("color"), clause.get("position")
    if colour is not None and colour not in COLOURS:
        raise ValueError(f"unknown colour {colour!r} in {clause!r}; known are {', '.join(COLOURS)}")
    if position is None:
        return Wanted(kind, count, colour)
    pair = isinstance(position, Sequence) and len(position) == 2
    if not pair or position[0] not in RELATIONS or position[1] not in range(index):
        raise ValueError(
            f"expected a position like ['left of', 0], the number of an earlier clause, in {clause!r}"
        )
    return Wanted(kind, count, colour, position[0], position[1])


def relations(a: Tensor, b: Tensor) -> set[str]:
    """Where box ``a (4,)`` lies as seen from ``b (4,)``; nothing if they all but share a centre."""
    a, b = a.double(), b.double()
    offset = (a[:2] + a[2:] - b[:2] - b[2:]) / 2
    reach = _REACH * ((a[2:] - a[:2]).abs() + (b[2:] - b[:2]).abs())
    beyond = (offset.abs() - reach).clamp(min=0) * offset.sign()
    if bool((beyond.abs() < 1e-3).all()):
        return set()
    right, down = (beyond / offset.norm()).tolist()
    told = {"left of": right < -0.5, "right of": right > 0.5, "above": down < -0.5}
    return {name for name, holds in {**told, "below": down > 0.5}.items() if holds}


def judge(
    spec: Spec, detected: Detected, colours: Callable[[Boxes, str], list[str]]
) -> tuple[bool, float]:
    """Whether a picture is right, and the share of its conditions that hold.

    Args:
        spec: what is wanted.
        detected: what was found, by class, the surest first.
        colours: names the colour of each box of a class.

    Returns:
        The verdict of the published code; and a share in [0, 1], which is 1 where that is right.
    """
    groups: list[Boxes | None] = []
    shares: list[float] = []
    for wanted in spec.include:
        found = detected[wanted.kind]
        enough = len(found) >= wanted.count
        shares.append(min(len(found), wanted.count) / wanted.count)
        looked = Boxes(found.corners[: wanted.count], found.scores[: wanted.count])
        matched = enough
        if wanted.colour is not None:
            named = colours(looked, wanted.kind) if enough else []
            shares.append(named.count(wanted.colour) / wanted.count)
            matched = matched and named.count(wanted.colour) >= wanted.count
        if wanted.relation is not None:
            share = _placed(wanted, looked, groups) if matched else 0.0
            shares.append(share)
            matched = matched and share == 1
        groups.append(looked if matched else None)
    for kind, limit in spec.exclude:
        shares.append(float(len(detected[kind]) < limit))
    return all(share == 1 for share in shares), sum(shares) / len(shares)


def _placed(wanted: Wanted, looked: Boxes, groups: Sequence[Boxes | None]) -> float:
    """Share of the pairs with the earlier group that are in the relation; 0 if that has failed."""
    target = groups[wanted.target]
    if target is None:
        return 0.0
    pairs = [(a, b) for a in looked.corners for b in target.corners]
    return sum(wanted.relation in relations(a, b) for a, b in pairs) / len(pairs)


def crops(picture: Tensor, corners: Tensor) -> list[Tensor]:
    """The part of a picture ``(3, H, W)`` in each box, at least a pixel, each ``(1, 3, h, w)``."""
    height, width = picture.shape[-2:]
    cut = []
    for left, top, right, bottom in torch.round(corners).int().tolist():
        x, y = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
        part = picture[:, y : max(min(bottom, height), y + 1), x : max(min(right, width), x + 1)]
        cut.append(part[None])
    return cut
