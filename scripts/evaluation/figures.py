"""Figures of an evaluation: bars with intervals, and how the scores of pictures are spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from evaluation.intervals import ALL
from steering.files import write_atomically

_ARROWS = {"higher": "higher is better", "lower": "lower is better"}
_COLOURS = plt.get_cmap("tab10").colors


def draw_figures(result: Mapping[str, Any], folder: Path) -> None:
    """Write metrics.png, kinds.png if prompts have kinds, and scores.png if pictures have scores."""
    rows = result["rows"]
    runs = list(dict.fromkeys(row["run"] for row in rows))
    _bars([row for row in rows if row["kind"] == ALL], runs, folder / "metrics.png")
    accuracy = [row for row in rows if row["metric"] == "accuracy" and row["kind"] != ALL]
    if accuracy:
        _kinds(accuracy, runs, folder / "kinds.png")
    scores = {
        name: {run: found["scores"][name] for run, found in result["pictures"].items()}
        for name in dict.fromkeys(n for f in result["pictures"].values() for n in f["scores"])
    }
    # What is only right or wrong has no spread to show.
    scores = {
        name: by_run
        for name, by_run in scores.items()
        if not all(np.isin(values, (0, 1)).all() for values in by_run.values())
    }
    if scores:
        _histograms(scores, folder / "scores.png")


def _bars(rows: Sequence[Mapping[str, Any]], runs: Sequence[str], path: Path) -> None:
    panels: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        panels.setdefault((row["metric"], row["model"]), {})[row["run"]] = row
    figure, axes = _grid(len(panels), height=0.9 + 0.42 * len(runs))
    for axis, ((name, model), by_run) in zip(axes, panels.items(), strict=True):
        own = [run for run in runs if run in by_run]
        values = np.array([by_run[run]["value"] for run in own])
        ends = _ends([by_run[run] for run in own])
        places = [runs.index(run) for run in own]
        axis.barh(places, values, color=[_COLOURS[p % 10] for p in places], height=0.65)
        axis.errorbar(values, places, xerr=_lengths(values, ends), **_WHISKERS)
        axis.set_yticks(range(len(runs)), [_short(run) for run in runs], fontsize=8)
        axis.invert_yaxis()
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.axvline(0, color="#555555", linewidth=0.8)
        axis.set_title(_heading(name, model), fontsize=9)
        axis.set_xlabel(_ARROWS[next(iter(by_run.values()))["better"]], fontsize=7, color="#666666")
    _finish(figure, path)


def _kinds(rows: Sequence[Mapping[str, Any]], runs: Sequence[str], path: Path) -> None:
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure, axis = plt.subplots(figsize=(1.6 + 1.0 * len(kinds), 3.2))
    width = 0.8 / len(runs)
    for i, run in enumerate(runs):
        own = [row for row in rows if row["run"] == run]
        places = np.array([kinds.index(row["kind"]) for row in own]) + (i + 0.5) * width - 0.4
        values = np.array([row["value"] for row in own])
        ends = _ends(own)
        axis.bar(places, values, width * 0.92, color=_COLOURS[i % 10], label=_short(run))
        axis.errorbar(places, values, yerr=_lengths(values, ends), **_WHISKERS)
    axis.set_xticks(range(len(kinds)), kinds, fontsize=8)
    axis.set_ylim(0, 1)
    axis.set_ylabel("accuracy", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    if len(runs) > 1:
        axis.legend(fontsize=7, frameon=False)
    _finish(figure, path)


def _histograms(scores: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    figure, axes = _grid(len(scores), height=2.4)
    for axis, (name, by_run) in zip(axes, scores.items(), strict=True):
        edges = np.histogram_bin_edges(np.concatenate(list(by_run.values())), 24)
        for i, (run, values) in enumerate(by_run.items()):
            shares = np.full(len(values), 1 / len(values))
            colour = _COLOURS[i % 10]
            label = f"{_short(run)} (mean {np.mean(values):.3g})"
            axis.hist(values, edges, weights=shares, color=colour, alpha=0.25)
            axis.hist(
                values,
                edges,
                weights=shares,
                color=colour,
                histtype="step",
                linewidth=1.5,
                label=label,
            )
        axis.set_title(name, fontsize=9)
        axis.set_ylabel("share of pictures", fontsize=7)
        axis.legend(fontsize=7, frameon=False)
    _finish(figure, path)


_WHISKERS: dict[str, Any] = {
    "fmt": "none",
    "ecolor": "#222222",
    "elinewidth": 1.2,
    "capsize": 3,
}


def _grid(count: int, *, height: float) -> tuple[Any, Sequence[Any]]:
    columns = min(3, count)
    lines = -(-count // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.6 * columns, height * lines + 0.2), squeeze=False
    )
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes.flat[:count]


def _ends(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Lower and upper ends ``(2, n)``; the value itself where there is no interval."""
    ends = [[row["value"] if row[k] is None else row[k] for row in rows] for k in ("low", "high")]
    return np.array(ends)


def _lengths(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return np.abs(np.stack([np.minimum(ends[0] - values, 0), np.maximum(ends[1] - values, 0)]))


def _heading(name: str, model: str) -> str:
    return name if model in ("", name) else f"{name} ({_short(model)})"


def _short(text: str, most: int = 30) -> str:
    return text if len(text) <= most else "…" + text[-most + 1 :]


def _finish(figure: Any, path: Path) -> None:
    figure.tight_layout()
    # Without the version of matplotlib inside, equal figures are equal files.
    write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=140, metadata={"Software": None})
    )
    plt.close(figure)
