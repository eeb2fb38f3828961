"""Tables and plots of the repair benchmark, from its result file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steering.files import write_atomically
from steering.statistics import interval, paired

#: of a label, in every plot
COLOURS = {"judge": "tab:blue", "clip": "tab:orange"}
LINES = {"best-of-n": ":", "repair": "-", "whole": "--"}


@dataclass(frozen=True, eq=False)
class Curve:
    """One way of working over all its prompts.

    Attributes:
        way: its name.
        paint_steps: of a new picture.
        prompts: index and seed of each trace.
        traces: of each prompt: nfe, decodes, reward calls, judge calls, right, turn by turn.
        seconds: mean wall-clock seconds a prompt.
        limit: the most denoiser calls that it was given.
    """

    way: str
    paint_steps: int
    prompts: list[tuple[int, int]]
    traces: list[np.ndarray]
    seconds: float
    limit: int

    @property
    def label(self) -> str:
        """For tables and legends."""
        return f"{self.way} ({self.paint_steps} steps)"

    def at(self, budget: int) -> np.ndarray:
        """What each prompt had spent, and whether it was right, at a budget; ``(P, 5)``."""
        rows = [trace[trace[:, 0] <= budget] for trace in self.traces]
        return np.stack([row[-1] if len(row) else np.zeros(5) for row in rows])


def curves(rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Rows joined over chunks and seeds."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    keys = ("way", "paint_steps", "edit_steps", "tries", "patience", "prompt_set", "nfe_limit")
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    found = []
    for (way, steps, *_), own in groups.items():
        prompts = [(r["first"] + i, r["seed"]) for r in own for i in range(r["prompts"])]
        traces = [np.array(trace) for r in own for trace in r["traces"]]
        seconds = sum(r["seconds"] for r in own) / len(prompts)
        found.append(Curve(way, steps, prompts, traces, seconds, own[0]["nfe_limit"]))
    return found


def by_prompt(curve: Curve, budget: int) -> dict[int, float]:
    """Accuracy of each prompt, a mean over seeds."""
    values: dict[int, list[float]] = {}
    for (index, _), row in zip(curve.prompts, curve.at(budget), strict=True):
        values.setdefault(index, []).append(float(row[4]))
    return {index: float(np.mean(v)) for index, v in values.items()}


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Verified accuracy against the denoiser calls that a prompt may cost, and those that it did."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 5), sharey=True)
    for place, curve in enumerate(curves(rows)):
        budgets = np.arange(curve.paint_steps, curve.limit + 1, curve.paint_steps)
        accuracy = [np.mean(list(by_prompt(curve, b).values())) for b in budgets]
        spent = [curve.at(b)[:, 0].mean() for b in budgets]
        name, _, who = curve.way.partition(", ")
        style = {"color": COLOURS[who], "ls": LINES[name]}
        style["alpha"] = 1.0 if curve.paint_steps == 25 else 0.5
        for axis, x in zip(axes, (budgets, spent), strict=True):
            axis.plot(x, accuracy, label=curve.label, **style)
        shares = np.array(list(by_prompt(curve, curve.limit).values()))
        low, high = interval(shares, share=True)
        end = budgets[-1] * (1.01 + 0.012 * place)  # side by side, to be told apart
        axes[0].vlines(end, low, high, color=style["color"], ls=style["ls"], alpha=style["alpha"])
    axes[0].set(xlabel="denoiser calls that a prompt may cost", ylabel="verified accuracy")
    axes[1].set(xlabel="denoiser calls spent, mean a prompt")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=3, frameon=False)
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_table(rows: Sequence[Mapping[str, Any]], path: Path, source: Path) -> None:
    """Accuracy with its interval at a few budgets, costs at the largest, and paired gaps."""
    found = curves(rows)
    most = max(curve.limit for curve in found)
    budgets = [b for b in (50, 100, 200, 400, 800) if b < most] + [most]
    head = ["way", *(f"right within {b} NFE" for b in budgets)]
    head += ["NFE", "decodes", "reward calls", "judge calls", "seconds"]
    lines = [_row(head), _row(["---"] * len(head))]
    for curve in found:
        cells = [curve.label]
        for b in budgets:
            shares = np.array(list(by_prompt(curve, b).values()))
            low, high = interval(shares, share=True)
            cells.append(f"{shares.mean():.2f} [{low:.2f}, {high:.2f}]")
        spent = curve.at(most)[:, :4].mean(0)
        cells += [f"{spent[0]:.0f}", *(f"{v:.1f}" for v in spent[1:]), f"{curve.seconds:.2f}"]
        lines.append(_row(cells))
    text = (
        f"Written by `scripts/benchmark.py repair --table` from `{source.name}`; do not edit.\n\n"
    )
    write_atomically(path, text + "\n".join(lines) + "\n\n" + _gaps(found, budgets))


def _gaps(found: Sequence[Curve], budgets: Sequence[int]) -> str:
    """Repair less best of N by the same acceptor, or by the judge, prompt by prompt."""
    lines = []
    for curve in found:
        name, _, who = curve.way.partition(", ")
        wanted = {f"best-of-n, {who}", "best-of-n, judge"}
        others = [c for c in found if c.way in wanted]
        for other in others if name != "best-of-n" else []:
            if other.paint_steps != curve.paint_steps:
                continue
            told = []
            for budget in budgets:
                mine, theirs = by_prompt(curve, budget), by_prompt(other, budget)
                gap = paired(np.array([mine[i] - theirs[i] for i in sorted(mine.keys() & theirs)]))
                told.append("" if gap is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*gap))
            lines.append(_row([f"{curve.label} less {other.way}", *told]))
    head = ["gap in accuracy", *(f"{b} NFE" for b in budgets)]
    return "\n".join([_row(head), _row(["---"] * len(head)), *lines]) + "\n" if lines else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
