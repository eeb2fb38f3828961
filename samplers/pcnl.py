"""Initial noises by Markov chain Monte Carlo: preconditioned Crank-Nicolson with Langevin drift."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samplers.initial import (
    InitialNoise,
    Point,
    Started,
    at_least_one,
    drawn,
    predicted,
    predicted_cost,
)
from samplers.potentials import tilt
from steering.cost import Cost
from steering.prediction import Posterior
from steering.requests import Request
from steering.search import Facts, Needs, Problem


@dataclass(frozen=True)
class PCNL(InitialNoise):
    """Chains that sample p(x_1) exp(lambda r(x_0 predicted from x_1)), x_1 being the initial noise.

    Psi-Sampler (Yoon et al. 2025, 2506.01320), with the proposal of Cotter et al. 2013 (1202.0709)::

        x' = rho x + sqrt(1 - rho^2) (z + sqrt(epsilon) / 2 lambda grad r(x)),
        rho = (1 - epsilon / 4) / (1 + epsilon / 4)

    for x of unit variance. It leaves the prior alone where lambda is 0, so that in 10^4 dimensions
    steps of order 1 are still accepted.

    Beyond the paper, chains begin at noises drawn in proportion to exp(lambda r) from ``candidates``,
    as in :class:`samplers.initial.Resampled`. Moves that leave the target alone keep such particles
    properly weighted, so the evidence is kept and no number of steps is too small to be right; more
    steps make the particles less alike. Where a budget of seconds ends the chains early, their last
    states stand for the rest.

    Attributes:
        chains: chains side by side; None: one a particle. Fewer are recorded several times.
        burn_in: moves before the first state is recorded.
        thin: moves between recorded states.
        epsilon: size of a move, in (0, 4]; 4 forgets the state (rho 0).
        gradients: False drops the drift (pCN), for rewards that cannot be differentiated.
        candidates: noises that the first states are drawn from; None: as many as chains.
    """

    chains: int | None = None
    burn_in: int = 10
    thin: int = 2
    epsilon: float = 1.0
    gradients: bool = True
    candidates: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("chains", "candidates") if getattr(self, name) is not None]
        at_least_one(self, "thin", *given)
        if self.burn_in < 0:
            raise ValueError(f"burn_in must not be negative, got {self.burn_in}")
        if not 0 < self.epsilon <= 4:
            raise ValueError(
                f"epsilon must lie in (0, 4], got {self.epsilon}: rho = (1 - epsilon/4) / "
                "(1 + epsilon/4) would leave [0, 1)"
            )

    @property
    def needs(self) -> Needs:
        """A fixed density; gradients through reward, decoder and denoiser unless switched off."""
        return Needs(gradients=self.gradients, density=True)

    @property
    def rho(self) -> float:
        """What a proposal keeps of the state."""
        return (1 - self.epsilon / 4) / (1 + self.epsilon / 4)

    def cost(self, facts: Facts, k: int) -> Cost:
        """One call, decode and score (and backward pass) a candidate, and a chain and move."""
        chains, moves = self._sizes(k)
        one = predicted_cost(facts) + Cost(backwards=int(self.gradients))
        return ((self.candidates or chains) + chains * moves) * one

    def _sizes(self, k: int) -> tuple[int, int]:
        """Chains, and moves of each, for ``k`` particles."""
        chains = min(self.chains or k, k)
        return chains, self.burn_in + self.thin * (math.ceil(k / chains) - 1)

    def __call__(self, problem: Problem, k: int) -> Generator[Request, Any, Started]:
        """Draw first states, move them, record."""
        chains, moves = self._sizes(k)
        first = problem.initial(range(self.candidates or chains))
        point = yield from predicted(problem, first, gradient=self.gradients)
        ancestors, log_w = drawn(problem, point, chains)
        point, recorded = point[ancestors], []
        for move in range(moves + 1):
            if move and self._time(problem, chains):
                point = yield from self._move(problem, point, move)
            if move >= self.burn_in and (move - self.burn_in) % self.thin == 0:
                recorded.append(point)
        kept = _joined(recorded)[torch.arange(len(recorded) * chains)[-k:]]
        applied = tilt(kept.reward, problem.lam)
        return kept.started(list(range(k)), log_w[:1].repeat(k), applied)

    def _move(self, problem: Problem, point: Point, move: int) -> Generator[Request, Any, Point]:
        """One Metropolis-Hastings move of every chain."""
        chains = len(point.x_t)
        noise = problem.noise("start proposal", range(chains), move)
        drift = self._drift(problem, point)
        size = math.sqrt(1 - self.rho**2)
        x_t = problem.started(self.rho * problem.unit(point.x_t) + size * (noise + drift))
        new = yield from predicted(problem, x_t, gradient=self.gradients)
        back = (problem.unit(point.x_t) - self.rho * problem.unit(new.x_t)) / size
        ahead = noise + drift
        log_ratio = (
            tilt(new.reward, problem.lam)
            - tilt(point.reward, problem.lam)
            + _log_shift(self._drift(problem, new), back)
            - _log_shift(drift, ahead)
        )
        uniforms = problem.streams.uniform("start acceptance", 0, move, chains)
        accepted = torch.log(uniforms) < log_ratio  # never for NaN, never for an impossible state
        problem.trace.record(
            start="pcnl", move=move, acceptance=float(accepted.double().mean()), reward=point.reward
        )
        both = _joined([point, new])
        return both[torch.arange(chains) + chains * accepted]

    def _drift(self, problem: Problem, point: Point) -> Tensor:
        """``sqrt(epsilon) / 2 lambda grad r`` by the state of unit variance, ``(n, *shape)``."""
        if point.grad is None:
            return torch.zeros_like(point.x_t)
        return 0.5 * math.sqrt(self.epsilon) * problem.lam * problem.initial_std * point.grad

    def _time(self, problem: Problem, rows: int) -> bool:
        """Whether there is time for a move and for finishing one sample."""
        finish = Cost(seconds=problem.seconds_for(problem.grid.steps))
        return problem.affords(Cost(seconds=problem.seconds_for(rows)), holding_back=finish)


def _log_shift(drift: Tensor, noise: Tensor) -> Tensor:
    """Log-density of N(drift, I) over that of N(0, I) at ``noise``, float64 ``(n,)`` on the CPU."""
    a, z = (x.flatten(1).cpu().double() for x in (drift, noise))  # not all devices have float64
    return (a * z).sum(1) - 0.5 * a.square().sum(1)


def _joined(points: list[Point]) -> Point:
    grads = [p.grad for p in points]
    return Point(
        torch.cat([p.x_t for p in points]),
        Posterior(
            torch.cat([p.posterior.x_0 for p in points]),
            torch.cat([p.posterior.eps for p in points]),
        ),
        torch.cat([p.reward for p in points]),
        None if grads[0] is None else torch.cat([g for g in grads if g is not None]),
    )
