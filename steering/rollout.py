"""Roll-outs: rows carried to the end by Denoise requests, so that the engine fuses them too."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from steering.model import Model
from steering.moves import move
from steering.prediction import Posterior
from steering.requests import Denoise, Rollout
from steering.search import Problem


def rollout(
    request: Rollout, problem: Problem, model: Model, conditioning: Any
) -> Generator[Denoise, Posterior, Tensor]:
    """Carry the request's rows to the end.

    Args:
        request: what to carry and how.
        problem: the search's problem, for grid and noise.
        model: makes private copies of the pipeline's scheduler.
        conditioning: the prompt's handle.

    Yields:
        One Denoise a model call.

    Returns:
        States at the end ``(n, *shape)``.

    Raises:
        ValueError: the scheduler is asked to start anywhere but at the grid's start, or a stochastic
            solver was given no draw ids.
    """
    if request.solver == "scheduler":
        return (yield from _by_scheduler(request, problem, model, conditioning))
    solver, rows = request.solver, len(request.x_t)
    path = list(request.path) if request.path is not None else list(problem.grid[request.start :])
    if solver.stochastic and len(request.draws) != rows:
        raise ValueError(
            f"a stochastic roll-out of {rows} rows needs {rows} draw ids, got {len(request.draws)}"
        )
    x = request.x_t
    for step, (t, s) in enumerate(pairwise(path), start=request.start):
        posterior = yield Denoise(x, t, request.keep_graph)
        noise = partial(problem.noise, request.purpose, request.draws, step)
        x = yield from move(
            problem, solver, x, posterior, t, s, noise, keep_graph=request.keep_graph
        )
    return x


def _by_scheduler(
    request: Rollout, problem: Problem, model: Model, conditioning: Any
) -> Generator[Denoise, Posterior, Tensor]:
    if request.start != 0:
        raise ValueError(
            f"the pipeline's own scheduler starts at the grid's start, not at index {request.start}; "
            "use a transition as the solver"
        )
    x = request.x_t
    if len(request.draws) != len(x):
        raise ValueError(
            f"a roll-out of {len(x)} rows needs {len(x)} draw ids, got {request.draws}"
        )
    seeds = [problem.streams.integer("scheduler", draw, 0) for draw in request.draws]
    run = model.scheduler_run(conditioning, request.draws, seeds)
    for index, t in enumerate(run.times):
        posterior = yield Denoise(x, t, request.keep_graph)
        with torch.set_grad_enabled(request.keep_graph):
            x = run.step(index, posterior, x)
    return x
