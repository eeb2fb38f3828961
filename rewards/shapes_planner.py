"""What is wrong with a picture of shapes, and where: the exact judge as the planner of repairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from steering import shapes
from steering.flaws import Box, Flaw
from steering.reward import Item
from steering.shapes.grammar import Group, Relation, Scene
from steering.shapes.outlines import SIZE
from steering.shapes.verify import Seen, direction

_REACH = 9.0  # half the side, in pixels, of the place for a new object
_STEP = 3  # of the grid of places that are tried
_CLEAR = 1.0  # pixels by which the leading direction of a relation must lead
Point = tuple[float, float]


class ShapesPlanner:
    """The exact judge of the embedded world as the planner: its flaws are `find_flaws`'s."""

    calls_per_row = 1

    def __repr__(self) -> str:
        return "ShapesPlanner()"

    def plan(self, pictures: Tensor, items: Sequence[Item]) -> list[list[Flaw]]:
        """See `steering.flaws.Planner`.

        Raises:
            ValueError: a prompt outside the grammar, or pictures of another size than 64 x 64.
        """
        scenes = [shapes.parse(item.prompt) for item in items]
        seen = shapes.see(pictures)
        return [find_flaws(scene, objects) for scene, objects in zip(scenes, seen, strict=True)]


@dataclass(frozen=True)
class Sorted:
    """The objects of a picture, by what they are to the scene.

    Attributes:
        groups: members of each group, at most its count.
        left: objects that belong to no group, or are one too many.
    """

    groups: tuple[tuple[Seen, ...], ...]
    left: tuple[Seen, ...]


def find_flaws(scene: Scene, seen: Sequence[Seen]) -> list[Flaw]:
    """What must change so that a picture shows the scene; empty if and only if it does.

    Wrong objects come first (each is turned into one that is missing), then objects that are too
    many, then missing ones, each with a free place where its relations hold, then relations: the
    group with more room is to move.

    Args:
        scene: what is asked for.
        seen: the objects of the picture, from `steering.shapes.see`.
    """
    found = sort_objects(scene, seen)
    missing = [
        i
        for i, (group, own) in enumerate(zip(scene.groups, found.groups, strict=True))
        for _ in range(group.count - len(own))
    ]
    left, flaws = list(found.left), []
    while left and missing:
        item, index = max(
            ((o, i) for o in left for i in missing), key=lambda p: _alike(p[0], scene.groups[p[1]])
        )
        left.remove(item)
        missing.remove(index)
        flaws.append(_wrong(item, scene.groups[index]))
    flaws += [Flaw("extra", f"remove {_named(item)}", "", (_box(item),)) for item in left]
    taken = list(seen)
    for index in missing:
        place = _free(scene, index, found, taken)
        taken.append(Seen(None, None, *place, 0.0))
        target = str(_one(scene.groups[index]))
        flaws.append(Flaw("missing", f"add {target}", target, (_around(place),)))
    return flaws + list(_misplaced(scene, found, seen))


def sort_objects(scene: Scene, seen: Sequence[Seen]) -> Sorted:
    """Deals the objects seen to the groups of a scene; no object can belong to two."""
    groups: list[list[Seen]] = [[] for _ in scene.groups]
    left = []
    for item in seen:
        for group, own in zip(scene.groups, groups, strict=True):
            same = item.colour is not None and item.shape == group.shape
            if same and group.colour in (None, item.colour) and len(own) < group.count:
                own.append(item)
                break
        else:
            left.append(item)
    return Sorted(tuple(map(tuple, groups)), tuple(left))


def _wrong(item: Seen, group: Group) -> Flaw:
    target = str(_one(group))
    boxes = (_box(item), _around((item.x, item.y)))
    return Flaw("wrong", f"turn {_named(item)} into {target}", target, boxes)


