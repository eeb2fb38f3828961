"""Measures images scored per second, as one batch of tensors and as the published code does it.

The published way is one PIL image at a time through the official transform, with its text, in the same
precision on the same device. Weights are random, at the sizes of the real architectures (``--quick``:
tiny ones), and both ways use the same network. Making PIL images of tensors is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import Results, describe
from benchmarks.embedded import synchronise
from benchmarks.reward_models import CASES, Case
from steering.reward import Item

PROMPT = "a red ring left of a blue cross"
PATIENCE = 10.0  #: seconds after which a figure is not repeated further
Cell = dict[str, Any]


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
    parser.add_argument("--minutes", type=float, default=None, help="begin no reward after them")
    parser.add_argument("--quick", action="store_true", help="tiny networks, batch 8, twice")


def run(options: Any) -> None:
    """Run every cell that the result file lacks, as time allows."""
    start = time.perf_counter()
    devices = options.devices
    if devices == ["auto"]:
        devices = [*(["cuda"] if torch.cuda.is_available() else []), "cpu"]
    for device in devices:
        results = Results(Path(options.json), device=device, seed=0)
        for name in options.rewards:
            cells = [cell for cell in _cells(options, name, device) if not results.has(cell)]
            if not cells:
                continue
            if options.minutes is not None and time.perf_counter() - start > 60 * options.minutes:
                tqdm.write(f"{name} on {device} is left; run again to go on")
                continue
            case = CASES[name](options.quick, device, cells[0]["dtype"])
            repeats = 2 if options.quick else options.repeats
            for row in measured(case, cells, options.size, device, repeats):
                results.add(row)
            del case


def _cells(options: Any, name: str, device: str) -> list[Cell]:
    cuda = torch.device(device).type == "cuda"
    dtype = ("bfloat16" if cuda else "float32") if options.dtype == "auto" else options.dtype
    shared = {"reward": name, "device": device, "where": describe(device), "dtype": dtype}
    shared |= {"size": options.size, "scale": "tiny" if options.quick else "real"}
    return [shared | {"batch": n} for n in ([8] if options.quick else options.batches)]


@torch.no_grad()
def measured(case: Case, cells: list[Cell], size: int, device: str, repeats: int) -> Iterator[Cell]:
    """Cells with images per second of both ways, and their ratio.

    The published way takes one picture at a time, so one figure of it serves all batches.
    """
    generator = torch.Generator().manual_seed(0)
    media = torch.rand(max(8, *(c["batch"] for c in cells)), 3, size, size, generator=generator)
    pictures = [Image.fromarray((row * 255).byte().permute(1, 2, 0).numpy()) for row in media[:8]]
    media = media.to(device)
    features = case.reward.prepare(Item(PROMPT))

    def ours(batch: int) -> Tensor:
        scores = case.reward(media[:batch], [features] * batch)
        return (scores if isinstance(scores, Tensor) else scores[case.reward.name]).cpu()

    def theirs() -> list[float]:
        return [case.one(picture, PROMPT) for picture in pictures]

    published = len(pictures) / fastest(theirs, device, repeats)
    for cell in cells:
        mine = cell["batch"] / fastest(partial(ours, cell["batch"]), device, repeats)
        yield cell | {
            "images_per_s": mine,
            "images_per_s_pil": published,
            "ratio": mine / published,
        }


def fastest(call: Callable[[], Any], device: str, repeats: int) -> float:
    """Seconds of the fastest of some calls, after one to warm up; fewer where they take long."""
    call()
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < PATIENCE:
        synchronise(torch.device(device))
        start = time.perf_counter()
        call()
        synchronise(torch.device(device))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
