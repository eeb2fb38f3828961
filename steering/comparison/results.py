"""What a comparison left in its folder: figures by prompt, means with intervals, tables in files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from steering.files import write_atomically
from steering.statistics import interval, paired
from steering.streams import copy_key, prompt_keys

RUN_FILE = "compare.json"  #: what the report needs to know of a run, beside the records
COSTS = ("nfe", "decodes", "reward_calls", "seconds")


class NoComparison(ValueError):
    """A folder that ``steer compare`` did not write, or in which nothing is finished yet."""


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Cell:
    """One sampler at one budget of one run.

    Attributes:
        run: place of its run among those of the report.
        label: the sampler's.
        budget: what was limited; nothing for the base model.
        search: the search and its options, in words.
        folder: where its records are.
        records: finished searches by prompt (its place in the report) and seed.
    """

    run: int
    label: str
    budget: Mapping[str, float]
    search: str
    folder: Path
    records: Mapping[tuple[int, int], Mapping[str, Any]] = field(default_factory=dict)

    def by_prompt(self, measure: str) -> tuple[np.ndarray, np.ndarray]:
        """Places of the prompts ``(P,)``, and each one's mean over seeds ``(P,)``."""
        found: dict[int, list[float]] = {}
        for (prompt, _), record in self.records.items():
            value = figure(record, measure)
            if value is not None:
                found.setdefault(prompt, []).append(value)
        prompts = sorted(found)
        means = [np.mean(found[p]) for p in prompts]
        return np.array(prompts, int), np.array(means, float)

    def estimate(self, measure: str, *, share: bool = False) -> Estimate | None:
        """Mean over prompts of a reward or a cost; None where it was not measured."""
        _, values = self.by_prompt(measure)
        if not len(values):
            return None
        return Estimate(float(values.mean()), *interval(values, share=share))


@dataclass(frozen=True, eq=False)
class Run:
    """One folder of ``steer compare``.

    Attributes:
        path: the folder.
        about: what its files say of it.
        settings: what decided its pictures.
    """

    path: Path
    about: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def measures(self) -> list[str]:
        """The searched reward, then the held-out ones."""
        return [self.about["reward"], *self.about["held_out"]]


@dataclass(frozen=True, eq=False)
class Results:
    """One run, or two to compare.

    Attributes:
        runs: the folders.
        prompts: of all runs, in order.
        cells: of all runs, in order.
        measures: rewards that all runs have, the searched one of the first run before the others.
        seeds: most searches of a prompt.
    """

    runs: Sequence[Run]
    prompts: Sequence[str]
    cells: Sequence[Cell]
    measures: Sequence[str]
    seeds: int

    def verdict(self, measure: str) -> bool:
        """Whether a measure says right or wrong: it is 0 or 1 everywhere."""
        values = {figure(r, measure) for cell in self.cells for r in cell.records.values()}
        return bool(values) and values <= {0.0, 1.0}

    def difference(
        self, cell: Cell, other: Cell, measure: str
    ) -> tuple[float, float, float] | None:
        """Mean of ``cell - other`` over the prompts of both, and its interval."""
        (p, a), (q, b) = cell.by_prompt(measure), other.by_prompt(measure)
        _, here, there = np.intersect1d(p, q, return_indices=True)
        return paired(a[here] - b[there])


def figure(record: Mapping[str, Any], measure: str) -> float | None:
    """A reward of the returned picture, or a cost, of one search."""
    if measure in COSTS:
        return float(record["usage"][measure])
    value = record["scores"][0].get(measure) if record["scores"] else None
    return None if value is None else float(value)


def read(folders: Sequence[Path]) -> Results:
    """The results of one folder or more.

    Raises:
        NoComparison: a folder was not written by ``steer compare``, or nothing is finished.
    """
    runs = [_run(folder) for folder in folders]
    keys: dict[str, str] = {}
    for run in runs:
        for key, prompt in zip(
            prompt_keys(run.about["prompts"]), run.about["prompts"], strict=True
        ):
            keys.setdefault(key, prompt)
    places = {key: i for i, key in enumerate(keys)}
    cells = [
        _cell(run, number, told, places)
        for number, run in enumerate(runs)
        for told in run.about["cells"]
    ]
    cells = [cell for cell in cells if cell.records]
    if not cells:
        raise NoComparison(f"{folders[0]} holds no finished search yet; run steer compare again")
    measures = [m for m in runs[0].measures if all(m in run.measures for run in runs)]
    seeds = 1 + max(seed for cell in cells for _, seed in cell.records)
    return Results(runs, list(keys.values()), cells, measures, seeds)


def _run(folder: Path) -> Run:
    try:
        about = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]
        return Run(folder, {"cells": about["cells"], **about}, settings)
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise NoComparison(
            f"{str(folder)!r} is no folder of steer compare: it has no readable {RUN_FILE}"
        ) from error


def _cell(run: Run, number: int, told: Mapping[str, Any], places: Mapping[str, int]) -> Cell:
    folder = run.path / "runs" / told["name"]
    found = {}
    for key in prompt_keys(run.about["prompts"]):
        for seed in range(run.about["seeds"]):
            found[copy_key(key, seed)] = (places[key], seed)
    records = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("key") in found:
            records[found[record["key"]]] = record
    return Cell(number, told["label"], told["budget"], told["search"], folder, records)


def summary(results: Results) -> list[dict[str, Any]]:
    """A row a cell: every reward and cost with its interval."""
    rows = []
    for cell in results.cells:
        row: dict[str, Any] = {
            "run": str(results.runs[cell.run].path),
            "sampler": cell.label,
            "budget": dict(cell.budget),
            "search": cell.search,
            "prompts": len({prompt for prompt, _ in cell.records}),
            "searches": len(cell.records),
        }
        for measure in (*results.measures, *COSTS):
            share = measure not in COSTS and results.verdict(measure)
            found = cell.estimate(measure, share=share)
            if found is not None:
                row[measure] = {"mean": found.mean, "low": found.low, "high": found.high}
        rows.append(row)
    return rows


def rows(results: Results) -> list[dict[str, Any]]:
    """A flat row a search."""
    found = []
    for cell in results.cells:
        for (prompt, seed), record in sorted(cell.records.items(), key=lambda item: item[0]):
            found.append(
                {
                    "run": str(results.runs[cell.run].path),
                    "sampler": cell.label,
                    "budget": " ".join(f"{k}={v:g}" for k, v in cell.budget.items()),
                    "prompt": results.prompts[prompt],
                    "seed": seed,
                    **{m: figure(record, m) for m in (*results.measures, *COSTS)},
                    "picture": str(cell.folder / record["files"][0]) if record["files"] else "",
                }
            )
    return found


def write_tables(results: Results, folder: Path, stem: str = "results") -> None:
    """Write ``results.json`` (summary and searches) and ``results.csv`` (searches)."""
    flat = rows(results)
    content = {"summary": summary(results), "searches": flat}
    write_atomically(folder / f"{stem}.json", json.dumps(content, indent=1))
    text = io.StringIO()
    table = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(flat)
    write_atomically(folder / f"{stem}.csv", text.getvalue())
