"""At which cost a search reaches what best of N reaches: interpolated, with intervals by bootstrap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.report import COSTS, Entry
from benchmarks.report_tables import DIGITS, REFERENCE, TITLES, number, table

RESAMPLES = 2000
Span = tuple[float, float]


@dataclass(frozen=True)
class Reach:
    """Where a search first has the value of the target.

    Attributes:
        costs: at that point, by name, ``seconds`` among them; empty where it is not reached.
        nfe: 95 % interval of the denoiser calls there; an end is infinite where the target is not
            reached, None where there are too few prompts to say.
        fewer: denoiser calls of the target over those of the search, and its interval.
        faster: the same of seconds.
        at_least: whether the smallest measured budget reaches it, so that the costs are upper bounds.
        most: the largest measured denoiser calls of the search.
    """

    costs: Mapping[str, float]
    nfe: Span | None
    fewer: tuple[float, Span | None]
    faster: tuple[float, Span | None]
    at_least: bool
    most: float


class Curve:
    """Values of one search against its denoiser calls.

    Args:
        entries: of one search, at equal NFE; at least one.
        measure: whose values to read.
    """

    def __init__(self, entries: Sequence[Entry], measure: str) -> None:
        self.entries = sorted(entries, key=lambda e: e.mean("nfe"))
        self.measure = measure
        self.log_nfe = np.log([e.mean("nfe") for e in self.entries])
        self.log_costs = {
            name: np.log([max(e.mean(name), 1e-9) for e in self.entries]) for name in COSTS
        } | {"seconds": np.log([max(e.seconds, 1e-9) for e in self.entries])}

    def by_prompt(self, prompts: np.ndarray) -> np.ndarray:
        """Values ``(budgets, P)`` of these prompts, which every entry holds."""
        rows = [e.values[self.measure][np.searchsorted(e.prompts, prompts)] for e in self.entries]
        return np.stack(rows)

    def cost(self, name: str, log_nfe: np.ndarray) -> np.ndarray:
        """A cost at so many denoiser calls; infinite where these are."""
        known = np.exp(np.interp(log_nfe, self.log_nfe, self.log_costs[name]))
        return np.where(np.isinf(log_nfe), np.inf, known)


def first_crossing(log_nfe: np.ndarray, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Where curves first reach their targets, linearly between budgets on the scale of log NFE.

    Args:
        log_nfe: of the budgets ``(K,)``, ascending.
        values: of each curve there ``(B, K)``.
        targets: ``(B,)``.

    Returns:
        ``(B,)``: the smallest budget where that has the target; infinite where none does.
    """
    reached = values >= targets[:, None] - 1e-9
    k = reached.argmax(1)
    row = np.arange(len(values))
    before = np.maximum(k - 1, 0)
    low, high = values[row, before], values[row, k]
    rise = np.where(high > low, high - low, 1.0)
    share = np.where(k > 0, np.clip((targets - low) / rise, 0, 1), 0.0)
    at = log_nfe[before] + share * (log_nfe[k] - log_nfe[before])
    return np.where(reached.any(1), at, np.inf)


def reach(
    entries: Sequence[Entry], reference: Sequence[Entry], nfe: float, measure: str
) -> Reach | None:
    """The cost at which a search reaches what the reference has at some denoiser calls.

    Prompts are resampled for both together. Budgets with less than half of the reference's prompts are
    left out.

    Args:
        entries: of one search at its budgets.
        reference: of best of N at its budgets.
        nfe: denoiser calls of the target.
        measure: what is to be reached.

    Returns:
        None where the target lies outside the reference's budgets or nothing was measured.
    """
    reference = [e for e in reference if measure in e.values]
    if not reference:
        return None
    most = max(len(e.prompts) for e in reference)
    entries = [e for e in entries if measure in e.values and 2 * len(e.prompts) > most]
    goal = Curve([e for e in reference if 2 * len(e.prompts) > most], measure)
    at = np.log(nfe)
    if not entries or not goal.log_nfe[0] - 1e-6 <= at <= goal.log_nfe[-1] + 1e-6:
        return None
    curve = Curve(entries, measure)
    shared = goal.entries[0].prompts
    for entry in (*goal.entries, *entries):
        shared = np.intersect1d(shared, entry.prompts)
    if len(shared) == 0:
        return None
    ours, theirs = curve.by_prompt(shared), goal.by_prompt(shared)
    point = _crossings(curve, goal, ours.mean(1)[None], theirs.mean(1)[None], at)
    drawn = None
    if len(shared) > 1:
        random = np.random.default_rng(0)
        rows = random.integers(len(shared), size=(RESAMPLES, len(shared)))
        drawn = _crossings(curve, goal, _means(ours, rows), _means(theirs, rows), at)
    return _reach(curve, goal, at, point, drawn)


