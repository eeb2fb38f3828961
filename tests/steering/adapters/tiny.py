"""Tiny random pipelines, built from configurations alone: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "green",
    "cube",
    "ring",
    "star",
    "cat",
    "two",
    "on",
    "of",
    "left",
]
SD_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def tokenizer(length: int = 16) -> PreTrainedTokenizerFast:
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<unk>", *WORDS, "<bos>", "<eos>"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<bos>", vocabulary["<bos>"]), ("<eos>", vocabulary["<eos>"])]
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=length,
    )


def clip_config(width: int = 16) -> CLIPTextConfig:
    size = len(WORDS) + 4
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=width,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=0,
    )


def t5(width: int = 16) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(WORDS) + 4, d_model=width, d_ff=32, d_kv=8, num_heads=2, num_layers=2
        )
    )


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Redraw the layers that start at zero, so that outputs depend on latents, time and prompt."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim > 1 and float(parameter.detach().abs().max()) == 0:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def vae(channels: int = 4, **options: Any) -> Any:
    return lively(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=channels,
            norm_num_groups=4,
            sample_size=16,
            **options,
        )
    )


def unet(**options: Any) -> Any:
    settings = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        **options,
    }
    return lively(diffusers.UNet2DConditionModel(**settings))


def sd(scheduler: Any = None, **unet_options: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip_config()).eval(),
        tokenizer=tokenizer(),
        unet=unet(**unet_options),
        scheduler=scheduler
        or diffusers.DDIMScheduler(
            **SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(scheduler: Any = None) -> Any:
    torch.manual_seed(0)
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()).eval(),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
        ),
        scheduler=scheduler
        or diffusers.EulerDiscreteScheduler(**SD_BETAS, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


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


def parts(pipe: Any) -> dict[str, Any]:
    """Components to build a sibling of a Stable Diffusion or Flux pipeline from."""
    return {name: part for name, part in pipe.components.items() if name != "image_encoder"}


def image_to_image() -> Any:
    return diffusers.StableDiffusionImg2ImgPipeline(**parts(sd()), requires_safety_checker=False)


def inpaint(channels: int) -> Any:
    return diffusers.StableDiffusionInpaintPipeline(
        **parts(sd(in_channels=channels)), requires_safety_checker=False
    )


def kontext() -> Any:
    return diffusers.FluxKontextPipeline(**parts(flux()))


def perturbed_attention() -> Any:
    return diffusers.StableDiffusionPAGPipeline(
        **parts(sd()), requires_safety_checker=False, pag_applied_layers="mid"
    )


def sd3(scheduler: Any = None) -> Any:
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        out_channels=4,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=lively(transformer),
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=CLIPTextModelWithProjection(clip_config()).eval(),
        tokenizer=tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()).eval(),
        tokenizer_2=tokenizer(),
        text_encoder_3=t5(32).eval(),
        tokenizer_3=tokenizer(),
    )


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


def pixels(**options: Any) -> Any:
    """An unconditional network of pixels."""
    return lively(
        diffusers.UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
            **options,
        )
    )


def ddpm() -> Any:
    torch.manual_seed(0)
    return diffusers.DDPMPipeline(unet=pixels(), scheduler=diffusers.DDPMScheduler())


def ddim() -> Any:
    torch.manual_seed(0)
    return diffusers.DDIMPipeline(unet=pixels(), scheduler=diffusers.DDIMScheduler())
