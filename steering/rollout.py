"""Roll-outs: rows carried to the end by Denoise requests, so that the engine fuses them too."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from steering.model import Model
from steering.moves import move
from steering.prediction import Posterior
from steering.requests import Denoise, Move, Rollout
from steering.search import Problem
from steering.stepping import OnStep, check_going_on


@dataclass(frozen=True, eq=False)
class Carry:
    """Internal: a roll-out that a model does in one piece; answered by finished states.

    Attributes:
        x_t: rows ``(n, *shape)`` at the grid's start.
        draws: draw ids of the rows.
        seeds: seeds of the rows' noise.
    """

    x_t: Tensor
    draws: Sequence[int]
    seeds: Sequence[int]


def rollout(
    request: Rollout,
    problem: Problem,
    model: Model,
    conditioning: Any,
    on_step: OnStep | None = None,
) -> Generator[Denoise | Move | Carry, Any, Tensor]:
    """Carry the request's rows to the end.

    Args:
        request: what to carry and how.
        problem: the search's problem, for grid and noise.
        model: makes private copies of the pipeline's scheduler.
        conditioning: the prompt's handle.
        on_step: told of each step of the pipeline's own scheduler, whose states it may change.

    Yields:
        One Denoise a model call, and what the steps between them ask for; or one Carry, where the
        model does not denoise.

    Returns:
        States at the end ``(n, *shape)``.

    Raises:
        ValueError: the scheduler cannot be entered or left where it is asked to, or a stochastic solver
            was given no draw ids.
    """
    if request.solver == "scheduler" and not model.abilities.denoises:
        seeds = scheduler_seeds(request, problem)
        if request.start or request.stop is not None:
            raise ValueError(f"only whole trajectories can be had: {model.abilities.why}")
        return (yield Carry(request.x_t, request.draws, seeds))
    if request.solver == "scheduler":
        return (yield from _by_scheduler(request, problem, model, conditioning, on_step))
    solver, rows = request.solver, len(request.x_t)
    end = None if request.stop is None else request.stop + 1
    grid = list(problem.grid[request.start : end])
    path = grid if request.path is None else list(request.path)
    if solver.stochastic and len(request.draws) != rows:
        raise ValueError(
            f"a stochastic roll-out of {rows} rows needs {rows} draw ids, got {len(request.draws)}"
        )
    x = request.x_t
    for step, (t, s) in enumerate(pairwise(path), start=request.start):
        posterior = yield Denoise(x, t, request.keep_graph)
        noise = problem.later(request.purpose, request.draws, step)
        x = yield from move(
            problem, solver, x, posterior, t, s, noise, keep_graph=request.keep_graph
        )
    return x


def scheduler_seeds(request: Rollout, problem: Problem) -> list[int]:
    """A seed for each row that the pipeline's own scheduler carries.

    Raises:
        ValueError: draw ids are missing.
    """
    rows = len(request.x_t)
    if len(request.draws) != rows:
        raise ValueError(f"a roll-out of {rows} rows needs {rows} draw ids, got {request.draws}")
    return [problem.streams.integer("scheduler", draw, request.start) for draw in request.draws]


def _by_scheduler(
    request: Rollout,
    problem: Problem,
    model: Model,
    conditioning: Any,
    on_step: OnStep | None,
) -> Generator[Denoise, Posterior, Tensor]:
    x, seeds = request.x_t, scheduler_seeds(request, problem)
    if (request.start or request.stop is not None) and problem.grid != model.grid:
        raise ValueError("the pipeline's own scheduler walks its own grid, not another path's")
    run = model.scheduler_run(conditioning, request.draws, seeds, request.start, request.stop)
    calls = None if request.stop is None else request.stop - request.start
    for index, t in enumerate(run.times[:calls]):
        posterior = yield Denoise(x, t, request.keep_graph)
        with torch.set_grad_enabled(request.keep_graph):
            x = run.step(index, posterior, x)
        if on_step is not None:
            x = on_step(request.start + index, t.model_t, x)
            check_going_on(on_step)
    return x
