"""Whether a scheduler can begin part-way down its grid: tried where the answer is known."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from steering.prediction import Posterior
from steering.times import TimeGrid

_X_0, _EPS = 0.7, -0.4
_TOLERANCE = 1e-3  # of the arithmetic of schedulers; a wrong step errs by far more


class Stepping(Protocol):
    """A scheduler's steps, in order."""

    def step(self, index: int, posterior: Posterior, x_t: Tensor) -> Tensor:
        """State after model call ``index`` of the run."""


def why_not(run: Stepping, grid: TimeGrid, start: int) -> str:
    """What is wrong with a run that begins at an index of the grid; empty if nothing is.

    Where x_0 and eps never change, every deterministic solver of whatever order goes along
    ``alpha x_0 + sigma eps``. One that draws noise, or needs steps that were never made, does not.

    Args:
        run: fresh steps from there to the end of the grid.
        grid: the levels.
        start: where it begins.
    """
    x_0, eps = torch.full((1, 1, 1, 1), _X_0), torch.full((1, 1, 1, 1), _EPS)
    x = grid[start].alpha * x_0 + grid[start].sigma * eps
    for index in range(grid.steps - start):
        try:
            x = run.step(index, Posterior(x_0, eps), x)
        except Exception as error:  # noqa: BLE001 - a scheduler may raise anything there
            return f"{type(error).__name__}: {error}"
        level = grid[start + index + 1]
        wanted = level.alpha * _X_0 + level.sigma * _EPS
        if not abs(float(x) - wanted) <= _TOLERANCE * max(1.0, level.sigma):
            return (
                "it draws noise, or goes on from steps that were never made (where x_0 and eps are "
                f"constant its step {index} leads to {float(x):.4g}, not {wanted:.4g})"
            )
    return ""