def _misplaced(scene: Scene, found: Sorted, seen: Sequence[Seen]) -> Iterator[Flaw]:
    """Flaws of the relations between groups of which something is there."""
    for relation in scene.relations:
        ends = found.groups[relation.subject], found.groups[relation.reference]
        if not all(ends) or direction(_centre(ends[0]), _centre(ends[1])) == relation.word:
            continue
        moves = [_move(scene, i, found, seen) for i in (relation.subject, relation.reference)]
        places, index = max(moves, key=lambda move: move[2])[:2]
        own = found.groups[index]
        names = [str(scene.groups[i]) for i in (relation.subject, relation.reference)]
        where = (
            f"so that {names[0]} {'is' if len(ends[0]) == 1 else 'are'} {relation.word} {names[1]}"
        )
        boxes = tuple(_box(item) for item in own) + tuple(map(_around, places))
        yield Flaw("relation", f"move {scene.groups[index]} {where}", "", boxes)


def _move(
    scene: Scene, index: int, found: Sorted, seen: Sequence[Seen]
) -> tuple[list[Point], int, float]:
    """New places for a group, the group, and how much room the tightest of them leaves."""
    own = found.groups[index]
    taken = [item for item in seen if item not in own]
    places, room = [], float("inf")
    for _ in own:
        place = _free(scene, index, found, taken)
        room = min(room, _room(place, taken) - 100 * _broken(scene, index, found, place))
        taken.append(Seen(None, None, *place, 0.0))
        places.append(place)
    return places, index, room


def _free(scene: Scene, index: int, found: Sorted, taken: Sequence[Seen]) -> Point:
    """The place where a group's relations hold, as far as they can, and that is freest."""
    steps = range(round(_REACH) + 1, SIZE - round(_REACH), _STEP)
    places = [(float(x), float(y)) for y in steps for x in steps]
    return min(places, key=lambda p: (_broken(scene, index, found, p), -_room(p, taken)))


def _broken(scene: Scene, index: int, found: Sorted, place: Point) -> int:
    """How many relations of a group would be broken at a place; a mean of places keeps them, too."""
    return sum(
        not _holds(relation, place, _centre(found.groups[other]), relation.subject == index)
        for relation in scene.relations
        for other in {relation.subject, relation.reference} - {index}
        if index in (relation.subject, relation.reference) and found.groups[other]
    )


def _holds(relation: Relation, place: Point, other: Point, is_subject: bool) -> bool:
    subject, reference = (place, other) if is_subject else (other, place)
    dx, dy = abs(subject[0] - reference[0]), abs(subject[1] - reference[1])
    return direction(subject, reference) == relation.word and abs(dx - dy) > _CLEAR


def _room(place: Point, taken: Iterable[Seen]) -> float:
    """Distance to the nearest object, or to the edge of the picture if that is less."""
    x, y = place
    edge = min(x, y, SIZE - x, SIZE - y) + _REACH
    return min([edge, *(((x - o.x) ** 2 + (y - o.y) ** 2) ** 0.5 for o in taken)])


def _centre(items: Sequence[Seen]) -> Point:
    return sum(o.x for o in items) / len(items), sum(o.y for o in items) / len(items)


def _alike(item: Seen, group: Group) -> int:
    """How little must change to make an object one of a group."""
    return 2 * (item.shape == group.shape) + (group.colour in (None, item.colour))


def _one(group: Group) -> Group:
    return Group(1, group.shape, group.colour)


def _named(item: Seen) -> str:
    across = ("left", "centre", "right")[min(int(3 * item.x / SIZE), 2)]
    down = ("top", "middle", "bottom")[min(int(3 * item.y / SIZE), 2)]
    words = [word for word in (item.colour, item.shape or "blot") if word]
    return f"the {' '.join(words)} at the {down} {across}"


def _box(item: Seen) -> Box:
    left, top, right, bottom = item.box
    return left / SIZE, top / SIZE, right / SIZE, bottom / SIZE


def _around(place: Point) -> Box:
    x, y = place
    corners = (x - _REACH, y - _REACH, x + _REACH, y + _REACH)
    left, top, right, bottom = (min(max(c / SIZE, 0.0), 1.0) for c in corners)
    return left, top, right, bottom
