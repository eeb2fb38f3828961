"""Estimates what a 50-step chain really tilts, for the exactness problems.

The file is part of the package and changes only if the problems, the grid or the transition do. A
problem that is not asked for keeps its law.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from tqdm import tqdm

import steering
from steering.chain_law import SAVED, estimate, saved_laws, to_json
from steering.files import write_atomically
from steering.mixtures import MixtureModel, vp_grid
from steering.tilted import PROBLEMS
from steering.transitions import DDIM


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    default = Path(steering.__file__).with_name(SAVED)
    parser.add_argument("--json", type=Path, default=default, help="file to write")
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--samples", type=int, default=4_000_000, help="chains a problem")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=20261122)


def run(options: Any) -> None:
    """Estimate all laws and write them: about three minutes a problem on one core."""
    torch.set_num_threads(1)  # rows are tiny: threads cost more than they give
    laws = saved_laws()
    for name in tqdm(options.problems, desc="chain laws"):
        problem = PROBLEMS[name]()
        model = MixtureModel(problem.mixture, vp_grid(), device=options.device)
        laws[name] = estimate(problem, model, DDIM(1.0), samples=options.samples, seed=options.seed)
    ordered = [laws[name] for name in PROBLEMS if name in laws]
    write_atomically(Path(options.json), to_json(ordered, options.seed) + "\n")
