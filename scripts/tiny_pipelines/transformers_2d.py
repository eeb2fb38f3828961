"""Pictures by transformers."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    UMT5Config,
    UMT5EncoderModel,
)

from tiny_pipelines.parts import SIZE, WORDS, chatty, clip_config, gemma, lively, t5, tokenizer, vae
from tiny_pipelines.stable_diffusion import parts


def flux(guidance_embeds: bool = False, scheduler: Any = None) -> Any:
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    return diffusers.FluxPipeline(
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.06, scaling_factor=0.4, use_quant_conv=False),
        text_encoder=CLIPTextModel(clip_config()).eval(),
        tokenizer=tokenizer(),
        text_encoder_2=t5().eval(),
        tokenizer_2=tokenizer(),
        transformer=lively(transformer),
    )


def kontext() -> Any:
    return diffusers.FluxKontextPipeline(**parts(flux()))


def pixart() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
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
        use_additional_conditions=False,
    )
    return diffusers.PixArtSigmaPipeline(
        transformer=lively(transformer),
        vae=vae(),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        text_encoder=t5().eval(),
        tokenizer=tokenizer(),
    )


def z_image() -> Any:
    """Its network takes and returns lists of rows, and the negative of the flow."""
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    settings = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    text = Qwen3Config(
        hidden_size=16, intermediate_size=16, vocab_size=len(WORDS) + 4, head_dim=8, **settings
    )
    words = tokenizer(64)
    words.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return diffusers.ZImagePipeline(
        transformer=lively(transformer),
        vae=vae(16, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=Qwen3Model(text).eval(),
        tokenizer=words,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def qwen() -> Any:
    """Its masks come and go with padding, and its guidance keeps the norm."""
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1] * 4,
        latents_std=[1.2] * 4,
    )
    size = len(WORDS) + 4
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": rope,
            "vocab_size": size,
            "bos_token_id": size - 2,
            "eos_token_id": size - 1,
        },
        vision_config={"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 16},
    )
    return diffusers.QwenImagePipeline(
        transformer=lively(transformer),
        vae=autoencoder.eval(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=tokenizer(256),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def dit() -> Any:
    """Conditioned on classes; its state holds each row twice for guidance."""
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    return diffusers.DiTPipeline(
        transformer=lively(transformer), vae=vae(), scheduler=diffusers.DDIMScheduler()
    )


def flux_image_to_image() -> Any:
    """Flux from a picture."""
    return diffusers.FluxImg2ImgPipeline(**parts(flux()))


def flux2() -> Any:
    """Its prompts are conversations, its latents are normalised by batch statistics."""
    torch.manual_seed(0)
    text = Mistral3Config(
        text_config={
            "model_type": "mistral",
            "vocab_size": SIZE,
            "hidden_size": 16,
            "intermediate_size": 16,
            "max_position_embeddings": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "num_key_value_heads": 2,
            "sliding_window": None,
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "image_size": 30,
            "patch_size": 6,
            "num_channels": 3,
        },
        image_token_index=1,
    )
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=32,
        axes_dims_rope=[4, 4, 4, 4],
    )
    autoencoder = diffusers.AutoencoderKLFlux2(
        sample_size=32,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return diffusers.Flux2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=lively(autoencoder),
        text_encoder=Mistral3ForConditionalGeneration(text).eval(),
        tokenizer=chatty(64),
        transformer=lively(transformer),
    )


def pixart_alpha() -> Any:
    """The older of the two PixArts."""
    pipe = pixart()
    return diffusers.PixArtAlphaPipeline(**pipe.components)


def sana() -> Any:
    """Linear attention, and an autoencoder that compresses deeply."""
    torch.manual_seed(0)
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=16,
        sample_size=8,
    )
    blocks = ("ResBlock", "EfficientViTBlock")
    autoencoder = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.4,
    )
    return diffusers.SanaPipeline(
        transformer=lively(transformer),
        vae=lively(autoencoder),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=gemma(),
        tokenizer=tokenizer(32),
    )


def lumina2() -> Any:
    """Its guidance may keep the norm of the conditional prediction."""
    torch.manual_seed(0)
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=8,
        num_layers=1,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        norm_eps=1e-5,
        axes_dim_rope=(4, 2, 2),
        cap_feat_dim=16,
    )
    return diffusers.Lumina2Pipeline(
        transformer=lively(transformer),
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=gemma(),
        tokenizer=tokenizer(64),
    )


def aura_flow() -> Any:
    """A flow with a text encoder of T5's kin."""
    torch.manual_seed(0)
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=16,
        out_channels=4,
        pos_embed_max_size=64,
    )
    for layer in (transformer.time_step_proj.linear_2, transformer.context_embedder):
        layer.weight.data *= 10  # else the gates are shut, and prompts hardly matter
    text = UMT5Config(vocab_size=SIZE, d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2)
    return diffusers.AuraFlowPipeline(
        transformer=lively(transformer),
        vae=vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=UMT5EncoderModel(text).eval(),
        tokenizer=tokenizer(),
    )


def hunyuan_dit() -> Any:
    """Two text encoders, and a prediction that comes with a variance."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        hidden_size=24,
        activation_fn="gelu-approximate",
    )
    text = BertConfig(
        vocab_size=SIZE,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=77,
    )
    return diffusers.HunyuanDiTPipeline(
        transformer=lively(transformer),
        vae=vae(),
        scheduler=diffusers.DDPMScheduler(),
        text_encoder=BertModel(text).eval(),
        tokenizer=tokenizer(77),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(256),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
