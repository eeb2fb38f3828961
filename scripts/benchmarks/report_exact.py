"""Markdown tables of the exactness benchmark: mode masses, evidence, independent samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.exactness import CALIBRATED, GRADIENT, SAMPLERS
from benchmarks.report_tables import number, table
from steering.chain_law import saved_laws
from steering.tilted import PROBLEMS, total_variation

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
KNOWN_ERROR = 0.005  #: standard error of a known level
ERRORS = 2  #: standard errors within which a level counts as reached
SHOWN = 3  #: missed cells that are named
BIASED = 3  #: standard errors beyond which an estimate of Z counts as off
SKEWED = (
    0.05  #: share of the mean estimate of Z that one run may give before its error means little
)
#: The default of the package, told the spread of the reward beforehand and not: one documented preset.
DEFAULTS = ("auto", "auto-in-run")
DISTANCES = """\
The first line is the best correct sampler known before, in each cell another one. Bold: not above it by
more than two standard errors. In brackets the distance to the tilted law of the 50-step chain, which is
what an exact search tends to as k grows; the second line is how far that law is from the exact one, so
whatever is nearer is so because the bias of few particles and that of the chain cancel (on rare both
are of one size). Missing cells were not measured; a dash stands where a search follows the gradient
that the indicator does not have.
"""
BEST = """\
Of the twelve cells in the plane: those in which a sampler reaches the best known (within two standard
errors of its own), those in which it is within a factor of 2, and the furthest of those that it misses,
with k and the factor. `auto` and `auto-in-run` are the default, [AutoSMC](samplers/auto.md), told the
reward's spread over base samples or finding it in the run; its three constants were fitted on the
problems in the plane with other seeds than those of this page, those in 16 dimensions not looked at.
"""
REWARDS = """\
Mean reward under the pooled weights, ± its standard error. The law is the exact tilted one, the chain
that of its 50 steps.
"""
EVIDENCE = """\
The mean estimate of Z in shares of the chain's own, ± its bootstrap standard error, and the number of
independent target samples that one run is worth. A star: the schedule is adaptive and the estimate
therefore biased. Bold: not adaptive, and yet further than three standard errors from 1. A dash: the
search claims no Z, or too few runs tell.
"""
TAILS = """\
That is what heavy tails do: where much of Z lies in runs so rare that none was seen, the mean of those
seen is too low, and so is its error; under weaker tilts the same searches are unbiased (tested)."""


LONGER = """\
Cells from those that are too low again, with many more runs and another seed. Where tails are the cause
the mean tends to rise with the runs, by single ones that are rare and large; ten thousand need not meet
one.
"""


def exactness_tables(rows: Sequence[Row], longer: Sequence[Row] = ()) -> str:
    """Distances of mode masses; then evidence and independent samples. Of a cell, its last row.

    Args:
        rows: of ``scripts/benchmark.py exactness``.
        longer: of the same with many more runs, for the normalising constant alone.
    """
    cells = {(row["sampler"], row["k"], row["problem"]): row for row in rows}
    if not cells:
        return ""
    counts = sorted({k for _, k, _ in cells} | set(PARTICLES))
    parts = ["### Beside the best correct sampler known\n", BEST, beside_best(cells)]
    parts.append(_defaults(cells))
    parts += ["### Distance of the mode masses to the exact law\n", DISTANCES]
    parts += [f"k = {k}:\n\n{_by_problem(cells, k, _distance, known=True)}" for k in counts]
    parts += ["### Mean reward\n", REWARDS]
    parts += [f"k = {k}:\n\n{_by_problem(cells, k, _reward, laws=True)}" for k in counts]
    parts += ["### Normalising constant and independent samples\n", EVIDENCE, unbiased(cells)]
    parts += [LONGER, longer_runs(cells, longer)] if longer else []
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


def _defaults(cells: Cells) -> str:
    """Cells in which neither form of the default reaches the best known, by name."""
    own: dict[tuple[str, int], list[Row]] = {}
    for (name, k, problem), row in cells.items():
        if name in DEFAULTS and _level(row):
            own.setdefault((problem, k), []).append(row)
    if not own:
        return ""
    missed = [rows for rows in own.values() if not any(map(reached, rows))]
    told = f"`{'` or `'.join(DEFAULTS)}` reaches the best known in {len(own) - len(missed)} of "
    told += f"{len(own)} cells."
    for rows in missed:
        row = min(rows, key=_ratio)
        told += f"\nNeither does at {row['problem']}, k = {row['k']}: {_figure(row)}, where "
        gap = (row["mode_tv"] - (_level(row) or 0)) / math.hypot(row["mode_tv_se"], KNOWN_ERROR)
        told += f"{number(_level(row) or 0, 3)} is known: {number(gap, 1)} standard errors of the "
        told += "difference, the known level's own counted."
    return told + "\n"


def unbiased(cells: Cells) -> str:
    """How many estimates of Z that should be unbiased are, and what is the matter with the others."""
    own = [row for row in cells.values() if row.get("z_ratio") is not None and not _adaptive(row)]
    off = [row for row in own if _off(row)]
    if not own:
        return ""
    told = f"Of {len(own)} cells without adaptation {len(own) - len(off)} are within {BIASED} standard "
    told += "errors of 1."
    if not off:
        return told + "\n"
    below = sum(row["z_ratio"] < 1 for row in off)
    skewed = [row for row in off if (row.get("z_largest") or 0) > SKEWED]
    told += (
        f"\nOf the other {len(off)}, {below} are too low, which is no sign of a bias.\n{TAILS}\n"
    )
    told += (
        f"In {len(skewed)} of them a single run gives more than {100 * SKEWED:.0f} % of the mean"
    )
    rest = ", ".join(
        f"`{r['sampler']}` {r['problem']} {r['k']} ({number(100 * r['z_largest'], 1)} %)"
        for r in off
        if r not in skewed and r.get("z_largest") is not None
    )
    return told + (f"; in the rest less:\n{rest}.\n" if rest else ".\n")


def longer_runs(cells: Cells, longer: Sequence[Row]) -> str:
    """Estimates of Z in the page's cells, and in the same with more runs, side by side."""
    of_each = ["runs", "of Z", "largest run"]
    head = ["sampler", "problem", "k", *of_each, *of_each]
    lines = []
    for row in longer:
        cell = cells[row["sampler"], row["k"], row["problem"]]
        told = [f"`{row['sampler']}`", row["problem"], str(row["k"])]
        for found in (cell, row):
            told += [f"{found['runs']:,}", _share_of_z(found), f"{100 * found['z_largest']:.1f} %"]
        lines.append(told)
    return table(head, lines)


