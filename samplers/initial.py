"""Where particles start: stages that choose the initial noises, for any search to begin with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from samplers.potentials import tilt
from steering.cost import Cost
from steering.particles import RESAMPLERS, Weights
from steering.prediction import Posterior
from steering.requests import Denoise, Request, Score
from steering.search import Facts, Needs, Problem
from steering.transfer import to_device


@dataclass(frozen=True, eq=False)
class Started:
    """Particles at the start of the grid, and what was already done to their law.

    ``exp(log_w - applied)`` weights them properly for the prior: a search that counts ``applied`` as
    a potential it has applied stays exact, whatever chose the noises (but see :class:`TopB`).

    Attributes:
        x_t: states at ``grid[0]``, ``(k, *shape)``.
        draws: distinct draw ids of the particles, for the noise of later steps.
        log_w: log-weights, float64 ``(k,)``.
        applied: lambda r of the one-step prediction where it was counted, float64 ``(k,)``.
        evidence: whether ``log_w`` keeps the normalising constant.
        posterior: what the denoiser said of ``x_t``; None where nothing was predicted.
        reward: reward of the predicted x_0, float64 ``(k,)``; None likewise.
    """

    x_t: Tensor
    draws: list[int]
    log_w: Tensor
    applied: Tensor
    evidence: bool = True
    posterior: Posterior | None = None
    reward: Tensor | None = None


class InitialNoise(ABC):
    """A stage that chooses where ``k`` particles start. Thin: options are its fields."""

    #: whether it hands over posterior and reward of what it chose
    predicts: bool = True

    @property
    def needs(self) -> Needs:
        """Abilities it cannot do without."""
        return Needs()

    @abstractmethod
    def cost(self, facts: Facts, k: int) -> Cost:
        """Exactly what it spends on ``k`` particles.

        Raises:
            ValueError: it cannot hand over so many.
        """

    @abstractmethod
    def __call__(self, problem: Problem, k: int) -> Generator[Request, Any, Started]:
        """Run: yield requests, return ``k`` particles."""


@dataclass(frozen=True)
class Prior(InitialNoise):
    """Fresh draws. Particle 0 starts from what the pipeline itself would start from."""

    predicts = False

    def cost(self, facts: Facts, k: int) -> Cost:
        """Nothing."""
        return Cost()

    def __call__(self, problem: Problem, k: int) -> Generator[Request, Any, Started]:
        """No request is made."""
        yield from ()
        zero = torch.zeros(k, dtype=torch.float64)
        return Started(problem.initial(range(k)), list(range(k)), zero, zero)


@dataclass(frozen=True)
class TopB(InitialNoise):
    """The best of many noises by the reward of their one-step prediction.

    A heuristic that claims no law: the noises kept are treated as if they were fresh, which favours
    what the first prediction shows. Rollover budget forcing starts so (Kim et al. 2025, 2503.19385);
    so does the gradient-free baseline of Psi-Sampler (Yoon et al. 2025, 2506.01320).

    Attributes:
        candidates: noises looked at.
        per_particle: look at so many for every particle, each keeping the best of its own, so that
            particles stay independent; otherwise the best of all are kept.
    """

    candidates: int = 25
    per_particle: bool = False

    def __post_init__(self) -> None:
        at_least_one(self, "candidates")

    def cost(self, facts: Facts, k: int) -> Cost:
        """One call, decode and score a candidate."""
        if not self.per_particle and k > self.candidates:
            raise ValueError(
                f"TopB keeps {k} of candidates={self.candidates}; raise candidates to at least {k}, or "
                "set per_particle=True"
            )
        return self._count(k) * predicted_cost(facts)

    def _count(self, k: int) -> int:
        return k * self.candidates if self.per_particle else self.candidates

    def __call__(self, problem: Problem, k: int) -> Generator[Request, Any, Started]:
        """Score all, keep the best."""
        self.cost(problem.facts, k)  # refuses too many
        point = yield from predicted(problem, problem.initial(range(self._count(k))))
        if self.per_particle:
            best = point.reward.reshape(k, -1).argmax(1) + torch.arange(k) * self.candidates
        else:
            best = torch.argsort(point.reward, descending=True, stable=True)[:k]
        problem.trace.record(start="top", candidates=len(point.reward), ancestors=best)
        zero = torch.zeros(k, dtype=torch.float64)
        return point[best].started(best.tolist(), zero, zero, evidence=False)


@dataclass(frozen=True)
class Resampled(InitialNoise):
    """Noises drawn in proportion to exp(lambda r) of their one-step prediction: exact.

    Systematic resampling of ``k`` of the candidates, which leaves the evidence in the weights.

    Attributes:
        candidates: noises looked at.
    """

    candidates: int = 25

    def __post_init__(self) -> None:
        at_least_one(self, "candidates")

    @property
    def needs(self) -> Needs:
        """A fixed density to draw in proportion to."""
        return Needs(density=True)

    def cost(self, facts: Facts, k: int) -> Cost:
        """One call, decode and score a candidate."""
        return self.candidates * predicted_cost(facts)

    def __call__(self, problem: Problem, k: int) -> Generator[Request, Any, Started]:
        """Score all, draw."""
        point = yield from predicted(problem, problem.initial(range(self.candidates)))
        ancestors, log_w = drawn(problem, point, k)
        kept = point[ancestors]
        return kept.started(list(range(k)), log_w, tilt(kept.reward, problem.lam))


@dataclass(frozen=True, eq=False)
class Point:
    """States at ``grid[0]`` and what one prediction says of them; indexing takes rows of all.

    Attributes:
        x_t: ``(n, *shape)``.
        posterior: of ``x_t``.
        reward: of the predicted x_0, float64 ``(n,)``.
        grad: gradient of the reward by ``x_t``, ``(n, *shape)``, or None.
    """

    x_t: Tensor
    posterior: Posterior
    reward: Tensor
    grad: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> Point:
        on_device = to_device(rows, self.x_t.device)
        grad = None if self.grad is None else self.grad[on_device]
        return Point(self.x_t[on_device], self.posterior[on_device], self.reward[rows], grad)

    def started(
        self, draws: list[int], log_w: Tensor, applied: Tensor, *, evidence: bool = True
    ) -> Started:
        """These rows, handed over."""
        return Started(self.x_t, draws, log_w, applied, evidence, self.posterior, self.reward)


def predicted(
    problem: Problem, x_t: Tensor, *, gradient: bool = False
) -> Generator[Request, Any, Point]:
    """Predict x_0 from the start of the grid and score it.

    Args:
        problem: whose grid and model.
        x_t: states at ``grid[0]``, ``(n, *shape)``.
        gradient: whether to differentiate the reward by ``x_t``.

    Raises:
        ValueError: the gradient of a possible row is not finite.
    """
    posterior = yield Denoise(x_t, problem.grid[0], keep_graph=gradient)
    scores = yield Score(posterior.x_0, grad_to=x_t if gradient else None)
    posterior = Posterior(posterior.x_0.detach(), posterior.eps.detach())
    if gradient:
        finite = torch.isfinite(scores.grad).flatten(1).all(1).cpu()
        bad = torch.nonzero(~finite & torch.isfinite(scores.total))
        if len(bad):
            raise ValueError(
                f"the gradient of the reward is not finite for candidate {int(bad[0])}, whose reward is "
                f"{float(scores.total[bad[0]])}; mend the reward, or do without gradients"
            )
    return Point(x_t.detach(), posterior, scores.total, scores.grad)


def predicted_cost(facts: Facts) -> Cost:
    """Of :func:`predicted`, a row, without gradient."""
    return Cost(nfe=1, decodes=1, reward_calls=facts.calls_per_row)


def drawn(problem: Problem, point: Point, k: int) -> tuple[Tensor, Tensor]:
    """Draw ``k`` rows in proportion to exp(lambda r), in random order.

    Returns:
        Their indices ``(k,)``, and the log-weight that each carries, float64 ``(k,)``: the log of the
        mean of exp(lambda r).

    Raises:
        ValueError: all weights are zero.
    """
    weights = Weights.uniform(len(point.reward)).times(tilt(point.reward, problem.lam))
    uniforms = problem.streams.uniform("start", 0, 0, max(len(weights), k))
    ancestors, even = weights.resample(RESAMPLERS["systematic"], uniforms, k)
    order = problem.streams.uniform("start", 0, 1, k)
    ancestors = ancestors[torch.argsort(order)]  # so that every slot alone has the law
    problem.trace.record(
        start="drawn", candidates=len(point.reward), ess=weights.ess, ancestors=ancestors
    )
    return ancestors, even.log_w + even.log_norm


def together(own: Needs, start: InitialNoise | None) -> Needs:
    """What a search needs along with the stage that it starts with."""
    if start is None:
        return own
    return Needs(
        **{f.name: getattr(own, f.name) or getattr(start.needs, f.name) for f in fields(Needs)}
    )


def at_least_one(options: Any, *names: str) -> None:
    """Check counts among the fields of a stage or search.

    Raises:
        ValueError: names the first that is below 1.
    """
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
