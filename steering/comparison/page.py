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
from steering.comparison.results import COSTS, Cell, figure, read, write_tables
from steering.comparison.sheets import data_uri, picked
from steering.comparison.tables import TITLES, Tables, said
from steering.files import write_atomically

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


class Page(Tables):
    """Puts results into words, plots and pictures."""

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
        unsteered = column[1] in self.unsteered
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
                        "which": f"{said(tuple(cell.budget.items()))}, seed {seed}",
                        "budgets": [i for i, b in enumerate(self.budgets) if cell in self.at(b)],
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


def _plain(level: Level, places: Mapping[int, int]) -> dict[str, Any]:
    """A level for the page's script, its numbers short."""
    plain = asdict(level)
    plain["rewards"] = [float(f"{x:.5g}") for x in level.rewards]
    plain["pictures"] = [places[n] for n in level.pictures] if places else []
    plain["ess"] = [round(x, 2) for x in level.ess]
    return plain
