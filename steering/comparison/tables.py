"""Figures of a comparison in words: names, numbers, tables of means and of differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from steering.comparison.results import COSTS, Cell, Estimate, Results

TITLES = {
    "nfe": "denoiser calls",
    "decodes": "decodes",
    "reward_calls": "reward calls",
    "seconds": "seconds",
}
COLOURS = 9  #: samplers that have a colour of their own


class Tables:
    """Puts results into words.

    Args:
        results: of one run, or of two.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        labels = list(dict.fromkeys(c.label for c in results.cells))
        columns = dict.fromkeys((c.run, c.label) for c in results.cells)
        self.columns = sorted(columns, key=lambda column: (labels.index(column[1]), column[0]))
        limits = [tuple(c.budget.items()) for c in results.cells if c.budget]
        self.budgets = list(dict.fromkeys(limits)) or [()]
        self.verdicts = [m for m in results.measures if results.verdict(m)]
        self.unsteered = {c.label for c in results.cells if not c.budget}

    # ---- names

    def name(self, run: int, label: str) -> str:
        """A sampler, with its run where there are two."""
        if len(self.results.runs) == 1:
            return label
        return f"{'AB'[run]} · {label}"

    def look(self, run: int, label: str) -> str:
        """Classes that colour a sampler: the same in both runs, whose lines differ."""
        known = dict.fromkeys(c.label for c in self.results.cells)
        labels = [name for name in known if name not in self.unsteered]
        colour = "base" if label in self.unsteered else f"c{labels.index(label) % COLOURS}"
        return f"{colour} run{run}"

    @property
    def measures(self) -> list[str]:
        """Rewards, the searched one first."""
        return list(self.results.measures)

    # ---- tables

    def tables(self) -> list[dict[str, Any]]:
        """A table a budget: the base model, then every sampler, with intervals."""
        tables = []
        for budget in self.budgets:
            cells = self.at(budget)
            best = {m: self._best(cells, m) for m in self.measures}
            rows = [self._row(cell, cells, best) for cell in cells]
            tables.append({"title": said(budget), "rows": rows})
        return tables

    def at(self, budget: tuple[tuple[str, float], ...]) -> list[Cell]:
        """The cells of a budget, those of the base model included."""
        cells = (c for c in self.results.cells if not c.budget or tuple(c.budget.items()) == budget)
        return sorted(cells, key=lambda c: self.columns.index((c.run, c.label)))

    def estimate(self, cell: Cell, measure: str) -> Estimate | None:
        """Mean and interval of a measure."""
        return cell.estimate(measure, share=measure in self.verdicts)

    def _best(self, cells: Sequence[Cell], measure: str) -> Cell | None:
        known = [(e.mean, c) for c in cells if (e := self.estimate(c, measure)) is not None]
        return max(known, key=lambda pair: pair[0])[1] if len(known) > 1 else None

    def _row(
        self, cell: Cell, cells: Sequence[Cell], best: Mapping[str, Cell | None]
    ) -> dict[str, Any]:
        measured = []
        for measure in self.measures:
            found = self.estimate(cell, measure)
            ends = [e for c in cells if (e := self.estimate(c, measure)) is not None]
            low, high = min(e.low for e in ends), max(e.high for e in ends)
            bar = None if found is None else _bar(found, low, high)
            measured.append((found, bar, best[measure] is cell, measure))
        return {
            "name": self.name(cell.run, cell.label),
            "look": self.look(cell.run, cell.label),
            "search": cell.search,
            **self._count(cell),
            "measured": measured,
            "costs": [(cell.estimate(cost), cost) for cost in COSTS],
        }

    def _count(self, cell: Cell) -> dict[str, Any]:
        """Prompts and seeds of a cell, and whether searches are still missing."""
        about = self.results.runs[cell.run].about
        whole = len(about["prompts"]), about["seeds"]
        done = len({p for p, _ in cell.records}), 1 + max(seed for _, seed in cell.records)
        missing = len(cell.records) < whole[0] * whole[1]
        searches = f"{len(cell.records)} of {whole[0]} × {whole[1]}"
        return {"count": searches if missing else f"{done[0]} × {done[1]}", "missing": missing}

    def text(self, value: float, measure: str) -> str:
        """A number as it is written for a measure."""
        if measure in self.verdicts:
            return f"{100 * value:.0f} %"
        if measure == "seconds":
            return f"{value:.3g}"
        if measure in COSTS:
            return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
        digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
        return f"{value:.{digits}f}"

    # ---- differences

    def against(self) -> list[dict[str, Any]]:
        """Paired differences to a reference, a table a budget; between two runs cell by cell."""
        if len(self.results.runs) > 1:
            return self._between()
        tables = []
        for budget in self.budgets:
            cells = [c for c in self.at(budget) if c.budget]
            named = [c for c in cells if c.label == "best-of-n"]
            for reference in (named or cells)[:1]:
                rows = [self._gaps(c.label, c, reference) for c in cells if c is not reference]
                title = f"{said(budget)}: less {reference.label}"
                tables += [{"title": title, "rows": rows}] if rows else []
        return tables

    def _between(self) -> list[dict[str, Any]]:
        first, second = ([c for c in self.results.cells if c.run == run] for run in (0, 1))
        rows = []
        for one in first:
            key = (one.label, dict(one.budget))
            other = next((c for c in second if (c.label, dict(c.budget)) == key), None)
            if other is not None:
                told = said(tuple(one.budget.items())) if one.budget else "unsteered"
                rows.append(self._gaps(f"{one.label}, {told}", other, one))
        return [{"title": "B less A, on the prompts of both", "rows": rows}] if rows else []

    def _gaps(self, name: str, cell: Cell, other: Cell) -> dict[str, Any]:
        gaps = [(self.results.difference(cell, other, m), m) for m in (*self.measures, *COSTS)]
        return {
            "name": name,
            "look": self.look(cell.run, cell.label),
            "gaps": [
                (gap, m, gap is not None and m not in COSTS and (gap[1] > 0) - (gap[2] < 0))
                for gap, m in gaps
            ],
        }

    def signed(self, value: float, measure: str) -> str:
        """A difference, always with its sign; shares in points."""
        text = self.text(abs(value), measure).replace(" %", "")
        zero = not any(c in "123456789" for c in text)
        return "0" if zero else ("+" if value > 0 else "−") + text

    def changed(self) -> list[tuple[str, str, str]]:
        """Settings in which two runs differ."""
        if len(self.results.runs) < 2:
            return []
        one, other = ({**r.settings, "seeds": r.about["seeds"]} for r in self.results.runs)
        names = dict.fromkeys((*one, *other))
        pairs = [(n, json.dumps(one.get(n)), json.dumps(other.get(n))) for n in names]
        return [pair for pair in pairs if pair[1] != pair[2]]


def said(budget: Sequence[tuple[str, float]]) -> str:
    """A budget in words."""
    return ", ".join(f"{value:g} {TITLES[name]}" for name, value in budget) or "unsteered"


def _bar(found: Estimate, low: float, high: float) -> tuple[float, float, float]:
    """Where interval and mean lie between two ends, in per cent."""
    width = (high - low) or 1.0
    low_end, mean, high_end = (
        round(100 * (v - low) / width, 1) for v in (found.low, found.mean, found.high)
    )
    return low_end, mean, high_end
