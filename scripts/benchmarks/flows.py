"""Compares sampling paths and transitions of flow models: bias, diversity of children, quality.

Part "gaussian" is exact: on data N(0.7, 0.5^2) every transition is affine, so the final law follows
without sampling. Part "shapes-flux" samples the embedded Flux. A row with "measure" "quality" holds
reward and verified accuracy of unsteered samples; one with "children" holds how far apart the pictures
are that start from one state: "step" where a single step's noise makes the difference and the ODE goes
on from there, "onwards" where all later steps are random, too.
"""

from __future__ import annotations

import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from scipy import stats
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from benchmarks.common import Results
from benchmarks.embedded import options_of
from benchmarks.flow_methods import DRAWN, PATHS, TRANSITIONS, Branch, Sample, transition_of
from rewards import ShapesCLIP, ShapesVerifier
from steering import shapes
from steering.adapters import PipelineModel, adapt
from steering.command.options import PipelineOptions, device_of, load_pipeline
from steering.engine import Engine
from steering.live import Job, JobResult, new_problem
from steering.mixtures import GaussianMixture, MixtureModel, flow_grid
from steering.moves import made, move
from steering.requests import Move
from steering.reward import Item
from steering.search import Search
from steering.streams import prompt_keys
from steering.times import Time

STEPS = [10, 20, 50]
DATA_MEAN, DATA_STD = 0.7, 0.5
PARTS = ["gaussian", "shapes-flux"]


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    parser.add_argument(
        "--methods", nargs="+", default=[f"{p}/{t}" for p, t in DRAWN], help="PATH/TRANSITION"
    )
    parser.add_argument("--prompts", type=int, default=128, help="spread over the easy set")
    parser.add_argument("--children", type=int, default=4)
    parser.add_argument(
        "--levels", nargs="+", type=float, default=[0.95, 0.8, 0.6, 0.4], help="noise shares"
    )
    parser.add_argument("--batch_size", type=int, default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--minutes", type=float, default=None, help="start no cell of shapes-flux after this time"
    )
    parser.add_argument(
        "--quick", action="store_true", help="2 prompts, 2 children, 1 level, 4 methods, 6 steps"
    )


def run(options: Any) -> None:
    """Run every cell that the result file lacks."""
    if "gaussian" in options.parts:
        results = Results(Path(options.json), device="cpu", seed=0)
        for path in PATHS:
            for name in TRANSITIONS:
                for steps in options.steps:
                    cell = {"part": "gaussian", "path": path, "transition": name, "steps": steps}
                    if not results.has(cell):
                        results.add(cell | gaussian(path, name, steps))
    if "shapes-flux" in options.parts:
        _shapes(options)


def gaussian(path: str, name: str, steps: int) -> dict[str, float]:
    """Final law of a chain on Gaussian data, exactly: error of the mean, and share of the std."""
    mean = torch.full((1, 1), DATA_MEAN, dtype=torch.float64)
    data = GaussianMixture(torch.ones(1), mean, torch.full_like(mean, DATA_STD**2)[None])
    model = MixtureModel(data, flow_grid(steps))
    search = Sample(transition_of(path, name), PATHS[path])
    problem = new_problem(Job(Item("data"), "data", search), model, 1)
    centre, var, nfe = 0.0, 1.0, 0
    for t, s in pairwise(problem.grid):
        slope, offset, std, calls = _affine(problem, model, search, t, s)
        centre, var, nfe = slope * centre + offset, slope**2 * var + std**2, nfe + calls
    return {"nfe": nfe, "mean_error": centre - DATA_MEAN, "std_ratio": math.sqrt(var) / DATA_STD}


def _affine(
    problem: Any, model: MixtureModel, search: Sample, t: Time, s: Time
) -> tuple[float, float, float, int]:
    """Slope, offset, std and denoiser calls of one step, by probing it."""
    x_t = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
    noise = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    posterior, calls = model.denoise(x_t, [t] * 3, [None] * 3), 1
    step = move(problem, search.transition, x_t, posterior, t, s, lambda: noise)
    answer: Any = None
    while True:
        try:
            request = step.send(answer)
        except StopIteration as stop:
            none, state, rough = stop.value.flatten().tolist()
            return state - none, none, rough - none, calls
        if isinstance(request, Move):
            [answer] = made([request])
            continue
        assert isinstance(request.time, Time)
        answer = model.denoise(request.x_t, [request.time] * 3, [None] * 3)
        calls += 1


