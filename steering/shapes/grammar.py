"""Prompts of the world of shapes: their grammar, the scenes they mean, and their kinds.

::

    prompt   = group
             | group {", " group} " and " group            (two or three groups)
             | group " " relation " " group
             | group " " relation " " group " that " ("is" | "are") " " relation " " group
    group    = count [" " colour] " " shape                (plural shape after two ... five)
    count    = "a" | "an" | "two" | "three" | "four" | "five"
    relation = "left of" | "right of" | "above" | "below"

In a chain "A left of B that is above C" the second relation is between B and C. Six of the kinds
are those of GenEval (Ghosh et al. 2023, https://arxiv.org/abs/2310.11513); see `kind`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Meaning = TypeVar("Meaning")

SHAPES = ("circle", "ring", "square", "diamond", "triangle", "cross", "star")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5}
EASY_KINDS = ("single", "two", "counting", "colours", "position", "attributes")
HARD_KINDS = ("groups", "relation", "chain")
MAX_OBJECTS = 5
MAX_GROUPS = 3

_WORDS = {count: word for word, count in COUNTS.items()}
_PLURALS = {shape + ("es" if shape.endswith("s") else "s"): shape for shape in SHAPES}
_RELATION = re.compile(rf" ({'|'.join(RELATIONS)}) ")
_CHAIN = re.compile(
    rf"^(.+?) ({'|'.join(RELATIONS)}) (.+) that (is|are) ({'|'.join(RELATIONS)}) (.+)$"
)


@dataclass(frozen=True)
class Group:
    """Some equal shapes, e.g. "two red rings".

    Attributes:
        count: How many, 1 to 5.
        shape: One of `SHAPES`.
        colour: One of `COLOURS`, or None when the prompt leaves it open.
    """

    count: int
    shape: str
    colour: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_OBJECTS:
            raise ValueError(f"a group has 1 to {MAX_OBJECTS} objects, got {self.count}")
        if self.shape not in SHAPES:
            raise ValueError(f"unknown shape {self.shape!r}; known shapes: {', '.join(SHAPES)}")
        if self.colour is not None and self.colour not in COLOURS:
            raise ValueError(f"unknown colour {self.colour!r}; known colours: {', '.join(COLOURS)}")

    def __str__(self) -> str:
        noun = (
            self.shape
            if self.count == 1
            else next(p for p, s in _PLURALS.items() if s == self.shape)
        )
        words = noun if self.colour is None else f"{self.colour} {noun}"
        article = "an" if words[0] in "aeiou" else "a"
        return f"{article if self.count == 1 else _WORDS[self.count]} {words}"

    def excludes(self, other: "Group") -> bool:
        """Whether no object can belong to both groups."""
        if self.shape != other.shape:
            return True
        return None not in (self.colour, other.colour) and self.colour != other.colour


@dataclass(frozen=True)
class Relation:
    """Group number `subject` lies `word` ("left of", ...) group number `reference`.

    It is the relation of the groups' mean centres: "A left of B" holds when the larger of the two
    coordinate differences is the horizontal one, and A has the smaller horizontal coordinate. So
    of two groups placed at random each of the four relations holds with probability 1/4.
    """

    subject: int
    word: str
    reference: int


@dataclass(frozen=True)
class Scene:
    """What a prompt asks for: one to three groups, with at most two relations between neighbours.

    Attributes:
        groups: The groups in the order of the prompt.
        relations: Empty, or one relation (0, 1), or the chain (0, 1), (1, 2).

    Raises:
        ValueError: for too many objects or groups, groups that could share an object ("a ring and
            a red ring"), or relations other than the three forms above.
    """

    groups: tuple[Group, ...]
    relations: tuple[Relation, ...] = ()

    def __post_init__(self) -> None:
        total = sum(group.count for group in self.groups)
        if not 1 <= len(self.groups) <= MAX_GROUPS:
            raise ValueError(f"a scene has 1 to {MAX_GROUPS} groups, got {len(self.groups)}")
        if total > MAX_OBJECTS:
            raise ValueError(
                f"a scene has at most {MAX_OBJECTS} objects, got {total}; ask for fewer"
            )
        for index, group in enumerate(self.groups):
            for other in self.groups[:index]:
                if not group.excludes(other):
                    raise ValueError(
                        f"cannot tell {str(other)!r} from {str(group)!r}; "
                        "give them different shapes or two colours"
                    )
        pairs = [(relation.subject, relation.reference) for relation in self.relations]
        chain = [(index, index + 1) for index in range(len(self.groups) - 1)]
        if pairs not in ([], chain) or any(
            relation.word not in RELATIONS for relation in self.relations
        ):
            raise ValueError(
                "relations must link neighbouring groups in order, "
                f"by {', '.join(RELATIONS)}; got {self.relations}"
            )

    def __str__(self) -> str:
        names = [str(group) for group in self.groups]
        if len(self.relations) == 1:
            return f"{names[0]} {self.relations[0].word} {names[1]}"
        if len(self.relations) == 2:
            verb = "is" if self.groups[1].count == 1 else "are"
            first, second = (relation.word for relation in self.relations)
            return f"{names[0]} {first} {names[1]} that {verb} {second} {names[2]}"
        return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

    @property
    def kind(self) -> str:
        """The kind of the prompt: one of `EASY_KINDS` or `HARD_KINDS`."""
        coloured = any(group.colour for group in self.groups)
        several = any(group.count > 1 for group in self.groups)
        if len(self.relations) == 2:
            return "chain"
        if self.relations:
            return "relation" if coloured or several else "position"
        if len(self.groups) == 1:
            return "counting" if several else "colours" if coloured else "single"
        if several or len(self.groups) > 2:
            return "groups"
        return "attributes" if coloured else "two"


def parse(prompt: str) -> Scene:
    """Reads a prompt of the grammar above.

    Args:
        prompt: E.g. "two red rings left of a cross". Case and outer blanks do not matter.

    Returns:
        The scene, whose `str` is the prompt again.

    Raises:
        TypeError: if the prompt is not text.
        ValueError: if it is outside the grammar; the message quotes the part that was not understood.
    """
    return read(prompt, _parse)


def read(prompt: str, reader: Callable[[str], Meaning]) -> Meaning:
    """What a prompt means by a grammar, whose ``reader`` takes lower case and single blanks.

    Raises:
        TypeError: if the prompt is not text.
        ValueError: if the reader raises one; the message quotes the prompt, too.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"a prompt must be text, got {type(prompt).__name__}: {prompt!r}")
    text = " ".join(prompt.lower().split())
    try:
        return reader(text)
    except ValueError as error:
        raise ValueError(f"cannot read the prompt {prompt!r}: {error}") from None


