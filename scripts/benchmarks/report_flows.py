"""Markdown tables of paths and transitions of flow models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.flow_methods import DRAWN
from benchmarks.report_tables import number, spread, table

Row = Mapping[str, Any]
Method = tuple[str, str]

CHILDREN = """\
Reward and accuracy of unsteered samples, and how far apart the children of one x_t are, branched where
noise has that share: root mean square of pixels after one random step, then with all later steps random,
too; in brackets the same of picture embeddings (1 less the cosine). A dash was not measured; children
of the ODE are all the same.
"""


def flow_tables(rows: Sequence[Row]) -> str:
    """Final law on Gaussian data; distance of children and quality on the embedded Flux."""
    parts = []
    exact = [r for r in rows if r.get("part") == "gaussian"]
    if exact:
        parts.append("### Gaussian data: final standard deviation in shares of the true one\n")
        parts.append(_by_steps(exact, lambda r: number(r["std_ratio"], 3)))
    drawn = [r for r in rows if r.get("part") == "shapes-flux"]
    if drawn:
        parts += ["### shapes-flux: distance between children, and quality\n", CHILDREN]
    for steps in sorted({r["steps"] for r in drawn}):
        parts.append(f"{steps} steps:\n")
        parts.append(children_table([r for r in drawn if r["steps"] == steps]))
    return "\n".join(parts)


def children_table(rows: Sequence[Row]) -> str:
    """Paths and transitions down; quality and distances at each noise share; of one number of steps."""
    levels = sorted({r["level"] for r in rows if "level" in r}, reverse=True)
    quality = {_method(r): r for r in rows if r.get("measure") == "quality"}
    apart = {(_method(r), r["level"]): r for r in rows if r.get("measure") == "children"}
    seen = {_method(r) for r in rows}
    methods: list[Method] = [m for m in DRAWN if m in seen]
    methods += [m for m in dict.fromkeys(map(_method, rows)) if m not in DRAWN]
    lines = []
    for method in methods:
        found = [apart.get((method, level)) for level in levels]
        cells = ["-" if row is None else _children(row) for row in found]
        lines.append([" / ".join(method), *_quality(quality.get(method)), *cells])
    head = ["path / transition", "reward", "accuracy", *(f"share {v:g}" for v in levels)]
    missing = [" / ".join(m) for m in DRAWN if m not in seen]
    told = f"\nNot measured: {', '.join(missing)}.\n" if missing else ""
    return table(head, lines) + told


def _method(row: Row) -> Method:
    return row["path"], row["transition"]


def _quality(row: Row | None) -> list[str]:
    if row is None:
        return ["-", "-"]
    ends = (row["accuracy"], row["accuracy_low"], row["accuracy_high"])
    return [number(row["reward"], 1), spread(*ends, 2)]


def _children(row: Row) -> str:
    return ", ".join(
        f"{number(row[f'pixels_{how}'], 3)} ({number(row[f'features_{how}'], 2)})"
        for how in ("step", "onwards")
    )


def _by_steps(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    """Paths and transitions down, numbers of steps across."""
    steps = sorted({r["steps"] for r in rows})
    methods = dict.fromkeys(_method(r) for r in rows)
    known = {(*_method(r), r["steps"]): cell(r) for r in rows}
    lines = [
        [f"{path} / {transition}", *(known.get((path, transition, n), "-") for n in steps)]
        for path, transition in methods
    ]
    return table(["path / transition", *(f"{n} steps" for n in steps)], lines)
