"""Measures how exactly searches sample the tilted law of Gaussian mixtures.

A cell is a problem, a sampler and a number of particles k; it spends the denoiser rows of k particles
a run. It runs independent searches through the engine, 50 DDIM steps at eta 1, until the standard
error is small enough, and pools all their weighted points: every run counts the same, its points by
their normalised weights.
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
from benchmarks.pool import pooled
from samplers import (
    BFS,
    DAS,
    SMC,
    SVDD,
    TDS,
    AutoSMC,
    BestOfN,
    BootstrapSMC,
    CoDe,
    EntropicPF,
    FKSteering,
    FunnelSMC,
    IslandSMC,
    Metropolis,
    ParticleGibbs,
    Resampled,
    Successor,
    TemperedSMC,
)
from samplers.temperature import temperature_of
from steering.chain_law import ChainLaw, saved_laws
from steering.cost import Budget
from steering.engine import Engine
from steering.live import Job, JobResult
from steering.mixtures import MixtureModel, Unconditional, vp_grid
from steering.reward import Item
from steering.search import Search
from steering.tilted import PROBLEMS, TiltedProblem, total_variation
from steering.transitions import DDIM


def _gibbs(k: int) -> Search:
    """Sweeps that together denoise no more rows than k particles; the first half is burn-in."""
    particles = max(2, round(k**0.75 / 2))
    sweeps = 1 + (k - particles) // (particles - 1)
    return ParticleGibbs(particles, sweeps, burn_in=sweeps // 2, returns="all")


def _metropolis(k: int) -> Search:
    """Chains that redo suffixes, for as long as the budget lasts."""
    return Metropolis(chains=max(1, k // 8), steps=1000, burn_in=2 if k < 8 else 3, returns="all")


#: Searches by name, made for the denoiser rows of k particles.
SAMPLERS: dict[str, Callable[[int], Search]] = {
    "best-of-n": lambda k: BestOfN(n=k, solver=DDIM(1.0), in_flight=k),
    "weighted-best-of-n": lambda k: SMC(k, steps=(), returns="all"),
    "fk-difference": lambda k: FKSteering(k, returns="all"),
    "fk-max": lambda k: FKSteering(k, potential="max", returns="all"),
    "fk-sum": lambda k: FKSteering(k, potential="sum", returns="all"),
    "smc-ess": lambda k: BootstrapSMC(k, returns="all"),
    "smc-every": lambda k: BootstrapSMC(k, ess_threshold=1.0, returns="all"),
    "smc-multinomial": lambda k: BootstrapSMC(
        k, ess_threshold=1.0, resampler="multinomial", returns="all"
    ),
    "auto": lambda k: AutoSMC(k, returns="all"),
    "auto-in-run": lambda k: AutoSMC(k, returns="all"),
    "smc-tempered": lambda k: TemperedSMC(k, returns="all"),
    "smc-exponential": lambda k: TemperedSMC(k, temperature="exponential", returns="all"),
    "smc-adaptive": lambda k: TemperedSMC(k, temperature="adaptive", returns="all"),
    "svdd": lambda k: SVDD(k, returns="all"),
    "code": lambda k: CoDe(k, returns="all"),
    "bfs": lambda k: BFS(k, returns="all"),
    "entropic": lambda k: EntropicPF(k, returns="all"),
    "entropic-look-ahead": lambda k: EntropicPF(k // 2, value=Successor(), returns="all"),
    "funnel": lambda k: FunnelSMC(k, returns="all"),
    "islands": lambda k: IslandSMC(k, islands=max(2, k // 16), returns="all"),
    "gibbs": _gibbs,
    "metropolis": _metropolis,
    "tds": lambda k: TDS(k, returns="all"),
    "das": lambda k: DAS(k, returns="all"),
    "resampled-noises": lambda k: BootstrapSMC(
        k - k // 4, initial=Resampled(STEPS * (k // 4)), returns="all"
    ),
}
#: Those that are told the reward's spread over base samples, as ``steer calibrate`` measures it.
CALIBRATED = ("auto",)
#: Those that follow the gradient of the reward, which the indicator does not have.
GRADIENT = ("tds", "das")
#: Runs of a cell before its standard error decides how many more it needs.
FIRST = {4: 800, 16: 300, 64: 120}
BOOTSTRAP = 500
STEPS = 50


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

    def __len__(self) -> int:
        return len(self.masses)

    def __add__(self, other: Runs) -> Runs:
        log_z = None
        if self.log_z is not None and other.log_z is not None:
            log_z = torch.cat([self.log_z, other.log_z])
        return Runs(
            torch.cat([self.masses, other.masses]),
            torch.cat([self.rewards, other.rewards]),
            torch.cat([self.squares, other.squares]),
            log_z,
            torch.cat([self.nfe, other.nfe]),
        )


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--k", nargs="+", type=int, default=[4, 16, 64], help="particles")
    parser.add_argument("--runs", type=int, default=None, help="runs a cell, instead of --error")
    parser.add_argument(
        "--error", type=float, default=0.01, help="standard error of mode_tv at which a cell stops"
    )
    parser.add_argument("--most", type=int, default=6000, help="most runs a cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="50 runs a cell, k = 4 and 16 only")
    parser.add_argument("--batch_size", type=int, default=2048, help="denoiser rows a call")
    parser.add_argument("--processes", type=int, default=1, help="cells at once")
    parser.add_argument("--minutes", type=float, default=None, help="start no cell after this time")


@dataclass(frozen=True)
class Cell:
    """One problem, sampler and number of particles.

    Attributes:
        problem: its name.
        sampler: its name.
        k: particles.
        seed: of all runs.
        error: standard error of mode_tv to reach, where ``runs`` is None.
        runs: fixed number of runs, or None.
        most: most runs.
        batch_size: denoiser rows a call.
    """

    problem: str
    sampler: str
    k: int
    seed: int
    error: float
    runs: int | None
    most: int
    batch_size: int

    @property
    def settings(self) -> dict[str, Any]:
        """What tells its row from others."""
        named = {"problem": self.problem, "sampler": self.sampler, "k": self.k, "seed": self.seed}
        return named | ({"error": self.error} if self.runs is None else {"runs": self.runs})


def run(options: Any) -> None:
    """Run every cell that the result file lacks, the long ones first."""
    results = Results(Path(options.json), device="cpu", seed=options.seed)
    fixed = options.runs or (50 if options.quick else None)
    cells = [
        Cell(
            problem,
            sampler,
            k,
            options.seed,
            options.error,
            fixed,
            options.most,
            options.batch_size,
        )
        for k, problem, sampler in itertools.product(
            sorted(options.k, reverse=True), options.problems, options.samplers
        )
        if not (options.quick and k > 16)
        and not (sampler in GRADIENT and not PROBLEMS[problem]().reward.differentiable)
    ]
    todo = [cell for cell in cells if not results.has(cell.settings)]
    end = math.inf if options.minutes is None else time.monotonic() + 60 * options.minutes
    rows = pooled(measure, todo, options.processes, lambda cell: time.monotonic() < end)
    for row in tqdm(rows, "exactness", len(todo)):
        results.add(row)


def measure(cell: Cell) -> dict[str, Any]:
    """The row of a cell: as many runs as its standard error asks for."""
    torch.set_num_threads(1)  # rows are tiny: threads cost more than they give
    start = time.perf_counter()
    problem, law = PROBLEMS[cell.problem](), saved_laws()[cell.problem]
    search = SAMPLERS[cell.sampler](cell.k)
    wanted = cell.runs or min(FIRST.get(cell.k, 300), cell.most)
    found: Runs | None = None
    while found is None or len(found) < wanted:
        known = 0 if found is None else len(found)
        more = simulate(
            problem,
            search,
            wanted - known,
            cell.seed,
            cell.batch_size,
            first=known,
            budget=Budget(nfe=STEPS * cell.k),
            spread=base_spread(problem) if cell.sampler in CALIBRATED else None,
        )
        found = more if found is None else found + more
        row = summarise(found, problem, law)
        if cell.runs is None and row["mode_tv_se"] > cell.error:
            needed = 1.1 * len(found) * (row["mode_tv_se"] / cell.error) ** 2
            wanted = min(math.ceil(needed), cell.most)
    fixed = not isinstance(search, SMC) or temperature_of(search.temperature).fixed
    fixed = fixed or cell.sampler in CALIBRATED  # told the spread, it asks nothing of the particles
    return (
        cell.settings
        | {"runs": len(found), "adaptive": not fixed}
        | row
        | {"seconds": time.perf_counter() - start}
    )


def base_spread(problem: TiltedProblem, samples: int = 100_000) -> float:
    """Standard deviation of the reward over samples of the base law."""
    x = problem.mixture.sample(samples, torch.Generator().manual_seed(0))
    return float(problem.reward(x).std())


def simulate(
    problem: TiltedProblem,
    search: Search,
    runs: int,
    seed: int,
    batch_size: int = 1024,
    *,
    first: int = 0,
    budget: Budget = Budget(),
    spread: float | None = None,
) -> Runs:
    """Run one search many times on one problem, as runs ``first``, ``first + 1``, ...

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
            budget=budget,
            spread=spread,
        )
        for i in range(first, first + runs)
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
