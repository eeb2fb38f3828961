"""Writes ``docs/overoptimisation.md`` and its figure from ``docs/results/overoptimisation.json``.

    python scripts/overoptimisation_page.py

What is said of the figures stands in ``docs/overoptimisation-discussion.md``, included as it is.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from benchmarks.report import read
from benchmarks.selection import expected_winner
from jsonargparse import auto_cli

from steering.files import write_atomically
from steering.statistics import interval

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parents[1] / "docs"
MEASURES = {
    "reward": "searched reward",
    "second": "second clip",
    "accuracy": "verified accuracy",
    "diversity_clip": "diversity (clip)",
}
INTRO = """\
`shapes-sd` on hard prompts; the reward `shapes-clip` is searched, the exact verifier and a second,
independently trained clip judge. Budgets are candidates' worth of denoiser calls. In brackets are
95 % intervals by bootstrap over prompts. `best-of-n` is the mean over all subsets of a pool of
candidates a prompt; `rank`, `majority` and `pool-draw-S` (a draw by weight at strength S) choose in
disjoint groups
of the same pool. `rank` searches the second clip, too, so only the verifier judges it. Steered searches
name their strength after `@`; they cover fewer prompts than the pools, so rows of searches are to be
compared with each other, and with `best-of-n` only loosely.
"""
#: each remedy, and the search whose result it is to mend
REMEDIES = {
    "rank": "best-of-n",
    "majority": "best-of-n",
    "pool-draw-4": "best-of-n",
    "pool-draw-1": "best-of-n",
    "adaptive@4": "best-of-n",
    "fk@1": "fk@4",
    "svdd@1": "svdd@4",
    "fk-draw@4": "fk@4",
    "svdd-draw@4": "svdd@4",
}
#: by (method, candidates): by measure: by prompt
Figures = dict[tuple[str, int], dict[str, dict[int, float]]]


def judged(rows: list[dict[str, Any]]) -> str:
    """Which second clip judged, and how numbers were computed."""
    clips = sorted({str(row["second_clip"]) for row in rows})
    products = {"TF32" if row["tf32"] else "float32" for row in rows}
    sizes = sorted({row["batch_size"] for row in rows})
    return (
        f"Second clip {', '.join(clips)} (digest of its weights); {' and '.join(sorted(products))} "
        f"matrix products; batches of up to {', '.join(map(str, sizes))} rows."
    )


def figures_of(rows: list[dict[str, Any]]) -> Figures:
    """Values by method, size, measure and prompt; means over seeds or groups."""
    found: Figures = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        (_add_pool if row["kind"] == "pool" else _add_search)(found, row)
    return found


def _add_pool(found: Figures, row: dict[str, Any]) -> None:
    scores = {name: np.array(v, float) for name, v in row["scores"].items()}
    for key, values in row["rules"].items():
        rule, n = key.split(":")
        name = {"best": "best-of-n"}.get(rule, rule.replace("draw", "pool-draw"))
        for measure, value in values.items():
            if rule == "best" and measure in scores:
                value = expected_winner(scores["reward"], scores[measure], [int(n)])[0]
            if not (rule == "rank" and measure == "second"):
                found[name, int(n)][measure][row["first"]] = float(value)


def _add_search(found: Figures, row: dict[str, Any]) -> None:
    name = f"{row['sampler']}@{row['strength']:g}"
    for measure in MEASURES:
        if measure in row["per_prompt"]:
            values = np.array(row["per_prompt"][measure], float)
            means = values if values.ndim == 1 else values.mean(0)
            for i, value in enumerate(means):
                found[name, row["n"]][measure][row["first"] + i] = float(value)


def table(found: Figures) -> str:
    """Markdown of every method and budget."""
    head = ["method", "candidates", "prompts", *MEASURES.values()]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for (name, n), by in sorted(found.items()):
        cells = [_cell(list(by[m].values())) if m in by else "" for m in MEASURES]
        lines.append(f"| {' | '.join([name, str(n), str(len(by['accuracy'])), *cells])} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    mean = f"{np.mean(values):.3g}"
    if len(values) < 2:
        return mean
    low, high = interval(np.array(values))
    return f"{mean} [{low:.3g}, {high:.3g}]"


def remedies(found: Figures) -> str:
    """Markdown of each remedy less the search that it mends, paired over prompts."""
    names = ["remedy", "instead of", "candidates", *MEASURES.values()]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for (name, n), by in sorted(found.items()):
        plain = found.get((REMEDIES.get(name, ""), n))
        if plain:
            cells = [_gap(by.get(m, {}), plain.get(m, {})) for m in MEASURES]
            lines.append(f"| {' | '.join([name, REMEDIES[name], str(n), *cells])} |")
    return "\n".join(lines) + "\n"


def _gap(here: dict[int, float], there: dict[int, float]) -> str:
    gaps = np.array([here[i] - there[i] for i in here if i in there])
    if len(gaps) < 2:
        return ""
    low, high = interval(gaps)
    return f"{gaps.mean():+.3g} [{low:+.3g}, {high:+.3g}]"


def plot(found: Figures, path: Path) -> None:
    """Every measure against candidates, a line a method."""
    _, axes = plt.subplots(1, len(MEASURES), figsize=(18, 4.5), layout="constrained")
    names = sorted({name for name, _ in found})
    for axis, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        for i, name in enumerate(names):
            sizes = [n for (m, n), by in sorted(found.items()) if m == name and measure in by]
            means = [np.mean(list(found[name, n][measure].values())) for n in sizes]
            style = "-" if i < 10 else "--"
            axis.plot(sizes, means, style, marker="o", markersize=3, label=name)
        axis.set_xscale("log", base=2)
        axis.set(xlabel="candidates", title=label)
    axes[0].legend(fontsize=7)
    plt.savefig(path, dpi=110)
    plt.close()


def write(
    results: Path = DOCS / "results" / "overoptimisation.json",
    page: Path = DOCS / "overoptimisation.md",
) -> None:
    """Write the page, and its figure beside it."""
    content = read(results)
    found, meta = figures_of(content["rows"]), content["meta"]
    picture = page.with_suffix(".png")
    plot(found, picture)
    discussion = page.with_name("overoptimisation-discussion.md")
    parts = [
        "# Over-optimisation\n",
        "Written by `python scripts/overoptimisation_page.py`; do not edit.\n",
        discussion.read_text(encoding="utf-8") if discussion.exists() else "",
        INTRO,
        f"{meta['device']}, {meta['date'][:10]}; `python {meta['command']}`.",
        f"{judged(content['rows'])}\n",
        f"![scores against candidates]({picture.name})\n",
        "## What remedies change\n",
        "A remedy less the search that it mends, paired over the prompts that both cover.\n",
        remedies(found),
        "## All figures\n",
        table(found),
    ]
    write_atomically(page, "\n".join(part for part in parts if part))


if __name__ == "__main__":
    auto_cli(write)
