"""Writes the results of ``scripts/benchmark.py video`` into ``docs/video.md``.

    python scripts/video_page.py --strips outputs/strips

What stands between the two marks of the page is replaced; the rest is left as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.report import read
from jsonargparse import auto_cli
from PIL import Image, ImageDraw

from steering.files import write_atomically
from steering.shapes import parse_motion
from steering.shapes.motion import KINDS
from steering.shapes.outlines import SIZE
from steering.statistics import interval

DOCS = Path(__file__).parents[1] / "docs"
PICTURED = ("base", "best-of-n", "fk", "dlbs-0", "dlbs-2")
_TITLE, _LABEL = 20, 90  # pixels
BEGIN, END = "<!-- video: begin -->", "<!-- video: end -->"


def write(
    results: Path = DOCS / "results" / "video-h100.json",
    page: Path = DOCS / "video.md",
    strips: Path | None = None,
) -> None:
    """Put fit and table into the page, and draw the picture beside it.

    Args:
        results: the file that the benchmark wrote.
        page: the page, with both marks.
        strips: folder of its strips; the picture stays as it is without.

    Raises:
        ValueError: a mark is missing.
    """
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} must hold each of the lines {BEGIN!r} and {END!r} once")
    before, rest = text.split(BEGIN)
    found = read(results)
    told = f"{fitted(found['rows'])}\n{table(found['rows'])}\n{provenance(found, results)}"
    picture = page.with_suffix(".png")
    if strips is not None:
        draw(found["rows"], strips, picture)
    if picture.exists():
        told += (
            f"\n\n![videos of three prompts by several searches, a frame a tile]({picture.name})"
        )
    write_atomically(page, f"{before}{BEGIN}\n\n{told}\n{END}{rest.split(END)[1]}")


def draw(rows: list[dict[str, Any]], strips: Path, picture: Path) -> None:
    """One picture: for each prompt that was kept the video of each search, a frame a tile.

    Raises:
        FileNotFoundError: the folder lacks the strip of a search.
    """
    cells = {r["sampler"]: r for r in rows if r["kind"] == "cell" and r["first"] == 0}
    cells = {name: cells[name] for name in PICTURED if name in cells}  # the largest budget is last
    sheets = {
        name: np.asarray(Image.open(strips / f"{name}-{row['budget']}.png").convert("RGB"))
        for name, row in cells.items()
    }
    height = next(iter(sheets.values())).shape[0]
    width = next(iter(sheets.values())).shape[1]
    texts = next(iter(cells.values()))["texts"][: height // SIZE]
    block = _TITLE + len(sheets) * (SIZE + 2) + _TITLE // 2
    sheet = Image.new("RGB", (_LABEL + width, len(texts) * block), "white")
    pen = ImageDraw.Draw(sheet)
    for i, text in enumerate(texts):
        pen.text((4, i * block + 4), text, "black")
        for j, (name, pixels) in enumerate(sheets.items()):
            top = i * block + _TITLE + j * (SIZE + 2)
            pen.text((4, top + SIZE // 2 - 6), name, "black")
            sheet.paste(Image.fromarray(pixels[i * SIZE : (i + 1) * SIZE]), (_LABEL, top))
    sheet.save(picture)


def fitted(rows: list[dict[str, Any]]) -> str:
    """What the rewards weigh, and how well each agrees with the judge."""
    row = next(r for r in rows if r["kind"] == "fit")
    fit = row["fit"]
    lines = ["| reward | weight | correlation with the judge |", "| --- | --- | --- |"]
    lines += [
        f"| {name} | {weight:.2f} | {alone:.2f} |"
        for name, weight, alone in zip(fit["names"], fit["weights"], fit["alone"], strict=True)
    ]
    validated = fit["validated"]
    lines.append(f"| their sum | | {'-' if validated is None else f'{validated:.2f}'} |")
    base = row["base"]
    told = (
        f"\nOf {fit['samples']} unsteered videos of {row['fit_prompts']} prompts (none of those "
        f"compared below), {base['motion-verifier']:.2f} are right; {base['frames']:.2f} of their "
        f"frames show the shapes, {base['motion']:.2f} of them move as asked. The sum's correlation is "
        "that on prompts left out of the fit; all are within a prompt.\n"
    )
    return "\n".join(lines) + "\n" + told


def table(rows: list[dict[str, Any]]) -> str:
    """Every sampler at every budget over all prompts that all samplers of that budget have."""
    cells = [r for r in rows if r["kind"] == "cell"]
    names = list(dict.fromkeys((r["budget"], r["sampler"]) for r in cells))
    names.sort(key=lambda n: n[0])
    head = ["search", "calls", "reward", "right", "95 %", *KINDS, "frames", "motion", "seconds"]
    lines = [f"| {' | '.join(head)} |", "| --- |" * len(head)]
    lines[1] = "|" + " --- |" * len(head)
    for budget, name in names:
        own = [r for r in cells if (r["budget"], r["sampler"]) == (budget, name)]
        lines.append(_line(name, own))
    counts = sorted({sum(r["prompts"] for r in cells if _key(r) == k) for k in map(_key, cells)})
    return "\n".join(lines) + f"\n\nPrompts of a line: {', '.join(map(str, counts))}.\n"


def _key(row: dict[str, Any]) -> tuple[int, str]:
    return row["budget"], row["sampler"]


def _line(name: str, rows: list[dict[str, Any]]) -> str:
    by_prompt = {
        column: np.concatenate([np.mean(r["per_prompt"][column], 0) for r in rows])
        for column in ("reward", "right", "frames", "motion", "nfe")
    }
    kinds = np.array([parse_motion(text).kind for r in rows for text in r["texts"]])
    low, high = interval(by_prompt["right"], share=True)
    searches = sum(r["prompts"] * r["seeds"] for r in rows)
    cells = [
        name,
        f"{by_prompt['nfe'].mean():.0f}",
        f"{by_prompt['reward'].mean():.2f}",
        f"{by_prompt['right'].mean():.3f}",
        f"{low:.2f} to {high:.2f}",
        *(
            f"{by_prompt['right'][kinds == kind].mean():.2f}" if (kinds == kind).any() else "-"
            for kind in KINDS
        ),
        f"{by_prompt['frames'].mean():.2f}",
        f"{by_prompt['motion'].mean():.2f}",
        f"{sum(r['wall_seconds'] for r in rows) / searches:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def provenance(found: dict[str, Any], results: Path) -> str:
    """How and where the file was made."""
    meta = found["meta"]
    versions = ", ".join(f"{n} {meta['versions'][n]}" for n in ("torch", "diffusers"))
    words = [Path(w).name if w.startswith("/") else w for w in meta["command"].split()]
    command = " ".join(words)
    return f"`{results.name}`: {meta['device']}, {versions}, `{command}`."


if __name__ == "__main__":
    auto_cli(write, as_positional=False)
