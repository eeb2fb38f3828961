"""Tables and curves of the comparison on real digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.report_digits_claims import orderings
from benchmarks.report_plots import COLOURS, MARKERS
from benchmarks.report_tables import number, table

Row = Mapping[str, Any]

#: What is compared within; where rows were made comes first, and does not matter to bounds.
SETTING = ("device", "batch_size", "steps", "total", "pool", "weights")
WHERE = 2
BOUNDS = {"real": "real digits", "model": "the model's own tilted law"}
#: Measures with their digits behind the point.
MEASURES = {
    "fd": ("FD, a run", 3),
    "fd_pooled": ("FD, pooled", 4),
    "fd_model": ("FD to the model's law", 4),
    "right": ("right", 3),
    "classes_tv": ("classes, TV", 3),
    "diversity": ("diversity", 2),
    "reward": ("reward", 2),
}
COSTS = {
    "nfe": "NFE",
    "decodes": "decodes",
    "reward_calls": "reward calls",
    "backwards": "backwards",
}
ORDERINGS = """\
Ratios of distances: geometric means over targets, with 95 % intervals by bootstrap over them. A claim
holds where the interval lies below 1, is reversed where it lies above, open else; it takes five targets.
"""
PANELS = {
    "fd": "Fréchet distance to real digits, a run",
    "fd_pooled": "the same, runs pooled",
    "fd_model": "to the model's own tilted law, pooled",
}


def digits_tables(rows: Sequence[Row]) -> str:
    """A table a setting, a group of targets and a budget; means over targets."""
    parts = []
    for setting in _settings(rows):
        for group, titled in _groups(_of(rows, setting)).items():
            for budget in sorted({row["budget"] for row in titled if row["budget"]}):
                parts.append(f"### {_title(setting, group)}: {budget} denoiser calls a run\n")
                shown = [row for row in titled if row["budget"] in (0, budget)]
                parts.append(_table(shown))
            claims = orderings(titled)
            if claims:
                parts += [f"### {_title(setting, group)}: published orderings\n", ORDERINGS, claims]
    return "\n".join(parts)


def digits_plot(rows: Sequence[Row], path: Path) -> None:
    """Distances against denoiser calls, a row of panels a setting and group of targets.

    Args:
        rows: of the benchmark, at least one.
        path: PNG to write.
    """
    lines = [
        (_title(setting, group), titled)
        for setting in _settings(rows)
        for group, titled in _groups(_of(rows, setting)).items()
    ]
    names = list(dict.fromkeys(row["sampler"] for row in rows if row["budget"]))
    figure, axes = plt.subplots(
        len(lines), len(PANELS), figsize=(14, 3.6 * len(lines) + 0.9), squeeze=False
    )
    for line, (title, titled) in zip(axes, lines, strict=True):
        for axis, (measure, label) in zip(line, PANELS.items(), strict=True):
            _panel(axis, titled, measure, names)
            axis.set_title(f"{title.split(',')[0]}: {label}", fontsize=10)
    handles = {}
    for axis in axes.flat:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    legend_rows = -(-len(handles) // 7)
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncol=7, fontsize=9, frameon=False
    )
    figure.tight_layout(rect=(0, (0.1 + 0.25 * legend_rows) / figure.get_figheight(), 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis: Any, rows: Sequence[Row], measure: str, names: Sequence[str]) -> None:
    for sampler, style in (("real", ":"), ("model", "--")):
        floor = [r for r in rows if r["sampler"] == sampler and r[measure] is not None]
        if floor:
            axis.axhline(
                _mean(floor, measure), color="gray", linestyle=style, label=BOUNDS[sampler]
            )
    for i, name in enumerate(names):
        own = [r for r in rows if r["sampler"] == name and r[measure] is not None]
        budgets = sorted({row["budget"] for row in own})
        values = [_mean([r for r in own if r["budget"] == b], measure) for b in budgets]
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axis.plot(budgets, values, markersize=5, linewidth=1.3, label=name, **style)
    axis.set(xscale="log", yscale="log", xlabel="denoiser calls a run (NFE)")
    axis.tick_params(labelsize=8, which="both")
    axis.grid(alpha=0.3)


def _table(rows: Sequence[Row]) -> str:
    """What samplers are seen against first, then samplers in the order of the file."""
    head = ["sampler", "targets x runs", *(title for title, _ in MEASURES.values())]
    head += [*COSTS.values(), "seconds"]
    lines = []
    for name in sorted(dict.fromkeys(r["sampler"] for r in rows), key=lambda n: n not in BOUNDS):
        own = [row for row in rows if row["sampler"] == name]
        runs = "-" if name in BOUNDS else f"{len(own)} x {own[0]['runs']}"
        cells = [BOUNDS.get(name, f"`{name}`"), runs]
        cells += [_measured(own, m, digits) for m, (_, digits) in MEASURES.items()]
        cells += [number(_mean(own, cost), 0) for cost in COSTS]
        lines.append([*cells, number(_mean(own, "seconds"), 3)])
    return table(head, lines)


def _measured(rows: Sequence[Row], measure: str, digits: int) -> str:
    """Mean over targets, and its standard deviation over them where there are several."""
    values = [row[measure] for row in rows if row.get(measure) is not None]
    if len(values) < len(rows):
        return "-"
    mean = number(float(np.mean(values)), digits)
    return f"{mean} ± {number(float(np.std(values)), digits)}" if len(values) > 1 else mean


def _mean(rows: Sequence[Row], key: str) -> float:
    values = [row.get(key) for row in rows]
    return float("nan") if not values or None in values else float(np.mean(values))


def _setting(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in SETTING)


def _settings(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(_setting(row) for row in rows if row["budget"]))


def _of(rows: Sequence[Row], setting: tuple[Any, ...]) -> list[Row]:
    """Rows of a setting, and the bounds of it."""
    first = [WHERE if not row["budget"] else 0 for row in rows]
    pairs = zip(rows, first, strict=True)
    return [row for row, cut in pairs if _setting(row)[cut:] == setting[cut:]]


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of single digits, and of even and odd ones."""
    groups = {
        "single digits": [row for row in rows if row["target"].isdigit()],
        "even and odd": [row for row in rows if not row["target"].isdigit()],
    }
    return {name: own for name, own in groups.items() if any(row["budget"] for row in own)}


def _title(setting: tuple[Any, ...], group: str) -> str:
    told = dict(zip(SETTING, setting, strict=True))
    return f"{group}, {told['device']}, {told['batch_size']} rows a call, {told['steps']} steps"
