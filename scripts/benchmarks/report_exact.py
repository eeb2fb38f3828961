"""Markdown tables of the exactness benchmark: mode masses, evidence, independent samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.exactness import GRADIENT, SAMPLERS
from benchmarks.report_tables import number, table
from steering.tilted import PROBLEMS

Row = Mapping[str, Any]
Cells = Mapping[tuple[str, int, str], Row]

PARTICLES = (4, 16, 64)
#: Mode total variation of the best correct sampler known, for k = 4, 16 and 64: the lowest that other
#: implementations of published samplers reached in each cell, by 2,500 to 4,000 runs (800 to 2,000 at
#: k = 64), with an error of about .005.
KNOWN = {
    "linear": (0.078, 0.015, 0.008),
    "quadratic": (0.041, 0.018, 0.008),
    "indicator": (0.15, 0.055, 0.024),
    "rare": (0.037, 0.024, 0.006),
}
ERRORS = 2  #: standard errors within which a level counts as reached
SHOWN = 3  #: missed cells that are named
BIASED = 3  #: standard errors beyond which an estimate of Z counts as off
DISTANCES = """\
The first line is the best correct sampler known before, in each cell another one. Bold: not above it by
more than two standard errors. Missing cells were not measured; a dash stands where a search follows the
gradient that the indicator does not have.
"""
BEST = """\
Of the twelve cells in the plane: those in which a sampler reaches the best known (within two standard
errors of its own), those in which it is within a factor of 2, and the furthest of those that it misses,
with k and the factor.
"""
EVIDENCE = """\
The mean estimate of Z in shares of the chain's own, ± its bootstrap standard error, and the number of
independent target samples that one run is worth. A star: the schedule is adaptive and the estimate
therefore biased. Bold: not adaptive, and yet further than three standard errors from 1 (where few runs
carry the mean, its error is too small). A dash: the search claims no Z, or too few runs tell.
"""


def exactness_tables(rows: Sequence[Row]) -> str:
    """Distances of mode masses; then evidence and independent samples. Of a cell, its last row."""
    cells = {(row["sampler"], row["k"], row["problem"]): row for row in rows}
    if not cells:
        return ""
    counts = sorted({k for _, k, _ in cells} | set(PARTICLES))
    parts = ["### Beside the best correct sampler known\n", BEST, beside_best(cells)]
    parts += ["### Distance of the mode masses to the exact law\n", DISTANCES]
    parts += [f"k = {k}:\n\n{_by_problem(cells, k, _distance, known=True)}" for k in counts]
    parts += ["### Normalising constant and independent samples\n", EVIDENCE]
    parts += [f"k = {k}:\n\n{_by_problem(cells, k, _evidence)}" for k in counts]
    return "\n".join(parts)


def known_level(problem: str, k: int) -> float | None:
    """Distance of the best correct sampler known, where there is one."""
    if problem not in KNOWN or k not in PARTICLES:
        return None
    return KNOWN[problem][PARTICLES.index(k)]


def reached(row: Row) -> bool:
    """Whether a cell is as good as the best known, within two standard errors."""
    level = _level(row)
    return level is not None and row["mode_tv"] - ERRORS * row["mode_tv_se"] <= level


def beside_best(cells: Cells) -> str:
    """How many of the cells with a known level each sampler reaches, the most first."""
    lines = []
    for sampler in _samplers(cells):
        own = [row for (name, k, problem), row in cells.items() if name == sampler and _level(row)]
        if not own:
            continue
        best = [row for row in own if reached(row)]
        near = [row for row in own if _ratio(row) <= 2]
        missed = sorted((row for row in own if not reached(row)), key=_ratio, reverse=True)
        told = ", ".join(
            f"{r['problem']} {r['k']} ({number(_ratio(r), 1)})" for r in missed[:SHOWN]
        )
        told += f" and {len(missed) - SHOWN} more" if len(missed) > SHOWN else ""
        counts = [str(len(rows)) for rows in (own, best, near)]
        lines.append((-len(best), -len(near), [f"`{sampler}`", *counts, told or "-"]))
    head = ["sampler", "measured", "best reached", "within a factor of 2", "missed, by this factor"]
    return table(head, [line for *_, line in sorted(lines, key=lambda line: line[:2])])


def _level(row: Row) -> float | None:
    return known_level(row["problem"], row["k"])


def _ratio(row: Row) -> float:
    """Of the distance to that of the best known."""
    return row["mode_tv"] / (_level(row) or math.nan)


def _by_problem(cells: Cells, k: int, cell: Callable[[Row], str], known: bool = False) -> str:
    """Samplers down, problems across."""
    lines = []
    if known and k in PARTICLES:
        levels = [known_level(problem, k) for problem in PROBLEMS]
        lines.append(["best known", *("-" if v is None else number(v, 3) for v in levels)])
    for sampler in _samplers(cells):
        found = [(problem, cells.get((sampler, k, problem))) for problem in PROBLEMS]
        if any(row is not None for _, row in found) or k in PARTICLES:
            told = [_missing(sampler, p) if row is None else cell(row) for p, row in found]
            lines.append([f"`{sampler}`", *told])
    return table(["sampler", *PROBLEMS], lines)


def _samplers(cells: Cells) -> list[str]:
    """In the order of the benchmark."""
    names = dict.fromkeys(sampler for sampler, _, _ in cells)
    order = {name: i for i, name in enumerate(SAMPLERS)}
    return sorted(names, key=lambda name: order.get(name, len(order)))


def _missing(sampler: str, problem: str) -> str:
    gradient = sampler in GRADIENT and not PROBLEMS[problem]().reward.differentiable
    return "-" if gradient else "missing"


def _distance(row: Row) -> str:
    text = f"{number(row['mode_tv'], 3)} ± {number(row['mode_tv_se'], 3)}"
    return f"**{text}**" if reached(row) else text


def _evidence(row: Row) -> str:
    ratio, error = row.get("z_ratio"), row.get("z_ratio_se")
    if ratio is None and row.get("log_z") is not None:  # rows of an earlier form
        ratio = math.exp(row["log_z"] - row["log_z_chain"])
        error = ratio * math.hypot(row["log_z_se"], row["log_z_chain_se"])
    told = "-"
    if ratio is not None and error is not None:
        told = f"{number(ratio, 2)} ± {number(error, 2)}"
        if row.get("adaptive"):
            told += "*"
        elif abs(ratio - 1) > BIASED * error:
            told = f"**{told}**"
    worth = row.get("independent")
    return f"{told}; {'-' if worth is None else number(worth, 1)}"
