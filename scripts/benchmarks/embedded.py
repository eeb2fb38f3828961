"""What the benchmarks on the embedded models share: models, prompts and searches by name."""

from __future__ import annotations

from typing import Any

import torch
import yaml

from rewards import ShapesCLIP, ShapesVerifier
from samplers import BestOfN, FKSteering
from steering.command.options import PipelineOptions, config_folder, device_of, load_pipeline
from steering.pipeline import SteeredPipeline
from steering.search import Search

MODELS = ("shapes-sd", "shapes-flux")
FAMILIES = {"best-of": BestOfN, "fk": FKSteering}


def search_named(name: str) -> Search:
    """``base``, ``best-of-16``, ``fk-8``: a family and its number of candidates.

    Raises:
        ValueError: an unknown name.
    """
    if name == "base":
        return BestOfN(1)
    family, _, count = name.rpartition("-")
    if family not in FAMILIES or not count.isdigit():
        known = ", ".join(f"{f}-N" for f in FAMILIES)
        raise ValueError(f"unknown sampler {name!r}; known are base, {known}")
    return FAMILIES[family](int(count))


def options_of(model: str, device: str) -> PipelineOptions:
    """The shipped configuration of an embedded model."""
    text = (config_folder() / "pipeline" / f"{model}.yaml").read_text(encoding="utf-8")
    return PipelineOptions(**yaml.safe_load(text), device=device)


def steered(options: PipelineOptions, sampler: Search, seed: int, **extra: Any) -> SteeredPipeline:
    """An embedded model with the embedded CLIP as its reward and the exact verifier as its judge."""
    device = device_of(options)
    return SteeredPipeline(
        load_pipeline(options, device),
        sampler=sampler,
        reward=ShapesCLIP().to(device),
        held_out={"accuracy": ShapesVerifier()},
        seed=seed,
        **extra,
    )


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that wall-clock times are whole."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
