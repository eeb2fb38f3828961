"""Curves of the comparison on the embedded models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from benchmarks.report import Entry
from benchmarks.report_tables import REFERENCE
from steering.statistics import interval

MARKERS = "sD^v<>PX*ph"
# without grey, which is the unsteered model's
COLOURS = [*(plt.get_cmap("tab10")(i) for i in range(10) if i != 7), "#003f5c", "#b8860b"]
#: endings of variants, and their lines
VARIANTS = {"-vp": "--", "-glass": ":", "-ddim": "-.", "-sde": "-."}


def shapes_plot(entries: Sequence[Entry], path: Path) -> None:
    """Accuracy and reward against NFE and against seconds, a row of panels a setting.

    The band is the 95 % interval of best of N, the grey dotted line the unsteered model. ``-sde`` is
    left off the names, unless it tells two apart.

    Args:
        entries: of one or more settings; those at equal seconds are left out.
        path: PNG to write.
    """
    plain = [e for e in entries if e.equal_seconds is None]
    settings = list(dict.fromkeys(e.setting for e in plain))
    styles = styled([_labels([e for e in plain if e.setting == s]) for s in settings])
    figure, axes = plt.subplots(
        len(settings), 4, figsize=(15, 3.5 * len(settings) + 0.9), squeeze=False
    )
    for line, setting in zip(axes, settings, strict=True):
        own = [e for e in plain if e.setting == setting]
        panels = [(m, by) for by in ("nfe", "seconds") for m in ("accuracy", "reward")]
        for axis, (measure, by) in zip(line, panels, strict=True):
            _panel(axis, own, measure, by, styles)
            axis.set_title(f"{setting.model}: {measure}", fontsize=10)
    handles = {}
    for axis in axes.flat:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    rows = -(-len(handles) // 7)
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncol=7, fontsize=9, frameon=False
    )
    figure.tight_layout(rect=(0, (0.1 + 0.25 * rows) / figure.get_figheight(), 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _labels(entries: Sequence[Entry]) -> dict[str, str]:
    """What each sampler is called: without its ``-sde``, unless that is another one's name."""
    names = dict.fromkeys(e.sampler for e in entries if e.sampler != "base")
    short = {name: name.removesuffix("-sde") for name in names}
    return {n: n if short[n] != n and short[n] in names else short[n] for n in names}


def styled(labels: Sequence[Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """Colour and marker by family, line by variant, for each label of any setting."""
    known = list(dict.fromkeys(label for of in labels for label in of.values()))
    stems = list(dict.fromkeys(_stem(label) for label in known if _stem(label) != REFERENCE))
    styles = {}
    for label in known:
        i = stems.index(_stem(label)) if _stem(label) in stems else -1
        styles[label] = {
            "color": "black" if i < 0 else COLOURS[i % len(COLOURS)],
            "marker": "o" if i < 0 else MARKERS[i % len(MARKERS)],
            "linestyle": VARIANTS.get(label.removeprefix(_stem(label)), "-"),
            "linewidth": 2.2 if label == REFERENCE else 1.3,
            "zorder": 3 if label == REFERENCE else 2,
        }
    return styles


def _stem(label: str) -> str:
    """The family of a variant."""
    return next((label.removesuffix(v) for v in VARIANTS if label.endswith(v)), label)


def _panel(axis: Any, entries: Sequence[Entry], measure: str, by: str, styles: Any) -> None:
    def at(entry: Entry) -> float:
        return entry.seconds if by == "seconds" else entry.mean("nfe")

    for entry in entries:
        if entry.sampler == "base":
            axis.axhline(entry.mean(measure), color="gray", linestyle=":", label="base")
    for name, label in _labels(entries).items():
        own = sorted((e for e in entries if e.sampler == name), key=at)
        x, y = [at(e) for e in own], [e.mean(measure) for e in own]
        axis.plot(x, y, markersize=5, label=label, **styles[label])
        if name == REFERENCE:
            ends = [interval(e.values[measure]) for e in own]
            axis.fill_between(x, *zip(*ends, strict=True), color="black", alpha=0.1, linewidth=0)
    axis.set(
        xscale="log",
        xlabel="denoiser calls a prompt (NFE)" if by == "nfe" else "seconds a prompt",
    )
    if by == "nfe":
        axis.set_xticks(sorted({e.budget for e in entries if e.sampler != "base"}))
    else:
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
