"""The tiny pipelines by name, each with the arguments of a short call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tiny_pipelines import deepfloyd, guided, kandinsky, stable_diffusion, transformers_2d, videos
from tiny_pipelines.parts import MASK, OTHER, PICTURE

_SMALL = {"height": 16, "width": 16}
_IMAGE, _OTHER_IMAGE = {"image": PICTURE}, {"image": OTHER}
_MASKED = {**_IMAGE, "mask_image": MASK, **_SMALL}


@dataclass(frozen=True)
class Case:
    """A tiny pipeline and how it is called.

    Attributes:
        build: makes it.
        call: arguments of its call, beside the prompt.
        control: arguments that say the same otherwise (another picture), where there are such.
        prompts: two of them.
        media: the type of its output that is compared.
    """

    build: Callable[[], Any]
    call: Mapping[str, Any] = field(default_factory=dict)
    control: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[str, str] = ("a red cat", "two green rings on the star")
    media: str = "np"


def _video(build: Callable[[], Any], **call: Any) -> Case:
    return Case(build, {**_SMALL, **call}, media="pt")


def _embedded() -> Case:
    first, second, third = (kandinsky.embedded(seed) for seed in range(3))
    call = {"image_embeds": first, "negative_image_embeds": second, "height": 32, "width": 32}
    return Case(kandinsky.kandinsky, call, {"image_embeds": third})


def _embedded_2_2() -> Case:
    case = _embedded()
    return Case(kandinsky.kandinsky_2_2, case.call, case.control)


_LTX = {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16}
_FLOYD = {"clean_caption": False}
_PIXART = {**_SMALL, "use_resolution_binning": False, "clean_caption": False}

CASES: dict[str, Case] = {
    "StableDiffusion": Case(stable_diffusion.sd),
    "StableDiffusionImg2Img": Case(stable_diffusion.image_to_image, _IMAGE, _OTHER_IMAGE),
    "StableDiffusionInpaint": Case(lambda: stable_diffusion.inpaint(9), _MASKED, _OTHER_IMAGE),
    "StableDiffusionInpaint, blending": Case(
        lambda: stable_diffusion.inpaint(4), _MASKED, _OTHER_IMAGE
    ),
    "StableDiffusionControlNet": Case(stable_diffusion.control, _IMAGE, _OTHER_IMAGE),
    "StableDiffusionPAG": Case(stable_diffusion.perturbed_attention),
    "StableDiffusionXL": Case(stable_diffusion.sdxl, _SMALL),
    "StableDiffusionXLImg2Img": Case(
        stable_diffusion.sdxl_image_to_image, {**_IMAGE, "strength": 0.8}, _OTHER_IMAGE
    ),
    "StableDiffusionXLInpaint": Case(stable_diffusion.sdxl_inpaint, _MASKED, _OTHER_IMAGE),
    "StableDiffusionXLControlNet": Case(
        stable_diffusion.sdxl_control, {**_IMAGE, **_SMALL}, _OTHER_IMAGE
    ),
    "StableDiffusion3": Case(stable_diffusion.sd3, _SMALL),
    "LatentConsistencyModel": Case(stable_diffusion.consistency, {"num_inference_steps": 3}),
    "Flux": Case(transformers_2d.flux, _SMALL),
    "FluxImg2Img": Case(
        transformers_2d.flux_image_to_image, {**_IMAGE, **_SMALL, "strength": 0.8}, _OTHER_IMAGE
    ),
    "Flux2": Case(
        transformers_2d.flux2,
        {**_SMALL, "max_sequence_length": 64, "text_encoder_out_layers": (1,)},
    ),
    "PixArtAlpha": Case(transformers_2d.pixart_alpha, _PIXART),
    "PixArtSigma": Case(transformers_2d.pixart, _PIXART),
    "DiT": Case(transformers_2d.dit, prompts=("1", "2")),
    "Sana": Case(
        transformers_2d.sana,
        {
            "height": 32,
            "width": 32,
            "use_resolution_binning": False,
            "complex_human_instruction": None,
            "max_sequence_length": 16,
        },
    ),
    "Lumina2": Case(transformers_2d.lumina2, {"height": 32, "width": 32}),
    "AuraFlow": Case(transformers_2d.aura_flow, {**_SMALL, "max_sequence_length": 16}),
    "HunyuanDiT": Case(transformers_2d.hunyuan_dit, {**_SMALL, "use_resolution_binning": False}),
    "QwenImage": Case(transformers_2d.qwen, _SMALL, prompts=("a red cat", "two green rings")),
    "ZImage": Case(transformers_2d.z_image, {"height": 32, "width": 32}),
    "Kandinsky": _embedded(),
    "KandinskyV22": _embedded_2_2(),
    "HunyuanImage, classifier-free guider": Case(guided.hunyuan_image_plain, _SMALL),
    "HunyuanImage, guider with momentum": Case(guided.hunyuan_image, _SMALL),
    "DeepFloyd IF": Case(deepfloyd.deepfloyd, _FLOYD),
    "DeepFloyd IF, inpainting": Case(
        deepfloyd.deepfloyd_inpaint,
        {**_FLOYD, **_IMAGE, "mask_image": MASK, "strength": 1.0},
        _OTHER_IMAGE,
    ),
    "DDPM": Case(stable_diffusion.ddpm),
    "DDIM": Case(stable_diffusion.ddim),
    "Wan": _video(videos.wan, num_frames=9, max_sequence_length=16),
    "LTX": Case(videos.ltx, _LTX, media="pt"),
    "LTXImageToVideo": Case(videos.ltx_from_picture, {**_LTX, **_IMAGE}, _OTHER_IMAGE, media="pt"),
    "CogVideoX": _video(videos.cog_video, num_frames=9, max_sequence_length=16),
    "HunyuanVideo": _video(
        videos.hunyuan_video,
        num_frames=9,
        max_sequence_length=16,
        prompt_template={"template": "{}", "crop_start": 0},
    ),
    "HunyuanVideo15, classifier-free guider": _video(guided.hunyuan_video, num_frames=5),
    "Mochi": _video(videos.mochi, num_frames=7, max_sequence_length=16),
    "Latte": _video(videos.latte, video_length=2, clean_caption=False),
    "AnimateDiff": _video(stable_diffusion.animate_diff, num_frames=3),
}
