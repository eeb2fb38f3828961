"""The law that a finite chain really tilts: base samples of its own, weighted by exp(lambda r).

A sampler that is exact on a grid of 50 steps targets this law and not the continuous one, so its
normalising constant is compared with this one. The estimates for the four problems are saved beside
this file; ``scripts/benchmark.py chain-laws`` makes them.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import pairwise

import torch
from torch import Tensor

from steering.mixtures import MixtureModel
from steering.tilted import TiltedProblem
from steering.transitions import GaussianTransition

SAVED = "chain_laws.json"


@dataclass(frozen=True)
class ChainLaw:
    """Figures of ``q(x) exp(lambda r(x)) / Z``, ``q`` the law of a chain's output, by Monte Carlo.

    Attributes:
        problem: name of the problem.
        samples: independent chains.
        ess: effective number of samples of the target.
        log_z: log of Z, with its standard error ``log_z_se``.
        reward_mean: E[r] under the target, with its standard error ``reward_mean_se``.
        masses: mode masses ``(J,)``, with their standard errors ``masses_se``.
    """

    problem: str
    samples: int
    ess: float
    log_z: float
    log_z_se: float
    reward_mean: float
    reward_mean_se: float
    masses: tuple[float, ...]
    masses_se: tuple[float, ...]


def run_chain(
    model: MixtureModel, transition: GaussianTransition, count: int, generator: torch.Generator
) -> Tensor:
    """Final states ``(count, d)`` of independent unsteered chains along the model's grid."""
    shape, device = (count, *model.shape), generator.device
    x_t = model.initial_std * torch.randn(shape, generator=generator, device=device)
    for t, s in pairwise(model.grid):
        law = transition(model.denoise(x_t, [t] * count, [None] * count), t, s)
        x_t = law.sample(torch.randn(shape, generator=generator, device=device))
    return x_t


def estimate(
    problem: TiltedProblem,
    model: MixtureModel,
    transition: GaussianTransition,
    *,
    samples: int,
    seed: int,
    batch: int = 50_000,
) -> ChainLaw:
    """Estimate the tilted law of a chain by self-normalised importance sampling.

    Args:
        problem: reward, lambda and modes.
        model: the problem's mixture with its grid.
        transition: how the chain moves.
        samples: independent chains, rounded up to whole batches.
        seed: seed of the numbers.
        batch: chains at once.

    Returns:
        The law with standard errors by linearisation.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    batch = min(batch, samples)
    rewards, modes = [], []
    for _ in range(math.ceil(samples / batch)):
        x = run_chain(model, transition, batch, generator)
        rewards.append(problem.reward(x).cpu())
        modes.append(model.mixture.mode_of(x).cpu())
    r, mode = torch.cat(rewards), torch.cat(modes)
    weights = torch.softmax(problem.lam * r, 0)
    ess = 1 / float(weights.square().sum())
    reward_mean = float(weights @ r)
    masses = torch.bincount(mode, weights, minlength=len(problem.mixture.weights))
    # Var of a self-normalised mean is sum of (w_i (f_i - mean))^2; for an indicator f it needs only
    # the summed squared weights inside and outside the mode.
    inside = torch.bincount(mode, weights.square(), minlength=len(masses))
    masses_se = (inside * (1 - masses).square() + (1 / ess - inside) * masses.square()).sqrt()
    return ChainLaw(
        problem=problem.name,
        samples=len(r),
        ess=ess,
        log_z=float(torch.logsumexp(problem.lam * r, 0)) - math.log(len(r)),
        log_z_se=math.sqrt(max(1 / ess - 1 / len(r), 0.0)),
        reward_mean=reward_mean,
        reward_mean_se=float((weights * (r - reward_mean)).norm()),
        masses=tuple(masses.tolist()),
        masses_se=tuple(masses_se.tolist()),
    )


def saved_laws() -> dict[str, ChainLaw]:
    """Laws of the 50-step DDIM(1) chain on :func:`steering.mixtures.vp_grid`, by problem name."""
    text = resources.files("steering").joinpath(SAVED).read_text(encoding="utf-8")
    laws = [
        ChainLaw(**{**law, "masses": tuple(law["masses"]), "masses_se": tuple(law["masses_se"])})
        for law in json.loads(text)["laws"]
    ]
    return {law.problem: law for law in laws}


def to_json(laws: list[ChainLaw], seed: int) -> str:
    """What :func:`saved_laws` reads."""
    chain = "50 DDIM steps, eta 1, VP path, leading spacing, offset 1, output at training step 0"
    return json.dumps(
        {"chain": chain, "seed": seed, "laws": [asdict(law) for law in laws]}, indent=1
    )
