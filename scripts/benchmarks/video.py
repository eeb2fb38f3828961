"""Compares searches on the moving shapes: searched reward, verified motion, cost, with intervals.

First a few unsteered videos are scored by several rewards and by the exact judge, and the rewards are
weighed to agree with it, as DLBS does (2501.19252); that sum is searched. Then a cell is a sampler, a
budget of denoiser calls and a chunk of prompts with all their seeds. A file that holds some cells is
gone on with; --minutes begins no cell beyond them. ``python scripts/video_page.py`` makes the page.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from tqdm import tqdm

from benchmarks import video_world as world
from benchmarks.common import Results, describe
from benchmarks.shapes_cells import measure, rounded
from rewards import JudgeFit
from rewards.base import RewardModel
from samplers import BestOfN
from steering import shapes
from steering.cost import Budget
from steering.live import JobResult
from steering.pipeline import SteeredPipeline
from steering.reward import Item
from steering.search import BudgetTooSmall
from steering.statistics import interval
from steering.streams import prompt_keys
from steering.strength import Strength

_STRENGTH = 4.0  # of particle searches, in spreads of the reward
_PICTURED = 3  # prompts of the first chunk of which videos are kept


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument("--strip", type=Path, default=None, help="folder for PNG strips of videos")
    parser.add_argument("--size", choices=["full", "tiny"], default="full", help="tiny: rehearsal")
    parser.add_argument("--samplers", nargs="+", default=world.SAMPLERS)
    parser.add_argument("--nfe", nargs="+", type=int, default=[200, 400], help="a prompt")
    parser.add_argument("--prompts", type=int, default=128, help="of the set, evenly spaced")
    parser.add_argument("--chunk", type=int, default=32, help="prompts of a cell")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fit_prompts", type=int, default=64)
    parser.add_argument("--fit_samples", type=int, default=8, help="of each")
    parser.add_argument("--minutes", type=float, default=None, help="begin no cell beyond them")
    parser.add_argument("--batch_size", type=int, default=96, help="videos; at most 120 on CUDA")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tf32", action="store_true", help="matrix products on tensor cores")


def run(options: Any) -> None:
    """Run every cell that the result file lacks, as time allows."""
    start = time.perf_counter()
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    bench = Bench(options)
    cells = list(bench.cells())
    for done, cell in enumerate(tqdm(cells, "video")):
        spent = time.perf_counter() - start
        if options.minutes is not None and spent + bench.estimate(cell) > 60 * options.minutes:
            tqdm.write(f"{len(cells) - done} cells left; run again to go on")
            return
        bench.run(cell)


@dataclass(frozen=True)
class Cell:
    """What decides a cell's figures."""

    size: str
    sampler: str
    budget: int
    first: int
    prompts: int
    seeds: int


