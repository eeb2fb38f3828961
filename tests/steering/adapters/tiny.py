"""Tiny random pipelines, built from configurations alone: nothing is downloaded."""

from tiny_pipelines.guided import hunyuan_image, hunyuan_video
from tiny_pipelines.parts import SD_BETAS, WORDS, clip_config, lively, t5, tokenizer, vae
from tiny_pipelines.stable_diffusion import (
    control,
    ddim,
    ddpm,
    image_to_image,
    inpaint,
    parts,
    perturbed_attention,
    pixels,
    sd,
    sd3,
    sdxl,
    unet,
)
from tiny_pipelines.transformers_2d import dit, flux, kontext, pixart, qwen, z_image

__all__ = [
    "SD_BETAS",
    "WORDS",
    "clip_config",
    "control",
    "ddim",
    "ddpm",
    "dit",
    "flux",
    "hunyuan_image",
    "hunyuan_video",
    "image_to_image",
    "inpaint",
    "kontext",
    "lively",
    "parts",
    "perturbed_attention",
    "pixart",
    "pixels",
    "qwen",
    "sd",
    "sd3",
    "sdxl",
    "t5",
    "tokenizer",
    "unet",
    "vae",
    "z_image",
]
