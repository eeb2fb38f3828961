"""Measures memory and time of a pipeline whose parts are offloaded, called by itself and searched for.

The pipeline is Stable Diffusion 1.5 in form and size, with random weights drawn here (nothing is
downloaded), in half precision on a GPU. For each way of offloading: a call of its own; the first call by
best-of-N with one candidate, which learns the pipeline (``one``; ``max_diff``: how far its picture lies
from the own call's, in [0, 1]), and its second (``again``); a search's first call (``search``) and its
second (``search_again``).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from jsonargparse import ArgumentParser
from tiny_pipelines import stable_diffusion
from tiny_pipelines.parts import SD_BETAS, SIZE, tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.common import Results
from rewards import JPEGCompressibility
from samplers import BestOfN
from steering.pipeline import SteeredPipeline

MODES = ("none", "model", "sequential")


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--size", choices=("sd15", "tiny"), default="sd15")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=5.0, help="begin no mode after these")
    parser.add_argument("--device", default="cuda")


def run(options: Any) -> None:
    """Measure every way of offloading that the result file lacks.

    Raises:
        ValueError: offloading is asked for where there is no GPU.
    """
    device = torch.device(options.device)
    if device.type != "cuda" and set(options.modes) != {"none"}:
        raise ValueError(
            f"parts are offloaded from a GPU; --device {options.device} allows --modes none alone"
        )
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    diffusers.utils.logging.disable_progress_bar()
    results = Results(Path(options.json), device=device, seed=0)
    end = time.monotonic() + 60 * options.minutes
    for mode in options.modes:
        cell = {
            "mode": mode,
            "size": options.size,
            "steps": options.steps,
            "candidates": options.candidates,
        }
        if not results.has(cell) and time.monotonic() < end:
            results.add(cell | measure(mode, options, device))
            gc.collect()


def measure(mode: str, options: Any, device: torch.device) -> dict[str, float | None]:
    """One row: seconds, and most bytes of the GPU in use, of the call, its copy, and the search."""
    pipe = full() if options.size == "sd15" else stable_diffusion.sd()
    if device.type == "cuda":
        pipe.to(torch.float16)
    pipe.set_progress_bar_config(disable=True)
    if mode == "none":
        pipe.to(device)
    elif mode == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)
    call = {"num_inference_steps": options.steps, "output_type": "pt"}
    prompt = ["a red cat on the ring"]

    def steered(search: SteeredPipeline) -> Any:
        return search(prompt, generator=generator(), **call)

    pipe(prompt, generator=generator(), **call)  # warms up
    own, found = watched(lambda: pipe(prompt, generator=generator(), **call).images, device)
    measured, media = {"own": own}, []
    for name, n in (("one", 1), ("search", options.candidates)):
        search = SteeredPipeline(pipe, sampler=BestOfN(n), reward=JPEGCompressibility(), seed=0)
        for turn in (name, "again" if n == 1 else f"{name}_again"):
            measured[turn], made = watched(lambda: steered(search), device)  # noqa: B023 - at once
            media.append(made.images)
    row = {
        "weights_bytes": float(weights(pipe)),
        "max_diff": float((found.float().cpu() - media[0].float().cpu()).abs().max()),
    }
    for name, (seconds, peak) in measured.items():
        row |= {f"{name}_seconds": seconds, f"{name}_peak_bytes": peak}
    return row


def watched(act: Callable[[], Any], device: torch.device) -> tuple[tuple[float, float | None], Any]:
    """Seconds and most bytes in use (None without a GPU), and what was made."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    made = act()
    if device.type != "cuda":
        return (time.perf_counter() - start, None), made
    torch.cuda.synchronize(device)
    spent = time.perf_counter() - start
    return (spent, float(torch.cuda.max_memory_allocated(device))), made


def weights(pipe: Any) -> int:
    """Bytes of all weights."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum(p.numel() * p.element_size() for part in parts for p in part.parameters())


def generator() -> torch.Generator:
    """The user's generator, as it stands at first."""
    return torch.Generator().manual_seed(5)


def full() -> Any:
    """Stable Diffusion 1.5 in form and size, of random weights."""
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        bos_token_id=SIZE - 2,
        eos_token_id=SIZE - 1,
        pad_token_id=0,
    )
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        ).eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer(77),
        unet=diffusers.UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8
        ).eval(),
        scheduler=diffusers.DDIMScheduler(**SD_BETAS, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
