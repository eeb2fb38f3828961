"""Writes the table of pipelines in ``docs/pipelines.md`` from ``docs/results/pipelines.json``.

    python scripts/pipelines_page.py

What stands between the two marks of the page is replaced; the rest is left as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report import read
from jsonargparse import auto_cli

from steering.files import write_atomically

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- table of pipelines: begin -->", "<!-- table of pipelines: end -->"
HEAD = """\
| pipeline | scheduler | door | difference | of media | times, prompts mixed | order | gradients |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def write(
    results: Path = DOCS / "results" / "pipelines.json", page: Path = DOCS / "pipelines.md"
) -> None:
    """Put the table into the page.

    Args:
        results: the file that ``scripts/benchmark.py pipelines`` wrote.
        page: the page, with both marks.

    Raises:
        ValueError: a mark is missing.
    """
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} must hold each of the lines {BEGIN!r} and {END!r} once")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    write_atomically(page, f"{before}{BEGIN}\n{table(read(results)['rows'])}{END}{after}")


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
