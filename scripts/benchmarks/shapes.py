"""Compares searches on the embedded models: searched reward and verified accuracy against cost.

A cell is a model, a prompt set, a sampler and a number of prompts and seeds; its costs are means a
prompt. The interval of the accuracy is a bootstrap over prompts, since the seeds of one prompt are not
independent of each other.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser
from scipy import stats
from tqdm import tqdm

from benchmarks.common import Results
from benchmarks.embedded import MODELS, options_of, search_named, steered, synchronise
from steering import shapes
from steering.command.options import device_of
from steering.live import JobResult
from steering.strength import Strength

DEFAULT = ["base", "best-of-4", "best-of-16", "fk-4", "fk-16"]


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument("--samplers", nargs="+", default=DEFAULT, help="base, best-of-N, fk-N")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--prompt_set", choices=["easy", "hard"], default="hard")
    parser.add_argument("--prompts", type=int, default=128, help="the first of the set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strength", type=float, default=4.0, help="in spreads of the reward")
    parser.add_argument("--batch_size", type=int, default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--quick", action="store_true", help="4 prompts, 1 seed, 4 candidates at most"
    )


def run(options: Any) -> None:
    """Run every cell that the result file lacks."""
    prompts, seeds, samplers = options.prompts, options.seeds, options.samplers
    if options.quick:
        prompts, seeds = 4, 1
        samplers = [s for s in samplers if s in ("base", "best-of-4", "fk-4")]
    texts = shapes.prompts(options.prompt_set)[:prompts]
    for model in options.models:
        pipeline = options_of(model, options.device)
        device = device_of(pipeline)
        results = Results(Path(options.json), device=device, seed=0)
        door = None
        for name in samplers:
            cell = {
                "model": model,
                "prompt_set": options.prompt_set,
                "sampler": name,
                "strength": options.strength,
                "prompts": len(texts),
                "seeds": seeds,
            }
            if results.has(cell):
                continue
            door = door or steered(pipeline, search_named(name), 0, batch_size=options.batch_size)
            door.sampler, door.strength = search_named(name), Strength(options.strength)
            found, seconds = [], 0.0
            for seed in tqdm(range(seeds), f"{model} {name}", leave=False):
                door.seed = seed
                start = time.perf_counter()
                prepared = door.prepare(texts, **pipeline.call)
                found.append(prepared.report(list(prepared.results())).results)
                synchronise(device)
                seconds += time.perf_counter() - start
            results.add(cell | summarise(found, seconds))


def summarise(found: list[list[JobResult]], seconds: float) -> dict[str, Any]:
    """Means over prompts and seeds, and the accuracy's 95 % interval.

    Args:
        found: results of each seed, in the order of the prompts.
        seconds: wall-clock seconds of all.

    Raises:
        SearchFailed: a search failed.
    """
    for result in (r for seed in found for r in seed):
        if result.error is not None:
            raise result.error
    flat = [r for seed in found for r in seed]
    accuracy = np.array([[r.held_out["accuracy"][0] for r in seed] for seed in found])
    low, high = interval(accuracy.mean(0))
    return {
        "nfe": float(np.mean([r.usage.nfe for r in flat])),
        "decodes": float(np.mean([r.usage.decodes for r in flat])),
        "reward_calls": float(np.mean([r.usage.reward_calls for r in flat])),
        "seconds": seconds / len(flat),
        "reward": float(np.mean([_reward(r) for r in flat])),
        "accuracy": float(accuracy.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
    }


def interval(by_prompt: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean over prompts, by bootstrap; Wilson's where all prompts agree."""
    if len(np.unique(by_prompt)) > 1:
        found = stats.bootstrap(
            (by_prompt,), np.mean, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        return float(found.low), float(found.high)
    wins = round(float(by_prompt.sum()))
    wilson = stats.binomtest(wins, len(by_prompt)).proportion_ci(method="wilson")
    return float(wilson.low), float(wilson.high)


def _reward(result: JobResult) -> float:
    assert result.outcome is not None
    return float(result.outcome.scores.total[result.outcome.chosen[0]])