def _shapes(options: Any) -> None:
    prompts, children, levels = options.prompts, options.children, options.levels
    methods, counts = [tuple(m.split("/")) for m in options.methods], options.steps
    unknown = [m for m in methods if len(m) != 2 or m[0] not in PATHS or m[1] not in TRANSITIONS]
    if unknown:
        raise ValueError(
            f"unknown methods {unknown}; PATH is one of {list(PATHS)}, TRANSITION of "
            f"{list(TRANSITIONS)}"
        )
    if options.quick:
        prompts, children, levels, counts = 2, 2, levels[1:2], [6]
        few = {"ode", "ddim", "sde-square-euler", "glass-2"}
        methods = [m for m in methods if m[1] in few and m != ("vp", "ode")]
    easy = shapes.prompts("easy")
    texts = easy[:: max(len(easy) // prompts, 1)][:prompts]
    pipeline = options_of("shapes-flux", options.device)
    bench = _Bench(pipeline, texts, options.batch_size)
    results = Results(Path(options.json), device=device_of(pipeline), seed=0)
    end = math.inf if options.minutes is None else time.monotonic() + 60 * options.minutes
    bar = tqdm([(m, n) for n in counts for m in methods], "shapes-flux", leave=False)
    for (path, name), steps in bar:
        transition = transition_of(path, name)
        cell = {
            "part": "shapes-flux",
            "path": path,
            "transition": name,
            "steps": steps,
            "prompts": len(texts),
        }
        quality = cell | {"measure": "quality"}
        if not results.has(quality) and time.monotonic() < end:
            results.add(quality | bench.quality(steps, Sample(transition, PATHS[path])))
        for level in levels if transition.stochastic else []:
            some = cell | {"measure": "children", "level": level, "children": children}
            if not results.has(some) and time.monotonic() < end:
                branch = Branch(transition, PATHS[path], level, children)
                results.add(some | bench.children(steps, branch))


class _Bench:
    """The embedded Flux with its prompts, adapted once for each number of steps.

    Args:
        options: its shipped configuration.
        texts: prompts.
        batch_size: most rows a model call.
    """

    def __init__(self, options: PipelineOptions, texts: list[str], batch_size: int | None) -> None:
        device = device_of(options)
        self.options, self.texts, self.batch_size = options, texts, batch_size
        self.pipe = load_pipeline(options, device)
        self.clip = ShapesCLIP().to(device)
        self._adapted: tuple[int, PipelineModel, list[Any]] | None = None

    def _run(self, steps: int, search: Search) -> tuple[PipelineModel, list[JobResult]]:
        if self._adapted is None or self._adapted[0] != steps:
            call = {**self.options.call, "num_inference_steps": steps, "output_type": "pt"}
            model = adapt(self.pipe, call=call)
            self._adapted = (steps, model, model.encode(self.texts))
        _, model, handles = self._adapted
        keys = prompt_keys(self.texts)
        jobs = [
            Job(Item(text), key, search, handle)
            for text, key, handle in zip(self.texts, keys, handles, strict=True)
        ]
        engine = Engine(
            model,
            self.clip,
            held_out={"accuracy": ShapesVerifier()},
            batch_size=self.batch_size,
        )
        found = {id(result.job): result for result in engine.run(jobs)}
        results = [found[id(job)] for job in jobs]
        for result in results:
            if result.error is not None:
                raise result.error
        return model, results

    def quality(self, steps: int, search: Sample) -> dict[str, float]:
        """Means over prompts of unsteered samples, one each; Wilson's 95 % interval of the accuracy."""
        _, results = self._run(steps, search)
        accuracy = np.array([r.held_out["accuracy"][0] for r in results])
        rewards = [float(r.outcome.scores.total[0]) for r in results if r.outcome is not None]
        right = stats.binomtest(round(float(accuracy.sum())), len(accuracy))
        low, high = right.proportion_ci(method="wilson")
        return {
            "nfe": float(np.mean([r.usage.nfe for r in results])),
            "reward": float(np.mean(rewards)),
            "accuracy": float(accuracy.mean()),
            "accuracy_low": float(low),
            "accuracy_high": float(high),
        }

    def children(self, steps: int, search: Branch) -> dict[str, float]:
        """Mean distance of two children, over pairs and prompts, and the level branched at."""
        model, results = self._run(steps, search)
        grid = model.grid if search.path is None else search.path.lay(model.grid, model.at)
        level = grid[search.index(grid)]
        found: dict[str, list[float]] = {}
        for result in results:
            pictures = torch.stack(list(result.media)).to(model.device).float()
            for half, name in zip(pictures.chunk(2), ("step", "onwards"), strict=True):
                with torch.no_grad():
                    features = functional.normalize(self.clip.encoder.images(half), dim=-1)
                found.setdefault(f"pixels_{name}", []).append(
                    apart(half.flatten(1)) / math.sqrt(half[0].numel())
                )
                found.setdefault(f"features_{name}", []).append(apart(features))
        means = {name: float(np.mean(values)) for name, values in found.items()}
        return {"noise_share": level.sigma / (level.alpha + level.sigma), **means}


def apart(rows: Tensor) -> float:
    """Mean Euclidean distance of two different rows ``(n, d)``, n at least 2."""
    return float(torch.pdist(rows.float()).mean())
