"""Markdown tables of the comparison on the embedded models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from benchmarks.report import COSTS, MEASURES, Entry, Setting, difference
from steering.statistics import interval

REFERENCE = "best-of-n"
TITLES = {
    "reward": "reward",
    "accuracy": "accuracy",
    "diversity_pixel": "diversity, pixels",
    "diversity_clip": "diversity, CLIP",
    "nfe": "NFE",
    "decodes": "decodes",
    "reward_calls": "reward calls",
}
DIGITS = {"reward": 1, "accuracy": 2, "diversity_pixel": 3, "diversity_clip": 3}


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its first column text, the others numbers."""
    rules = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rules, *lines)) + "\n"


def number(value: float, digits: int) -> str:
    """A number of so many digits behind the point, without the nought before it; a dash for NaN."""
    if math.isnan(value):
        return "-"
    text = f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no minus before nought
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def spread(mean: float, low: float, high: float, digits: int) -> str:
    """``mean [low, high]``."""
    return f"{number(mean, digits)} [{number(low, digits)}, {number(high, digits)}]"


def shapes_sections(entries: Sequence[Entry]) -> str:
    """All tables of the comparison, a section a setting and budget."""
    parts = []
    for setting in dict.fromkeys(e.setting for e in entries):
        own = [e for e in entries if e.setting == setting]
        plain = [e for e in own if e.equal_seconds is None]
        base = [e for e in plain if e.sampler == "base"]
        searched = [e for e in plain if e.sampler != "base"]
        for budget in sorted({e.budget for e in searched}):
            here = [e for e in searched if e.budget == budget]
            parts.append(f"### {setting_title(setting)}: {budget} denoiser calls a prompt\n")
            parts.append(figures(base + here))
            parts.append(_against(here))
        parts.append(seconds_sections(own))
    return "\n".join(filter(None, parts))


def seconds_sections(entries: Sequence[Entry]) -> str:
    """Tables at equal seconds, of one setting; empty where there are no such rows."""
    plain = [e for e in entries if e.equal_seconds is None]
    parts = []
    for told in dict.fromkeys(e.equal_seconds for e in entries if e.equal_seconds):
        timed = [e for e in entries if e.equal_seconds == told]
        parts.append(f"### {setting_title(timed[0].setting)}: the seconds of {told}\n")
        parts.append(_equal_seconds(timed, plain, told))
    return "\n".join(parts)


def setting_title(setting: Setting) -> str:
    """What rows of a setting share, in words."""
    shared = f", {setting.processes} processes at once" if setting.processes > 1 else ""
    precision = f", {setting.dtype}" if setting.dtype != "float32" else ""
    return (
        f"{setting.model}, {setting.prompt_set} prompts, strength {setting.strength:g}, "
        f"{setting.device}, {setting.batch_size or 'default'} rows a call{precision}{shared}"
    )


def figures(entries: Sequence[Entry]) -> str:
    """Means and intervals of every measure, and every cost."""
    measures = [m for m in MEASURES if any(m in e.values for e in entries)]
    head = ["sampler", "prompts x seeds", *(TITLES[m] for m in measures)]
    head += [*(TITLES[c] for c in COSTS), "seconds"]
    lines = []
    for e in entries:
        cells = [f"`{e.sampler}`", f"{len(e.prompts)} x {e.setting.seeds}"]
        cells += [measured(e, m) for m in measures]
        cells += [number(e.mean(c), 0) for c in COSTS]
        lines.append([*cells, number(e.seconds, 3)])
    return table(head, lines)


def measured(entry: Entry, measure: str) -> str:
    """Mean over prompts and its interval; a dash where it was not measured."""
    values = entry.values.get(measure)
    if values is None:
        return "-"
    low, high = interval(values, share=measure == "accuracy")
    return spread(entry.mean(measure), low, high, DIGITS[measure])


def _against(entries: Sequence[Entry]) -> str:
    """Differences to best of N at equal NFE, prompt by prompt."""
    reference = next((e for e in entries if e.sampler == REFERENCE), None)
    others = [e for e in entries if e is not reference]
    if reference is None or not others:
        return ""
    told = f"Less `{REFERENCE}` on the same prompts (bold: the interval leaves out 0):\n\n"
    return told + _differences(others, reference)


def _differences(
    entries: Sequence[Entry],
    reference: Entry,
    head: Sequence[str] = (),
    further: Callable[[Entry], list[str]] = lambda _: [],
) -> str:
    measures = [m for m in MEASURES if m in reference.values]
    lines = []
    for entry in entries:
        cells = [f"`{entry.sampler}`", *further(entry)]
        for m in measures:
            gap = difference(entry, reference, m)
            text = "-" if gap is None else spread(*gap, DIGITS[m])
            clear = gap is not None and (gap[1] > 0 or gap[2] < 0)
            cells.append(f"**{text}**" if clear else text)
        lines.append(cells)
    return table(["sampler", *head, *(TITLES[m] for m in measures)], lines)


def _equal_seconds(timed: Sequence[Entry], plain: Sequence[Entry], told: str) -> str:
    """Samplers whose budget was chosen for equal time, and their differences to the reference."""
    name, _, nfe = told.partition(":")
    reference = next((e for e in plain if (e.sampler, e.budget) == (name, int(nfe))), None)
    if reference is None:
        return figures(timed)
    text = figures([reference, *timed])
    done = {e.sampler for e in timed} | {name, "base"}
    missing = [s for s in dict.fromkeys(e.sampler for e in plain) if s not in done]
    if missing:
        text += f"\nNot measured: `{'`, `'.join(missing)}`.\n"
    text += f"\nLess `{name}`; share is the measured time in shares of its own:\n\n"
    return text + _differences(
        timed,
        reference,
        ["NFE given", "share"],
        lambda e: [str(e.budget), number(e.seconds / reference.seconds, 2)],
    )
