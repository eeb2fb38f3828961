"""DeepFloyd IF, which works on pixels and learned the variance of its scheduler's steps."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tiny_pipelines.parts import lively, simple_unet, t5, tokenizer

_WIDTH = 16


def deepfloyd() -> Any:
    """The first stage, from a text."""
    return diffusers.IFPipeline(**_parts())


def deepfloyd_inpaint() -> Any:
    """The first stage with a mask: noise starts inside it alone."""
    return diffusers.IFInpaintingPipeline(**_parts())


def _parts() -> dict[str, Any]:
    torch.manual_seed(0)
    unet = simple_unet(
        _WIDTH,
        sample_size=16,
        in_channels=3,
        out_channels=6,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
    )
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
        variance_type="learned_range",
    )
    return {
        "tokenizer": tokenizer(77),
        "text_encoder": t5(_WIDTH).eval(),
        "unet": lively(unet),
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        "requires_safety_checker": False,
    }
