"""CLIP score and FID of a folder of pictures, through torchmetrics.

    python scripts/evaluate.py outputs/run --clip shapes-clip --features shapes-clip --reference real/

The prompts are those written in the PNG files by ``steer generate``, or come from ``--prompts``.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor
from tqdm import tqdm

import steering
from steering.files import write_atomically
from steering.media import common_size, list_pictures, load_pictures, read_metadata

_PACKAGES = (
    "torch",
    "torchvision",
    "torchmetrics",
    "open_clip_torch",
    "transformers",
)


@dataclass(frozen=True)
class Inputs:
    """What is evaluated, checked before any model loads.

    Attributes:
        pictures: the generated pictures.
        prompts: one a picture; empty if no CLIP score is asked for.
        reference: the real pictures; empty if no FID is asked for.
    """

    pictures: list[Path]
    prompts: list[str]
    reference: list[Path]


def evaluate(
    folder: str,
    *,
    reference: str | None = None,
    prompts: str | None = None,
    clip: str | None = "openai/clip-vit-large-patch14",
    features: str = "inception",
    batch: int = 32,
    device: str = "cpu",
    output: str | None = None,
) -> dict[str, Any]:
    """CLIP score and FID of a folder of pictures.

    Args:
        folder: the generated pictures, with all subfolders.
        reference: folder of real pictures; needed for FID.
        prompts: file of prompts instead of those in the PNG files: text with one prompt a line in the
            order of the sorted pictures, JSON list likewise, or JSON object from file name to prompt.
        clip: CLIP model of the score: "shapes-clip" (embedded), "NAME:TAG" of open_clip such as
            "ViT-L-14:openai", a hub id of transformers, "hf-hub:" and a hub id of open_clip, or a
            folder; null for no CLIP score.
        features: what FID compares: "inception", "inception:FILE" with local weights, or any of the
            names that clip takes (CLIP features: Kynkäänniemi et al. 2022, arXiv 2203.06026).
        batch: pictures a forward pass.
        device: where the models run.
        output: JSON file to write; evaluation.json in the folder by default.

    Returns:
        What was written: ``{"meta": {...}, "rows": [{"metric", "value", ...}]}``.
    """
    if batch < 1:
        raise ValueError(f"batch is at least 1, got {batch}")
    if clip is None and reference is None:
        raise ValueError("nothing to do: give a CLIP model (clip), a reference folder, or both")
    target = Path(output).expanduser() if output else Path(folder).expanduser() / "evaluation.json"
    inputs = _check_inputs(
        folder, reference, prompts if clip else None, with_prompts=clip is not None
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    models = _Models(device)
    rows = []
    if clip is not None:
        rows.append(_clip_score(inputs, models, clip, batch))
    if reference is not None:
        rows.append(_fid(inputs, models, features, batch))
    meta = {"versions": _versions(), "device": device, "folder": folder, "reference": reference}
    result = {"meta": meta, "rows": rows}
    write_atomically(target, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    _show(rows, target)
    return result


class _Models:
    """CLIP models by name, each loaded once though both metrics may use it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._pairs: dict[str, Any] = {}

    def pair(self, name: str) -> Any:
        from rewards.extractors import load_pair

        if name not in self._pairs:
            self._pairs[name] = load_pair(name)
        return self._pairs[name]


def _clip_score(inputs: Inputs, models: _Models, name: str, batch: int) -> dict[str, Any]:
    from torchmetrics.multimodal import CLIPScore

    pair = models.pair(name)
    metric = CLIPScore(lambda: (pair, pair.processor)).to(models.device)
    done = 0
    with torch.no_grad():
        for pictures in _batches(inputs.pictures, batch, "CLIP score"):
            texts = inputs.prompts[done : done + len(pictures)]
            metric.update(pictures.to(models.device), texts)
            done += len(pictures)
    return {
        "metric": "clip_score",
        "value": float(metric.compute()),
        "model": name,
        "pictures": done,
    }


