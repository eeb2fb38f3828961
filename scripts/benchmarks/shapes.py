"""Compares searches on the embedded models: searched reward, verified accuracy, diversity and cost.

A cell is a model, a sampler, a budget of denoiser calls and a chunk of prompts with all their seeds,
which run together, so that calls are full. A file that holds some cells is gone on with, whatever the
chunks were; --minutes ends before a cell that would not fit. ``python scripts/results_page.py`` makes
tables and plots of the files.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from tqdm import tqdm

from benchmarks.cards import cards, take_card
from benchmarks.common import describe
from benchmarks.embedded import (
    MODELS,
    options_of,
    own_budget,
    samplers_of,
    search_named,
    steered,
)
from benchmarks.pool import pooled
from benchmarks.shapes_cells import Rows, measure, summarise, warm_up
from samplers import BestOfN
from steering import shapes
from steering.command.options import PipelineOptions, device_of
from steering.cost import Budget
from steering.pipeline import SteeredPipeline
from steering.search import BudgetTooSmall, Facts
from steering.streams import prompt_keys
from steering.strength import Strength

QUICK = ["base", "best-of-n", "fk"]


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="files to take rows from")
    parser.add_argument("--samplers", nargs="*", default=None, help="families, best-of-N, fk-N")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--nfe", nargs="+", type=int, default=[100, 250, 500], help="a prompt")
    parser.add_argument(
        "--equal_seconds", default=None, help="SAMPLER:NFE whose time all others get, too"
    )
    parser.add_argument("--prompt_set", choices=["easy", "hard"], default="hard")
    parser.add_argument("--prompts", type=int, default=128, help="the first of the set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=64, help="prompts of a cell")
    parser.add_argument("--minutes", type=float, default=None, help="begin no cell beyond them")
    parser.add_argument("--strength", type=float, default=4.0, help="in spreads of the reward")
    parser.add_argument("--batch_size", type=int, default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--processes", type=int, default=1, help="cells at once, dealt to all CUDA devices"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument(
        "--tf32", action="store_true", help="matrix products on tensor cores, as convolutions are"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"2 prompts, 2 seeds, 50 calls: {', '.join(QUICK)}"
    )


def run(options: Any) -> None:
    """Run every cell that the result file lacks, as time allows.

    Raises:
        ValueError: an unknown sampler, a reference that is none, or files that are no results.
    """
    start = time.perf_counter()
    bench = Bench(options)
    if options.samplers == []:
        return  # only merged
    left = list(bench.cells(options.nfe))
    done = bench.work(left, start, "equal NFE")
    if options.equal_seconds and done:
        bench.work(list(bench.timed_cells()), start, "equal seconds")


@dataclass(frozen=True)
class Cell:
    """What decides a cell's figures; ``equal_seconds`` names the cell whose time it was given."""

    model: str
    sampler: str
    budget: int
    first: int
    prompts: int
    seeds: int
    strength: float
    prompt_set: str
    equal_seconds: str | None = None


def _pipeline(model: str, options: Any) -> PipelineOptions:
    return options_of(model, options.device, dtype=options.dtype)


class Doors:
    """The embedded models of one process, each loaded when its first cell comes.

    Args:
        options: of the command.
    """

    def __init__(self, options: Any) -> None:
        self.options = options
        self.texts = shapes.prompts(options.prompt_set)[: options.prompts]
        self.keys = prompt_keys(self.texts)
        self.pipelines = {m: _pipeline(m, options) for m in options.models}
        self.doors: dict[str, SteeredPipeline] = {}

    def row(self, cell: Cell) -> dict[str, Any]:
        """The figures of a cell."""
        door, pipeline = self._door(cell.model), self.pipelines[cell.model]
        steps = int(pipeline.call["num_inference_steps"])
        door.sampler = search_named(cell.sampler, cell.budget, steps)
        door.strength, door.budget = Strength(cell.strength), Budget(nfe=cell.budget)
        rows = slice(cell.first, cell.first + cell.prompts)
        texts, keys = self.texts[rows], self.keys[rows]
        found, seconds = measure(door, pipeline.call, texts, keys, cell.seeds)
        return asdict(cell) | summarise(door, found, seconds)

    def _door(self, model: str) -> SteeredPipeline:
        if model not in self.doors:
            pipeline, size = self.pipelines[model], self.options.batch_size
            door = self.doors[model] = steered(pipeline, BestOfN(1), 0, batch_size=size)
            warm_up(door, pipeline.call, self.texts[: self.options.chunk], self.options.seeds)
        return self.doors[model]


