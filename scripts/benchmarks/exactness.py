"""Measures how exactly searches sample the tilted law of four Gaussian mixtures.

A cell is a problem, a sampler and a number of particles. Each runs many independent searches through
the engine, 50 DDIM steps at eta 1, and pools all their weighted points: every run counts the same,
its points by their normalised weights.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import Results
from samplers import BestOfN, FKSteering
from steering.chain_law import ChainLaw, saved_laws
from steering.engine import Engine
from steering.live import Job, JobResult
from steering.mixtures import MixtureModel, Unconditional, vp_grid
from steering.reward import Item
from steering.search import Search
from steering.tilted import PROBLEMS, TiltedProblem, total_variation
from steering.transitions import DDIM

#: Searches by name, made for k particles. ``smc-*`` are textbook sequential Monte Carlo.
SAMPLERS: dict[str, Callable[[int], Search]] = {
    "best-of-n": lambda k: BestOfN(n=k, solver=DDIM(1.0), in_flight=k),
    "weighted-best-of-n": lambda k: FKSteering(particles=k, steps=(), returns="all"),
    "fk-difference": lambda k: FKSteering(particles=k, potential="difference", returns="all"),
    "fk-max": lambda k: FKSteering(particles=k, potential="max", returns="all"),
    "fk-sum": lambda k: FKSteering(particles=k, potential="sum", returns="all"),
    "smc-ess": lambda k: FKSteering(particles=k, start=0, every=1, returns="all"),
    "smc-tempered": lambda k: FKSteering(
        particles=k, start=0, every=1, temperature="signal", ess_threshold=0.9, returns="all"
    ),
    "smc-every": lambda k: FKSteering(
        particles=k, start=0, every=1, ess_threshold=1.0, returns="all"
    ),
}
BOOTSTRAP = 500


@dataclass(frozen=True, eq=False)
class Runs:
    """Figures of R independent runs.

    Attributes:
        masses: mode masses of each run's weighted points ``(R, J)``.
        rewards: weighted mean reward of each run ``(R,)``.
        squares: weighted mean squared reward of each run ``(R,)``.
        log_z: estimate of log Z of each run ``(R,)``, or None where the search has none.
        nfe: denoiser rows of each run, ``(R,)``.
    """

    masses: Tensor
    rewards: Tensor
    squares: Tensor
    log_z: Tensor | None
    nfe: Tensor


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--k", nargs="+", type=int, default=[4, 16, 64], help="particles")
    parser.add_argument(
        "--runs", type=int, default=None, help="runs a cell; 3,000, or 1,000 at k=64"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="50 runs a cell, k = 4 and 16 only")
    parser.add_argument("--batch-size", type=int, default=1024, help="denoiser rows a call")


def run(options: Any) -> None:
    """Run every cell that the result file lacks."""
    torch.set_num_threads(1)  # rows are tiny: threads cost more than they give
    results = Results(Path(options.json), device="cpu", seed=options.seed)
    laws = saved_laws()
    for k, problem, sampler in itertools.product(
        [k for k in options.k if not (options.quick and k > 16)], options.problems, options.samplers
    ):
        runs = options.runs or (50 if options.quick else 3000 if k < 64 else 1000)
        settings = {
            "problem": problem,
            "sampler": sampler,
            "k": k,
            "runs": runs,
            "seed": options.seed,
        }
        if not results.has(settings):
            start = time.perf_counter()
            target = PROBLEMS[problem]()
            found = simulate(target, SAMPLERS[sampler](k), runs, options.seed, options.batch_size)
            seconds = time.perf_counter() - start
            results.add(settings | summarise(found, target, laws[problem]) | {"seconds": seconds})


def simulate(
    problem: TiltedProblem, search: Search, runs: int, seed: int, batch_size: int = 1024
) -> Runs:
    """Run one search many times on one problem.

    Run ``i`` draws the same numbers for every sampler and problem, so that differences between them
    are less noisy than the figures themselves.

    Raises:
        SearchFailed: a run failed.
    """
    model = MixtureModel(problem.mixture, vp_grid())
    engine = Engine(model, problem.reward, batch_size=batch_size)
    jobs = (
        Job(
            item=Item(f"run {i}"),
            key=f"id:{i}",
            search=search,
            conditioning=Unconditional(),
            seed=seed,
            lam=problem.lam,
        )
        for i in range(runs)
    )
    label = f"{problem.name} {type(search).__name__}"
    finished = list(_figures(tqdm(engine.run(jobs), label, runs, leave=False), problem))
    masses, rewards, squares, log_z, nfe = zip(*finished, strict=True)
    return Runs(
        torch.stack(masses),
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(squares, dtype=torch.float64),
        None if None in log_z else torch.tensor(log_z, dtype=torch.float64),
        torch.tensor(nfe, dtype=torch.float64),
    )


def _figures(results: Iterator[JobResult], problem: TiltedProblem) -> Iterator[tuple[Any, ...]]:
    """Masses, mean and mean square of the reward, log Z and NFE of each run."""
    for result in results:
        if result.error is not None or result.outcome is None:
            raise result.error or RuntimeError("a run has neither outcome nor error")
        out = result.outcome
        weights = torch.softmax(out.log_w.double(), 0)
        r = out.scores.total
        masses = problem.masses_of(out.x_0, weights)
        yield masses, float(weights @ r), float(weights @ r.square()), out.log_z, result.usage.nfe


def summarise(runs: Runs, problem: TiltedProblem, law: ChainLaw, seed: int = 0) -> dict[str, Any]:
    """The figures of a cell, with standard errors by bootstrap over runs.

    ``independent`` is the number of independent target samples that one run is worth: the variance
    of r over the pooled points against the variance of run means.
    """
    count = len(runs.masses)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(count, (BOOTSTRAP, count), generator=generator)
    shares = torch.zeros(BOOTSTRAP, count, dtype=torch.float64)
    shares.scatter_add_(1, picks, torch.full_like(shares, 1 / count))

    masses, chain = runs.masses.mean(0), torch.tensor(law.masses, dtype=torch.float64)
    again = 0.5 * (shares @ runs.masses - problem.masses).abs().sum(1)
    mean = float(runs.rewards.mean())
    spread = float(runs.squares.mean()) - mean**2
    between = float(runs.rewards.var(correction=min(count - 1, 1)))
    return {
        "nfe": float(runs.nfe.mean()),
        "reward_mean": mean,
        "reward_se": math.sqrt(between / count),
        "reward_exact": problem.reward_mean,
        "reward_chain": law.reward_mean,
        "independent": spread / between if between > 0 else None,
        "mode_tv": total_variation(masses, problem.masses),
        "mode_tv_se": float(again.std()),
        "mode_tv_chain": total_variation(masses, chain),
        "masses": masses.tolist(),
        **_evidence(runs.log_z, shares, law),
        "log_z_exact": problem.log_z,
    }


def _evidence(log_z: Tensor | None, shares: Tensor, law: ChainLaw) -> dict[str, float | None]:
    """Log of the mean estimate of Z, which is unbiased where the mean of logs is not.

    ``z_ratio`` is the mean of Z-hat over the chain's own Z: 1 for an unbiased sampler. ``z_largest``
    is the share of that mean which one single run gives: where it is large, the estimate is so
    skewed that its standard error is too small and the mean most likely too low.
    """
    figures: dict[str, float | None] = dict.fromkeys(
        ("log_z", "log_z_se", "z_ratio", "z_ratio_se", "z_largest")
    )
    if log_z is not None:
        ratios = (log_z - law.log_z).exp()
        mean, again = ratios.mean(), shares @ ratios
        figures = {
            "log_z": law.log_z + math.log(mean),
            "log_z_se": float(again.log().std()),
            "z_ratio": float(mean),
            "z_ratio_se": math.hypot(float(again.std()), law.log_z_se),
            "z_largest": float(ratios.max() / ratios.sum()),
        }
    return figures | {"log_z_chain": law.log_z, "log_z_chain_se": law.log_z_se}
