"""The decoders of Kandinsky: prompts, if any, come with embedded pictures."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

from tiny_pipelines.parts import SIZE, lively, simple_unet, tokenizer

_WIDTH = 16


def kandinsky() -> Any:
    """Kandinsky 2.1."""
    torch.manual_seed(0)
    text = MCLIPConfig(
        numDims=_WIDTH,
        transformerDimensions=_WIDTH,
        hidden_size=_WIDTH,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=SIZE,
    )
    return diffusers.KandinskyPipeline(
        text_encoder=MultilingualCLIP(text).eval(),
        tokenizer=tokenizer(77),
        unet=_unet(addition_embed_type="text_image", encoder_hid_dim_type="text_image_proj"),
        scheduler=_scheduler(),
        movq=_movq(),
    )


def kandinsky_2_2() -> Any:
    """Kandinsky 2.2, which takes no prompt."""
    torch.manual_seed(0)
    return diffusers.KandinskyV22Pipeline(
        unet=_unet(addition_embed_type="image", encoder_hid_dim_type="image_proj"),
        scheduler=_scheduler(),
        movq=_movq(),
    )


def embedded(seed: int) -> torch.Tensor:
    """An embedded picture."""
    return torch.randn(1, _WIDTH, generator=torch.Generator().manual_seed(seed))


def _unet(**options: Any) -> Any:
    return lively(simple_unet(_WIDTH, in_channels=4, out_channels=8, **options))


def _movq() -> Any:
    return lively(
        diffusers.VQModel(
            block_out_channels=[32, 64],
            down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
            up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=8,
            norm_type="spatial",
            num_vq_embeddings=12,
            vq_embed_dim=4,
        )
    )


def _scheduler() -> Any:
    return diffusers.DDIMScheduler(
        beta_schedule="linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