_HERE: dict[str, Doors] = {}  #: what this process has loaded


def _open_doors(options: Any, queue: Any) -> None:
    take_card(options, queue)
    _HERE["doors"] = Doors(options)


def _row(cell: Cell) -> dict[str, Any]:
    return _HERE["doors"].row(cell)


class Bench:
    """The cells that were asked for.

    Args:
        options: of the command.
    """

    def __init__(self, options: Any) -> None:
        if options.quick:
            options.prompts, options.seeds, options.nfe = 2, 2, [50]
            options.samplers = options.samplers or QUICK
        self.options = options
        self.prompts = len(shapes.prompts(options.prompt_set)[: options.prompts])
        self.pipelines = {m: _pipeline(m, options) for m in options.models}
        device = device_of(next(iter(self.pipelines.values())))
        self.samplers = {m: samplers_of(m, options.samplers) for m in options.models}
        self.reference = _reference(options.equal_seconds)
        for model, names in self.samplers.items():
            for name in names:
                search_named(name, 10**6, self._steps(model))
        self.rows = Rows(options.json, device=device, seed=0)
        self.rows.take(options.merge)
        self.where = {
            "device": describe(device),
            "batch_size": options.batch_size,
            "processes": options.processes,
            "dtype": options.dtype,
        }

    def cells(self, budgets: Iterable[int]) -> Iterator[Cell]:
        """What the file lacks of the comparison at equal NFE; a chunk of prompts after another."""
        for block in self._blocks():
            for model, names in self.samplers.items():
                steps = self._steps(model)
                own = [(name, b) for name in names if (b := own_budget(name, steps))]
                shared = [n for n in names if own_budget(n, steps) is None]
                for name, budget in own + [(n, b) for b in budgets for n in shared]:
                    yield from self._pending(block, model, name, budget)

    def timed_cells(self) -> Iterator[Cell]:
        """What the file lacks of the comparison at equal seconds; needs the other one."""
        assert self.reference is not None
        name, nfe = self.reference
        told = f"{name}:{nfe}"
        budgets: dict[tuple[str, str], int] = {}
        for model, names in self.samplers.items():
            seconds, _ = self._speed(model, name, nfe)
            if seconds is None:
                raise ValueError(f"equal_seconds={told}: run {name} at {nfe} NFE on {model}, too")
            for other in names:
                if own_budget(other, self._steps(model)) is None and other != name:
                    budget = self._afforded(model, other, seconds, nfe, told)
                    if budget is not None:
                        budgets[model, other] = budget
        for block in self._blocks():
            for (model, other), budget in budgets.items():
                yield from self._pending(block, model, other, budget, told)

    def work(self, cells: list[Cell], start: float, label: str) -> bool:
        """Run cells until they or the minutes end; returns whether all were run."""
        done = 0
        rows = pooled(
            _row,
            cells,
            self.options.processes,
            lambda cell: self._has_time(cell, start),
            _open_doors,
            (self.options, cards(self.options)),
        )
        for row in tqdm(rows, label, len(cells)):
            self.rows.add(row | self.where)
            done += 1
        if done < len(cells):
            tqdm.write(f"{len(cells) - done} cells left; run again to go on")
        return done == len(cells)

    def _has_time(self, cell: Cell, start: float) -> bool:
        spent = time.perf_counter() - start
        minutes = self.options.minutes
        return minutes is None or spent + self._estimate(cell) <= 60 * minutes

    def _pending(
        self, block: range, model: str, name: str, budget: int, told: str | None = None
    ) -> Iterator[Cell]:
        """Cells of the prompts of a block that no row covers."""
        o, steps = self.options, self._steps(model)
        cell = Cell(model, name, budget, 0, 0, o.seeds, o.strength, o.prompt_set, told)
        try:
            search = search_named(name, budget, steps)
            search.plan(Facts(steps, steps, budget=Budget(nfe=budget)))
        except BudgetTooSmall as error:
            if block.start == 0:
                tqdm.write(f"{model} {name} left out at {budget} NFE: {error}")
            return
        have = self.rows.prompts_of(cell)
        for first, count in runs([i for i in block if i not in have]):
            yield replace(cell, first=first, prompts=count)

    def _blocks(self) -> list[range]:
        n, chunk = self.prompts, self.options.chunk
        return [range(first, min(first + chunk, n)) for first in range(0, n, chunk)]

    def _steps(self, model: str) -> int:
        return int(self.pipelines[model].call["num_inference_steps"])

    def _rows(self, model: str, name: str | None = None) -> list[dict[str, Any]]:
        """Measured here at equal NFE."""
        return [
            row
            for row in self.rows.rows
            if row["model"] == model
            and row["device"] == self.where["device"]
            and row["batch_size"] == self.where["batch_size"]
            and row.get("processes", 1) == self.where["processes"]
            and row.get("dtype", "float32") == self.where["dtype"]
            and row["equal_seconds"] is None
            and name in (None, row["sampler"])
        ]

    def _speed(self, model: str, name: str, nfe: int) -> tuple[float | None, float | None]:
        """Seconds a search at the measured budget nearest to one, and denoiser calls a second."""
        rows = self._rows(model, name)
        if not rows:
            return None, None
        budget = min((row["budget"] for row in rows), key=lambda b: abs(b - nfe))
        rows = [row for row in rows if row["budget"] == budget]
        searches = [row["prompts"] * row["seeds"] for row in rows]
        seconds = sum(row["seconds"] * n for row, n in zip(rows, searches, strict=True))
        calls = sum(row["nfe"] * n for row, n in zip(rows, searches, strict=True))
        return seconds / sum(searches), calls / seconds

    def _afforded(self, model: str, name: str, seconds: float, nfe: int, told: str) -> int | None:
        """Denoiser calls, in whole trajectories, that a search makes in the reference's time."""
        for row in self.rows.rows:  # decided once, so that all chunks agree
            if (row["model"], row["sampler"], row["equal_seconds"]) == (model, name, told):
                return row["budget"]
        _, speed = self._speed(model, name, nfe)
        if speed is None:
            return None
        steps = self._steps(model)
        return max(round(seconds * speed / steps), 1) * steps

    def _estimate(self, cell: Cell) -> float:
        """Seconds that a cell will take, from those that ran here; 0 if none did."""
        _, speed = self._speed(cell.model, cell.sampler, cell.budget)
        if speed is None:
            known = {row["sampler"] for row in self._rows(cell.model)}
            speeds = [self._speed(cell.model, name, cell.budget)[1] for name in known]
            speed = min((s for s in speeds if s is not None), default=None)
        return 0.0 if speed is None else 1.2 * cell.budget * cell.prompts * cell.seeds / speed


def runs(indices: list[int]) -> Iterator[tuple[int, int]]:
    """First and length of each run of consecutive numbers."""
    first = 0
    for i in range(1, len(indices) + 1):
        if i == len(indices) or indices[i] != indices[i - 1] + 1:
            yield indices[first], i - first
            first = i


def _reference(told: str | None) -> tuple[str, int] | None:
    """``best-of-n:250`` as a name and a number.

    Raises:
        ValueError: it is of another form.
    """
    if told is None:
        return None
    name, _, nfe = told.partition(":")
    if not name or not nfe.isdigit():
        raise ValueError(f"equal_seconds must be SAMPLER:NFE such as best-of-n:250, got {told!r}")
    return name, int(nfe)
