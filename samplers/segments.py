"""Pieces of the way down the grid, walked from states whose prediction is at hand."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from steering.moves import move
from steering.prediction import Posterior
from steering.requests import Denoise, Request
from steering.search import Problem
from steering.transfer import to_device
from steering.transitions import Transition


def segment(
    problem: Problem,
    transition: Transition,
    x_t: Tensor,
    posterior: Posterior,
    indices: tuple[int, int],
    draws: Sequence[int],
) -> Generator[Request, Any, Tensor]:
    """Rows carried from one index of the grid to another, ``(n, *shape)``.

    Args:
        problem: whose grid and streams.
        transition: how.
        x_t: rows ``(n, *shape)`` at the first index.
        posterior: what the denoiser said of them.
        indices: where they are and where they go.
        draws: draw ids of their noise.
    """
    begin, end = indices
    for i in range(begin, end):
        t, s = problem.grid[i], problem.grid[i + 1]
        if i > begin:
            posterior = yield Denoise(x_t, t)
        noise = problem.later("transition", draws, i)
        x_t = yield from move(problem, transition, x_t, posterior, t, s, noise)
    return x_t


def noised(problem: Problem, x_s: Tensor, s: int, t: int, noise: Tensor) -> Tensor:
    """Rows taken back from index ``s`` of the grid to the noisier ``t`` by fresh noise."""
    at, back = problem.grid[s], problem.grid[t]
    ratio = back.alpha / at.alpha
    std = math.sqrt(max(back.sigma**2 - (ratio * at.sigma) ** 2, 0.0))
    return torch.add(ratio * x_s, noise, alpha=std)


def repeated(posterior: Posterior, rows: Tensor) -> Posterior:
    """Rows of a posterior, repeated or chosen."""
    return posterior[to_device(rows, posterior.x_0.device)]
