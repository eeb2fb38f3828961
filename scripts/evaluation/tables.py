"""Results as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.intervals import ALL
from steering.files import write_atomically

_ARROWS = {"higher": "↑", "lower": "↓"}
_COLUMNS = ("run", "metric", "model", "kind", "value", "low", "high", "count", "unit", "better")

Row = Mapping[str, Any]


def write_tables(result: Mapping[str, Any], folder: Path) -> None:
    """Write metrics.json, metrics.csv and metrics.md."""
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / "metrics.json", text + "\n")
    write_atomically(folder / "metrics.csv", as_csv(result["rows"]))
    write_atomically(folder / "metrics.md", as_markdown(result))


def as_csv(rows: Sequence[Row]) -> str:
    """One line a row, numbers in full."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, (*_COLUMNS, "note"), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def as_markdown(result: Mapping[str, Any]) -> str:
    """A table with a column a run, one by kind of prompt, and one of differences."""
    rows = result["rows"]
    runs = list(dict.fromkeys(row["run"] for row in rows))
    parts = [_by_run([row for row in rows if row["kind"] == ALL], runs, kinds=False)]
    by_kind = [row for row in rows if row["kind"] != ALL]
    if by_kind:
        parts += ["By kind of prompt:", _by_run(by_kind, runs, kinds=True)]
    if result["differences"]:
        base = result["differences"][0]["against"]
        parts += [
            f"Differences to {_cell(base)}, pair by pair where the same prompts or files were measured:",
            _differences(result["differences"]),
        ]
    notes = dict.fromkeys(f"{row['metric']}: {row['note']}." for row in rows if "note" in row)
    parts += [
        *notes,
        "In brackets: 95 % intervals by bootstrap. The arrow shows which way is better.",
    ]
    return "\n\n".join(parts) + "\n"


def _by_run(rows: Sequence[Row], runs: Sequence[str], *, kinds: bool) -> str:
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        name = f"{row['metric']} {_ARROWS[row['better']]}"
        key = (name, row["model"], *([row["kind"]] if kinds else []))
        lines.setdefault(key, {})[row["run"]] = _value(row["value"], row["low"], row["high"])
    head = ["metric", "model", *(["kind"] if kinds else []), *runs]
    body = [[*key, *(cells.get(run, "") for run in runs)] for key, cells in lines.items()]
    return _table(head, body)


def _differences(rows: Sequence[Row]) -> str:
    body = [
        [
            f"{row['metric']} {_ARROWS[row['better']]}",
            row["model"],
            row["run"],
            _value(row["difference"], row["low"], row["high"], sign="+"),
            f"{row['count']} {row['unit']}s",
        ]
        for row in rows
    ]
    return _table(["metric", "model", "run", "difference", "over"], body)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|")


def _value(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    if low is None or high is None:
        return f"{value:{sign}.4g}"
    return f"{value:{sign}.4g} [{low:.4g}, {high:.4g}]"