def _share_of_z(row: Row) -> str:
    told = f"{number(row['z_ratio'], 2)} ± {number(row['z_ratio_se'], 2)}"
    return f"**{told}**" if _off(row) else told


def _adaptive(row: Row) -> bool:
    """Whether lambda depends on the particles; told the spread, the default's does not."""
    return bool(row.get("adaptive")) and row["sampler"] not in CALIBRATED


def _off(row: Row) -> bool:
    return bool(abs(row["z_ratio"] - 1) > BIASED * row["z_ratio_se"])


def _level(row: Row) -> float | None:
    return known_level(row["problem"], row["k"])


def _ratio(row: Row) -> float:
    """Of the distance to that of the best known."""
    return row["mode_tv"] / (_level(row) or math.nan)


def _by_problem(
    cells: Cells, k: int, cell: Callable[[Row], str], known: bool = False, laws: bool = False
) -> str:
    """Samplers down, problems across; first the known levels, or the mean rewards of the laws."""
    lines = []
    if laws:
        for name, key in (("the law", "reward_exact"), ("the chain", "reward_chain")):
            told = [next((r for r in cells.values() if r["problem"] == p), {}) for p in PROBLEMS]
            lines.append([name, *(number(r.get(key, math.nan), 3) for r in told)])
    if known and k in PARTICLES:
        levels = [known_level(problem, k) for problem in PROBLEMS]
        lines.append(["best known", *("-" if v is None else number(v, 3) for v in levels)])
        lines.append(["the chain", *(number(_chain_distance(p), 3) for p in PROBLEMS)])
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


def _chain_distance(problem: str) -> float:
    """Of the mode masses of the chain's own tilted law to the exact ones."""
    masses = torch.tensor(saved_laws()[problem].masses, dtype=torch.float64)
    return total_variation(masses, PROBLEMS[problem]().masses)


def _missing(sampler: str, problem: str) -> str:
    gradient = sampler in GRADIENT and not PROBLEMS[problem]().reward.differentiable
    return "-" if gradient else "missing"


def _distance(row: Row) -> str:
    text = f"**{_figure(row)}**" if reached(row) else _figure(row)
    chain = row.get("mode_tv_chain")
    return text if chain is None else f"{text} ({number(chain, 3)})"


def _figure(row: Row) -> str:
    return f"{number(row['mode_tv'], 3)} ± {number(row['mode_tv_se'], 3)}"


def _reward(row: Row) -> str:
    mean, error = row.get("reward_mean", math.nan), row.get("reward_se", math.nan)
    return f"{number(mean, 3)} ± {number(error, 3)}"


def _evidence(row: Row) -> str:
    ratio, error = row.get("z_ratio"), row.get("z_ratio_se")
    if ratio is None and row.get("log_z") is not None:  # rows of an earlier form
        ratio = math.exp(row["log_z"] - row["log_z_chain"])
        error = ratio * math.hypot(row["log_z_se"], row["log_z_chain_se"])
    told = "-"
    if ratio is not None and error is not None:
        told = f"{number(ratio, 2)} ± {number(error, 2)}"
        if _adaptive(row):
            told += "*"
        elif abs(ratio - 1) > BIASED * error:
            told = f"**{told}**"
    worth = row.get("independent")
    return f"{told}; {'-' if worth is None else number(worth, 1)}"
