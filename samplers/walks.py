"""Denoising paths that can be redone in part: what the Metropolis-Hastings chains move."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steering.moves import move
from steering.requests import Denoise, Move
from steering.search import Problem
from steering.transitions import Transition

Walking = Generator[Denoise | Move, Any, "Walk"]


@dataclass(frozen=True, eq=False)
class Walk:
    """Paths down the grid, one a row; only what a proposal goes back to is kept.

    Attributes:
        x_0: states at the end, ``(n, *shape)``.
        states: states at some indices of the grid, each ``(n, *shape)``.
        noise: standard normal noise of the transition from an index, each ``(n, *shape)``; none where
            it is not kept, or not used.
    """

    x_0: Tensor
    states: dict[int, Tensor]
    noise: dict[int, Tensor]

    def replaced(self, rows: Tensor, by: Walk) -> Walk:
        """These paths, with the rows marked in ``rows (n,)`` taken from ``by``."""
        marked = rows.to(self.x_0.device).reshape(-1, *[1] * (self.x_0.ndim - 1))
        return Walk(
            torch.where(marked, by.x_0, self.x_0),
            {i: torch.where(marked, by.states[i], x) for i, x in self.states.items()},
            {i: torch.where(marked, by.noise[i], z) for i, z in self.noise.items()},
        )


def walked(
    problem: Problem,
    transition: Transition,
    start: int,
    x_t: Tensor,
    noise: Callable[[int], Tensor],
    *,
    stored: Collection[int] = (),
    keep_noise: bool = False,
) -> Walking:
    """Walk rows to the end of the grid.

    Args:
        problem: whose grid.
        transition: how.
        start: index in the grid at which the rows are.
        x_t: rows ``(n, *shape)``.
        noise: standard normal rows for the transition from an index.
        stored: indices at which states are kept.
        keep_noise: whether noise is kept.
    """
    states: dict[int, Tensor] = {}
    used: dict[int, Tensor] = {}
    for i in range(start, problem.grid.steps):
        if i in stored:
            states[i] = x_t
        t, s = problem.grid[i : i + 2]
        posterior = yield Denoise(x_t, t)
        draw = partial(_used, used, noise, i) if keep_noise else partial(noise, i)
        x_t = yield from move(problem, transition, x_t, posterior, t, s, draw)
    return Walk(x_t, states, used)


def regenerated(
    problem: Problem, transition: Transition, walk: Walk, i: int, draws: Sequence[int], keep: float
) -> Walking:
    """The same paths down to index ``i``, and from there on with other noise.

    Noise of correlation ``keep`` with the old one is as probable as it either way round, and what is
    kept is common to both: so the proposal is reversible for the law of unsteered paths.

    Args:
        problem: whose grid and streams.
        transition: how.
        walk: the paths, their states at ``i`` kept (and their noise, where ``keep`` is above 0).
        i: index in the grid; at 0 the initial noise is redone as well.
        draws: draw ids of the new noise, one a row.
        keep: correlation of new and old noise, in [0, 1).
    """

    def noise(j: int) -> Tensor:
        new = problem.noise("transition", draws, j)
        return _mixed(walk.noise[j], new, keep) if keep else new

    x_t = walk.states[i]
    if i == 0:
        proposed = problem.noise("proposal", draws, 0)
        x_t = problem.started(_mixed(problem.unit(x_t), proposed, keep))
    new = yield from walked(
        problem, transition, i, x_t, noise, stored=walk.states, keep_noise=keep > 0
    )
    before = {j: x for j, x in walk.states.items() if j < i}
    unused = {j: z for j, z in walk.noise.items() if j < i}
    return Walk(new.x_0, before | new.states, unused | new.noise)


def renoised(
    problem: Problem, transition: Transition, walk: Walk, i: int, draws: Sequence[int]
) -> Walking:
    """Finished samples taken back to index ``i`` by fresh noise, and walked down from there.

    The end of a grid need not be free of noise: what it has is counted, so that the state at ``i`` has
    the signal and the noise of that level.
    """
    t, end = problem.grid[i], problem.grid[-1]
    ratio = t.alpha / end.alpha
    std = math.sqrt(max(t.sigma**2 - (ratio * end.sigma) ** 2, 0.0))
    x_t = ratio * walk.x_0 + std * problem.noise("proposal", draws, 0)
    noise = partial(problem.noise, "transition", draws)
    return (yield from walked(problem, transition, i, x_t, noise))


def _mixed(old: Tensor, new: Tensor, keep: float) -> Tensor:
    return keep * old + math.sqrt(1 - keep**2) * new


def _used(used: dict[int, Tensor], noise: Callable[[int], Tensor], i: int) -> Tensor:
    used[i] = noise(i)
    return used[i]
