"""Measures every bar of the embedded models and writes the figures as JSON."""

import json
import platform
from functools import partial
from pathlib import Path

import diffusers
import open_clip
import torch
import transformers
from diffusers import DiffusionPipeline, FluxPipeline, StableDiffusionPipeline
from PIL import Image

from shapes_training import measure

_SD_GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0)
_FLUX_GUIDANCE = (1.0, 1.5, 2.0, 3.0)


def evaluate(weights: Path, pictures: Path, device: str, repeats: int = 16) -> dict[str, object]:
    """Measures the models in `weights`, prints and returns the figures.

    Args:
        weights: Folder of shapes-sd, shapes-flux and shapes-clip.
        pictures: Folder for grids of samples to look at.
        device: "cuda" or "cpu".
        repeats: Samples an easy prompt; four times as many a hard prompt.
    """
    name = f"local-dir:{weights / 'shapes-clip'}"
    clip = open_clip.create_model(name, device=device).eval()
    tokenize = open_clip.get_tokenizer(name)
    card: dict[str, object] = {
        "meta": describe_run(device, "python scripts/train_shapes.py evaluate")
    }
    card["shapes-clip"] = measure.pair_accuracy(
        clip, tokenize, measure.caption_pairs(seed=200, repeats=4, device=device)
    )
    pipelines = {
        "shapes-sd": (
            StableDiffusionPipeline,
            [{"guidance_scale": value} for value in _SD_GUIDANCE],
        ),
        "shapes-flux": (FluxPipeline, [flux_arguments(value) for value in _FLUX_GUIDANCE]),
    }
    for name, (pipeline_class, choices) in pipelines.items():
        if not (weights / name).is_dir():
            print(f"{name} is not trained yet", flush=True)
            continue
        pipeline = pipeline_class.from_pretrained(weights / name).to(device)
        pipeline.set_progress_bar_config(disable=True)
        if "judge" not in card:
            card["judge"] = measure.judge_rates(pipeline.vae, 4, device)
            print(json.dumps(card, indent=1), flush=True)
        score = partial(measure.similarity, clip, tokenize)
        card[name] = _pipeline_figures(pipeline, choices, score, repeats, pictures / f"{name}.png")
        print(name, json.dumps(card[name], indent=1)[:4000], flush=True)
    return card


def flux_arguments(guidance: float) -> dict[str, object]:
    """Arguments of a `FluxPipeline` call that shapes-flux needs."""
    return {
        "true_cfg_scale": guidance,
        "negative_prompt": "",
        "height": 64,
        "width": 64,
        "max_sequence_length": 24,
    }


def _pipeline_figures(
    pipeline: DiffusionPipeline, choices: list[dict], score: partial, repeats: int, grid: Path
) -> dict[str, object]:
    scan = []
    for arguments in choices:
        rates, _ = measure.easy_rates(pipeline, max(1, repeats // 8), 300, **arguments)
        scan.append({"arguments": arguments, **rates})
    best = max(scan, key=lambda entry: entry["overall"])["arguments"]
    rates, images = measure.easy_rates(pipeline, repeats, 400, **best)
    save_grid(images[torch.linspace(0, len(images) - 1, 144).long()], grid)
    hard = measure.hard_rates(pipeline, score, 4 * repeats, 500, **best)
    parameters = {
        part: sum(p.numel() for p in module.parameters())
        for part, module in pipeline.components.items()
        if isinstance(module, torch.nn.Module)
    }
    return {
        "parameters": parameters,
        "steps": measure.STEPS,
        "arguments": best,
        "easy": rates,
        "hard": hard,
        "mean": hard["mean"],
        "spread": hard["spread"],
        "scan": scan,
    }


def save_grid(images: torch.Tensor, path: Path, columns: int = 12) -> None:
    """Pictures side by side, (B, 3, H, W) in [0, 1], as one PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = images[: len(images) // columns * columns].unflatten(0, (-1, columns))
    sheet = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray((sheet * 255).round().byte().numpy()).save(path)


def describe_run(device: str, command: str) -> dict[str, str]:
    """Where and by what figures were made."""
    return {
        "command": command,
        "hardware": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "open_clip": open_clip.__version__,
    }
