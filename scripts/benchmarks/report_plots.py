"""Means and intervals of searches at equal cost, a picture a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.report import Entry
from benchmarks.report_tables import REFERENCE
from steering.statistics import interval

MARKERS = "sD^v<>PX*ph"
# without grey, which is the unsteered model's
COLOURS = [*(plt.get_cmap("tab10")(i) for i in range(10) if i != 7), "#003f5c", "#b8860b"]
MEASURES = ("accuracy", "reward")


def shapes_plot(entries: Sequence[Entry], path: Path) -> None:
    """Accuracy and reward of every sampler with 95 % intervals, at equal NFE and at equal seconds.

    Vertical lines stand at best of N with as much; the grey dotted one is the unsteered model.

    Args:
        entries: of one setting.
        path: PNG to write.
    """
    plain = [e for e in entries if e.equal_seconds is None and e.sampler != "base"]
    told = list(dict.fromkeys(e.equal_seconds for e in entries if e.equal_seconds))
    panels = [("equal NFE", {f"{b} NFE": _at(plain, b) for b in sorted({e.budget for e in plain})})]
    if told:
        timed = {f"seconds of {t}": _in_time(entries, plain, t) for t in told}
        panels.append(("equal seconds", timed))
    names = _ordered(entries)
    columns = [(m, *panel) for panel in panels for m in MEASURES]
    size = (3.6 * len(columns) + 1.5, 0.36 * len(names) + 1.6)
    figure, axes = plt.subplots(1, len(columns), figsize=size, sharey=True, squeeze=False)
    base = [e for e in entries if e.sampler == "base"]
    for axis, (measure, title, groups) in zip(axes[0], columns, strict=True):
        _panel(axis, groups, names, measure)
        for entry in base:
            axis.axvline(entry.mean(measure), color="gray", linestyle=":")
        axis.set_title(f"{measure}, {title}", fontsize=10)
    axes[0][0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0][0].invert_yaxis()
    figure.suptitle(f"{entries[0].setting.model}: 95 % intervals over prompts", fontsize=11)
    figure.tight_layout()
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write a PNG and close the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def error_bars(entries: Sequence[Entry], measure: str) -> np.ndarray:
    """Distances of the interval's ends from the means ``(2, len(entries))``."""
    ends = [interval(e.values[measure], share=measure == "accuracy") for e in entries]
    means = [e.mean(measure) for e in entries]
    gaps = [(max(m - low, 0), max(high - m, 0)) for m, (low, high) in zip(means, ends, strict=True)]
    return np.array(gaps).T


def _at(plain: Sequence[Entry], budget: int) -> list[Entry]:
    return [e for e in plain if e.budget == budget]


def _in_time(entries: Sequence[Entry], plain: Sequence[Entry], told: str) -> list[Entry]:
    """Entries given the seconds of a reference, and the reference."""
    name, _, nfe = told.partition(":")
    reference = [e for e in plain if (e.sampler, str(e.budget)) == (name, nfe)]
    return reference + [e for e in entries if e.equal_seconds == told]


def _ordered(entries: Sequence[Entry]) -> list[str]:
    """Names by reward at the largest budget that they have, the best first."""
    last = {
        e.sampler: (e.budget, e.mean("reward"))
        for e in sorted(entries, key=lambda e: (e.equal_seconds is None, e.budget))
        if e.sampler != "base"
    }
    return sorted(last, key=lambda name: (-last[name][0], -last[name][1]))


def _panel(axis: Any, groups: dict[str, list[Entry]], names: Sequence[str], measure: str) -> None:
    for i, (label, found) in enumerate(groups.items()):
        own = [e for e in found if measure in e.values]
        if not own:
            continue
        shift = 0.22 * (i - (len(groups) - 1) / 2)
        y = [names.index(e.sampler) + shift for e in own]
        x, bars = [e.mean(measure) for e in own], error_bars(own, measure)
        style = {"color": COLOURS[i], "marker": "o", "markersize": 4, "capsize": 2}
        axis.errorbar(x, y, xerr=bars, linestyle="none", label=label, **style)
        for reference in (e for e in own if e.sampler == REFERENCE):
            axis.axvline(reference.mean(measure), color=COLOURS[i], linewidth=0.8, alpha=0.6)
    axis.legend(fontsize=7, loc="best")
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
