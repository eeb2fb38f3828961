"""One cell of the comparison on the embedded models: run it, measure it, keep it compactly."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import Results
from benchmarks.embedded import synchronise
from benchmarks.report import read
from samplers import BestOfN
from steering.cost import Budget
from steering.files import write_atomically
from steering.live import JobResult
from steering.pipeline import SteeredPipeline
from steering.statistics import interval
from steering.strength import Strength

#: what tells one comparison's rows from another's, the chunk of prompts aside
KEY = ("model", "sampler", "budget", "seeds", "strength", "prompt_set", "equal_seconds")


class Rows(Results):
    """Rows in one JSON file, a line each; those of an earlier form of the benchmark are refused.

    Its meta says where and how the last row was made, not where files were merged.
    """

    def __init__(self, path: Path, *, device: torch.device | str, seed: int) -> None:
        super().__init__(path, device=device, seed=seed)
        _check(self.rows, path)
        self._here = self.meta
        if path.exists():
            self.meta = read(path)["meta"]

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row and save."""
        self.meta = self._here
        self.rows.append(dict(row))
        self.save()

    def take(self, paths: Iterable[Path]) -> None:
        """Add the rows of other files for prompts that no row covers yet, and save.

        Raises:
            ValueError: a file is missing or of another form.
        """
        paths = list(paths)
        for path in paths:
            if not path.exists():
                raise ValueError(f"there is no {path} to merge")
            other = Rows(path, device="cpu", seed=0)
            if not self.rows:
                self.meta = other.meta
            for row in other.rows:
                if not self.prompts_of(row) >= _prompts(row):
                    self.rows.append(row)
        if paths:
            self.save()

    def save(self) -> None:
        """Write the file."""
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in self.rows)
        write_atomically(
            self.path, f'{{"meta": {json.dumps(self.meta)},\n"rows": [\n{lines}\n]}}\n'
        )

    def prompts_of(self, cell: Any) -> set[int]:
        """Indices of the prompts that rows cover with the settings of a cell or row."""
        wanted = [cell[k] if isinstance(cell, Mapping) else getattr(cell, k) for k in KEY]
        same = (row for row in self.rows if [row[k] for k in KEY] == wanted)
        return set().union(*map(_prompts, same))


def _prompts(row: Mapping[str, Any]) -> set[int]:
    return set(range(row["first"], row["first"] + row["prompts"]))


def _check(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    for row in rows:
        if "per_prompt" not in row or any(k not in row for k in KEY):
            raise ValueError(
                f"{path} holds rows of another benchmark or an earlier form; give another --json"
            )


def measure(
    door: SteeredPipeline,
    call: Mapping[str, Any],
    texts: Sequence[str],
    keys: Sequence[str],
    seeds: int,
) -> tuple[list[list[JobResult]], float]:
    """Run all seeds of some prompts together.

    Args:
        door: with the sampler, strength and budget to run.
        call: the pipeline's own keyword arguments.
        texts: the prompts.
        keys: their keys for random numbers.
        seeds: how many; a search of seed 1 knows nothing of that of seed 0.

    Returns:
        Results of each seed, in the order of the prompts; wall-clock seconds of all.

    Raises:
        SearchFailed: a search failed.
    """
    door.seed = 0
    device = door.model(**call).device
    synchronise(device)
    start = time.perf_counter()
    prepared = door.prepare(list(texts), keys=keys, **call)
    jobs = [replace(job, seed=seed) for seed in range(seeds) for job in prepared.jobs]
    run = replace(prepared, jobs=jobs)
    found = run.report(list(run.results())).results
    synchronise(device)
    seconds = time.perf_counter() - start
    for result in found:
        if result.error is not None:
            raise result.error
    n = len(texts)
    return [found[s * n : (s + 1) * n] for s in range(seeds)], seconds


def warm_up(
    door: SteeredPipeline, call: Mapping[str, Any], texts: Sequence[str], seeds: int
) -> None:
    """One unsteered search of each prompt, uncounted; on a CPU of one, where nothing needs warming."""
    if door.model(**call).device.type == "cpu":
        texts, seeds = texts[:1], 1
    door.sampler, door.strength, door.budget = BestOfN(1), Strength(), Budget()
    measure(door, call, texts, [f"warm:{i}" for i in range(len(texts))], seeds)


def summarise(
    door: SteeredPipeline, found: Sequence[Sequence[JobResult]], seconds: float
) -> dict[str, Any]:
    """Means over prompts and seeds, and under ``per_prompt`` what they are means of.

    Args:
        door: its reward's encoder tells how pictures differ.
        found: results of each seed, in the order of the prompts.
        seconds: wall-clock seconds of all.
    """
    lists = {
        "reward": [[_reward(r) for r in seed] for seed in found],
        "accuracy": [[int(r.held_out["accuracy"][0]) for r in seed] for seed in found],
    }
    costs = {
        name: [[int(getattr(r.usage, name)) for r in seed] for seed in found]
        for name in ("nfe", "decodes", "reward_calls")
    }
    accuracy = np.array(lists["accuracy"])
    low, high = interval(accuracy.mean(0), share=True)
    means = {name: float(np.mean(v)) for name, v in {**costs, **lists}.items()}
    per_prompt = lists | {name: _short(v) for name, v in costs.items()} | diversity(door, found)
    return rounded(
        {
            **means,
            "seconds": seconds / accuracy.size,
            "wall_seconds": seconds,
            "accuracy_low": low,
            "accuracy_high": high,
            "per_prompt": per_prompt,
        }
    )


def diversity(
    door: SteeredPipeline, found: Sequence[Sequence[JobResult]]
) -> dict[str, list[float]]:
    """Mean distance between the pictures that the seeds return for a prompt, by prompt.

    Returns:
        ``diversity_pixel``: root mean square difference of pixels in [0, 1]; ``diversity_clip``: 1 less
        the cosine of the reward's own picture embeddings. Empty with one seed.
    """
    if len(found) < 2:
        return {}
    prompts = list(zip(*found, strict=True))
    pixel, clip = [], []
    for results in prompts:
        pictures = torch.stack([_pixels(r.media[0]) for r in results])
        with torch.no_grad():
            features = functional.normalize(door.reward.encoder.images(pictures), dim=-1).cpu()  # type: ignore[attr-defined]
        pixel.append(mean_distance(pictures, lambda a, b: float((a - b).square().mean().sqrt())))
        clip.append(mean_distance(features, lambda a, b: 1 - float(a @ b)))
    return {"diversity_pixel": pixel, "diversity_clip": clip}


def mean_distance(rows: Tensor, distance: Any) -> float:
    """Mean over all pairs of rows."""
    return float(np.mean([distance(a, b) for a, b in itertools.combinations(rows, 2)]))


def rounded(value: Any) -> Any:
    """The same with floats of 4 significant digits, whole ones as integers."""
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        short = float(f"{value:.4g}")
        return int(short) if short.is_integer() else short
    return value


def _short(values: list[list[int]]) -> int | list[list[int]]:
    """One number where all are the same."""
    distinct = {v for row in values for v in row}
    return distinct.pop() if len(distinct) == 1 else values


def _pixels(picture: Any) -> Tensor:
    """``(3, H, W)`` in [0, 1]."""
    array = np.array(picture.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)


def _reward(result: JobResult) -> float:
    assert result.outcome is not None
    return float(result.outcome.scores.total[result.outcome.chosen[0]])
