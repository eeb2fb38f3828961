"""Curves of searches over a wide range of budgets, with intervals, a picture a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from benchmarks.report import Entry
from benchmarks.report_plots import COLOURS, MARKERS, error_bars, save
from benchmarks.report_tables import REFERENCE
from steering.statistics import interval

#: endings of variants, and their lines
VARIANTS = {"-vp": "--", "-glass": ":", "-ddim": "-.", "-sde": "-.", "-draw": ":"}
#: families of a panel, by what goes before such an ending; all others are particle searches
GROUPS = {
    "noise searches and best of N": (
        *("best-of-n", "zero-order", "paths", "evo", "zeno", "halving", "halving-ahead"),
        "adaptive",
    ),
    "trees and beams": (
        *("dts", "dts-star", "best-first", "depth-first", "treeg", "dlbs", "dlbs-la", "rbf"),
        "rbf-lean",
    ),
}
PARTICLES = "particle searches"
ROWS = [(m, by) for by in ("nfe", "seconds") for m in ("accuracy", "reward")]


def search_plot(entries: Sequence[Entry], path: Path) -> None:
    """Accuracy and reward against NFE and against seconds; a column a kind of search.

    Bars and the band of best of N (black, in every panel) are 95 % intervals; the grey dotted line is
    the unsteered model.

    Args:
        entries: of one setting.
        path: PNG to write.
    """
    plain = [e for e in entries if e.equal_seconds is None]
    groups = _grouped(plain)
    size = (5.2 * len(groups), 3.4 * len(ROWS) + 1.5)
    figure, axes = plt.subplots(len(ROWS), len(groups), figsize=size, sharey="row", squeeze=False)
    for line, (measure, by) in zip(axes, ROWS, strict=True):
        for axis, (title, names) in zip(line, groups.items(), strict=True):
            _panel(axis, plain, names, measure, by)
            axis.set_title(title, fontsize=10)
        line[0].set_ylabel(measure)
    for axis in axes[-1]:
        axis.legend(fontsize=8, ncol=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    figure.suptitle(f"{entries[0].setting.model}: 95 % intervals over prompts", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    save(figure, path)


def stem(name: str) -> str:
    """The family of a variant: without its endings."""
    for ending in VARIANTS:
        if name.endswith(ending):
            return stem(name.removesuffix(ending))
    return name


def _grouped(entries: Sequence[Entry]) -> dict[str, list[str]]:
    names = [s for s in dict.fromkeys(e.sampler for e in entries) if s not in ("base", REFERENCE)]
    kinds = {family: title for title, families in GROUPS.items() for family in families}
    groups = {
        title: [n for n in names if kinds.get(stem(n), PARTICLES) == title]
        for title in (PARTICLES, *reversed(GROUPS))
    }
    return {title: own for title, own in groups.items() if own} or {REFERENCE: []}


def _panel(
    axis: Any, entries: Sequence[Entry], names: Sequence[str], measure: str, by: str
) -> None:
    def at(entry: Entry) -> float:
        return entry.seconds if by == "seconds" else entry.mean("nfe")

    def curve(name: str) -> list[Entry]:
        return sorted((e for e in entries if e.sampler == name and measure in e.values), key=at)

    for entry in curve("base"):
        axis.axhline(entry.mean(measure), color="gray", linestyle=":", label="base")
    reference = curve(REFERENCE)
    if reference:
        ends = [interval(e.values[measure], share=measure == "accuracy") for e in reference]
        x = [at(e) for e in reference]
        y = [e.mean(measure) for e in reference]
        axis.plot(x, y, color="black", marker="o", markersize=4, linewidth=2.2, label=REFERENCE)
        axis.fill_between(x, *zip(*ends, strict=True), color="black", alpha=0.1, linewidth=0)
    stems = list(dict.fromkeys(map(stem, names)))
    for name in names:
        own, i = curve(name), stems.index(stem(name))
        if own:
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            alone = name.removesuffix("-sde") not in names
            line = next((v for k, v in VARIANTS.items() if name.endswith(k)), "-")
            style["linestyle"] = "-" if alone and name.endswith("-sde") else line
            x, y = [at(e) for e in own], [e.mean(measure) for e in own]
            bars = error_bars(own, measure)
            shape = {"markersize": 4, "linewidth": 1.2, "elinewidth": 0.6, "capsize": 1.5}
            axis.errorbar(x, y, yerr=bars, label=name, **style, **shape)
    _axes(axis, "denoiser calls a prompt (NFE)" if by == "nfe" else "seconds a prompt")


def _axes(axis: Any, label: str) -> None:
    axis.set(xscale="log", xlabel=label)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
