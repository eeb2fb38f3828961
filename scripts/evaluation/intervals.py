"""Values with 95 % intervals, and differences between runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.inputs import Run
from evaluation.metrics import Items, Measured, Metric, OfSet, Options
from steering.shapes.grammar import EASY_KINDS, HARD_KINDS
from steering.statistics import interval

ALL, MEAN_OF_KINDS = "all", "mean of kinds"


@dataclass(frozen=True, eq=False)
class Figure:
    """One measured metric of one run.

    Attributes:
        run: what was measured.
        name: of the metric in the tables.
        model: that it was computed with.
        metric: its entry.
        measured: the values behind it.
    """

    run: Run
    name: str
    model: str
    metric: Metric
    measured: Measured

    @property
    def by_key(self) -> dict[str, float]:
        """Means of the items of a key, in the order of first appearance; empty for metrics of sets."""
        groups: dict[str, list[float]] = {}
        if isinstance(self.measured, Items):
            for key, value in zip(self.measured.keys, self.measured.values.tolist(), strict=True):
                groups.setdefault(key, []).append(value)
        return {key: float(np.mean(values)) for key, values in groups.items()}


def rows_of(figure: Figure, options: Options) -> list[dict[str, Any]]:
    """Rows of the table: all keys, then each kind of prompt if there are several."""
    head = {"run": figure.run.name, "metric": figure.name, "model": figure.model}
    measured = figure.measured
    if isinstance(measured, OfSet):
        ends = centred(measured.value, measured.replicates)
        row = _row(head, ALL, measured.value, ends, len(figure.run.pictures), "picture", figure)
        return [row | ({"note": measured.note} if measured.note else {})]
    by_key = figure.by_key
    rows = [_mean_row(head, ALL, by_key, figure, options)]
    kinds = _kinds(figure.run) if measured.unit == "prompt" else {}
    if len(kinds) < 2:
        return rows
    parts = {k: {p: by_key[p] for p in prompts if p in by_key} for k, prompts in kinds.items()}
    parts = {kind: part for kind, part in parts.items() if part}
    if figure.name == "accuracy":
        rows.append(_mean_of_kinds(head, parts, figure, options))
    return rows + [_mean_row(head, kind, part, figure, options) for kind, part in parts.items()]


def difference_rows(figure: Figure, base: Figure, options: Options) -> list[dict[str, Any]]:
    """How far a run is from another: by key where both hold it, else by resamples in step."""
    head = {"run": figure.run.name, "against": base.run.name}
    head |= {"metric": figure.name, "model": figure.model}
    mine, other = figure.measured, base.measured
    if isinstance(mine, OfSet):
        # Runs of one number of pictures draw the same places: pairs, if their prompts agree.
        gap = mine.value - other.value
        ends = centred(gap, mine.replicates - other.replicates)
        unit, count = "picture", len(figure.run.pictures)
    else:
        a, b = figure.by_key, base.by_key
        both = np.array([a[key] - b[key] for key in a if key in b])
        if len(both) < 2:
            return []
        gap, ends = float(both.mean()), interval(both, resamples=options.resamples)
        unit, count = mine.unit, len(both)
    row = {"difference": gap, "low": ends[0], "high": ends[1], "count": count, "unit": unit}
    return [head | row | {"better": figure.metric.better}]


def centred(value: float, replicates: np.ndarray) -> tuple[float, float]:
    """95 % interval around a value with the spread of its resamples.

    A resample holds some pictures twice, which moves a distance between sets upwards: their mean is
    taken off, so that the interval shows the spread alone.
    """
    low, high = np.quantile(replicates - replicates.mean(), [0.025, 0.975])
    return value + float(low), value + float(high)


def _mean_row(
    head: Mapping[str, Any],
    kind: str,
    by_key: Mapping[str, float],
    figure: Figure,
    options: Options,
) -> dict[str, Any]:
    values = np.array(list(by_key.values()))
    share = bool(np.isin(values, (0.0, 1.0)).all())
    floor = figure.measured.floor
    if len(values) < 2 and not share:  # one value tells nothing of their spread
        mean = max(float(values.mean()), floor)
        return _row(head, kind, mean, (None, None), 1, figure.measured.unit, figure)
    ends = interval(values, share=share, resamples=options.resamples)
    mean, ends = max(float(values.mean()), floor), tuple(max(end, floor) for end in ends)
    return _row(head, kind, mean, ends, len(values), figure.measured.unit, figure)


def _mean_of_kinds(
    head: Mapping[str, Any],
    parts: Mapping[str, Mapping[str, float]],
    figure: Figure,
    options: Options,
) -> dict[str, Any]:
    """GenEval's total: every kind counts alike; the bootstrap draws within the kinds."""
    random = np.random.default_rng(0)
    replicates = np.zeros(options.resamples)
    for part in parts.values():
        values = np.array(list(part.values()))
        picks = random.integers(len(values), size=(options.resamples, len(values)))
        replicates += values[picks].mean(1) / len(parts)
    value = float(np.mean([np.mean(list(part.values())) for part in parts.values()]))
    ends = tuple(float(q) for q in np.quantile(replicates, [0.025, 0.975]))
    count = sum(map(len, parts.values()))
    return _row(head, MEAN_OF_KINDS, value, ends, count, "prompt", figure)


def _row(
    head: Mapping[str, Any],
    kind: str,
    value: float,
    ends: tuple[float | None, ...],
    count: int,
    unit: str,
    figure: Figure,
) -> dict[str, Any]:
    return {
        **head,
        "kind": kind,
        "value": value,
        "low": ends[0],
        "high": ends[1],
        "count": count,
        "unit": unit,
        "better": figure.metric.better,
    }


def _kinds(run: Run) -> dict[str, list[str]]:
    """Prompts by kind, in GenEval's order, the unknown ones left out."""
    found: dict[str, list[str]] = {}
    for prompt, kind in dict(zip(run.prompts, run.kinds, strict=True)).items():
        if kind:
            found.setdefault(kind, []).append(prompt)
    order = [*EASY_KINDS, *HARD_KINDS]
    rank = {kind: i for i, kind in enumerate(order)}
    return {k: found[k] for k in sorted(found, key=lambda k: (rank.get(k, len(order)), k))}
