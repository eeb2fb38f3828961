"""Writing model folders as they are shipped: float16 safetensors that load as float32."""

import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import nn


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Saves a diffusers pipeline in half precision."""
    pipeline.to("cpu", dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
    for config in folder.glob("*/config.json"):
        _tidy(config)


def save_open_clip(model: nn.Module, config: dict, tokenizer: object, folder: Path) -> None:
    """Saves an open_clip model in half precision, as its "local-dir:" names expect it."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    text = json.dumps(config, indent=2) + "\n"
    (folder / "open_clip_config.json").write_text(text, encoding="utf-8")
    tokenizer.save_pretrained(folder)


def _tidy(config: Path) -> None:
    values = json.loads(config.read_text(encoding="utf-8"))
    values.pop("_name_or_path", None)  # where it was trained
    # Some loaders take the type from the configuration; half precision would fail beside float32.
    for name in ("dtype", "torch_dtype"):
        if name in values:
            values[name] = "float32"
    config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
