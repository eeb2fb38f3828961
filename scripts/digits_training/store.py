"""Weights as half-precision safetensors beside a JSON file that says what they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from digits_training.networks import Classifier, ClassifierConfig

CONFIG = "config.json"
CLASSIFIERS = ("classifier", "judge")


def save_network(module: nn.Module, name: str, config: dict[str, Any], folder: Path) -> None:
    """Write ``NAME.safetensors`` and the entry ``NAME`` of ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: v.detach().half().cpu().contiguous() for key, v in module.state_dict().items()}
    save_file(state, folder / f"{name}.safetensors")
    file = folder / CONFIG
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known[name] = config
    file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def load_unet(folder: Path) -> UNet2DModel:
    """The denoiser of a folder, float32.

    Raises:
        ValueError: the folder has none.
    """
    config = _config("unet", folder)
    return _filled(UNet2DModel.from_config(config["network"]), "unet", folder)  # type: ignore[return-value]


def load_classifier(name: str, folder: Path) -> Classifier:
    """A classifier of a folder, float32: ``"classifier"`` is searched, ``"judge"`` judges.

    Raises:
        ValueError: the folder has none.
    """
    config = ClassifierConfig(**_config(name, folder)["network"])
    return _filled(Classifier(config), name, folder)  # type: ignore[return-value]


def _config(name: str, folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if name not in known or not (folder / f"{name}.safetensors").exists():
        command = "model" if name == "unet" else "classifiers"
        raise ValueError(
            f"{folder} holds no {name}; `python scripts/train_digits.py {command} --out {folder}` "
            "trains it"
        )
    return known[name]


def _filled(module: nn.Module, name: str, folder: Path) -> nn.Module:
    state = load_file(folder / f"{name}.safetensors")
    module.load_state_dict({key: value.to(torch.float32) for key, value in state.items()})
    return module.eval().requires_grad_(False)
