"""Markdown tables of trees on mixtures as denoiser calls grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report_tables import number, table

Row = Mapping[str, Any]


def trees_tables(rows: Sequence[Row]) -> str:
    """A table a problem: denoiser calls down, samplers across. Of a cell, its last row."""
    parts = []
    samplers = list(dict.fromkeys(r["sampler"] for r in rows))
    for problem in dict.fromkeys(r["problem"] for r in rows):
        own = {(r["budget"], r["sampler"]): r for r in rows if r["problem"] == problem}
        lines = [
            [str(budget), *(_cell(own.get((budget, s))) for s in samplers)]
            for budget in sorted({budget for budget, _ in own})
        ]
        parts += [
            f"### Problem {problem}\n",
            table(["NFE a run", *(f"`{s}`" for s in samplers)], lines),
        ]
    return "\n".join(parts)


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    told = f"{number(row['mode_tv_chain'], 3)} ± {number(row['se'], 3)}"
    return f"{told}; {number(row['z_ratio'], 2)}"
