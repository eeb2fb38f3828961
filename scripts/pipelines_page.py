"""Writes the tables of ``docs/pipelines.md`` from ``docs/results/pipelines.json`` and ``offload.json``.

    python scripts/pipelines_page.py

What stands between the marks of the page is replaced; the rest is left as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report import read
from jsonargparse import auto_cli

from steering.files import write_atomically

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- table of pipelines: begin -->", "<!-- table of pipelines: end -->"
OFFLOAD = "<!-- table of offloading: begin -->", "<!-- table of offloading: end -->"
HEAD = """\
| pipeline | scheduler | door | difference | of media | times, prompts mixed | order | gradients |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def write(
    results: Path = DOCS / "results" / "pipelines.json",
    page: Path = DOCS / "pipelines.md",
    offload: Path = DOCS / "results" / "offload.json",
) -> None:
    """Put the tables into the page.

    Args:
        results: the file that ``scripts/benchmark.py pipelines`` wrote.
        page: the page, with its marks.
        offload: the file that ``scripts/benchmark.py offload`` wrote; there may be none yet.

    Raises:
        ValueError: a mark is missing.
    """
    text = page.read_text(encoding="utf-8")
    text = _between(text, page, (BEGIN, END), table(read(results)["rows"]))
    found = read(offload) if offload.is_file() else None
    write_atomically(page, _between(text, page, OFFLOAD, offload_table(found)))


def _between(text: str, page: Path, marks: tuple[str, str], table: str) -> str:
    begin, end = marks
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{page} must hold each of the lines {begin!r} and {end!r} once")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table}{end}{rest.split(end)[1]}"


def offload_table(found: dict[str, Any] | None) -> str:
    """Memory and time by way of offloading; a sentence where it was not measured."""
    if found is None:
        return "\nNot measured yet: it needs a GPU.\n\n"
    lines = [
        "| offloading | own call | best of 1, first call | again | best of N, first call | again "
        "| difference of media |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        cells = [
            f"{row[f'{name}_seconds']:.1f} s, {_gib(row[f'{name}_peak_bytes'])}"
            if f"{name}_seconds" in row
            else "-"
            for name in ("own", "one", "again", "search", "search_again")
        ]
        lines.append(f"| {row['mode']} | {' | '.join(cells)} | {row['max_diff']:.1e} |")
    first, device = found["rows"][0], found["meta"]["device"]
    said = (
        f"{device}; {first['steps']} steps, N = {first['candidates']}, weights of "
        f"{_gib(first['weights_bytes'])}; seconds, and most memory of the GPU in use. The first call "
        "of a steered pipeline learns it by some nine short calls of its own, each of which moves the "
        "weights where they are offloaded; keep the steered pipeline for the next."
    )
    return "\n" + "\n".join(lines) + f"\n\n{said}\n\n"


def _gib(count: float | None) -> str:
    return "-" if count is None else f"{count / 2**30:.2f} GiB"


def table(rows: list[dict[str, Any]]) -> str:
    """The table, then why pipelines are not replayed."""
    reasons = list(dict.fromkeys(row["reason"] for row in rows if row["reason"]))
    lines = [_line(row, reasons) for row in rows]
    notes = [f"{i}. {_short(reason)}" for i, reason in enumerate(reasons, 1)]
    said = "\nWhy not by replay:\n\n" + "\n".join(notes) + "\n" if notes else ""
    return f"\n{HEAD}" + "\n".join(lines) + "\n" + said + "\n"


def _line(row: dict[str, Any], reasons: list[str]) -> str:
    note = f" ({reasons.index(row['reason']) + 1})" if row["reason"] else ""
    if row.get("max_diff") is None:
        media = row.get("decode_diff")
        told = "-" if media is None else f"{media:.1e}"
        cells = [f"{row['door'] or 'refused'}{note}", "-", told, "-", "-", "-"]
    else:
        mixed = {True: "yes", False: "no", None: "-"}
        cells = [
            f"{row['door']}{note}",
            f"{row['max_diff']:.1e}",
            f"{row['decode_diff']:.1e}",
            f"{mixed[row['per_row_time']]}, {mixed[row['mixed_prompts']]}",
            "any" if row["any_order"] else "in sequence",
            mixed[row["gradients"]],
        ]
    scheduler = row["scheduler"].removesuffix("Scheduler")
    return f"| {row['pipeline']} | {scheduler} | " + " | ".join(cells) + " |"


def _short(reason: str) -> str:
    """One line, without what a table cannot show."""
    line = " ".join(reason.split())
    return line.removeprefix("replay refuses it: ").replace("|", "\\|")


if __name__ == "__main__":
    auto_cli(write, as_positional=False)
