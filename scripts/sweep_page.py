"""Writes ``docs/pipelines-sweep.md`` from ``docs/results/sweep.json``.

python scripts/sweep_page.py
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from benchmarks.report import read
from jsonargparse import auto_cli
from sweep.one import works

from steering.files import write_atomically

DOCS = Path(__file__).parents[1] / "docs"
HEAD = """\
# Diffusers' own pipeline tests through the doors

Diffusers tests each of its pipelines with tiny random weights and small inputs. Here every such test
class of a checkout is given to the doors (see [pipelines](pipelines.md)), which choose by themselves.
The pipeline's own call, with its own scheduler and the test's arguments, is compared with best-of-N with
one candidate: state by state (`difference`, over the largest number of a state where that is above 1)
and in the media of the last state, in [0, 1] (`of media`). A class works if both are below 1e-4, in
float32.

    {command}
    python scripts/sweep_page.py

diffusers {diffusers} against the tests of a checkout of its main branch (of 23 August 2026, the nearest
at hand), torch {torch}, transformers {transformers}; {device}. Nothing is downloaded:
tokenizers of characters and a few tiny text encoders stand in for those of the tests. Calls make four
steps where a test makes fewer and more are possible, weights that start at zero are drawn anew,
callbacks are left out, and outputs are arrays. Where a test gives `prompt_embeds` the candidates' prompt
is given as a text instead (marked E), since rewards read it.

"""
_OUTCOMES = {
    "measured": "differ by more than 1e-4",
    "broken": "accepted, and then could not be compared",
    "not finite": "make numbers that are not finite",
    "one step": "make one step alone, which shows nothing of a trajectory",
    "black box": "are served as a black box (`latents=`), for searches over noise alone",
    "refused": "are refused by all doors",
    "fails itself": "fail by themselves, on the test's own inputs",
    "too slow": "took too long",
    "crashed": "crashed",
    "not built": "could not be built or imported here (downloads, optional packages)",
}


def write(
    results: Path = DOCS / "results" / "sweep.json", page: Path = DOCS / "pipelines-sweep.md"
) -> None:
    """Write the page.

    Args:
        results: the file that ``scripts/sweep_diffusers.py`` wrote.
        page: the page.
    """
    write_atomically(page, text(read(results)))


def text(found: dict[str, Any]) -> str:
    """The whole page."""
    rows, meta = found["rows"], found["meta"]
    head = HEAD.format(command=_command(meta), device=meta["device"], **meta["versions"])
    good = [row for row in rows if works(row)]
    return head + _counts(rows, good) + _table(good) + _others(rows)


def counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many classes there are, can run here, and work by each door."""
    doors = Counter(row["door"] for row in rows if works(row))
    return {
        "classes": len(rows),
        "run": sum(row["outcome"] not in ("not built", "fails itself") for row in rows),
        "replay": doors["replay"],
        "inverted": doors["inverted"],
        "black box": sum(row["outcome"] == "black box" for row in rows),
    }


def _command(meta: dict[str, Any]) -> str:
    """The command as one would type it, without where a checkout or a file happened to lie."""
    return "python scripts/sweep_diffusers.py ../diffusers --json docs/results/sweep.json"


def _counts(rows: list[dict[str, Any]], good: list[dict[str, Any]]) -> str:
    found = counts(rows)
    said = (
        f"**Of {found['classes']} test classes {found['run']} run here, and {len(good)} work: "
        f"{found['replay']} by replay, {found['inverted']} by their own loop.** "
        f"Of these {sum(not row['any_order'] for row in good)} go in sequence only.\n\n"
    )
    rest = Counter(row["outcome"] for row in rows if not works(row))
    lines = [f"- {number} {_OUTCOMES[kind]}" for kind, number in rest.most_common()]
    return said + "The others:\n\n" + "\n".join(lines) + "\n\n"


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| test class | pipeline | scheduler | door | order | difference | of media |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: row["class"]):
        embedded = " E" if any(note.startswith("a text for") for note in row["notes"]) else ""
        cells = [
            row["class"].split(":")[1] + embedded,
            row["pipeline"].removesuffix("Pipeline"),
            row["scheduler"].removesuffix("Scheduler"),
            row["door"],
            "any" if row["any_order"] else "in sequence",
            f"{row['max_diff']:.1e}",
            f"{row['decode_diff']:.1e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n"


def _others(rows: list[dict[str, Any]]) -> str:
    """Reasons of all that do not work, classes with the same together."""
    parts = ["## What does not work, and why\n"]
    for kind, words in _OUTCOMES.items():
        causes: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            if row["outcome"] == kind and not works(row):
                causes[_cause(row)].append(row["class"].split(":")[1])
        if causes:
            parts.append(f"{sum(map(len, causes.values()))} {words}:\n")
            parts += [f"- {', '.join(sorted(names))}: {why}" for why, names in causes.items()]
            parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _cause(row: dict[str, Any]) -> str:
    measured = ""
    if row.get("max_diff") is not None:
        measured = f"{row['door']}, {row['max_diff']:.1e}, {row['decode_diff']:.1e} in media"
    said = "; ".join(part for part in (measured, row["reason"][:400]) if part)
    return said.replace("|", "\\|").replace("<", "&lt;") or "no reason given"


if __name__ == "__main__":
    auto_cli(write, as_positional=False)
