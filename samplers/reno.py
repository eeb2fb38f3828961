"""Gradient ascent on the initial noise, kept near the shell on which Gaussian noise lies."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from samplers.initial import at_least_one
from samplers.pool import Pool, check_returns, one_cost
from steering.cost import Cost
from steering.model import Stage
from steering.requests import Request, Rollout, Score, Scores
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.transitions import Transition


@dataclass(frozen=True)
class ReNO(Search):
    """Reward-based noise optimisation (Eyring et al. 2024, 2406.04312), for models of one or few steps.

    Stochastic gradient descent with Nesterov momentum, gradients clipped by norm, on::

        - weight r(x_0(z)) + regularisation (|z|^2 / 2 - (d - 1) log |z|)

    for the noise z of d numbers. The second term is the log-density of the norm of Gaussian noise (chi
    with d degrees of freedom), least at |z| = sqrt(d - 1). Every iterate is a finished sample that is
    scored; the best is returned. The gradient passes through every step, so memory and time grow with
    their number. Claims no law: its output is an arg max.

    Attributes:
        iterations: iterates, the first noise included; fewer if the budget does not allow them.
        rate: step size.
        momentum: of Nesterov's method, in [0, 1).
        clip: largest norm of a gradient.
        weight: of the reward, in its own units.
        regularisation: of the norm; 0 switches it off.
        chains: noises that are optimised side by side.
        solver: ``"scheduler"`` is the pipeline's own; a transition walks the time grid. Noise on the way
            is drawn afresh for every iterate.
        returns: the ``"best"`` iterate of all, or ``"all"`` of them, best first.
    """

    iterations: int = 50
    rate: float = 5.0
    momentum: float = 0.9
    clip: float = 0.1
    weight: float = 1.0
    regularisation: float = 0.01
    chains: int = 1
    solver: Transition | Literal["scheduler"] = "scheduler"
    returns: Literal["best", "all"] = "best"

    def __post_init__(self) -> None:
        at_least_one(self, "iterations", "chains")
        check_returns(self.returns)
        for name in ("rate", "clip", "weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not self.regularisation >= 0:
            raise ValueError(f"regularisation must not be negative, got {self.regularisation}")

    @property
    def needs(self) -> Needs:
        """Gradients through reward, decoder and denoiser."""
        return Needs(gradients=True)

    def plan(self, facts: Facts) -> Plan:
        """Fewer iterations where the budget is small, then fewer chains."""
        one = one_cost(facts, self.solver)
        if facts.budget.exceeded_by(one) is not None:
            raise BudgetTooSmall(
                f"one candidate costs {one}, more than the budget {facts.budget} allows"
            )
        step = one + Cost(backwards=one.nfe)
        chains = int(min(self.chains, facts.budget.times(one)))
        steps = int(min(self.iterations - 1, facts.budget.times(chains * step, chains * one)))
        cost = chains * (one + steps * step)
        settings = {"chains": chains, "iterations": steps + 1}
        return Plan(cost, one, chains, settings=settings)

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Score, follow the gradient, keep the best; the last iterate needs no gradient."""
        settings = self.plan(problem.facts).settings
        chains, iterations = settings["chains"], settings["iterations"]
        pool, complete = Pool(keep_all=self.returns == "all"), True
        z = problem.unit(problem.initial(range(chains)))
        velocity = torch.zeros_like(z)
        problem.trace.record(**settings)
        for n in range(iterations):
            if n and not self._time(problem, chains):
                problem.trace.record(event="out of time")
                complete = False
                break
            last = n == iterations - 1
            x_t = problem.started(z)
            draws = range(n * chains, (n + 1) * chains)
            x_0 = yield Rollout(x_t, 0, self.solver, list(draws), keep_graph=not last)
            scores = yield Score(x_0, Stage.FINAL, grad_to=None if last else x_t)
            pool.add(x_0.detach(), Scores(scores.total, scores.columns))
            norm = z.flatten(1).norm(dim=1)
            problem.trace.record(round=n, reward=scores.total, norm=norm, best=pool.values.max())
            if not last:
                z, velocity = self._step(z, velocity, self._gradient(problem, z, scores))
        outcome = pool.outcome(complete=complete)
        problem.trace.record(totals=pool.values, chosen=outcome.chosen)
        return outcome

    def _gradient(self, problem: Problem, z: Tensor, scores: Scores) -> Tensor:
        """Of the loss by the noise, clipped, ``(chains, *shape)``; no pull where impossible."""
        assert scores.grad is not None
        possible = torch.isfinite(scores.total)
        finite = torch.isfinite(scores.grad).flatten(1).all(1).cpu()
        bad = torch.nonzero(~finite & possible)
        if len(bad):
            raise ValueError(
                f"the gradient of the reward is not finite for chain {int(bad[0])}, whose reward is "
                f"{float(scores.total[bad[0]])}; mend the reward, or use ZeNO, which needs no gradient"
            )
        rising = scores.grad.detach()
        rising = torch.where(_rows(possible & finite, rising), rising, torch.zeros_like(rising))
        loss = chi_gradient(z) * self.regularisation - self.weight * problem.initial_std * rising
        norm = loss.flatten(1).norm(dim=1)
        return loss * _rows((self.clip / norm).clamp(max=1.0), loss)

    def _step(self, z: Tensor, velocity: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Nesterov's method."""
        velocity = self.momentum * velocity + gradient
        return z - self.rate * (gradient + self.momentum * velocity), velocity

    def _time(self, problem: Problem, chains: int) -> bool:
        """Whether there is time for another iterate of every chain."""
        rows = chains * one_cost(problem.facts, self.solver).nfe
        return problem.affords(Cost(seconds=problem.seconds_for(rows)))


def chi_gradient(z: Tensor) -> Tensor:
    """Gradient of |z|^2 / 2 - (d - 1) log |z| by each row, ``(n, *shape)``."""
    flat = z.flatten(1)
    return z * _rows(1 - (flat.shape[1] - 1) / flat.square().sum(1), z)


def _rows(value: Tensor, like: Tensor) -> Tensor:
    """One value a row, ready to meet ``like (n, *shape)``."""
    return value.to(like.device).reshape(-1, *[1] * (like.ndim - 1))
