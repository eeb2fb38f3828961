"""Sizes of the embedded models: what is shipped, and a tiny size for tests."""

from dataclasses import dataclass

from diffusers import (
    AutoencoderKL,
    FluxTransformer2DModel,
    UNet2DConditionModel,
    UNetMotionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from shapes_training.texts import LENGTH
from steering.shapes.motion import FRAMES

LATENT_CHANNELS = 4
LATENT_SIZE = 16
TOKENS = (LATENT_SIZE // 2) ** 2  # of the Flux form: 2 x 2 patches of latents
_HEAD = 32
_MOTION_HEAD = 16


@dataclass(frozen=True)
class Size:
    """Widths and depths, and how much to train on."""

    vae: tuple[int, ...] = (32, 48, 64)
    unet: tuple[int, ...] = (64, 128, 160)
    text: int = 128
    text_layers: int = 3
    pooled: int = 64
    flux_heads: int = 6
    flux_layers: tuple[int, int] = (2, 5)
    motion_unet: tuple[int, ...] = (64, 80, 96)
    motion_text: int = 96
    vision: int = 160
    vision_layers: int = 5
    pictures: int = 320_000
    movies: int = 64_000
    batch: int = 512


FULL = Size()
TINY = Size(
    vae=(16, 16, 16),
    unet=(32, 32, 32),
    text=32,
    text_layers=1,
    pooled=32,
    flux_heads=1,
    flux_layers=(1, 1),
    motion_unet=(16, 16, 16),
    motion_text=32,
    vision=32,
    vision_layers=1,
    pictures=64,
    movies=16,
    batch=8,
)


def make_vae(size: Size) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=size.vae,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
        force_upcast=False,
    )


def make_unet(size: Size) -> UNet2DConditionModel:
    kinds = ("CrossAttn", "CrossAttn", "")
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        block_out_channels=size.unet,
        layers_per_block=1,
        cross_attention_dim=size.text,
        # Despite its name this is the number of heads of each block.
        attention_head_dim=tuple(width // _HEAD for width in size.unet),
        norm_num_groups=16,
    )


def make_motion_unet(size: Size) -> UNetMotionModel:
    kinds = ("CrossAttn", "CrossAttn", "")
    heads = tuple(channels // _MOTION_HEAD for channels in size.motion_unet)
    return UNetMotionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=tuple(f"{kind}DownBlockMotion" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlockMotion" for kind in reversed(kinds)),
        block_out_channels=size.motion_unet,
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=size.motion_text,
        num_attention_heads=heads,
        motion_num_attention_heads=heads,
        motion_max_seq_length=FRAMES,
        use_motion_mid_block=True,
    )


def make_flux(size: Size) -> FluxTransformer2DModel:
    double, single = size.flux_layers
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=_HEAD,
        num_attention_heads=size.flux_heads,
        joint_attention_dim=size.text,
        pooled_projection_dim=size.pooled,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def make_clip_text(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // _HEAD,
        max_position_embeddings=LENGTH,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModel(config)


def make_t5(tokenizer: T5TokenizerFast, width: int, layers: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=_HEAD,
        d_ff=4 * width,
        num_layers=layers,
        num_heads=width // _HEAD,
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


def open_clip_config(tokenizer: CLIPTokenizer, size: Size) -> dict:
    """The `open_clip_config.json` of shapes-clip."""
    mean = [0.5, 0.5, 0.5]
    return {
        "model_cfg": {
            "embed_dim": size.text,
            "vision_cfg": {
                "image_size": 64,
                "patch_size": 8,
                "width": size.vision,
                "layers": size.vision_layers,
                "head_width": _HEAD,
            },
            "text_cfg": {
                "context_length": LENGTH,
                "vocab_size": len(tokenizer),
                "width": size.text,
                "heads": size.text // _HEAD,
                "layers": size.text_layers,
                # Any name makes open_clip take the tokenizer beside this file.
                "hf_tokenizer_name": "shapes-clip",
            },
        },
        "preprocess_cfg": {"mean": mean, "std": mean, "interpolation": "bicubic"},
    }
