"""What a user may be told at the end of each step, whoever makes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from steering.model import Stage
from steering.requests import Denoise, Score
from steering.search import Problem
from steering.times import Time


class Interrupted(RuntimeError):
    """The user ended the run from within a step."""


class OnStep(Protocol):
    """Told of each step."""

    @property
    def interrupted(self) -> bool:
        """Whether the user wants the run to end."""

    def __call__(self, step: int, timestep: float, latents: Tensor) -> Tensor:
        """Told that a step has ended.

        Args:
            step: its number, from 0.
            timestep: the network's time before it.
            latents: states after it ``(n, *shape)``.

        Returns:
            The states to go on with.
        """


def check_going_on(on_step: OnStep | None) -> None:
    """Stop where the user wants the run to end.

    Raises:
        Interrupted: so it is.
    """
    if on_step is not None and on_step.interrupted:
        raise Interrupted(
            "callback_on_step_end interrupted the run; what had finished is in the report"
        )


def ended_steps(problem: Problem, request: Denoise | Score) -> Iterator[tuple[int, float, Tensor]]:
    """Steps of the grid that must have ended where states come up in a request.

    Args:
        problem: whose grid.
        request: states to denoise, rows at unlike times one group after the other; finished states
            to score.

    Yields:
        Number and time of a step, and the states after it.
    """
    grid = problem.grid
    if isinstance(request, Score):
        if request.stage is Stage.FINAL:
            yield grid.steps - 1, grid[grid.steps - 1].model_t, request.x_0
        return
    times = [request.time] if isinstance(request.time, Time) else list(request.time)
    for time in dict.fromkeys(times):
        step = next((i for i in range(1, grid.steps) if grid[i] == time), None)
        if step is None:
            continue
        rows = [i for i, other in enumerate(times) if other == time]
        x = request.x_t if len(times) == 1 else request.x_t[rows]
        yield step - 1, grid[step - 1].model_t, x
