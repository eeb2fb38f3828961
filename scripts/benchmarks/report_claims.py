"""Published orderings of searches, and whether they hold in the rows: decided by paired intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.report import Entry, difference
from benchmarks.report_tables import DIGITS, REFERENCE, TITLES, setting_title, spread, table

Verdict = Literal["holds", "open", "reversed"]


@dataclass(frozen=True)
class Claim:
    """One search beats others at equal cost, says a paper.

    Attributes:
        text: the claim.
        source: who says so.
        better: the search that is said to win.
        than: those that it is said to beat. On a rectified flow a name means the search by the flow SDE
            (``-sde``) where that was run; best of N keeps the pipeline's own scheduler.
    """

    text: str
    source: str
    better: str
    than: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """A claim at one budget: against the rival of the highest mean.

    Attributes:
        verdict: whether the interval of the paired difference lies above, across or below 0.
        gap: mean difference and its 95 % interval.
        rival: sampler that it was decided against.
    """

    verdict: Verdict
    gap: tuple[float, float, float]
    rival: str


_FK = "[2501.06848](https://arxiv.org/abs/2501.06848)"
_BFS = "[2505.23614](https://arxiv.org/abs/2505.23614)"
_RBF = "[2503.19385](https://arxiv.org/abs/2503.19385)"
_GLASS = "[2509.25170](https://arxiv.org/abs/2509.25170)"
_NOISE = "[2501.09732](https://arxiv.org/abs/2501.09732)"
_DTS = "[2506.20701](https://arxiv.org/abs/2506.20701)"
#: Of comparisons at a few budgets and at equal seconds.
CLAIMS = (
    Claim("FK steering, difference potential, beats best of N", _FK, "fk", (REFERENCE,)),
    Claim("FK steering, maximum potential, beats best of N", _FK, "fk-max", (REFERENCE,)),
    Claim("FK steering by an SDE loses to best of N by the ODE", _GLASS, REFERENCE, ("fk-sde",)),
    Claim("FK steering along GLASS beats best of N by the ODE", _GLASS, "fk-glass", (REFERENCE,)),
    Claim("GLASS beats the SDE under FK steering", _GLASS, "fk-glass", ("fk-sde",)),
    Claim("BFS is the strongest particle search", _BFS, "bfs", ("fk-max", "fk", "svdd", "tempered")),
    Claim("BFS beats best of N", _BFS, "bfs", (REFERENCE,)),
    Claim("SVDD loses to FK steering", _BFS, "fk-max", ("svdd",)),
    Claim("SVDD loses to best of N", _BFS, REFERENCE, ("svdd",)),
    Claim("SVDD along the VP path beats best of N by the ODE", _RBF, "svdd-vp", (REFERENCE,)),
    Claim("RBF along the VP path beats best of N by the ODE", _RBF, "rbf-vp", (REFERENCE,)),
    Claim("RBF along the VP path beats RBF by the SDE", _RBF, "rbf-vp", ("rbf-sde",)),
    Claim("SVDD along the VP path beats SVDD by the SDE", _RBF, "svdd-vp", ("svdd-sde",)),
    Claim("RBF beats SVDD", _RBF, "rbf", ("svdd",)),
    Claim("RBF along the VP path beats SVDD along it", _RBF, "rbf-vp", ("svdd-vp",)),
    Claim("RBF beats CoDe", _RBF, "rbf", ("code",)),
    Claim("a rising temperature beats a constant one", _BFS, "tempered", ("smc",)),
    Claim(
        "tempered SMC beats FK steering",
        "[2501.05803](https://arxiv.org/abs/2501.05803)",
        "tempered",
        ("fk-max", "fk"),
    ),
    Claim(
        "entropic annealing beats the plain particle filter",
        "[2510.05825](https://arxiv.org/abs/2510.05825)",
        "entropic",
        ("smc",),
    ),
)  # fmt: skip
#: Of noise searches and trees.
SEARCH_CLAIMS = (
    Claim("random search beats zero-order search", _NOISE, REFERENCE, ("zero-order",)),
    Claim("random search beats search over paths", _NOISE, REFERENCE, ("paths",)),
    Claim("DTS* beats best of N", _DTS, "dts-star", (REFERENCE,)),
    Claim("DTS* beats FK steering, maximum potential", _DTS, "dts-star", ("fk-max", "fk")),
    Claim("DTS* beats DTS", _DTS, "dts-star", ("dts",)),
    Claim(
        "beam search that looks ahead beats best of N",
        "[2501.19252](https://arxiv.org/abs/2501.19252)",
        "dlbs-la",
        (REFERENCE,),
    ),
    Claim(
        "looking ahead beats the one-step prediction in beam search",
        "[2501.19252](https://arxiv.org/abs/2501.19252)",
        "dlbs-la",
        ("dlbs",),
    ),
    Claim(
        "evolutionary search beats best of N",
        "[2505.17618](https://arxiv.org/abs/2505.17618)",
        "evo",
        (REFERENCE,),
    ),
    Claim("TreeG beats best of N", _BFS, "treeg", (REFERENCE,)),
    Claim("BFS beats TreeG", _BFS, "bfs", ("treeg",)),
    Claim(
        "early rejection beats finishing every candidate",
        "[2508.01969](https://arxiv.org/abs/2508.01969)",
        "halving",
        (REFERENCE,),
    ),
)  # fmt: skip


def claims_sections(entries: Sequence[Entry], claims: Sequence[Claim]) -> str:
    """Tables by searched reward and by verified accuracy, a section a setting; empty without any."""
    parts = []
    for setting in dict.fromkeys(e.setting for e in entries):
        own = [e for e in entries if e.setting == setting]
        tables = [claims_table(own, claims, m) for m in ("reward", "accuracy")]
        if any(tables):
            parts += [f"### {setting_title(setting)}: orderings\n", *filter(None, tables)]
    return "\n".join(parts)


def claims_table(entries: Sequence[Entry], claims: Sequence[Claim], measure: str) -> str:
    """Claims down, budgets across; of one setting. Empty where nothing can be decided.

    Args:
        entries: of one setting, at equal NFE and at equal seconds.
        claims: what to decide; those whose searches were not run are left out.
        measure: by which they are decided.
    """
    pools = _pools(entries)
    lines = []
    for claim in claims:
        found = [decide(claim, pool, measure) for pool in pools.values()]
        if any(found):
            cells = [_cell(f, measure, len(claim.than) > 1) for f in found]
            lines.append([f"{claim.text} ({claim.source})", *cells, overall(found)])
    head = [f"claim, by {TITLES[measure]}", *pools, "in all"]
    return table(head, lines) if lines else ""


def decide(claim: Claim, pool: Sequence[Entry], measure: str) -> Finding | None:
    """A claim among the entries of one budget; None where a search is missing."""
    better = _named(pool, claim.better)
    rivals = [e for name in claim.than if (e := _named(pool, name)) is not None]
    if better is None or not rivals:
        return None
    rival = max(rivals, key=lambda e: e.mean(measure))
    gap = difference(better, rival, measure)
    if gap is None:
        return None
    verdict: Verdict = "holds" if gap[1] > 0 else "reversed" if gap[2] < 0 else "open"
    return Finding(verdict, gap, rival.sampler)


def overall(findings: Sequence[Finding | None]) -> str:
    """What the budgets say together."""
    verdicts = {f.verdict for f in findings if f is not None}
    if len(verdicts) == 1:
        return {"holds": "holds", "reversed": "**reversed**", "open": "open"}[verdicts.pop()]
    if verdicts == {"holds", "open"}:
        return "holds in part"
    return "**reversed** in part" if verdicts == {"reversed", "open"} else "mixed"


def _named(pool: Sequence[Entry], name: str) -> Entry | None:
    """The entry of a search: by the flow SDE where that was run."""
    names = {e.sampler: e for e in pool}
    if name != REFERENCE and f"{name}-sde" in names:
        return names[f"{name}-sde"]
    return names.get(name)


def _pools(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Entries that may be compared: of each budget, then of each reference's seconds."""
    plain = [e for e in entries if e.equal_seconds is None and e.sampler != "base"]
    pools = {f"{b} NFE": [e for e in plain if e.budget == b] for b in _budgets(plain)}
    for told in dict.fromkeys(e.equal_seconds for e in entries if e.equal_seconds):
        name, _, nfe = told.partition(":")
        timed = [e for e in entries if e.equal_seconds == told]
        timed += [e for e in plain if (e.sampler, str(e.budget)) == (name, nfe)]
        pools[f"seconds of {told}"] = timed
    return pools


def _budgets(plain: Sequence[Entry]) -> list[int]:
    return sorted({e.budget for e in plain})


def _cell(found: Finding | None, measure: str, rivals: bool) -> str:
    if found is None:
        return "-"
    told = "**reversed**" if found.verdict == "reversed" else found.verdict
    against = f" (`{found.rival}`)" if rivals else ""
    return f"{told}, {spread(*found.gap, DIGITS[measure])}{against}"
