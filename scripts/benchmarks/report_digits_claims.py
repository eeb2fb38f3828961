"""Orderings of searches on real digits, as published, decided by intervals over targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.report_tables import number, table
from steering.statistics import paired

Row = Mapping[str, Any]

SOURCE = "[2506.20701](https://arxiv.org/abs/2506.20701)"
#: The first is said to be the closer one to the tilted law: Jain et al. 2025, at 10^6 denoiser calls.
CLAIMS = (
    ("dts", "das"),
    ("dts", "smc"),
    ("dts", "tds"),
    ("dts", "weighted"),
    ("dts", "best-of-4"),
    ("dts", "best-of-16"),
    ("das", "smc"),
    ("das", "tds"),
    ("smc", "tds"),
    ("dts-published", "das"),
    ("dts-published", "smc"),
)
MEASURES = {"fd": "a run", "fd_pooled": "runs pooled", "fd_model": "to the model's law"}
LEAST = 5  #: targets below which no verdict is given


def orderings(rows: Sequence[Row]) -> str:
    """Claims down, budgets across, for each measure; of one setting and group. Empty without any.

    A figure is the geometric mean over targets of the ratio of distances, first to second; below 1 the
    first is closer. Brackets hold its 95 % interval by bootstrap over targets.
    """
    budgets = sorted({row["budget"] for row in rows if row["budget"]})
    parts = []
    for measure, label in MEASURES.items():
        lines = []
        for better, than in CLAIMS:
            found = [_cell(rows, better, than, b, measure) for b in budgets]
            if any(cell != "-" for cell in found):
                lines.append([f"`{better}` closer than `{than}`", *found])
        if lines:
            parts.append(
                table([f"claim ({SOURCE}), FD {label}", *(f"{b} NFE" for b in budgets)], lines)
            )
    return "\n".join(parts)


def _cell(rows: Sequence[Row], better: str, than: str, budget: int, measure: str) -> str:
    ours, theirs = (_distances(rows, name, budget, measure) for name in (better, than))
    shared = [target for target in ours if target in theirs]
    gap = paired(np.log([ours[t] / theirs[t] for t in shared])) if shared else None
    if gap is None:
        return "-"
    ratio, low, high = np.exp(gap)
    told = f"{number(ratio, 2)} [{number(low, 2)}, {number(high, 2)}]"
    if len(shared) < LEAST:
        return told
    return f"{'holds' if high < 1 else '**reversed**' if low > 1 else 'open'}, {told}"


def _distances(rows: Sequence[Row], name: str, budget: int, measure: str) -> dict[str, float]:
    """By target."""
    own = [r for r in rows if r["sampler"] == name and r["budget"] == budget]
    return {r["target"]: float(r[measure]) for r in own if r[measure]}
