"""Pipelines that take a guider object, which decides how guidance is made."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.guiders import AdaptiveProjectedMixGuidance, ClassifierFreeGuidance
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
)

from tiny_pipelines.parts import SIZE, chatty, lively, t5, tokenizer

_QWEN = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    "vocab_size": SIZE,
    "bos_token_id": SIZE - 2,
    "eos_token_id": SIZE - 1,
}


def _listening(transformer: Any) -> Any:
    """Makes what a prompt says weigh as much as the latents do."""
    for name, parameter in lively(transformer).named_parameters():
        reads = name.startswith("context_embedder") or "add_" in name
        if reads and parameter.ndim > 1:
            parameter.data *= 4
    return transformer


def hunyuan_image(guider: Any = None) -> Any:
    """By default guided with momentum, so that each step depends on those before it."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        text_embed_dim=16,
        text_embed_2_dim=16,
        rope_axes_dim=(4, 4),
    )
    autoencoder = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        scaling_factor=0.5,
        spatial_compression_ratio=2,
        sample_size=16,
    )
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(text_config=_QWEN, vision_config=vision)
    pipe = diffusers.HunyuanImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=lively(autoencoder),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=tokenizer(256),
        text_encoder_2=t5().eval(),
        tokenizer_2=tokenizer(16),
        transformer=_listening(transformer),
        guider=guider or AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
    )
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "{}", 0
    pipe.tokenizer_max_length = pipe.tokenizer_2_max_length = 16
    return pipe


def hunyuan_image_plain() -> Any:
    """Guided by the usual difference of two predictions."""
    return hunyuan_image(ClassifierFreeGuidance(guidance_scale=3.0))


def hunyuan_video(guider: Any = None) -> Any:
    """HunyuanVideo 1.5."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        text_embed_2_dim=16,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )
    autoencoder = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    pipe = diffusers.HunyuanVideo15Pipeline(
        text_encoder=Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**_QWEN)).eval(),
        tokenizer=chatty(64),
        transformer=_listening(transformer),
        vae=lively(autoencoder),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=t5().eval(),
        tokenizer_2=tokenizer(16),
        guider=guider or ClassifierFreeGuidance(guidance_scale=3.0),
    )
    pipe.system_message, pipe.prompt_template_encode_start_idx = "a", 0
    pipe.tokenizer_max_length = pipe.tokenizer_2_max_length = 16
    pipe.vision_num_semantic_tokens = 4
    return pipe
