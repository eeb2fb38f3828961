"""Pictures of results: a grid that shows the gain at a glance, and curves against cost."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

RIGHT, WRONG = "#2a9d55", "#c8463c"


def picture_grid(
    entries: Sequence[Mapping[str, Any]], path: Path, rows: Sequence[Mapping[str, Any]]
) -> None:
    """One row a prompt, one column a sampler; the frame is green where the verifier agrees.

    Args:
        entries: ``{"prompt": text, sampler: (picture, reward, verdict), ...}``.
        path: PNG to write.
        rows: summary of each sampler, in the order of the columns, for the headings.
    """
    columns = [name for name in entries[0] if name != "prompt"]
    height = 1.35 * len(entries) + 0.9
    figure, axes = plt.subplots(
        len(entries), len(columns), figsize=(1.5 * len(columns) + 3.2, height), squeeze=False
    )
    for line, entry in zip(axes, entries, strict=True):
        for axis, name in zip(line, columns, strict=True):
            picture, reward, verdict = entry[name]
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(f"reward {reward:.1f}", fontsize=7, labelpad=2)
            for spine in axis.spines.values():
                spine.set(color=RIGHT if verdict else WRONG, linewidth=2.5)
        line[0].text(
            -0.15,
            0.5,
            textwrap.fill(entry["prompt"], 26),
            transform=line[0].transAxes,
            ha="right",
            va="center",
            fontsize=8,
        )
    for axis, name, row in zip(axes[0], columns, rows, strict=True):
        axis.set_title(f"{name}\n{row['accuracy']:.0%} right", fontsize=9)
    figure.suptitle(
        "Green: the picture truly shows its prompt (exact verifier, never searched on)", fontsize=8
    )
    top = 1 - 0.85 / height
    figure.subplots_adjust(left=0.42, right=0.98, top=top, bottom=0.03, hspace=0.3, wspace=0.12)
    _save(figure, path)


def reward_and_accuracy(
    curve: Sequence[Mapping[str, Any]], base: Mapping[str, Any], path: Path
) -> None:
    """Searched reward and verified accuracy against NFE, a line a family of samplers.

    Args:
        curve: rows with ``sampler`` (family-number), ``nfe``, ``reward`` and ``accuracy``.
        base: the unsteered model's row.
        path: PNG to write.
    """
    families: dict[str, list[Mapping[str, Any]]] = {}
    for row in curve:
        families.setdefault(row["sampler"].rsplit("-", 1)[0], []).append(row)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    for axis, key, label in (
        (axes[0], "reward", "searched reward"),
        (axes[1], "accuracy", "verified accuracy"),
    ):
        axis.axhline(base[key], color="gray", linestyle=":", label="base (mean)")
        for name, rows in families.items():
            rows = sorted(rows, key=lambda r: r["nfe"])
            axis.plot([r["nfe"] for r in rows], [r[key] for r in rows], marker="o", label=name)
        axis.set(xscale="log", xlabel="denoiser calls a prompt (NFE)", ylabel=label)
        axis.grid(alpha=0.3)
    axes[1].set_ylim(-0.02, 1.02)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150)
    plt.close(figure)
