"""Measures how well cheap decodes of guesses rank candidates, noise level by noise level.

Candidates of a prompt are carried to the end by DDIM (eta 0). At some steps the reward of the guess of
x_0 is computed from the full decode and from cheaper ones; the tiny autoencoder, of which the embedded
models have none, is trained first if ``--tiny`` holds none. Rows give Spearman's rank correlation over
the candidates of a prompt, averaged over prompts: with the reward of the full decode of the same guess,
and with the reward of the finished sample.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.common import Results
from benchmarks.embedded import MODELS, options_of, synchronise
from benchmarks.tiny_decoder import train_tiny
from rewards import ShapesCLIP
from steering import adapt, shapes
from steering.adapters import LinearDecode, LowResolution, TinyDecode
from steering.adapters.cheap_decode import CheapDecode
from steering.adapters.pipeline import PipelineModel
from steering.command.options import device_of, load_pipeline
from steering.model import Stage
from steering.reward import Item
from steering.transitions import DDIM

FITTED = tuple(shapes.prompts("easy")[:32])  #: what the linear decode is fitted on
POLICIES: dict[str, CheapDecode] = {
    "linear": LinearDecode(FITTED, samples=32),
    "linear, one pixel": LinearDecode(FITTED, samples=32, reach=0),
    "half resolution": LowResolution(2),
}
DECODERS = ("full", *POLICIES, "tiny")


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["shapes-sd"])
    parser.add_argument("--prompts", type=int, default=24, help="of the hard set")
    parser.add_argument("--candidates", type=int, default=16, help="of each prompt")
    parser.add_argument("--levels", type=int, default=5, help="noise levels, evenly over the steps")
    parser.add_argument("--decoders", nargs="+", choices=DECODERS, default=list(DECODERS))
    parser.add_argument(
        "--tiny", type=Path, default=Path("outputs/tiny"), help="an AutoencoderTiny"
    )
    parser.add_argument("--train_seconds", type=float, default=360.0, help="if it must be trained")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="2 prompts, 4 candidates, 2 levels")


def run(options: Any) -> None:
    """Run every model that the result file lacks."""
    prompts, candidates, levels = options.prompts, options.candidates, options.levels
    if options.quick:
        prompts, candidates, levels = 2, 4, 2
    for name in options.models:
        pipeline = options_of(name, options.device)
        device = device_of(pipeline)
        results = Results(Path(options.json), device=device, seed=0)
        cell = {"model": name, "prompts": prompts, "candidates": candidates, "device": str(device)}
        left = [d for d in options.decoders if not results.has(cell | {"decoder": d})]
        if not left:
            continue
        model = adapt(load_pipeline(pipeline, device), call=pipeline.call)
        policies = {d: POLICIES[d] for d in left if d in POLICIES}
        if "tiny" in left:
            if not (options.tiny / "config.json").exists():
                how = {"seconds": options.train_seconds, "pictures": 256 if options.quick else 8192}
                train_tiny(model.pipe.vae, options.tiny, **how)
            policies["tiny"] = TinyDecode(str(options.tiny))
        for row in measure(model, policies, shapes.prompts("hard")[:prompts], candidates, levels):
            if row["decoder"] in left:
                results.add(cell | row)


def measure(
    model: PipelineModel,
    policies: Mapping[str, CheapDecode],
    prompts: list[str],
    candidates: int,
    levels: int,
) -> list[dict[str, Any]]:
    """Rows of one model: decoder, level, its two correlations with standard errors, its seconds."""
    steps = model.grid.steps
    looks = sorted({round(steps * (i + 1) / levels) - 1 for i in range(levels)})
    rewards, seconds = score_all(model, policies, prompts, candidates, looks)
    final = rewards["full"][-1]
    rows = []
    for decoder, scores in rewards.items():
        for step, guess, full in zip(looks, scores, rewards["full"], strict=False):
            same, same_se = rank_correlation(guess, full)
            end, end_se = rank_correlation(guess, final)
            rows.append(
                {
                    "decoder": decoder,
                    "step": step + 1,
                    "steps": steps,
                    "rank_full": same,
                    "rank_full_se": same_se,
                    "rank_final": end,
                    "rank_final_se": end_se,
                    "ms_a_decode": 1000 * seconds[decoder],
                }
            )
    return rows


@torch.no_grad()
def score_all(
    model: PipelineModel,
    policies: Mapping[str, CheapDecode],
    prompts: list[str],
    candidates: int,
    looks: list[int],
) -> tuple[dict[str, list[Tensor]], dict[str, float]]:
    """Rewards ``(prompts, candidates)`` by decoder, of the guess at each look; "full" ends with the end.

    And the seconds that each decoder took a picture.
    """
    reward, step_of = ShapesCLIP(), DDIM(eta=0.0)
    cheap = {"full": None, **{name: p.fit(model) for name, p in policies.items()}}
    found: dict[str, list[list[Tensor]]] = {n: [[] for _ in (*looks, -1)] for n in cheap}
    seconds = dict.fromkeys(cheap, 0.0)
    generator = torch.Generator().manual_seed(1)
    for prompt in prompts:
        handles = model.encode([prompt]) * candidates
        features = [reward.prepare(Item(prompt))] * candidates
        x_t = torch.randn((candidates, *model.shape), generator=generator).to(model.device)
        x_t = x_t * model.initial_std
        for i, (t, s) in enumerate(zip(model.grid.times, model.grid.times[1:], strict=False)):
            posterior = model.denoise(x_t, [t] * candidates, handles)
            if i in looks:
                for name, decode in cheap.items():
                    start = time.perf_counter()
                    pictures = (
                        decode(posterior.x_0)
                        if decode
                        else model.decode(posterior.x_0, handles, Stage.FINAL)
                    )
                    synchronise(model.device)
                    seconds[name] += time.perf_counter() - start
                    found[name][looks.index(i)].append(reward(pictures, features).cpu())
            x_t = step_of(posterior, t, s).mean
        pictures = model.decode(x_t, handles, Stage.FINAL)
        found["full"][-1].append(reward(pictures, features).cpu())
    total = len(prompts) * candidates * len(looks)
    tables = {n: [torch.stack(rows) for rows in f if rows] for n, f in found.items()}
    return tables, {name: spent / total for name, spent in seconds.items()}


def rank_correlation(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean over prompts of Spearman's correlation over candidates, and its standard error."""
    each = torch.tensor(
        [float(spearmanr(x.numpy(), y.numpy()).statistic) for x, y in zip(a, b, strict=True)]
    )
    return float(each.mean()), float(each.std() / len(each) ** 0.5)
