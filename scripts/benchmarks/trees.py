"""Measures how trees tend to the tilted law of mixtures as denoiser calls grow, beside particles.

A cell is a problem, a sampler and a number of denoiser calls of one run. All weighted leaves of its
runs are pooled: every run counts the same, its leaves by their normalised weights. ``--plot`` draws what
the file holds instead of measuring.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from tqdm import tqdm

from benchmarks.common import Results
from benchmarks.exactness import STEPS, simulate, summarise
from benchmarks.report_plots import COLOURS
from samplers import DTS, SMC, BootstrapSMC, TemperedSMC
from steering.chain_law import saved_laws
from steering.cost import Budget
from steering.search import Search
from steering.tilted import PROBLEMS

#: Searches by name, made for a number of denoiser calls.
SAMPLERS: dict[str, Callable[[int], Search]] = {
    "dts": lambda nfe: DTS(rollouts=None, returns="all"),
    "dts-count": lambda nfe: DTS(rollouts=None, weights="count", returns="all"),
    "dts-count-0.8": lambda nfe: DTS(rollouts=None, weights="count", alpha=0.8, returns="all"),
    "dts-count-2-0.8": lambda nfe: DTS(
        rollouts=None, weights="count", widening=2.0, alpha=0.8, returns="all"
    ),
    "smc": lambda nfe: BootstrapSMC(nfe // STEPS, returns="all"),
    "smc-tempered": lambda nfe: TemperedSMC(nfe // STEPS, returns="all"),
    "weighted-best-of-n": lambda nfe: SMC(nfe // STEPS, steps=(), returns="all"),
}
KEPT = ("nfe", "mode_tv", "mode_tv_chain", "z_ratio", "z_ratio_se", "independent", "masses")


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=["linear", "rare"])
    parser.add_argument("--nfe", nargs="+", type=int, default=[200, 800, 3200, 12800, 51200])
    parser.add_argument(
        "--total", type=int, default=128_000, help="denoiser calls of a cell's runs"
    )
    parser.add_argument("--least", type=int, default=8, help="fewest runs a cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=None, help="start no cell after this time")
    parser.add_argument("--plot", type=Path, default=None, help="draw the file's rows to this PNG")


def run(options: Any) -> None:
    """Run every cell that the result file lacks, the cheap ones first; or draw what it holds."""
    results = Results(Path(options.json), device="cpu", seed=options.seed)
    if options.plot is not None:
        plot(results.rows, Path(options.plot))
        return
    torch.set_num_threads(1)  # rows are tiny: threads cost more than they give
    cells = itertools.product(sorted(options.nfe), options.problems, options.samplers)
    end = math.inf if options.minutes is None else time.monotonic() + 60 * options.minutes
    for budget, problem, sampler in tqdm(list(cells), "trees"):
        runs = max(options.total // budget, options.least)
        settings = {"problem": problem, "sampler": sampler, "budget": budget, "runs": runs}
        settings["seed"] = options.seed
        if not results.has(settings) and time.monotonic() < end:
            results.add(settings | measure(problem, sampler, budget, runs, options.seed))


def measure(name: str, sampler: str, budget: int, runs: int, seed: int) -> dict[str, Any]:
    """The row of a cell."""
    start, problem = time.perf_counter(), PROBLEMS[name]()
    search = SAMPLERS[sampler](budget)
    found = simulate(problem, search, runs, seed, 2048, budget=Budget(nfe=budget))
    row = summarise(found, problem, saved_laws()[name])
    figures = {key: row[key] for key in KEPT} | {"se": row["mode_tv_se"]}
    return figures | {"seconds": time.perf_counter() - start}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Distance of the mode masses from the chain's own tilted law against denoiser calls."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure, axes = plt.subplots(1, len(problems), figsize=(4.5 * len(problems), 3.8), squeeze=False)
    for axis, problem in zip(axes[0], problems, strict=True):
        for sampler, colour in zip(SAMPLERS, COLOURS, strict=False):
            own = [r for r in rows if (r["problem"], r["sampler"]) == (problem, sampler)]
            own.sort(key=lambda r: r["nfe"])
            if own:
                points = ([r[key] for r in own] for key in ("nfe", "mode_tv_chain", "se"))
                nfe, distance, error = points
                style = {"color": colour, "marker": "o", "ms": 4, "capsize": 2}
                axis.errorbar(nfe, distance, error, label=sampler, **style)
        axis.set(xscale="log", yscale="log", title=problem, xlabel="denoiser calls a run")
    axes[0][0].set_ylabel("mode total variation")
    axes[0][0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
