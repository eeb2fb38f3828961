"""Videos that are made chunk by chunk."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.schedulers import HeliosDMDScheduler
from transformers import UMT5Config, UMT5EncoderModel

from tiny_pipelines.parts import SIZE, lively, tokenizer, wan_vae


def _umt5() -> UMT5EncoderModel:
    config = UMT5Config(vocab_size=SIZE, d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=1)
    return UMT5EncoderModel(config).eval()


def _helios_parts() -> dict[str, Any]:
    torch.manual_seed(0)
    transformer = diffusers.HeliosTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_dim=(4, 4, 4),
    )
    return {
        "transformer": lively(transformer),
        "vae": lively(wan_vae()),
        "text_encoder": _umt5(),
        "tokenizer": tokenizer(),
    }


def helios() -> Any:
    """Helios: each chunk looks back at three windows of the latents before it."""
    scheduler = diffusers.HeliosScheduler(stages=1, stage_range=[0, 1])
    return diffusers.HeliosPipeline(scheduler=scheduler, **_helios_parts())


def helios_pyramid(*, distilled: bool = False) -> Any:
    """Helios whose chunks are made at three sizes, the distilled one by another scheduler."""
    # At gamma 1/3 the covariance of the block noise has no factor in float32.
    kind = HeliosDMDScheduler if distilled else diffusers.HeliosScheduler
    return diffusers.HeliosPyramidPipeline(
        scheduler=kind(gamma=0.25), is_distilled=distilled, **_helios_parts()
    )


def any_flow() -> Any:
    """AnyFlow by frame-autoregression, with caches of keys and values."""
    torch.manual_seed(0)
    transformer = diffusers.AnyFlowFARTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=16,
        out_channels=16,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        chunk_partition=(1, 2, 2, 2),
    )
    return diffusers.AnyFlowFARPipeline(
        transformer=lively(transformer),
        vae=lively(wan_vae()),
        scheduler=diffusers.FlowMapEulerDiscreteScheduler(),
        text_encoder=_umt5(),
        tokenizer=tokenizer(),
    )
