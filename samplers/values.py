"""What an intermediate state is worth: estimates of its soft value from rewards.

The best potential of a state x_t is its soft value, log E[exp(lambda r(x_0)) | x_t] / lambda (Levine
2018, 1805.00909). Any estimate of it leaves a particle search exact; a better one wastes fewer
particles.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from samplers.potentials import tilt
from steering.cost import Cost
from steering.prediction import Posterior
from steering.requests import Denoise, Request, Rollout, Score
from steering.search import Problem
from steering.transitions import DDIM


class Value(ABC):
    """Estimates what states are worth."""

    @abstractmethod
    def cost(self, step: int, steps: int, calls: int) -> Cost:
        """Cost of one state at a step of a grid of ``steps``; ``calls`` reward calls a scored row."""

    @abstractmethod
    def __call__(
        self, problem: Problem, posterior: Posterior, step: int
    ) -> Generator[Request, Any, Tensor]:
        """Values of denoised states, in units of the reward, float64 ``(n,)``.

        Args:
            problem: whose grid, model and reward.
            posterior: what the denoiser said of the states, rows ``(n, *shape)``.
            step: index in the grid at which they are.
        """


@dataclass(frozen=True)
class Predicted(Value):
    """Reward of the predicted x_0: no denoiser call beyond the one that steps anyway."""

    def cost(self, step: int, steps: int, calls: int) -> Cost:
        return Cost(decodes=1, reward_calls=calls)

    def __call__(
        self, problem: Problem, posterior: Posterior, step: int
    ) -> Generator[Request, Any, Tensor]:
        scores = yield Score(posterior.x_0)
        return scores.total


@dataclass(frozen=True)
class SoftValue(Value):
    """``log mean exp(lambda r) / lambda`` over sampled continuations (2501.06848, "many").

    Attributes:
        samples: continuations of each state, at least 1.
        steps: transitions of each, on a coarse version of what is left of the grid.
    """

    samples: int = 4
    steps: int = 4

    def __post_init__(self) -> None:
        for name in ("samples", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def path(self, step: int, steps: int) -> list[int]:
        """Grid indices of a continuation: its start, a few between, the end."""
        n = min(self.steps, steps - step)
        return [step + round(j * (steps - step) / n) for j in range(n + 1)]

    def cost(self, step: int, steps: int, calls: int) -> Cost:
        nfe = len(self.path(step, steps)) - 2  # the first transition uses the posterior at hand
        return self.samples * Cost(nfe=nfe, decodes=1, reward_calls=calls)

    def __call__(
        self, problem: Problem, posterior: Posterior, step: int
    ) -> Generator[Request, Any, Tensor]:
        m, grid = self.samples, problem.grid
        n = len(posterior.x_0)
        path = [grid[j] for j in self.path(step, grid.steps)]
        first = step << 32  # a look's continuations share no numbers with another's
        draws = range(first, first + n * m)
        rows = torch.arange(n, device=posterior.x_0.device).repeat_interleave(m)
        law = DDIM(1.0)(posterior[rows], path[0], path[1])
        x = law.sample(problem.noise("lookahead", draws, 0)) if law.std > 0 else law.mean
        if len(path) > 2:
            x = yield Rollout(x, step + 1, DDIM(1.0), draws, path[1:], purpose="lookahead")
        scores = yield Score(x)
        return soft_value(scores.total.reshape(n, m), problem.lam)


@dataclass(frozen=True)
class Successor(Value):
    """Reward of the x_0 that is predicted one noise-free step ahead: one further denoiser call.

    A particle search with it is an auxiliary particle filter (Pitt and Shephard 1999) with a look-ahead
    of one step: our reading of the look-ahead modulation of entropic particle filtering (2510.05825),
    whose formula could not be verified.
    """

    def cost(self, step: int, steps: int, calls: int) -> Cost:
        return Cost(nfe=int(step + 1 < steps), decodes=1, reward_calls=calls)

    def __call__(
        self, problem: Problem, posterior: Posterior, step: int
    ) -> Generator[Request, Any, Tensor]:
        grid = problem.grid
        guess = posterior.x_0
        if step + 1 < grid.steps:
            ahead = DDIM(0.0)(posterior, grid[step], grid[step + 1]).mean
            guess = (yield Denoise(ahead, grid[step + 1])).x_0
        scores = yield Score(guess)
        return scores.total


@dataclass(frozen=True)
class LookAhead(Value):
    """Reward of the x_0 that noise-free steps over what is left of the grid lead to.

    The look-ahead of diffusion latent beam search (Oshima et al. 2025, 2501.19252): DDIM steps from the
    state's own time t over t j / T', j = T' .. 1, here the points of the grid nearest to them. The first
    of its predictions is the one at the state itself, which the search has made already and goes on
    with; the published code makes it twice.

    Attributes:
        steps: T'. With 0 and 1 it is :class:`Predicted`; never more than are left of the grid.
    """

    steps: int = 6

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}")

    def path(self, step: int, steps: int) -> list[int]:
        """Grid indices at which x_0 is predicted, the state's own first."""
        n = max(min(self.steps, steps - step), 1)
        return [step + round(j * (steps - step) / n) for j in range(n)]

    def cost(self, step: int, steps: int, calls: int) -> Cost:
        return Cost(nfe=len(self.path(step, steps)) - 1, decodes=1, reward_calls=calls)

    def __call__(
        self, problem: Problem, posterior: Posterior, step: int
    ) -> Generator[Request, Any, Tensor]:
        grid = problem.grid
        for i, j in pairwise(self.path(step, grid.steps)):
            ahead = DDIM(0.0)(posterior, grid[i], grid[j]).mean
            posterior = yield Denoise(ahead, grid[j])
        scores = yield Score(posterior.x_0)
        return scores.total


def soft_value(rewards: Tensor, lam: float) -> Tensor:
    """Log mean exp(lambda r) / lambda over the last axis: ``(k, m)`` to ``(k,)``; the mean at 0."""
    if lam == 0:
        return rewards.mean(-1)
    return (torch.logsumexp(tilt(rewards, lam), -1) - math.log(rewards.shape[-1])) / lam
