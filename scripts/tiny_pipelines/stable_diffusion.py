"""Stable Diffusion, XL and 3, with their siblings, and what else denoises by a U-Net."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tiny_pipelines.parts import (
    SD_BETAS,
    clip_config,
    lively,
    t5,
    tokenizer,
    vae,
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


def parts(pipe: Any) -> dict[str, Any]:
    """Components to build a sibling of a Stable Diffusion or Flux pipeline from."""
    return {name: part for name, part in pipe.components.items() if name != "image_encoder"}


def image_to_image() -> Any:
    return diffusers.StableDiffusionImg2ImgPipeline(**parts(sd()), requires_safety_checker=False)


def inpaint(channels: int) -> Any:
    return diffusers.StableDiffusionInpaintPipeline(
        **parts(sd(in_channels=channels)), requires_safety_checker=False
    )


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


def control_network(**options: Any) -> Any:
    """A control network for :func:`unet`."""
    settings = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "in_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "conditioning_embedding_out_channels": (8, 8),
        **options,
    }
    torch.manual_seed(1)
    return lively(diffusers.ControlNetModel(**settings))


def control() -> Any:
    """Stable Diffusion with a control network."""
    return diffusers.StableDiffusionControlNetPipeline(
        **parts(sd()), controlnet=control_network(), requires_safety_checker=False
    )


def sdxl_image_to_image() -> Any:
    """SDXL from a picture."""
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        **_without(sdxl(), "add_watermarker"), add_watermarker=False
    )


def sdxl_inpaint() -> Any:
    """SDXL that blends with a picture."""
    return diffusers.StableDiffusionXLInpaintPipeline(
        **_without(sdxl(), "add_watermarker"), add_watermarker=False
    )


def sdxl_control() -> Any:
    """SDXL with a control network."""
    network = control_network(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    return diffusers.StableDiffusionXLControlNetPipeline(
        **_without(sdxl(), "add_watermarker"), controlnet=network, add_watermarker=False
    )


def _without(pipe: Any, *names: str) -> dict[str, Any]:
    return {name: part for name, part in pipe.components.items() if name not in names}


def consistency() -> Any:
    """A latent consistency model: few steps, told its guidance."""
    pipe = sd(diffusers.LCMScheduler(**SD_BETAS, clip_sample=False), time_cond_proj_dim=16)
    return diffusers.LatentConsistencyModelPipeline(**parts(pipe), requires_safety_checker=False)


def animate_diff() -> Any:
    """Video by Stable Diffusion with layers of motion."""
    torch.manual_seed(0)
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
    )
    pipe = sd()
    return diffusers.AnimateDiffPipeline(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        unet=pipe.unet,
        motion_adapter=lively(adapter),
        scheduler=pipe.scheduler,
    )
