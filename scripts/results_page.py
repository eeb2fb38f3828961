"""Writes the page of results from committed JSON files: tables, intervals and plots.

    python scripts/results_page.py

It reads from ``docs/results/``: ``shapes-*.json`` and ``search-*.json`` (both of ``scripts/benchmark.py
shapes``; files without figures by prompt are passed over), ``exactness*.json``,
``normalising-constant.json`` (cells of the exactness benchmark with many more runs), ``digits*.json``,
``trees*.json`` and ``flows*.json``, each where there is one, and writes ``docs/results.md`` with
``docs/results-*.png``. What is said of the figures stands in ``docs/results-discussion.md``, which is
included as it is. Nothing else is typed in by hand, nor are verdicts on published orderings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Entry, gather, read
from benchmarks.report_claims import CLAIMS, claims_sections
from benchmarks.report_curves import search_plot
from benchmarks.report_digits import digits_plot, digits_tables
from benchmarks.report_exact import exactness_tables
from benchmarks.report_flows import flow_tables
from benchmarks.report_plots import shapes_plot
from benchmarks.report_search import search_sections
from benchmarks.report_tables import shapes_sections
from benchmarks.report_trees import trees_tables
from benchmarks.trees import plot as trees_plot
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
with g = 3 t², in `-vp` by DDIM(1) along the variance-preserving path, in `-glass` by GLASS. `best-of-n`
and `base` use the pipeline's own scheduler, `best-of-n-ddim` and `best-of-n-sde` walk as the particle
searches do.
"""
CLAIMED = """\
What papers say of these searches, decided here prompt by prompt: a claim holds where the 95 %
interval of the paired difference lies above 0, is reversed where it lies below, and open where it
holds 0. Of several rivals the best is taken. A name stands for the search by the flow SDE on the
rectified flow, where best of N keeps the pipeline's own scheduler. No correction is made for the
number of claims: of forty that are level, about one would seem to hold and one to be reversed.
"""
SEARCH = """\
The same models, prompts, reward and verifier at many budgets, with noise searches, beams and trees.
Intervals, names and costs are as above. `halving-ahead` walks every noise to its end in 3 long steps,
drops most of them by what that shows, and finishes the others in full; `rbf-lean` is rollover budget
forcing with one chain a 400 calls and a sixteenth of them for its beginnings. Seconds are those of
processes that shared a GPU, at times with other work: they tell tens of per cent at best, and the first
cells of a process (here best of N at the smallest budget) took longest.
"""
EXACTNESS = """\
Gaussian mixtures whose tilted law is known in closed form; half the summed absolute difference of mode
masses, ± its standard error over runs.
"""
TREES = """\
How trees tend to the tilted law as denoiser calls grow: half the summed absolute difference of mode
masses to the chain's own tilted law, ± its standard error, pooled over runs; then the mean estimate
of Z in shares of its true value. `dts-count` count their children as published, with other
widenings (`dts-count-2-0.8` is the paper's).
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
TITLES = {
    "shapes": "The embedded world: equal NFE and equal seconds",
    "claims": "Published orderings",
    "search": "The embedded world: from 50 to thousands of denoiser calls",
    "exactness": "Exact laws",
    "trees": "Trees and exact laws",
    "digits": "Real digits",
    "flows": "Flow models: paths and transitions",
}


def write(results: Path = DOCS / "results", page: Path = DOCS / "results.md") -> None:
    """Write the page, and its plots beside it.

    Args:
        results: folder of the JSON files.
        page: Markdown file to write.
    """
    sections = _sections(results, page)
    parts = ["# Results\n", "Written by `python scripts/results_page.py`; do not edit.\n"]
    parts.append("\n".join(f"- [{TITLES[name]}](#{_anchor(TITLES[name])})" for name in sections))
    parts.append("")
    discussion = page.with_name("results-discussion.md")
    if discussion.exists():
        parts.append(discussion.read_text(encoding="utf-8"))
    for name, text in sections.items():
        parts += [f"## {TITLES[name]}\n", text]
    write_atomically(page, "\n".join(parts).rstrip("\n") + "\n")


def _sections(results: Path, page: Path) -> dict[str, str]:
    """Text of every section that has results, by name, in the order of the page."""
    shapes, search = (
        [p for p in sorted(results.glob(f"{name}-*.json")) if _by_prompt(p)]
        for name in ("shapes", "search")
    )
    # of a cell that two files hold the later one counts
    exact = sorted(results.glob("exactness*.json"), key=lambda p: (read(p)["meta"]["date"], p))
    trees, digits, flows = (
        sorted(results.glob(f"{name}*.json")) for name in ("trees", "digits", "flows")
    )
    found = {
        "shapes": _shapes(shapes, page),
        "claims": _claims(shapes),
        "search": _search(search, page),
        "exactness": _exactness(exact, results / "normalising-constant.json", page),
        "trees": _trees(trees, page),
        "digits": _digits(digits, page),
        "flows": _tables("", flows, page, flow_tables),
    }
    return {name: text for name, text in found.items() if text}


def _shapes(paths: Sequence[Path], page: Path) -> str:
    entries = gather(_rows(paths))
    if not entries:
        return ""
    pictures = _pictures(entries, page, "results", shapes_plot)
    return "\n".join([SHAPES, _sources(paths, page), pictures, shapes_sections(entries)])


def _claims(paths: Sequence[Path]) -> str:
    text = claims_sections(gather(_rows(paths)), CLAIMS)
    return f"{CLAIMED}\n{text}" if text else ""


def _search(paths: Sequence[Path], page: Path) -> str:
    entries = gather(_rows(paths))
    if not entries:
        return ""
    pictures = _pictures(entries, page, "results-search", search_plot)
    return "\n".join([SEARCH, _sources(paths, page), pictures, search_sections(entries)])


def _digits(paths: Sequence[Path], page: Path) -> str:
    rows = _rows(paths)
    if not rows:
        return ""
    plot = page.with_name("results-digits.png")
    digits_plot(rows, plot)
    picture = f"![Fréchet distances against denoiser calls]({plot.name})\n"
    return "\n".join([DIGITS, _sources(paths, page), picture, digits_tables(rows)])


def _trees(paths: Sequence[Path], page: Path) -> str:
    rows = _rows(paths)
    if not rows:
        return ""
    path = page.with_name("results-trees.png")
    trees_plot(rows, path)
    picture = f"![mode total variation against denoiser calls]({path.name})\n"
    return "\n".join([TREES, _sources(paths, page), picture, trees_tables(rows)])


def _exactness(paths: Sequence[Path], longer: Path, page: Path) -> str:
    rows = _rows(paths)
    if not rows:
        return ""
    more = [longer] if longer.exists() else []
    return "\n".join(
        [EXACTNESS, _sources([*paths, *more], page), exactness_tables(rows, _rows(more))]
    )


def _tables(
    told: str, paths: Sequence[Path], page: Path, tables: Callable[[list[dict[str, Any]]], str]
) -> str:
    """A section of tables alone."""
    rows = _rows(paths)
    return "\n".join(filter(None, [told, _sources(paths, page), tables(rows)])) if rows else ""


def _pictures(
    entries: Sequence[Entry], page: Path, start: str, plot: Callable[[list[Entry], Path], None]
) -> str:
    """Plots of every setting, with the lines that show them."""
    lines, seen = [], list[str]()
    for setting in dict.fromkeys(e.setting for e in entries):
        seen.append(setting.model)
        count = seen.count(setting.model)
        path = page.with_name(f"{start}-{setting.model}{f'-{count}' if count > 1 else ''}.png")
        plot([e for e in entries if e.setting == setting], path)
        lines.append(f"![accuracy and reward of searches on {setting.model}]({path.name})\n")
    return "\n".join(lines)


def _rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    return [row for path in paths for row in read(path)["rows"]]


def _by_prompt(path: Path) -> bool:
    return any("per_prompt" in row for row in read(path)["rows"])


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _sources(paths: Sequence[Path], page: Path) -> str:
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
