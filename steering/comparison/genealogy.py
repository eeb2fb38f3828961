"""Who descends from whom: the particles of a search over its looks, read from its trace."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Level:
    """All that a search had before it at one look.

    Attributes:
        rewards: of each row, ``n`` of them.
        parents: what each row came from, ``n`` of them: rows are numbered over all levels in order; -1
            where it came from none. Empty where unknown.
        step: of the time grid; None where the trace does not say.
        pictures: number of each row's thumbnail, ``n`` of them; empty where none was kept.
        ess: effective sample size, one an island.
        lam: lambda that was applied.
        chosen: rows that were handed to the user.
    """

    rewards: tuple[float, ...]
    parents: tuple[int, ...] = ()
    step: int | None = None
    pictures: tuple[int, ...] = ()
    ess: tuple[float, ...] = ()
    lam: float | None = None
    chosen: tuple[int, ...] = ()


@dataclass(frozen=True)
class Looked:
    """Thumbnails of one request for rewards, as a record of the run keeps them.

    Attributes:
        record: index of the trace's record that came next.
        rewards: of each row.
        first: number of the first row's thumbnail.
    """

    record: int
    rewards: tuple[float, ...]
    first: int


@dataclass
class _Group:
    """Trace records of one look: one, or one an island."""

    records: list[tuple[int, Mapping[str, Any]]]
    ancestors: list[int] = field(default_factory=list)  #: rows of this look that went on


def genealogy(
    trace: Sequence[Mapping[str, Any]],
    looks: Sequence[Looked] = (),
    *,
    returned: float | None = None,
) -> list[Level]:
    """Levels of a search, the finished samples last.

    A record with ``step`` and ``reward`` is a look; its ``ancestors`` say which of its rows the rows
    of the next look came from (several a row, if that has more). Records of one step that differ in
    ``island`` are one look. Searches that grow trees name the rows of a record by ``nodes`` and what
    they came from by ``parents`` (-1: the root); their rewards are ``rewards``, or ``reward``. Others
    show what they had scored between one record and the next, without descent.

    Args:
        trace: records of the trace.
        looks: thumbnails, in the order in which they were made.
        returned: reward of what was handed to the user, by which it is found where no record says.
    """
    if any("nodes" in record for record in trace):
        return _tree(trace, looks, returned)
    groups = _groups(trace)
    if len(groups) < 2 or not all(g.ancestors for g in groups[:-1]):
        return _unrelated(trace, looks, returned) or [_level(g, (), ()) for g in groups]
    levels: list[Level] = []
    after, before, number = -1, None, 0
    for group in groups:
        first = group.records[0][0]
        count = sum(len(r["reward"]) for _, r in group.records)
        parents = (
            () if before is None else _parents(before, count, number - len(levels[-1].rewards))
        )
        pictures = _pictures([s for s in looks if after < s.record <= first], count)
        levels.append(_level(group, parents, pictures))
        after, before = group.records[-1][0], group.ancestors or list(range(count))
        number += count
    return levels


def thinned(levels: Sequence[Level], most: int) -> list[Level]:
    """At most so many levels, first and last among them; descent passes through those left out."""
    if len(levels) <= max(most, 2):
        return list(levels)
    kept = sorted({round(i * (len(levels) - 1) / (most - 1)) for i in range(most)})
    above, new, number = _above(levels), {-1: -1}, 0
    starts = [0, *itertools.accumulate(len(level.rewards) for level in levels)]
    for place in kept:
        for row in range(len(levels[place].rewards)):
            new[starts[place] + row] = number
            number += 1
    found = []
    for place in kept:
        parents = list(levels[place].parents)
        for row, parent in enumerate(parents):
            while parent not in new:
                parent = above[parent]
            parents[row] = new[parent]
        found.append(replace(levels[place], parents=tuple(parents)))
    return found


def _above(levels: Sequence[Level]) -> list[int]:
    """What every row came from, over all levels."""
    return [p for level in levels for p in (level.parents or [-1] * len(level.rewards))]


def _groups(trace: Sequence[Mapping[str, Any]]) -> list[_Group]:
    groups: list[_Group] = []
    for i, record in enumerate(trace):
        if record.get("event") == "out of time" and groups and record.get("ancestors"):
            rows = groups[-1].ancestors
            groups[-1].ancestors = [rows[a] if rows else a for a in record["ancestors"]]
        if "step" not in record or not isinstance(record.get("reward"), list):
            continue
        last = groups[-1].records[-1][1] if groups else {}
        if not (record.get("island") and last.get("step") == record["step"]):
            groups.append(_Group([]))
        offset = sum(len(r["reward"]) for _, r in groups[-1].records)
        groups[-1].records.append((i, record))
        rows = record.get("ancestors") or []
        if all(isinstance(a, int) and 0 <= a < len(record["reward"]) for a in rows):
            groups[-1].ancestors += [offset + a for a in rows]
    return groups


def _level(group: _Group, parents: tuple[int, ...], pictures: tuple[int, ...]) -> Level:
    records = [r for _, r in group.records]
    return Level(
        tuple(x for r in records for x in r["reward"]),
        parents,
        records[0]["step"],
        pictures,
        tuple(r["ess"] for r in records if r.get("ess") is not None),
        records[0].get("lam"),
        tuple(records[-1].get("chosen") or ()),
    )


def _parents(ancestors: Sequence[int], count: int, first: int) -> tuple[int, ...]:
    """What ``count`` rows came from, those of one parent side by side; ``first`` numbers its row 0."""
    fan, rest = divmod(count, len(ancestors))
    return () if rest or not fan else tuple(first + ancestors[j // fan] for j in range(count))


def _pictures(looks: Sequence[Looked], count: int) -> tuple[int, ...]:
    """Thumbnails of ``count`` rows: of the last request that had as many, or several a row."""
    for look in reversed(looks):
        fan, rest = divmod(len(look.rewards), count)
        if fan and not rest:
            return tuple(look.first + fan * j for j in range(count))
    return ()


def _tree(
    trace: Sequence[Mapping[str, Any]], looks: Sequence[Looked], returned: float | None
) -> list[Level]:
    """Levels of a search that names its nodes: a record each."""
    levels: list[Level] = []
    numbers: dict[int, int] = {-1: -1}
    after = -1
    for i, record in enumerate(trace):
        if not record.get("nodes"):
            continue
        parents = tuple(numbers.get(p, -1) for p in record["parents"])
        for node in record["nodes"]:
            numbers[node] = len(numbers) - 1
        some = [look for look in looks if after < look.record <= i]
        scored = [look.first + j for look in some for j in range(len(look.rewards))]
        pictures = tuple(scored[-len(parents) :]) if len(scored) >= len(parents) else ()
        rewards = tuple(record.get("rewards") or record["reward"])
        chosen = tuple(record.get("chosen") or ())
        levels.append(Level(rewards, parents, record.get("step"), pictures, chosen=chosen))
        after = i
    if not any(level.chosen for level in levels):
        _mark(levels, returned)
    return levels


def _mark(levels: list[Level], returned: float | None) -> None:
    """Choose the last row of the returned reward: finished samples come after what they came from."""
    for place, level in reversed(list(enumerate(levels))):
        if returned in level.rewards:
            row = level.rewards.index(returned)
            levels[place] = replace(level, chosen=(row,))
            return


def _unrelated(
    trace: Sequence[Mapping[str, Any]], looks: Sequence[Looked], returned: float | None
) -> list[Level]:
    """What was scored between one record of the trace and the next, a level each."""
    together: dict[int, list[Looked]] = {}
    for look in looks:
        together.setdefault(look.record, []).append(look)
    levels = []
    for record, some in together.items():
        told = trace[record] if record < len(trace) else {}
        rewards = tuple(x for look in some for x in look.rewards)
        pictures = tuple(look.first + j for look in some for j in range(len(look.rewards)))
        chosen = tuple(j for j, x in enumerate(rewards) if x == returned)
        levels.append(Level(rewards, (), told.get("step"), pictures, chosen=chosen))
    return levels
