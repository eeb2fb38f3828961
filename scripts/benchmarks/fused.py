"""What a fused step costs beside the models: searches of many prompts at once on a model that is free.

Denoiser, decoder and reward are one or two operations a call, so nearly all of the time is that of the
engine and the searches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import steering
from benchmarks.embedded import search_named
from benchmarks.standin import DEVICE, StandIn
from steering.engine import Engine
from steering.live import Job
from steering.mixtures import OdeRun, Unconditional, vp_grid
from steering.model import Abilities, Stage
from steering.prediction import Posterior
from steering.reward import Item
from steering.search import Search
from steering.times import Time, TimeGrid

SHAPE = (4, 16, 16)  #: of one state, that of the embedded models
STEPS = 25  #: of the grid


@dataclass(eq=False)
class FreeModel:
    """A model of pictures that does next to nothing.

    Attributes:
        device: where states live.
        grid: the time grid.
        calls: denoiser calls so far.
        shares: prompts in these calls, added up.
    """

    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    grid: TimeGrid = field(default_factory=partial(vp_grid, STEPS))
    calls: int = 0
    shares: int = 0

    name = "free"
    shape = SHAPE
    dtype = torch.float32
    initial_std = 1.0
    passes = 1
    abilities = Abilities()

    def at(self, log_snr: float) -> Time:
        """No search that is measured here leaves the grid."""
        raise NotImplementedError(f"log-SNR {log_snr} was asked for")

    def encode(self, prompts: Sequence[str]) -> list[Unconditional]:
        """A handle a prompt."""
        return [Unconditional(prompt) for prompt in prompts]

    def denoise(self, x_t: Tensor, times: Sequence[Time], conditioning: Sequence[Any]) -> Posterior:
        """A shrunk state and the rest."""
        self.calls += 1
        self.shares += len(set(map(id, conditioning)))
        x_0 = 0.5 * x_t
        return Posterior(x_0, x_t - x_0)

    def decode(self, x_0: Tensor, conditioning: Sequence[Any], stage: Stage) -> Tensor:
        """The states themselves."""
        return x_0

    def render(self, x_0: Tensor, conditioning: Sequence[Any]) -> list[Tensor]:
        """The rows."""
        return list(x_0.unbind())

    def scheduler_calls(self) -> int:
        """One a step."""
        return self.grid.steps

    def scheduler_run(
        self,
        conditioning: Any,
        draws: Sequence[int],
        seeds: Sequence[int],
        start: int = 0,
        stop: int | None = None,
    ) -> OdeRun:
        """The deterministic walk along the grid."""
        return OdeRun(TimeGrid(self.grid[start:]) if start else self.grid)


@dataclass
class FreeReward:
    """The first number of a picture."""

    name: str = "free"
    differentiable: bool = False
    calls_per_row: int = 1

    def prepare(self, item: Item) -> str:
        """The text."""
        return item.prompt

    def __call__(self, media: Tensor, features: Sequence[Any]) -> Tensor:
        """``(B,)``."""
        return media[:, 0, 0, 0]


@dataclass(frozen=True)
class Found:
    """What one run of all prompts took.

    Attributes:
        seconds: of the process on the CPU, which others on the machine do not change much.
        calls: fused denoiser calls.
        shares: prompts in these calls, added up.
    """

    seconds: float
    calls: int
    shares: int


def run_fused(search: Search, prompts: int, device: torch.device | None = None) -> Found:
    """Search for so many prompts together, in one call a turn."""
    model = FreeModel(device or torch.device("cpu"))
    texts = [f"prompt {i}" for i in range(prompts)]
    jobs = [
        Job(Item(text), f"text:0:{text}", search, handle, lam=4.0)
        for text, handle in zip(texts, model.encode(texts), strict=True)
    ]
    engine = Engine(model, FreeReward(), batch_size=1 << 20)
    start = time.process_time()
    results = list(engine.run(jobs))
    seconds = time.process_time() - start
    for result in results:
        if result.error is not None:
            raise result.error
    return Found(seconds, model.calls, model.shares)


def measured_in_turns(
    codes: Mapping[str, Path], sampler: str, nfe: int, prompts: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Figures of one search for each of some checkouts.

    Each run is a process of its own that takes the package from its checkout and this file from here;
    the checkouts take turns, and the least time of each is reported.

    Args:
        codes: folders with the package, by name.
        sampler: a family of :mod:`benchmarks.embedded`.
        nfe: denoiser calls a prompt.
        prompts: how many run together.
        repeats: turns.

    Raises:
        RuntimeError: another package than that of a checkout was found.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in codes}
    scripts = Path(__file__).parents[1]
    words = [sys.executable, "-m", "benchmarks.fused", sampler, str(nfe), str(prompts)]
    for _ in range(repeats):
        for name, folder in codes.items():
            paths = os.pathsep.join([str(folder.resolve()), str(scripts)])
            env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
            told = subprocess.run(
                words, cwd=folder, env=env, check=True, stdout=subprocess.PIPE, text=True
            )
            package, figures = json.loads(told.stdout.splitlines()[-1])
            if Path(package) != folder.resolve():
                raise RuntimeError(f"{name} was to be measured in {folder}, not in {package}")
            found[name].append(figures)
    return {name: min(runs, key=lambda run: run["us_per_call"]) for name, runs in found.items()}


def measure_fused(sampler: str, nfe: int, prompts: int) -> dict[str, float]:
    """Figures of one search: time on the CPU, and counts on a stand-in for an accelerator.

    Args:
        sampler: a family of :mod:`benchmarks.embedded`.
        nfe: denoiser calls a prompt.
        prompts: how many run together.

    Returns:
        ``us_per_call``: microseconds a prompt and denoiser call; ``ops_per_call``: tensor operations
        likewise; ``syncs_per_step``: copies and reads that wait for the device, a fused denoiser call;
        ``sends_per_step``: copies to it that do not wait, likewise; ``steps``: fused denoiser calls.
    """
    search = search_named(sampler, nfe, STEPS)
    run_fused(search, min(prompts, 5))  # warms up
    found = run_fused(search, prompts)
    with StandIn() as device:
        counted = run_fused(search, prompts, DEVICE)
    return {
        "us_per_call": 1e6 * found.seconds / found.shares,
        "ops_per_call": device.operations / counted.shares,
        "syncs_per_step": device.waits / counted.calls,
        "sends_per_step": device.sent / counted.calls,
        "steps": counted.calls,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    figures = measure_fused(sys.argv[1], *map(int, sys.argv[2:]))
    print(json.dumps([str(Path(steering.__file__).parents[1]), figures]))
