"""Measures images scored per second, as one batch of tensors and as the published code does it.

The published way is one PIL image at a time through the official transform, with its text, in the same
precision on the same device. Weights are random, at the sizes of the real architectures (``--quick``:
tiny ones), and both ways use the same network. Making PIL images of tensors is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor

from benchmarks.common import Results
from benchmarks.embedded import synchronise
from benchmarks.reward_models import CASES, Case
from steering.reward import Item

PROMPT = "a red ring left of a blue cross"


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument("--rewards", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--size", type=int, default=512, help="edge of the pictures, pixels")
    parser.add_argument(
        "--devices", nargs="+", default=["auto"], help="cpu, cuda; auto: all there are"
    )
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 on a GPU, else float32")
    parser.add_argument("--repeats", type=int, default=5, help="the fastest of these is reported")
    parser.add_argument("--quick", action="store_true", help="tiny networks, batch 8, twice")


def run(options: Any) -> None:
    """Run every cell that the result file lacks."""
    devices = options.devices
    if devices == ["auto"]:
        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    batches = [8] if options.quick else options.batches
    scale = "tiny" if options.quick else "real"
    for device in devices:
        dtype = options.dtype
        if dtype == "auto":
            dtype = "bfloat16" if torch.device(device).type == "cuda" else "float32"
        results = Results(Path(options.json), device=device, seed=0)
        for name in options.rewards:
            cells = [
                {"reward": name, "device": device, "batch": batch, "dtype": dtype}
                | {"size": options.size, "scale": scale}
                for batch in batches
            ]
            cells = [cell for cell in cells if not results.has(cell)]
            if not cells:
                continue
            case = CASES[name](options.quick, device, dtype)
            for cell in cells:
                repeats = 2 if options.quick else options.repeats
                results.add(cell | measure(case, cell["batch"], options.size, device, repeats))
            del case


def measure(case: Case, batch: int, size: int, device: str, repeats: int) -> dict[str, float]:
    """Images per second of both ways, and their ratio."""
    generator = torch.Generator().manual_seed(0)
    media = torch.rand(batch, 3, size, size, generator=generator)
    pictures = [Image.fromarray((row * 255).byte().permute(1, 2, 0).numpy()) for row in media[:8]]
    media = media.to(device)
    features = [case.reward.prepare(Item(PROMPT))] * batch

    def ours() -> Tensor:
        scores = case.reward(media, features)
        return (scores if isinstance(scores, Tensor) else scores[case.reward.name]).cpu()

    def theirs() -> list[float]:
        return [case.one(picture, PROMPT) for picture in pictures]

    with torch.no_grad():
        mine = batch / fastest(ours, device, repeats)
        published = len(pictures) / fastest(theirs, device, repeats)
    return {
        "images_per_s": mine,
        "images_per_s_pil": published,
        "ratio": mine / published,
    }


def fastest(call: Callable[[], Any], device: str, repeats: int) -> float:
    """Seconds of the fastest of some calls, after one to warm up."""
    call()
    seconds = []
    for _ in range(repeats):
        synchronise(torch.device(device))
        start = time.perf_counter()
        call()
        synchronise(torch.device(device))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
