"""Measures what engine and searches cost beside denoiser, decoder and reward.

By default the share of time that one search of one prompt spends outside them. Encoding of prompts and
the final rendering are outside the measured part; everything else that the engine and the searches do
is inside it.

With ``--prompts`` many prompts are searched for together on a model that is free
(:mod:`benchmarks.fused`), so that the rest is seen alone: microseconds of the CPU, tensor operations,
and how often a step waits for the device, counted on a stand-in for one. ``--against`` measures
another checkout, too, in turns with this one, so that the two share what else the machine does.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from benchmarks.common import Results
from benchmarks.embedded import MODELS, options_of, search_named, steered, synchronise
from benchmarks.fused import measured_in_turns
from steering import shapes
from steering.command.options import device_of

DEFAULT = ["best-of", "fk"]
CELLS = [
    "rbf-lean:250",
    "treeg:160",
    "dlbs:250",
    "fk:250",
    "best-of-n:250",
    "halving-ahead:160",
]


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument("--samplers", nargs="+", default=DEFAULT, help="best-of, fk")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["shapes-sd"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 16], help="rows a search")
    parser.add_argument("--repeats", type=int, default=3, help="the median of these is reported")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="16 rows, once; 20 prompts")
    parser.add_argument("--prompts", type=int, help="searched for together on a model that is free")
    parser.add_argument(
        "--cells",
        nargs="+",
        default=CELLS,
        help="with --prompts: families of benchmarks.embedded, with the denoiser calls of a prompt",
    )
    parser.add_argument("--against", type=Path, help="with --prompts: another checkout to compare")


def run(options: Any) -> None:
    """Run every cell that the result file lacks."""
    if options.prompts is not None:
        _run_fused(options)
        return
    rows = [16] if options.quick else options.rows
    repeats = 1 if options.quick else options.repeats
    for model in options.models:
        pipeline = options_of(model, options.device)
        device = device_of(pipeline)
        results = Results(Path(options.json), device=device, seed=0)
        door = steered(pipeline, search_named("base"), 0)
        for family in options.samplers:
            for count in rows:
                cell = {"model": model, "sampler": family, "rows": count, "device": str(device)}
                if results.has(cell):
                    continue
                door.sampler = search_named(f"{family}-{count}")
                measure(door, pipeline.call, device)  # warms up
                found = [measure(door, pipeline.call, device) for _ in range(repeats)]
                found.sort(key=lambda f: f["share_outside_models"])
                results.add(cell | found[len(found) // 2])


def _run_fused(options: Any) -> None:
    torch.set_num_threads(1)
    prompts = 20 if options.quick else options.prompts
    repeats = 1 if options.quick else options.repeats
    results = Results(Path(options.json), device="cpu", seed=0)
    codes = {"this": Path(__file__).parents[2]}
    if options.against is not None:
        codes["against"] = options.against
    for cell in options.cells:
        sampler, nfe = cell.rsplit(":", 1)
        settings = {"sampler": sampler, "nfe": int(nfe), "prompts": prompts}
        if all(results.has(settings | {"code": code}) for code in codes):
            continue
        for code, found in measured_in_turns(codes, sampler, int(nfe), prompts, repeats).items():
            if not results.has(settings | {"code": code}):
                results.add(settings | {"code": code} | found)


def measure(door: Any, call: dict[str, Any], device: Any) -> dict[str, float]:
    """One search of one prompt: wall-clock seconds, and how much of them lies outside the models."""
    door.held_out = {}
    prepared = door.prepare(shapes.prompts("hard")[:1], **call)
    synchronise(device)
    start = time.perf_counter()
    [result] = list(prepared.results())
    synchronise(device)
    seconds = time.perf_counter() - start
    if result.error is not None:
        raise result.error
    inside = result.usage.seconds_in_models + result.usage.seconds_render
    return {
        "seconds": seconds,
        "share_outside_models": 1 - inside / seconds,
        "seconds_per_nfe": seconds / result.usage.nfe,
    }
