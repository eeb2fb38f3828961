"""Videos by transformers."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from transformers import LlamaConfig, LlamaModel

from tiny_pipelines.parts import SIZE, clip, lively, t5, tokenizer, vae, wan_vae


def wan() -> Any:
    """Wan 2.1."""
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    autoencoder = wan_vae()
    return diffusers.WanPipeline(
        transformer=lively(transformer),
        vae=lively(autoencoder),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=t5().eval(),
        tokenizer=tokenizer(),
    )


def ltx() -> Any:
    """LTX, whose state is packed."""
    return diffusers.LTXPipeline(**_ltx())


def ltx_from_picture() -> Any:
    """LTX from a first frame, which is no part of the state."""
    return diffusers.LTXImageToVideoPipeline(**_ltx())


def _ltx() -> dict[str, Any]:
    torch.manual_seed(0)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    autoencoder = diffusers.AutoencoderKLLTXVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    return {
        "transformer": lively(transformer),
        "vae": lively(autoencoder),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "text_encoder": t5().eval(),
        "tokenizer": tokenizer(),
    }


def cog_video() -> Any:
    """CogVideoX, its state with frames before channels."""
    torch.manual_seed(0)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=16,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=16,
    )
    autoencoder = diffusers.AutoencoderKLCogVideoX(
        in_channels=3,
        out_channels=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    return diffusers.CogVideoXPipeline(
        transformer=lively(transformer),
        vae=lively(autoencoder),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
        text_encoder=t5().eval(),
        tokenizer=tokenizer(),
    )


def hunyuan_video() -> Any:
    """HunyuanVideo: a language model beside CLIP, and distilled guidance."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(2, 4, 4),
    )
    autoencoder = diffusers.AutoencoderKLHunyuanVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        act_fn="silu",
        norm_num_groups=4,
        scaling_factor=0.5,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
        mid_block_add_attention=True,
    )
    text = LlamaConfig(
        vocab_size=SIZE,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=3,
        pad_token_id=0,
    )
    return diffusers.HunyuanVideoPipeline(
        transformer=lively(transformer),
        vae=lively(autoencoder),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=LlamaModel(text).eval(),
        text_encoder_2=clip(length=77),
        tokenizer=tokenizer(32),
        tokenizer_2=tokenizer(77),
    )


def mochi() -> Any:
    """Mochi."""
    torch.manual_seed(0)
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        out_channels=None,
        qk_norm="rms_norm",
        text_embed_dim=16,
        time_embed_dim=4,
        activation_fn="swiglu",
        max_sequence_length=16,
    )
    autoencoder = diffusers.AutoencoderKLMochi(
        latent_channels=12,
        out_channels=3,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    return diffusers.MochiPipeline(
        transformer=lively(transformer),
        vae=lively(autoencoder),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=t5().eval(),
        tokenizer=tokenizer(),
    )


def latte() -> Any:
    """Latte."""
    torch.manual_seed(0)
    transformer = diffusers.LatteTransformer3DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=16,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=2,
    )
    return diffusers.LattePipeline(
        transformer=lively(transformer),
        vae=vae(),
        scheduler=diffusers.DDIMScheduler(),
        text_encoder=t5().eval(),
        tokenizer=tokenizer(),
    )
