"""Writes the page of results from committed JSON files: tables, intervals and a plot.

    python scripts/results_page.py

It reads from ``docs/results/``: ``shapes-*.json`` (``scripts/benchmark.py shapes``; files without
figures by prompt are passed over), ``exactness*.json``, ``digits*.json`` and ``flows*.json``, each where
there is one, and writes ``docs/results.md`` with ``docs/results-*.png``. What is said of the figures
stands in ``docs/results-discussion.md``, which is included as it is. Nothing on the page is typed in by
hand.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.report import gather, read
from benchmarks.report_digits import digits_plot, digits_tables
from benchmarks.report_exact import exactness_tables, flow_tables
from benchmarks.report_plots import shapes_plot
from benchmarks.report_tables import shapes_sections
from jsonargparse import auto_cli

from steering.files import write_atomically

DOCS = Path(__file__).parents[1] / "docs"
SHAPES = """\
Every sampler follows the reward `shapes-clip` with the same strength and returns its best picture by
it; the exact verifier, never searched on, tells the accuracy. Diversity is the mean distance between
the pictures that the seeds return for one prompt. In brackets are 95 % intervals by bootstrap over
prompts, since the seeds of a prompt are not independent. Costs are means of what the engine counted a
prompt and seed; seconds are wall-clock time of whole cells, all their searches in fused batches.

Stochastic samplers walk by DDIM(1) on the pipeline's own grid; those that end in `-sde` by the flow SDE
with g = 3 t² (the plot leaves this ending off), in `-vp` by DDIM(1) along the variance-preserving path,
in `-glass` by GLASS. `best-of-n` and `base` use the pipeline's own scheduler, `best-of-n-ddim` and
`best-of-n-sde` walk as the particle searches do.
"""
EXACTNESS = """\
Gaussian mixtures whose tilted law is known in closed form; half the summed absolute difference of mode
masses, ± its standard error over runs.
"""
DIGITS = """\
A model of 5,000 real MNIST digits, unconditional, steered by the log-probability that a classifier gives
a digit, or to be even or odd; lambda is 1, so the tilted law is the model's law of such digits. FD is
the squared Fréchet distance in the features of a second classifier, in units in which all real digits
have a variance of 1. One run's samples are weighed, not drawn, which is what infinitely many draws would
give; few samples make the distance too large, so it is given for single runs (what one gets) and for all
runs of a cell pooled, which pay for as many trajectories at every budget (how far the law is off). An
exact sampler reaches the model's own tilted law, found by weighing many unsteered samples. Right is the
share that the judge names as asked, classes the total variation between its shares of the digits and
those wanted, diversity the variance in shares of the real digits'. After ± is the standard deviation
over targets. `best-of-G` keeps the best of each G of the run's samples; `weighted` weighs the same
samples by exp(reward), `base` does not, `conditional` was told the digit; `dts-published` is the tree
search with its paper's rules and C = 2. Costs are means of what the engine counted a run.
"""


def write(results: Path = DOCS / "results", page: Path = DOCS / "results.md") -> None:
    """Write the page, and its plot beside it.

    Args:
        results: folder of the JSON files.
        page: Markdown file to write.
    """
    shapes = [p for p in sorted(results.glob("shapes-*.json")) if _by_prompt(p)]
    exact = sorted(results.glob("exactness*.json"), key=lambda p: (read(p)["meta"]["date"], p))
    flows = sorted(results.glob("flows*.json"))
    digits = sorted(results.glob("digits*.json"))
    entries = gather(_rows(shapes))
    parts = ["# Results\n", "Written by `python scripts/results_page.py`; do not edit.\n"]
    discussion = page.with_name("results-discussion.md")
    if discussion.exists():
        parts.append(discussion.read_text(encoding="utf-8"))
    if entries:
        plot = page.with_name("results-shapes.png")
        shapes_plot(entries, plot)
        picture = f"![accuracy and reward against denoiser calls and seconds]({plot.name})\n"
        sections = [picture, shapes_sections(entries)]
        parts += ["## The embedded world\n", SHAPES, _sources(shapes, page), *sections]
    if exact:
        tables = exactness_tables(_rows(exact))
        parts += ["## Exact laws\n", EXACTNESS, _sources(exact, page), tables]
    if digits:
        plot, rows = page.with_name("results-digits.png"), _rows(digits)
        digits_plot(rows, plot)
        picture = f"![Fréchet distances against denoiser calls]({plot.name})\n"
        sections = [picture, digits_tables(rows)]
        parts += ["## Real digits\n", DIGITS, _sources(digits, page), *sections]
    if flows:
        tables = flow_tables(_rows(flows))
        parts += ["## Flow models: paths and transitions\n", _sources(flows, page), tables]
    write_atomically(page, "\n".join(parts).rstrip("\n") + "\n")


def _rows(paths: list[Path]) -> list[dict[str, Any]]:
    return [row for path in paths for row in read(path)["rows"]]


def _by_prompt(path: Path) -> bool:
    return any("per_prompt" in row for row in read(path)["rows"])


def _sources(paths: list[Path], page: Path) -> str:
    """Where the figures come from and how they were made, a line a file."""
    lines = []
    for path in paths:
        meta = read(path)["meta"]
        link = os.path.relpath(path, page.parent)
        lines.append(
            f"- [{path.name}]({link}): {meta['device']}, {meta['date'][:10]}, torch "
            f"{meta['versions']['torch']}; `python {meta['command']}`"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    auto_cli(write)
