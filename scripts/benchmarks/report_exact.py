"""Markdown tables of the exactness benchmark, and of paths and transitions of flow models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.report_tables import number, spread, table
from steering.tilted import PROBLEMS

Row = Mapping[str, Any]


def exactness_tables(rows: Sequence[Row]) -> str:
    """Distances of mode masses; then evidence and independent samples. Of a cell, its last row."""
    best = {(row["sampler"], row["k"], row["problem"]): row for row in rows}
    if not best:
        return ""
    parts = ["### Distance of the mode masses to the exact law\n"]
    for k in sorted({k for _, k, _ in best}):
        parts += [f"k = {k}:\n", _by_problem(best, k, _distance)]
    parts.append("### Normalising constant and independent samples\n")
    parts.append(
        "The mean estimate of Z in shares of the chain's own (1 is unbiased; a dash where a search "
        "claims none; a star where the schedule is adaptive and the estimate therefore biased), and the "
        "number of independent target samples that one run is worth:\n"
    )
    for k in sorted({k for _, k, _ in best}):
        parts += [f"k = {k}:\n", _by_problem(best, k, _evidence)]
    return "\n".join(parts)


def _by_problem(
    best: Mapping[tuple[str, int, str], Row], k: int, cell: Callable[[Row], str]
) -> str:
    """Samplers down, problems across."""
    known = list(PROBLEMS)
    problems = sorted(
        dict.fromkeys(p for _, _, p in best),
        key=lambda p: known.index(p) if p in known else len(known),
    )
    samplers = list(dict.fromkeys(s for s, own, _ in best if own == k))
    lines = []
    for sampler in samplers:
        found = [best.get((sampler, k, problem)) for problem in problems]
        lines.append([f"`{sampler}`", *("-" if r is None else cell(r) for r in found)])
    return table(["sampler", *problems], lines)


def _distance(row: Row) -> str:
    return f"{number(row['mode_tv'], 3)} ± {number(row['mode_tv_se'], 3)}"


def _evidence(row: Row) -> str:
    ratio, error = row.get("z_ratio"), row.get("z_ratio_se")
    if ratio is None and row.get("log_z") is not None:  # rows of an earlier form
        ratio = math.exp(row["log_z"] - row["log_z_chain"])
        error = ratio * math.hypot(row["log_z_se"], row["log_z_chain_se"])
    told = "-" if ratio is None else f"{number(ratio, 2)} ± {number(error, 2)}"
    if ratio is not None and row.get("adaptive"):
        told += "*"
    worth = row.get("independent")
    return f"{told}; {'-' if worth is None else number(worth, 1)}"


def flow_tables(rows: Sequence[Row]) -> str:
    """Final law on Gaussian data; quality and distance of children on the embedded Flux."""
    parts = []
    exact = [r for r in rows if r.get("part") == "gaussian"]
    if exact:
        parts.append("### Gaussian data: final standard deviation in shares of the true one\n")
        parts.append(_by_steps(exact, lambda r: number(r["std_ratio"], 3)))
    drawn = [r for r in rows if r.get("part") == "shapes-flux"]
    quality = [r for r in drawn if r.get("measure") == "quality"]
    for title, cell in (
        ("reward of unsteered samples", lambda r: number(r["reward"], 1)),
        (
            "accuracy of unsteered samples",
            lambda r: spread(r["accuracy"], r["accuracy_low"], r["accuracy_high"], 2),
        ),
    ):
        if quality:
            parts += [f"### shapes-flux: {title}\n", _by_steps(quality, cell)]
    for level in sorted({r["level"] for r in drawn if "level" in r}, reverse=True):
        children = [r for r in drawn if r.get("level") == level]
        parts.append(
            f"### shapes-flux: distance of children branched at noise share {level:g}\n\n"
            "Pixels after one random step, and with all later steps random, too; in brackets, of "
            "picture embeddings:\n"
        )
        parts.append(_by_steps(children, _children))
    return "\n".join(parts)


def _children(row: Row) -> str:
    return ", ".join(
        f"{number(row[f'pixels_{how}'], 3)} ({number(row[f'features_{how}'], 2)})"
        for how in ("step", "onwards")
    )


def _by_steps(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    """Paths and transitions down, numbers of steps across."""
    steps = sorted({r["steps"] for r in rows})
    methods = dict.fromkeys((r["path"], r["transition"]) for r in rows)
    known = {(r["path"], r["transition"], r["steps"]): cell(r) for r in rows}
    lines = [
        [f"{path} / {transition}", *(known.get((path, transition, n), "-") for n in steps)]
        for path, transition in methods
    ]
    return table(["path / transition", *(f"{n} steps" for n in steps)], lines)
