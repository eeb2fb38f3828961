"""The report: one HTML file that holds its pictures and asks nothing of a network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from steering.comparison.genealogy import Level, Looked, genealogy, thinned
from steering.comparison.plots import Point, Series, plot
from steering.comparison.results import COSTS, Cell, Estimate, Results, figure, read, write_tables
from steering.comparison.sheets import data_uri, picked
from steering.files import write_atomically

TITLES = {
    "nfe": "denoiser calls",
    "decodes": "decodes",
    "reward_calls": "reward calls",
    "seconds": "seconds",
}
COLOURS = 9  #: samplers that have a colour of their own
LEVELS = 13  #: looks that a genealogy shows
SIDE = 160  #: pixels of the pictures' longer side
SHEETS = 2_400_000  #: characters of thumbnails in a page; the largest budgets come first


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the page and, beside it, its tables as JSON and CSV.

    Args:
        folders: of one comparison, or of two that are to be compared.
        output: the page.

    Returns:
        The page's path.

    Raises:
        steering.comparison.results.NoComparison: a folder holds no results.
    """
    results = read(folders)
    stem = "results" if output.stem == "report" else output.stem
    write_tables(results, output.parent, stem)
    write_atomically(output, Page(results).html())
    return output


class Page:
    """Puts results into words, plots and pictures.

    Args:
        results: of one run, or of two.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.columns = list(dict.fromkeys((c.run, c.label) for c in results.cells))
        limits = [tuple(c.budget.items()) for c in results.cells if c.budget]
        self.budgets = list(dict.fromkeys(limits)) or [()]
        self.verdicts = [m for m in results.measures if results.verdict(m)]

    def html(self) -> str:
        """The page."""
        here = Path(__file__).parent
        loader = jinja2.FileSystemLoader(here)
        environment = jinja2.Environment(
            loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters["said"] = said
        genealogies = self._genealogies()
        data = {
            "prompts": list(self.results.prompts),
            "columns": [self.name(*column) for column in self.columns],
            "budgets": [said(budget) for budget in self.budgets],
            "seeds": self.results.seeds,
            "genealogies": genealogies,
        }
        return environment.get_template("page.html").render(
            page=self,
            results=self.results,
            data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
            style=(here / "page.css").read_text(encoding="utf-8"),
            script=(here / "page.js").read_text(encoding="utf-8"),
            runs=[(r, json.dumps(r.settings, indent=1)) for r in self.results.runs],
        )

    # ---- names

    def name(self, run: int, label: str) -> str:
        """A sampler, with its run where there are two."""
        if len(self.results.runs) == 1:
            return label
        return f"{'AB'[run]} · {label}"

    def look(self, run: int, label: str) -> str:
        """Classes that colour a sampler: the same in both runs, whose lines differ."""
        labels = [name for name in dict.fromkeys(c.label for c in self.results.cells)]
        labels = [n for n in labels if n not in self._unsteered]
        colour = "base" if label in self._unsteered else f"c{labels.index(label) % COLOURS}"
        return f"{colour} run{run}"

    @property
    def _unsteered(self) -> set[str]:
        return {c.label for c in self.results.cells if not c.budget}

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
        return [c for c in self.results.cells if not c.budget or tuple(c.budget.items()) == budget]

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
            "count": f"{len({p for p, _ in cell.records})} × "
            f"{1 + max(seed for _, seed in cell.records)}",
            "measured": measured,
            "costs": [(cell.estimate(cost), cost) for cost in COSTS],
        }

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
            reference = next((c for c in cells if c.label == "best-of-n"), cells[0] if cells else None)
            rows = [self._gaps(c.label, c, reference) for c in cells if c is not reference]
            if reference is not None and rows:
                tables.append(
                    {"title": f"{said(budget)}: less {reference.label}", "rows": rows}
                )
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
        return text if zero else ("+" if value > 0 else "−") + text

    def changed(self) -> list[tuple[str, str, str]]:
        """Settings in which two runs differ."""
        if len(self.results.runs) < 2:
            return []
        one, other = ({**r.settings, "seeds": r.about["seeds"]} for r in self.results.runs)
        names = dict.fromkeys((*one, *other))
        pairs = [(n, json.dumps(one.get(n)), json.dumps(other.get(n))) for n in names]
        return [pair for pair in pairs if pair[1] != pair[2]]

    # ---- plots

    def plots(self) -> list[tuple[str, list[str]]]:
        """Plots of every reward against every cost."""
        found = []
        for measure in self.measures:
            row = [
                plot(
                    [self._series(column, measure, cost) for column in self.columns],
                    x=f"{TITLES[cost]} a prompt",
                    y=measure,
                    percent=measure in self.verdicts,
                )
                for cost in COSTS
            ]
            found.append((measure, row))
        return found

    def _series(self, column: tuple[int, str], measure: str, cost: str) -> Series:
        points = []
        for cell in self.results.cells:
            if (cell.run, cell.label) != column:
                continue
            x, y = cell.estimate(cost), self.estimate(cell, measure)
            if x is not None and y is not None:
                ends = f"[{self.text(y.low, measure)}, {self.text(y.high, measure)}]"
                points.append(
                    Point(
                        x,
                        y,
                        f"{self.name(*column)}, {self.text(x.mean, cost)} {TITLES[cost]}: "
                        f"{self.text(y.mean, measure)} {ends}",
                    )
                )
        unsteered = column[1] in self._unsteered
        return Series(self.name(*column), self.look(*column), points, level=unsteered)

    # ---- pictures

    def shots(self, prompt: int, column: tuple[int, str]) -> list[dict[str, Any]]:
        """Pictures of a prompt by a sampler: budgets and seeds."""
        found = []
        for cell in self.results.cells:
            if (cell.run, cell.label) != column:
                continue
            for seed in range(self.results.seeds):
                record = cell.records.get((prompt, seed))
                if record is None or not record["files"]:
                    continue
                with Image.open(cell.folder / record["files"][0]) as picture:
                    uri = data_uri(picture, side=SIDE)
                verdict = self.verdicts and figure(record, self.verdicts[-1])
                told = ", ".join(
                    f"{m} {self.text(x, m)}"
                    for m in self.measures
                    if m not in self.verdicts and (x := figure(record, m)) is not None
                )
                right = None if not self.verdicts else bool(verdict)
                found.append(
                    {
                        "uri": uri,
                        "seed": seed,
                        "budgets": [
                            i for i, b in enumerate(self.budgets) if cell in self.at(b)
                        ],
                        "verdict": "" if right is None else "right" if right else "wrong",
                        "told": told,
                        "short": self.text(figure(record, self.measures[0]) or 0, self.measures[0]),
                    }
                )
        return found

    # ---- genealogies

    def _genealogies(self) -> dict[str, Any]:
        """By ``budget/prompt/column``, of the first seed; thumbnails as far as there is room."""
        found: dict[str, Any] = {}
        room = SHEETS
        for b in reversed(range(len(self.budgets))):
            for cell in self.at(self.budgets[b]):
                column = self.columns.index((cell.run, cell.label))
                for (prompt, seed), record in cell.records.items():
                    if seed == 0:
                        entry = self._genealogy(cell, record, room)
                        room -= len(entry.get("sheet", ""))
                        found[f"{b}/{prompt}/{column}"] = entry
        return found

    def _genealogy(self, cell: Cell, record: Mapping[str, Any], room: int) -> dict[str, Any]:
        kept = record.get("looks") or {}
        looks = [
            Looked(r["record"], tuple(r["rewards"]), r["first"]) for r in kept.get("requests", [])
        ]
        returned = figure(record, self.measures[0])
        levels = thinned(genealogy(record["trace"], looks, returned=returned), LEVELS)
        entry: dict[str, Any] = {}
        numbers = sorted({n for level in levels for n in level.pictures})
        path = cell.folder / kept.get("file", "")
        if numbers and room > 0 and path.is_file():
            count = sum(len(look.rewards) for look in looks)
            uri, columns, size = picked(path, kept["columns"], count, numbers)
            if len(uri) <= room:
                entry = {"sheet": uri, "columns": columns, "size": size, "count": len(numbers)}
        places = {n: i for i, n in enumerate(numbers)} if entry else {}
        entry["levels"] = [_plain(level, places) for level in levels]
        return entry


def said(budget: tuple[tuple[str, float], ...]) -> str:
    """A budget in words."""
    return ", ".join(f"{value:g} {TITLES[name]}" for name, value in budget) or "unsteered"


def _bar(found: Estimate, low: float, high: float) -> tuple[float, float, float]:
    """Where mean and interval lie between two ends, in per cent."""
    width = (high - low) or 1.0
    return tuple(round(100 * (v - low) / width, 1) for v in (found.low, found.mean, found.high))  # type: ignore[return-value]


def _plain(level: Level, places: Mapping[int, int]) -> dict[str, Any]:
    """A level for the page's script, its numbers short."""
    plain = asdict(level)
    plain["rewards"] = [float(f"{x:.5g}") for x in level.rewards]
    plain["pictures"] = [places[n] for n in level.pictures] if places else []
    plain["ess"] = [round(x, 2) for x in level.ess]
    return plain