def _means(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Means over resampled prompts ``(resamples, budgets)``."""
    return np.stack([v[rows].mean(1) for v in values], 1)


def _crossings(
    curve: Curve, goal: Curve, ours: np.ndarray, theirs: np.ndarray, at: float
) -> np.ndarray:
    targets = np.array([np.interp(at, goal.log_nfe, row) for row in theirs])
    return first_crossing(curve.log_nfe, ours, targets)


def _reach(
    curve: Curve, goal: Curve, at: float, point: np.ndarray, drawn: np.ndarray | None
) -> Reach:
    def ratio(name: str) -> tuple[float, Span | None]:
        whole = float(goal.cost(name, np.array([at]))[0])
        low_high = None if drawn is None else _span(whole / curve.cost(name, drawn))
        return whole / float(curve.cost(name, point)[0]), low_high

    reached = bool(np.isfinite(point[0]))
    names = (*COSTS, "seconds") if reached else ()
    return Reach(
        costs={name: float(curve.cost(name, point)[0]) for name in names},
        nfe=None if drawn is None else _span(np.exp(drawn)),
        fewer=ratio("nfe"),
        faster=ratio("seconds"),
        at_least=reached and bool(point[0] <= curve.log_nfe[0]),
        most=float(np.exp(curve.log_nfe[-1])),
    )


def _span(values: np.ndarray) -> Span:
    low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def reach_table(entries: Sequence[Entry], n: int, measure: str) -> str:
    """What every search of one setting needs for what best of ``n`` reaches; empty without that.

    Args:
        entries: of one setting, at equal NFE.
        n: candidates of the target.
        measure: what is to be reached.
    """
    reference = [e for e in entries if e.sampler == REFERENCE and measure in e.values]
    if not reference:
        return ""
    # best of N decodes every candidate once, so this is the length of a trajectory
    steps = reference[0].mean("nfe") / reference[0].mean("decodes")
    names = [s for s in dict.fromkeys(e.sampler for e in entries) if s != "base"]
    found = {
        s: reach([e for e in entries if e.sampler == s], reference, n * steps, measure)
        for s in sorted(names, key=lambda s: s != REFERENCE)
    }
    if found[REFERENCE] is None:
        return ""
    ordered = sorted(found.items(), key=lambda item: 0 if item[1] is None else -item[1].fewer[0])
    target = _target(reference, n * steps, measure)
    told = f"{TITLES[measure].capitalize()} of best of {n} ({number(target, DIGITS[measure])}):\n\n"
    head = ["sampler", *(TITLES[c] for c in COSTS), "seconds", "95 % of NFE"]
    head += ["times fewer NFE", "times less time"]
    lines = [[f"`{s}`", *_cells(r)] for s, r in ordered if r is not None]
    return told + table(head, lines) + _best({s: r for s, r in ordered if r is not None})


def _best(found: Mapping[str, Reach]) -> str:
    """Which searches need the fewest calls and the least time."""
    parts = []
    for what, key in (("fewer NFE", "fewer"), ("less time", "faster")):
        name = max(found, key=lambda s: getattr(found[s], key)[0])
        sign = "at least " if found[name].at_least else ""
        parts.append(f"{sign}{_ratio(*getattr(found[name], key))} times {what} (`{name}`)")
    return f"\nMost: {parts[0]}; {parts[1]}.\n"


def _target(reference: Sequence[Entry], nfe: float, measure: str) -> float:
    curve = Curve(reference, measure)
    return float(np.interp(np.log(nfe), curve.log_nfe, [e.mean(measure) for e in curve.entries]))


def _cells(found: Reach) -> list[str]:
    sign = "≤ " if found.at_least else ""
    ends = "-"
    if found.nfe is not None and math.isfinite(found.nfe[0]):
        ends = " to ".join(_end(v) for v in found.nfe)
    if not found.costs:
        return [f"not by {number(found.most, 0)}", *["-"] * len(COSTS), ends, "-", "-"]
    cells = [sign + number(found.costs[name], 0) for name in COSTS]
    cells += [sign + number(found.costs["seconds"], 3), ends]
    sign = "≥ " if found.at_least else ""
    return [*cells, *(sign + _ratio(*r) for r in (found.fewer, found.faster))]


def _end(nfe: float) -> str:
    return "not reached" if math.isinf(nfe) else number(nfe, 0)


def _ratio(value: float, span: Span | None) -> str:
    told = number(value, 1)
    return told if span is None else f"{told} [{_short(span[0])}, {number(span[1], 1)}]"


def _short(low: float) -> str:
    """The lower end; 0 is that of a search that may not reach the target."""
    return "-" if low == 0 else number(low, 1)
