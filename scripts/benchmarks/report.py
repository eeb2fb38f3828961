"""Statistics of committed results: rows joined over chunks, means with intervals over prompts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from steering.statistics import paired

COSTS = ("nfe", "decodes", "reward_calls")
MEASURES = ("reward", "accuracy", "diversity_pixel", "diversity_clip")


@dataclass(frozen=True)
class Setting:
    """What is compared within: rows of one setting differ in sampler and budget only."""

    model: str
    prompt_set: str
    strength: float
    seeds: int
    device: str
    batch_size: int | None
    processes: int = 1
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class Entry:
    """One sampler at one budget, all chunks joined.

    Attributes:
        setting: what it may be compared within.
        sampler: its name.
        budget: denoiser calls a prompt that it was given.
        equal_seconds: the reference whose time it was given, or None.
        prompts: indices of its prompts ``(P,)``, ascending.
        values: by measure, means over seeds ``(P,)``; diversity is missing with one seed.
        seconds: mean wall-clock seconds of a search.
    """

    setting: Setting
    sampler: str
    budget: int
    equal_seconds: str | None
    prompts: np.ndarray
    values: Mapping[str, np.ndarray]
    seconds: float

    def mean(self, measure: str) -> float:
        """Mean over prompts; NaN where it was not measured."""
        values = self.values.get(measure)
        return float("nan") if values is None else float(values.mean())


def read_rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Rows of result files that keep figures by prompt; others are passed over."""
    rows = [row for path in paths for row in read(path)["rows"]]
    return [row for row in rows if "per_prompt" in row]


def read(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["meta"], found["rows"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result file") from error
    return found


def gather(rows: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """Join the chunks; a prompt that two rows hold counts once, from the first."""
    parts: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        setting = Setting(**{f.name: row[f.name] for f in fields(Setting) if f.name in row})
        key = (setting, row["sampler"], row["budget"], row["equal_seconds"])
        parts.setdefault(key, []).append(row)
    return [_joined(key, chunks) for key, chunks in parts.items()]


def _joined(key: tuple[Any, ...], chunks: Sequence[Mapping[str, Any]]) -> Entry:
    by_prompt: dict[int, dict[str, float]] = {}
    seconds = searches = 0.0
    for row in chunks:
        count, figures = row["prompts"], row["per_prompt"]
        columns = {name: _by_prompt(figures[name], count) for name in figures}
        for i in range(count):
            by_prompt.setdefault(row["first"] + i, {n: c[i] for n, c in columns.items()})
        seconds += row["seconds"] * count
        searches += count
    prompts = sorted(by_prompt)
    names = [n for n in (*COSTS, *MEASURES) if all(n in by_prompt[p] for p in prompts)]
    values = {n: np.array([by_prompt[p][n] for p in prompts], float) for n in names}
    return Entry(*key, np.array(prompts), values, seconds / searches)


def _by_prompt(figures: Any, count: int) -> np.ndarray:
    """Means over seeds: one number for all, ``[prompt]``, or ``[seed][prompt]``."""
    array = np.asarray(figures, float)
    if array.ndim == 0:
        return np.full(count, float(array))
    return array if array.ndim == 1 else array.mean(0)


def difference(entry: Entry, other: Entry, measure: str) -> tuple[float, float, float] | None:
    """Mean of ``entry - other`` over the prompts that both hold, and its 95 % interval."""
    if measure not in entry.values or measure not in other.values:
        return None
    _, here, there = np.intersect1d(entry.prompts, other.prompts, return_indices=True)
    return paired(entry.values[measure][here] - other.values[measure][there])
