"""Markdown tables of searches over a wide range of budgets on the embedded models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.report import COSTS, Entry
from benchmarks.report_claims import CLAIMS, SEARCH_CLAIMS, claims_sections
from benchmarks.report_reach import reach_table
from benchmarks.report_tables import (
    REFERENCE,
    TITLES,
    measured,
    number,
    seconds_sections,
    setting_title,
    table,
)

TARGET = 64  #: candidates of the best of N that searches are to reach
MEASURES = ("accuracy", "reward")
REACH = """\
What each search needs to reach what best of {n} reaches, interpolated between its budgets on the scale
of log NFE, at the first crossing; the interval resamples prompts, for the search and best of N together.
"≤" stands where the smallest budget reaches it already, "not by" before the largest budget where even
that does not. How many times fewer calls and less time are in units of best of {n}; an interval that
begins with "-" includes not reaching it.
"""


def search_sections(entries: Sequence[Entry]) -> str:
    """All tables, a section a setting."""
    parts = []
    for setting in dict.fromkeys(e.setting for e in entries):
        own = [e for e in entries if e.setting == setting]
        plain = [e for e in own if e.equal_seconds is None]
        title = setting_title(setting)
        reach = [text for m in MEASURES if (text := reach_table(plain, TARGET, m))]
        if reach:
            parts += [f"### {title}: to reach best of {TARGET}\n", REACH.format(n=TARGET), *reach]
        for measure in MEASURES:
            parts.append(f"### {title}: {TITLES[measure]} against denoiser calls\n")
            parts.append(by_budget(plain, lambda e, m=measure: measured(e, m)))  # type: ignore[misc]
        parts.append(f"### {title}: decodes, reward calls and seconds\n")
        parts.append(by_budget(plain, _costs))
        parts.append(seconds_sections(own))
        parts.append(claims_sections(own, (*SEARCH_CLAIMS, *CLAIMS)))
    return "\n".join(filter(None, parts))


def by_budget(entries: Sequence[Entry], cell: Callable[[Entry], str]) -> str:
    """Samplers down, denoiser calls that they were given across."""
    budgets = sorted({e.budget for e in entries})
    names = sorted(
        dict.fromkeys(e.sampler for e in entries), key=lambda s: (s != "base", s != REFERENCE)
    )
    known = {(e.sampler, e.budget): cell(e) for e in entries}
    lines = [[f"`{s}`", *(known.get((s, b), "-") for b in budgets)] for s in names]
    return table(["sampler", *(f"{b} NFE" for b in budgets)], lines)


def _costs(entry: Entry) -> str:
    counts = [number(entry.mean(c), 0) for c in COSTS if c != "nfe"]
    return ", ".join([*counts, number(entry.seconds, 3)])
