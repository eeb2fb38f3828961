"""One step of any transition, as a generator: Gaussian ones ask for nothing, others denoise inside."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from steering.prediction import Posterior
from steering.requests import Denoise
from steering.search import Problem
from steering.times import Time
from steering.transitions import GaussianTransition, Transition

#: A step in flight: yields what to denoise, is sent posteriors, returns the rows at ``s``.
Step = Generator[Denoise, Posterior, Tensor]


@runtime_checkable
class InnerSolve(Protocol):
    """A transition whose step needs further denoiser calls."""

    def solve(
        self,
        at: Callable[[float], Time],
        x_t: Tensor,
        posterior: Posterior,
        t: Time,
        s: Time,
        noise: Callable[[], Tensor],
        *,
        keep_graph: bool = False,
    ) -> Step:
        """The step; arguments as in :func:`move`, ``at`` being the problem's."""


def move(
    problem: Problem,
    transition: Transition,
    x_t: Tensor,
    posterior: Posterior,
    t: Time,
    s: Time,
    noise: Callable[[], Tensor],
    *,
    keep_graph: bool = False,
) -> Step:
    """Carry rows from one time to a less noisy one: a search says ``yield from`` of it.

    Args:
        problem: gives the records of noise levels between ``t`` and ``s``.
        transition: how.
        x_t: rows ``(n, *shape)`` at ``t``.
        posterior: what the denoiser said of them.
        t: where they are.
        s: where they go.
        noise: returns standard normal rows like ``x_t``; called once, and only if noise is used.
        keep_graph: keep the autograd graph through the step.

    Yields:
        ``transition.inner_calls`` requests to denoise.

    Returns:
        Rows ``(n, *shape)`` at ``s``.

    Raises:
        ValueError: ``s`` is not less noisy than ``t``.
    """
    if not isinstance(transition, GaussianTransition):
        solver = cast(InnerSolve, transition)
        step = solver.solve(problem.at, x_t, posterior, t, s, noise, keep_graph=keep_graph)
        return (yield from step)
    with torch.set_grad_enabled(keep_graph):
        law = transition(posterior, t, s)
        return law.mean if law.std == 0 else law.sample(noise())
