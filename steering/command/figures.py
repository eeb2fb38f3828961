"""Pictures of results: a grid that shows the gain at a glance, and curves against cost."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator, ScalarFormatter

RIGHT, WRONG = "#2a9d55", "#c8463c"


def picture_grid(
    entries: Sequence[Mapping[str, Any]], path: Path, rows: Sequence[Mapping[str, Any]]
) -> None:
    """One column a prompt, one row a sampler; the frame is green where the verifier agrees.

    Args:
        entries: ``{"prompt": text, sampler: (picture, reward, verdict), ...}``.
        path: PNG to write.
        rows: summary of each sampler, in the order of the rows, for the labels.
    """
    samplers = [name for name in entries[0] if name != "prompt"]
    figure, axes = plt.subplots(
        len(samplers),
        len(entries),
        figsize=(1.45 * len(entries) + 1.3, 1.62 * len(samplers) + 1.1),
        squeeze=False,
    )
    for line, name, row in zip(axes, samplers, rows, strict=True):
        for axis, entry in zip(line, entries, strict=True):
            picture, reward, verdict = entry[name]
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(f"reward {reward:.1f}", fontsize=7, labelpad=2)
            for spine in axis.spines.values():
                spine.set(color=RIGHT if verdict else WRONG, linewidth=2.5)
        line[0].set_ylabel(f"{name}\n{row['accuracy']:.0%} right", fontsize=9)
    for axis, entry in zip(axes[0], entries, strict=True):
        axis.set_title(textwrap.fill(entry["prompt"], 20), fontsize=7)
    figure.text(
        0.5,
        0.01,
        "green: the picture truly shows its prompt (exact verifier, never searched on); the first "
        "row shows one sample, its label the mean over all",
        ha="center",
        fontsize=7,
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1), h_pad=0.6, w_pad=0.5)
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
        axis.set_xticks(sorted({r["nfe"] for r in curve}))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    axes[1].set_ylim(-0.02, 1.02)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150)
    plt.close(figure)