class Bench:
    """The model, the fitted reward and the cells that were asked for."""

    def __init__(self, options: Any) -> None:
        self.options = options
        found = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(found if options.device == "auto" else options.device)
        self.results = Results(options.json, device=self.device, seed=0)
        self.pipe, self.call = world.pipeline_and_call(options.size, self.device)
        self.steps = int(self.call["num_inference_steps"])
        self.texts = chosen(shapes.prompts("motion"), options.prompts, options.chunk)
        self.keys = prompt_keys(self.texts)
        for name in options.samplers:
            world.search_of(name, 20 * self.steps, self.steps)  # raises for an unknown name
        self.fitted = self._fitted()
        self.door = self._door(world.reward_of(JudgeFit(**self.fitted["fit"]), self.device))
        self._warm_up()

    def cells(self) -> Iterator[Cell]:
        """What the file lacks, a chunk of prompts after another."""
        o = self.options
        for first in range(0, len(self.texts), o.chunk):
            count = min(o.chunk, len(self.texts) - first)
            for budget in o.nfe:
                for name in o.samplers:
                    own = self.steps if name == "base" else budget
                    cell = Cell(o.size, name, own, first, count, o.seeds)
                    known = name == "base" and budget != o.nfe[0]
                    if not known and not self.results.has(asdict(cell)):
                        yield cell

    def run(self, cell: Cell) -> None:
        """Run a cell and keep its figures."""
        try:
            self.door.sampler = world.search_of(cell.sampler, cell.budget, self.steps)
        except BudgetTooSmall as error:
            tqdm.write(f"{cell.sampler} left out at {cell.budget}: {error}")
            return
        self.door.strength = Strength(_STRENGTH / self.fitted["spread"], unit="raw")
        self.door.budget = Budget(nfe=cell.budget)
        rows = slice(cell.first, cell.first + cell.prompts)
        texts = self.texts[rows]
        found, seconds = measure(self.door, self.call, texts, self.keys[rows], cell.seeds)
        row = asdict(cell) | {"kind": "cell", "search": repr(self.door.sampler)}
        row |= summarise(texts, found, seconds) | {"device": describe(self.device)}
        self.results.add(row)
        if self.options.strip is not None and cell.first == 0:
            self.options.strip.mkdir(parents=True, exist_ok=True)
            name = f"{cell.sampler}-{cell.budget}.png"
            save_strip([r.media[0] for r in found[0][:_PICTURED]], self.options.strip / name)

    def estimate(self, cell: Cell) -> float:
        """Seconds of a cell, from cells that were measured here."""
        here = [
            r
            for r in self.results.rows
            if r["kind"] == "cell" and r["device"] == describe(self.device)
        ]
        own = [r for r in here if r["sampler"] == cell.sampler] or here
        if not own:
            return 0.0
        rate = sum(r["wall_seconds"] for r in own) / sum(r["budget"] * r["prompts"] for r in own)
        return float(rate * cell.budget * cell.prompts)

    def _door(self, reward: RewardModel) -> SteeredPipeline:
        return SteeredPipeline(
            self.pipe,
            sampler=BestOfN(1),
            reward=reward,
            held_out={"right": world.judge()},
            seed=0,
            batch_size=self.options.batch_size,
        )

    def _warm_up(self) -> None:
        if self.device.type == "cuda":
            texts = self.texts[: self.options.chunk]
            measure(self.door, self.call, texts, [f"warm:{i}" for i in range(len(texts))], 1)

    def _fitted(self) -> dict[str, Any]:
        """The fit to the judge: that of the file, or a new one."""
        o = self.options
        settings = {
            "kind": "fit",
            "size": o.size,
            "fit_prompts": o.fit_prompts,
            "fit_samples": o.fit_samples,
        }
        known = [r for r in self.results.rows if all(r.get(k) == v for k, v in settings.items())]
        if known:
            return known[0]
        texts = world.fit_prompts(o.fit_prompts, self.texts)
        texts = [text for text in texts for _ in range(o.fit_samples)]
        groups = [i // o.fit_samples for i in range(len(texts))]
        scores, verdicts = self._scored(texts)
        target = [float(np.mean(v)) for v in zip(*verdicts.values(), strict=True)]
        fit = world.fit(scores, target, groups)
        total = sum(
            weight * np.array(scores[name]) / std
            for name, weight, std in zip(fit.names, fit.weights, fit.stds, strict=True)
        )
        row = settings | {
            "fit": asdict(fit),
            "spread": world.spread(list(total), groups),
            "base": {name: float(np.mean(values)) for name, values in verdicts.items()},
            "device": describe(self.device),
        }
        self.results.add(row)
        return row

    @torch.no_grad()
    def _scored(self, texts: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Scores of one unsteered video of each text by every term, and the judge's columns."""
        rewards, judge = world.members(self.device), world.judge()
        scores: dict[str, list[float]] = {name: [] for name in rewards}
        verdicts: dict[str, list[float]] = {}
        size = self.options.batch_size
        for start in range(0, len(texts), size):
            part = list(texts[start : start + size])
            generator = torch.Generator("cpu").manual_seed(1000 + start)
            video = self.pipe(part, generator=generator, output_type="pt", **self.call).frames
            video = video.float().clamp(0, 1)
            for name, reward in rewards.items():
                features = [reward.prepare(Item(text)) for text in part]
                scores[name] += reward(video, features).tolist()
            columns = judge(video, [judge.prepare(Item(text)) for text in part])
            assert isinstance(columns, Mapping)
            for name, column in columns.items():
                verdicts.setdefault(name, []).extend(column.tolist())
        return scores, verdicts


def chosen(texts: Sequence[str], count: int, chunk: int) -> list[str]:
    """So many texts, evenly spaced, in an order in which each chunk has all kinds."""
    rows = np.linspace(0, len(texts) - 1, min(count, len(texts))).round().astype(int)
    parts = -(-len(rows) // chunk)
    return [texts[i] for part in range(parts) for i in rows[part::parts]]


def summarise(
    texts: Sequence[str], found: Sequence[Sequence[JobResult]], seconds: float
) -> dict[str, Any]:
    """Means over prompts and seeds with intervals, and under ``per_prompt`` what they are means of.

    Args:
        texts: the prompts.
        found: results of each seed, in their order.
        seconds: wall-clock seconds of all.
    """
    columns = {
        "reward": [[_total(r) for r in seed] for seed in found],
        **{
            name: [[float(r.held_out[name][0]) for r in seed] for seed in found]
            for name in ("right", "frames", "motion")
        },
        **{
            name: [[float(getattr(r.usage, name)) for r in seed] for seed in found]
            for name in ("nfe", "decodes", "reward_calls")
        },
    }
    means = {name: float(np.mean(values)) for name, values in columns.items()}
    low, high = interval(np.array(columns["right"]).mean(0), share=True)
    return rounded(
        {
            **means,
            "right_interval": [low, high],
            "seconds": seconds / (len(texts) * len(found)),
            "wall_seconds": seconds,
            "per_prompt": {n: columns[n] for n in ("reward", "right", "frames", "motion", "nfe")},
            "texts": list(texts),
        }
    )


def save_strip(videos: Sequence[Any], path: Path) -> None:
    """Videos as rows of frames, each a list of pictures, in one PNG."""
    rows = [np.concatenate([np.asarray(frame) for frame in video], 1) for video in videos]
    Image.fromarray(np.concatenate(rows, 0)).save(path)


def _total(result: JobResult) -> float:
    assert result.outcome is not None
    return float(result.outcome.scores.total[result.outcome.chosen[0]])
