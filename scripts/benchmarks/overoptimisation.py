"""How far searches over-optimise shapes-clip, judged by the exact verifier and a second clip.

Rows of kind "pool" hold every score of a pool of unsteered candidates of one prompt, and what rules of
selection make of groups of N of them; rows of kind "search" hold what a steered search returned. Every
row tells the second clip that judged it and how numbers were computed. A file that holds some cells is
gone on with, by the same second clip only. If there is none yet it is trained first.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from scipy.stats import rankdata
from tqdm import tqdm

from benchmarks.cards import cards, take_card
from benchmarks.common import Results, describe
from benchmarks.embedded import options_of, search_named, steered
from benchmarks.pool import pooled
from benchmarks.selection import best_of_majority
from benchmarks.shapes_cells import mean_distance, measure, rounded, summarise
from rewards import CLIPScore, ShapesVerifier
from samplers import BestOfN
from steering import shapes
from steering.command.options import device_of, load_pipeline
from steering.cost import Budget
from steering.reward import Item
from steering.streams import prompt_keys
from steering.strength import Strength

TRAINING = Path(__file__).parents[1] / "train_shapes.py"
#: searches with their strengths in spreads: the methods, then milder ones, then drawn results
SEARCHES = (
    ("fk", 4.0),
    ("svdd", 4.0),
    ("dts-star", 4.0),
    ("fk", 1.0),
    ("svdd", 1.0),
    ("fk-draw", 4.0),
    ("svdd-draw", 4.0),
    ("adaptive", 4.0),
)
Cell = dict[str, Any]
_HERE: dict[str, Any] = {}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument("--second", type=Path, default=Path("outputs/second/shapes-clip"))
    parser.add_argument("--train_seconds", type=float, default=90.0, help="if it must be trained")
    parser.add_argument("--sizes", nargs="+", type=int, default=[4, 16, 64, 512])
    parser.add_argument("--pool_prompts", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=16, help="of the hard set, for searches")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=16, help="prompts of a search cell")
    parser.add_argument("--batch_size", type=int, default=2048)
    parser.add_argument("--minutes", type=float, default=None, help="begin no cell after them")
    parser.add_argument("--processes", type=int, default=1, help="dealt to all CUDA devices")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tf32", action="store_true")


def run(options: Any) -> None:
    """Train the second clip if need be, then run every cell that the file lacks.

    Raises:
        ValueError: the file holds rows that another second clip judged, or of an earlier form.
    """
    start = time.perf_counter()
    device = device_of(options_of("shapes-sd", options.device))
    results = Results(options.json, device=device, seed=0)
    if not (options.second / "open_clip_config.json").exists():
        _check(results, "a second clip yet to be trained", options)
        _train(options)
    second = digest_of(options.second)
    _check(results, second, options)
    how = {"second_clip": second, "tf32": options.tf32, "batch_size": options.batch_size}
    wanted = [cell | how for cell in cells(options)]
    wanted = [cell for cell in wanted if not results.has(cell)]

    def in_time(cell: Cell) -> bool:
        return options.minutes is None or time.perf_counter() - start < 60 * options.minutes

    arguments = (options, cards(options))
    rows = pooled(_row, wanted, options.processes, in_time, _open, arguments)
    for row in tqdm(rows, "cells", len(wanted)):
        results.add(row | {"device": describe(device), "processes": options.processes})


def _train(options: Any) -> None:
    out = options.second.parent
    train = [sys.executable, str(TRAINING), "clip", "--seed", "1", "--out", str(out)]
    train += ["--work", str(out / "work"), "--seconds", str(options.train_seconds)]
    subprocess.run(train, check=True)


def digest_of(folder: Path) -> str:
    """What tells a clip from others: a digest of its weights."""
    weights = (folder / "open_clip_model.safetensors").read_bytes()
    return hashlib.blake2b(weights, digest_size=8).hexdigest()


def _check(results: Results, second: str, options: Any) -> None:
    for judge in {row.get("second_clip") for row in results.rows}:
        if judge != second:
            told = f"the second clip {judge}" if judge else "an unnamed second clip"
            raise ValueError(
                f"{options.json} holds rows judged by {told}, and {options.second} is {second}; "
                "give that clip as --second, or another --json"
            )


def cells(options: Any) -> Iterator[Cell]:
    """All cells, small budgets first: pools of one prompt, then searches of a chunk of prompts."""
    most, texts = max(options.sizes), shapes.prompts("hard")
    for first in range(min(options.pool_prompts, len(texts))):
        yield {"kind": "pool", "first": first, "n": most}
    for n in sorted(options.sizes):
        for first in range(0, min(options.prompts, len(texts)), options.chunk):
            count = min(options.chunk, options.prompts - first)
            shared = {"kind": "search", "n": n, "first": first, "prompts": count}
            for sampler, strength in SEARCHES:
                yield shared | {"sampler": sampler, "strength": strength, "seeds": options.seeds}


def _open(options: Any, queue: Any) -> None:
    take_card(options, queue)
    pipeline = options_of("shapes-sd", options.device)
    device = device_of(pipeline)
    door = steered(pipeline, BestOfN(1), 0, batch_size=options.batch_size)
    second = CLIPScore(str(options.second)).to(device)
    door.held_out["second"] = second
    judges = {"reward": door.reward, "second": second, "accuracy": ShapesVerifier()}
    plain = load_pipeline(pipeline, device)
    _HERE.update(options=options, call=pipeline.call, door=door, judges=judges, plain=plain)


def _row(cell: Cell) -> Cell:
    start = time.perf_counter()
    with torch.no_grad():
        row = _pool(cell) if cell["kind"] == "pool" else _search(cell)
    return cell | row | {"wall_seconds": round(time.perf_counter() - start, 3)}


def _search(cell: Cell) -> Cell:
    door, call = _HERE["door"], dict(_HERE["call"])
    steps = int(call["num_inference_steps"])
    nfe = cell["n"] * steps
    door.sampler, door.strength = (
        search_named(cell["sampler"], nfe, steps),
        Strength(cell["strength"]),
    )
    door.budget = Budget(nfe=nfe)
    texts = shapes.prompts("hard")
    rows = slice(cell["first"], cell["first"] + cell["prompts"])
    found, seconds = measure(door, call, texts[rows], prompt_keys(texts)[rows], cell["seeds"])
    row = summarise(door, found, seconds)
    row["per_prompt"]["second"] = rounded(
        [[float(r.held_out["second"][0]) for r in s] for s in found]
    )
    return row


def _pool(cell: Cell) -> Cell:
    """Scores ``(n,)`` of a pool of one prompt, and winners of disjoint groups by each rule."""
    options, text = _HERE["options"], shapes.prompts("hard")[cell["first"]]
    pipe, batch = _HERE["plain"], min(options.batch_size, cell["n"])
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator(pipe.device).manual_seed(cell["first"])
    pictures = []
    for begun in range(0, cell["n"], batch):
        count = min(batch, cell["n"] - begun)
        call = _HERE["call"] | {"num_images_per_prompt": count, "output_type": "pt"}
        pictures.append(pipe(prompt=text, generator=generator, **call).images.float())
    media = torch.cat(pictures)
    scores = {name: _scores(judge, media, text) for name, judge in _HERE["judges"].items()}
    encoder = _HERE["door"].reward.encoder
    features = torch.nn.functional.normalize(encoder.images(media), dim=-1).cpu().numpy()
    rules = {}
    for n in options.sizes:
        groups = np.arange(cell["n"] // n * n).reshape(-1, n)
        for rule in RULES:
            rng = np.random.default_rng(cell["first"])
            won = np.array([g[RULES[rule](scores, features, g, rng)] for g in groups])
            rules[f"{rule}:{n}"] = {k: float(v[won].mean()) for k, v in scores.items()}
            if len(won) > 1:
                some = features[won[:16]]
                rules[f"{rule}:{n}"]["diversity_clip"] = mean_distance(
                    torch.from_numpy(some), lambda a, b: 1 - float(a @ b)
                )
    return rounded({"scores": {k: v.tolist() for k, v in scores.items()}, "rules": rules})


def _scores(judge: Any, media: torch.Tensor, text: str) -> np.ndarray:
    features = judge.prepare(Item(text))
    found = judge(media, [features] * len(media))
    return found.double().cpu().numpy()


def _ranks(x: np.ndarray) -> np.ndarray:
    return rankdata(x)


def _drawn(scores: Any, group: np.ndarray, rng: Any, strength: float) -> int:
    x = scores["reward"]
    logits = strength * x[group] / x.std()
    return int((logits + rng.gumbel(size=len(group))).argmax())


#: index in a group that each rule chooses
RULES: dict[str, Any] = {
    "best": lambda s, f, g, r: int(s["reward"][g].argmax()),
    "rank": lambda s, f, g, r: int((_ranks(s["reward"][g]) + _ranks(s["second"][g])).argmax()),
    "draw-4": lambda s, f, g, r: _drawn(s, g, r, 4.0),
    "draw-1": lambda s, f, g, r: _drawn(s, g, r, 1.0),
    "majority": lambda s, f, g, r: best_of_majority(s["reward"][g], f[g]),
}
