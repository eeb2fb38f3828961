"""Published checkpoints as safetensors: ``python -m rewards.conversion SOURCE TARGET --layout NAME``.

Pickles are read with ``weights_only=True``, so none of their code runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg
from safetensors.torch import save_file
from torch import Tensor

from rewards.blip import config_of, renamed
from rewards.weights import load_tensors

LAYOUTS = ("plain", "hps", "image-reward")


def convert(source: Path, target: Path, layout: str = "plain") -> Path:
    """Convert one checkpoint.

    Args:
        source: the published file.
        target: with "plain" the safetensors file to write, its tensors under the names they have
            (aesthetic heads, transformers' pytorch_model.bin); else the folder to write:
            "hps" an open_clip folder, "image-reward" a folder for `rewards.ImageReward`.
        layout: one of those.

    Returns:
        The target.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown layout, a target of the wrong kind, or tensors of another model.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is one of {', '.join(LAYOUTS)}; got {layout!r}")
    if not source.is_file():
        raise FileNotFoundError(f"there is no checkpoint {str(source)!r}")
    if (layout == "plain") != (target.suffix == ".safetensors"):
        kind = "a file *.safetensors" if layout == "plain" else "a folder"
        raise ValueError(f"the layout {layout!r} writes {kind}, got the target {str(target)!r}")
    tensors = load_tensors(source)
    if layout == "plain":
        _save(tensors, target)
        return target
    target.mkdir(parents=True, exist_ok=True)
    if layout == "hps":
        _save(tensors, target / "open_clip_model.safetensors")
        _write(target / "open_clip_config.json", hps_config())
    else:
        _save(renamed(tensors), target / "model.safetensors")
        _write(target / "config.json", config_of(tensors).to_dict())
    return target


def hps_config(model: str = "ViT-H-14") -> dict[str, Any]:
    """Configuration of an HPS v2 model in open_clip's form: the longest edge fitted, black padding."""
    from dataclasses import asdict

    described = open_clip.get_model_config(model)
    size = described["vision_cfg"]["image_size"]
    preprocess = asdict(PreprocessCfg(size=size, resize_mode="longest", fill_color=0))
    return {"model_cfg": described, "preprocess_cfg": preprocess}


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Clones: a safetensors file holds no two names for one memory.
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, path)


def _write(path: Path, record: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> Path:
    """Convert as the command line says; returns what was written."""
    parser = argparse.ArgumentParser(prog="rewards.conversion", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="the published checkpoint")
    parser.add_argument("target", type=Path, help="file (plain) or folder to write")
    parser.add_argument("--layout", choices=LAYOUTS, default="plain")
    options = parser.parse_args(argv)
    return convert(options.source, options.target, options.layout)


if __name__ == "__main__":
    main()