def _fid(inputs: Inputs, models: _Models, name: str, batch: int) -> dict[str, Any]:
    metric = _fid_metric(models, name).to(models.device)
    for paths, real in ((inputs.reference, True), (inputs.pictures, False)):
        for pictures in _batches(paths, batch, "reference" if real else "pictures"):
            metric.update(pictures.to(models.device), real=real)
    # The eigenvalue routine behind FID may crash the process on NaN.
    for total in (metric.real_features_sum, metric.fake_features_sum):
        if not total.isfinite().all():
            raise ValueError(f"the features of {name!r} are not finite: are these its weights?")
    size = len(metric.real_features_sum)
    row = {
        "metric": "fid",
        "value": float(metric.compute()),
        "model": name,
        "pictures": len(inputs.pictures),
        "reference_pictures": len(inputs.reference),
        "features": size,
    }
    fewest = min(len(inputs.pictures), len(inputs.reference))
    if fewest <= size:
        row["note"] = (
            f"{fewest} pictures for {size} features: their covariance is singular and FID is biased "
            "upwards; compare only with figures from as many pictures, or use more of them"
        )
        warnings.warn(f"FID: {row['note']}", stacklevel=2)
    return row


def _fid_metric(models: _Models, name: str) -> Any:
    from torchmetrics.image.fid import FrechetInceptionDistance

    from rewards.extractors import INCEPTION, ImageFeatures, inception_distance

    kind, _, weights = name.partition(":")
    if kind == INCEPTION:
        return inception_distance(weights or None)
    return FrechetInceptionDistance(ImageFeatures(models.pair(name)))


def _batches(paths: Sequence[Path], batch: int, what: str) -> Iterator[Tensor]:
    with tqdm(total=len(paths), desc=what, unit="picture") as bar:
        for start in range(0, len(paths), batch):
            pictures = load_pictures(paths[start : start + batch])
            yield pictures
            bar.update(len(pictures))


def _check_inputs(
    folder: str, reference: str | None, prompts: str | None, *, with_prompts: bool
) -> Inputs:
    pictures = list_pictures(folder)
    common_size(pictures)
    real = list_pictures(reference) if reference is not None else []
    if real:
        common_size(real)
        if min(len(pictures), len(real)) < 2:
            raise ValueError(
                f"FID needs two pictures a side at least, got {len(pictures)} and {len(real)}"
            )
    if not with_prompts:
        return Inputs(pictures, [], real)
    texts = _prompts_from_file(Path(prompts), pictures) if prompts else _prompts_inside(pictures)
    return Inputs(pictures, texts, real)


def _prompts_inside(pictures: Sequence[Path]) -> list[str]:
    texts = [read_metadata(path).get("prompt", "") for path in pictures]
    missing = [path.name for path, text in zip(pictures, texts, strict=True) if not text.strip()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(pictures)} pictures have no prompt written inside "
            f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}); give --prompts FILE, or "
            "--clip null for FID alone"
        )
    return texts


def _prompts_from_file(file: Path, pictures: Sequence[Path]) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {str(file)!r} of prompts")
    content = file.read_text(encoding="utf-8")
    try:
        given = json.loads(content) if file.suffix == ".json" else content.splitlines()
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if isinstance(given, dict):
        missing = [path.name for path in pictures if path.name not in given]
        if missing:
            raise ValueError(f"{file} has no prompt for {len(missing)} pictures, say {missing[0]}")
        given = [given[path.name] for path in pictures]
    if not isinstance(given, list) or not all(
        isinstance(text, str) and text.strip() for text in given
    ):
        raise ValueError(
            f"{file} must hold texts, none of them empty: a list, or file name to prompt"
        )
    if len(given) != len(pictures):
        raise ValueError(f"{file} has {len(given)} prompts for {len(pictures)} pictures")
    return given


def _versions() -> dict[str, str]:
    found = {"diffusion-steering": steering.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _show(rows: Sequence[dict[str, Any]], target: Path) -> None:
    print(f"{'metric':<12}{'value':>10}  {'pictures':>8}  model")
    for row in rows:
        print(f"{row['metric']:<12}{row['value']:>10.4f}  {row['pictures']:>8}  {row['model']}")
    print(f"written to {target}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; what is wrong with the input is said in one line, exit status 1."""
    try:
        auto_cli(evaluate, args=None if arguments is None else list(arguments), as_positional=True)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"evaluate: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