def kind(prompt: str) -> str:
    """The kind of a prompt.

    Returns:
        One of "single" ("a ring"), "two" ("a ring and a cross"), "counting" ("three squares",
        "three red squares"), "colours" ("a red ring"), "position" ("a ring left of a cross"),
        "attributes" ("a red ring and a blue cross"); or, harder, "groups" ("two red rings and a
        cross"), "relation" ("two rings left of a red cross"), "chain" ("a ring left of a cross
        that is above a star").

    Raises:
        TypeError, ValueError: as `parse`.
    """
    return parse(prompt).kind


def _parse(text: str) -> Scene:
    chain = _CHAIN.match(text)
    if chain:
        first, word, second, verb, word_2, third = chain.groups()
        groups = (_group(first), _group(second), _group(third))
        if verb != ("is" if groups[1].count == 1 else "are"):
            raise ValueError(f"{verb!r} does not agree with {second!r}")
        return Scene(groups, (Relation(0, word, 1), Relation(1, word_2, 2)))
    parts = _RELATION.split(text)
    if len(parts) == 3:
        return Scene((_group(parts[0]), _group(parts[2])), (Relation(0, parts[1], 1),))
    if len(parts) > 3:
        raise ValueError('a chain of relations is written "A left of B that is above C"')
    head, conjunction, last = text.rpartition(" and ")
    names = [*head.split(", "), last] if conjunction else [last]
    return Scene(tuple(_group(name) for name in names))


def _group(text: str) -> Group:
    words = text.split(" ")
    if len(words) not in (2, 3):
        raise ValueError(f'{text!r} is not a group such as "a ring" or "two red rings"')
    if words[0] not in ("a", "an", *COUNTS):
        raise ValueError(f"{words[0]!r} is not a count; use a, an, {', '.join(COUNTS)}")
    count = COUNTS.get(words[0], 1)
    nouns = {shape: shape for shape in SHAPES} if count == 1 else _PLURALS
    if words[-1] not in nouns:
        raise ValueError(f"{words[-1]!r} in {text!r} is not a shape; use {', '.join(nouns)}")
    group = Group(count, nouns[words[-1]], words[1] if len(words) == 3 else None)
    if str(group) != text:
        raise ValueError(f"{text!r} should read {str(group)!r}")
    return group
