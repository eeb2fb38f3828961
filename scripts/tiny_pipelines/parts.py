"""What tiny pipelines are made of: tokenizers, text encoders, autoencoders, and weights that matter."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import PIL.Image
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
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
SIZE = len(WORDS) + 4  #: of the vocabulary
SD_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PICTURE = PIL.Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
OTHER = PIL.Image.fromarray(np.full((16, 16, 3), 230, dtype=np.uint8))
MASK = PIL.Image.fromarray(np.eye(16, dtype=np.uint8) * 255)


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


def clip_config(width: int = 16, length: int = 16) -> CLIPTextConfig:
    size = len(WORDS) + 4
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
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


def chatty(length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that knows what a conversation is, whose messages hold texts or lists of them."""
    words = tokenizer(length)
    words.chat_template = (
        "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}"
        "{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}{% endfor %}"
    )
    return words


def clip(width: int = 16, length: int = 16) -> CLIPTextModel:
    """A text encoder of CLIP."""
    return CLIPTextModel(clip_config(width, length)).eval()


def clip_projected(width: int = 16) -> CLIPTextModelWithProjection:
    """A text encoder of CLIP with its projection."""
    return CLIPTextModelWithProjection(clip_config(width)).eval()


def gemma(width: int = 16) -> Gemma2Model:
    """A language model that serves as a text encoder."""
    config = Gemma2Config(
        vocab_size=SIZE,
        head_dim=8,
        hidden_size=width,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    return Gemma2Model(config).eval()


def wan_vae() -> Any:
    """The video autoencoder of Wan and its kin."""
    return diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def simple_unet(width: int, **options: Any) -> Any:
    """The UNet of DeepFloyd and Kandinsky, told embeddings of ``width`` numbers."""
    return diffusers.UNet2DConditionModel(
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(8, 16),
        layers_per_block=1,
        encoder_hid_dim=width,
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
        **options,
    )
