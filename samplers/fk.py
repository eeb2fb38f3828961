"""Feynman-Kac steering: particles that are resampled by intermediate rewards."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from samplers.potentials import Potential, PotentialName, TemperatureName, tempered, tilt
from steering.cost import Cost
from steering.model import Stage
from steering.particles import RESAMPLERS, Weights
from steering.prediction import Posterior
from steering.requests import Denoise, Request, Rollout, Score, Scores
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.trace import correlation
from steering.transitions import DDIM

ResamplerName = Literal["systematic", "multinomial", "stratified", "residual", "ssp"]
Run = Generator[Request, Any, Any]


@dataclass(frozen=True, eq=False)
class Cloud:
    """The particles between two steps; ``cloud[ancestors]`` re-indexes everything at once.

    Attributes:
        x_t: states ``(k, *shape)``.
        posterior: what the denoiser said of them.
        potential: what was applied so far.
        roots: index of each particle's ancestor at the start ``(k,)``.
        past: intermediate rewards along each particle's lineage, by trace record.
    """

    x_t: Tensor
    posterior: Posterior
    potential: Potential
    roots: Tensor
    past: dict[int, Tensor]

    def __getitem__(self, rows: Tensor) -> Cloud:
        on_device = rows.to(self.x_t.device)
        return Cloud(
            self.x_t[on_device],
            self.posterior[on_device],
            self.potential[rows],
            self.roots[rows],
            {record: rewards[rows] for record, rewards in self.past.items()},
        )


@dataclass(frozen=True)
class FKSteering(Search):
    """Sequential Monte Carlo on the path of the sampler, weighted by rewards of predicted x_0.

    Targets p(x_0) exp(lambda r(x_0)), p being the law of the chain that is sampled: exact as the
    number of particles grows, unbiased in its normalising constant for any number if resampling is
    not adaptive. Singhal et al. 2025 (2501.06848). The reference implementation differs in eight
    ways; here log-weights are carried when no resampling happens, everything stays in log space,
    the terminal correction uses r(x_0) itself, negative rewards count, and a reward weights the very
    state whose x_0 was predicted (no lag).

    Attributes:
        particles: number of particles k.
        potential: ``"difference"``, ``"max"`` or ``"sum"``.
        temperature: how lambda grows along the way: ``"constant"``, ``"signal"`` (linear in
            alpha-bar) or ``"exponential"`` (DAS); the finished sample counts with lambda itself.
        start: first step (0 is pure noise) at which rewards are looked at.
        every: steps between looks.
        stop: no looks from this step on; None: until the end.
        steps: the steps at which to look, instead of ``start``, ``every`` and ``stop``.
        ess_threshold: resample at a look if the effective sample size is below
            ``1 + ess_threshold (k - 1)``, which can happen for every k > 1; 1 resamples always.
        resampler: how.
        eta: noise of the DDIM transition; must be positive, or duplicates would stay duplicates.
        lookahead: m > 0 replaces r(x_0 predicted) by the soft value
            log mean exp(lambda r) / lambda of m sampled continuations.
        lookahead_steps: transitions of each continuation.
        returns: ``"all"`` particles with weights, one ``"draw"`` from them, or the ``"best"``.
    """

    particles: int = 4
    potential: PotentialName = "difference"
    temperature: TemperatureName = "constant"
    start: int = 5
    every: int = 5
    stop: int | None = None
    steps: Sequence[int] | None = None
    ess_threshold: float = 0.5
    resampler: ResamplerName = "systematic"
    eta: float = 1.0
    lookahead: int = 0
    lookahead_steps: int = 4
    returns: Literal["all", "draw", "best"] = "best"

    def __post_init__(self) -> None:
        for name, least in (
            ("particles", 1),
            ("start", 0),
            ("every", 1),
            ("lookahead", 0),
            ("lookahead_steps", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, known in (
            ("potential", get_args(PotentialName)),
            ("temperature", get_args(TemperatureName)),
            ("resampler", tuple(RESAMPLERS)),
            ("returns", ("all", "draw", "best")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ess_threshold must lie in [0, 1], got {self.ess_threshold}")
        if not 0 < self.eta <= 1:
            raise ValueError(
                f"eta must lie in (0, 1], got {self.eta}: without noise the copies of a resampled "
                "particle would never differ"
            )

    @property
    def needs(self) -> Needs:
        """A noisy transition and a fixed density."""
        return Needs(stochastic=True, posterior_mean=True, density=True)

    def looks(self, steps: int) -> list[int]:
        """Steps of a grid of ``steps`` transitions at which rewards are looked at."""
        if self.steps is not None:
            bad = [s for s in self.steps if not 0 <= s < steps]
            if bad:
                raise ValueError(f"steps {bad} lie outside the grid of {steps} transitions")
            return sorted(set(self.steps))
        return list(
            range(self.start, steps if self.stop is None else min(self.stop, steps), self.every)
        )

    def plan(self, facts: Facts) -> Plan:
        """As many particles as the budget allows, ``particles`` at most."""
        one = self._cost(facts, self.looks(facts.steps))
        k = int(min(self.particles, facts.budget.times(one)))
        if k < 1:
            raise BudgetTooSmall(
                f"one particle costs {one}, more than the budget {facts.budget} allows"
            )
        return Plan(k * one, one, k * max(self.lookahead, 1), settings={"particles": k})

    def _cost(self, facts: Facts, looks: list[int]) -> Cost:
        """Cost of one particle over the whole grid."""
        calls = facts.calls_per_row
        if not self.lookahead:
            scored = len(looks) + 1
            return Cost(nfe=facts.steps, decodes=scored, reward_calls=scored * calls)
        extra = sum(len(self._path(i, facts.steps)) - 2 for i in looks)
        scored = len(looks) * self.lookahead + 1
        nfe = facts.steps + extra * self.lookahead
        return Cost(nfe=nfe, decodes=scored, reward_calls=scored * calls)

    def _path(self, i: int, steps: int) -> list[int]:
        """Grid indices of a continuation from step ``i``: itself, a few between, the end."""
        n = min(self.lookahead_steps, steps - i)
        return [i + round(j * (steps - i) / n) for j in range(n + 1)]

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Propose, weight, resample; then weight by the finished samples."""
        k = self.plan(problem.facts).settings["particles"]
        grid, transition = problem.grid, DDIM(self.eta)
        looks = set(self.looks(grid.steps))
        weights, slots, complete = Weights.uniform(k), list(range(k)), True
        x_t = problem.initial(slots)
        potential, roots = Potential.start(self.potential, k), torch.arange(k)
        past: dict[int, Tensor] = {}
        problem.trace.record(particles=k)
        if k > 1 and not looks and self.steps is None:
            problem.trace.record(event="no look")
            warnings.warn(
                f"FKSteering looks from step {self.start} every {self.every} steps, but the grid has "
                f"only {grid.steps}: nothing is resampled on the way; lower start and every",
                stacklevel=2,
            )
        for i in range(grid.steps):
            posterior = yield Denoise(x_t, grid[i])
            cloud = Cloud(x_t, posterior, potential, roots, past)
            if (
                i in looks and complete
            ):  # a lone survivor of the budget has nothing to be chosen from
                cloud, weights = yield from self._look(problem, cloud, weights, i)
            if len(slots) > 1 and not self._affords(problem, len(slots), i):
                best = int(weights.log_w.argmax())
                cloud, weights = cloud[torch.tensor([best])], Weights.uniform(1)
                slots, complete = [slots[best]], False
                problem.trace.record(step=i, event="out of time", ancestors=[best])
            law = transition(cloud.posterior, grid[i], grid[i + 1])
            x_t = law.mean
            if law.std > 0:
                x_t = law.sample(problem.noise("transition", slots, i))
            potential, roots, past = cloud.potential, cloud.roots, cloud.past
        final = yield Score(x_t, Stage.FINAL)
        weights = weights.times(potential.last(final.total, problem.lam))
        return self._outcome(problem, replace(cloud, x_t=x_t), weights, final, complete)

    def _look(
        self, problem: Problem, cloud: Cloud, weights: Weights, i: int
    ) -> Generator[Request, Any, tuple[Cloud, Weights]]:
        """Score the predicted x_0 of each particle, reweight, and resample if it pays."""
        reward = yield from self._reward(problem, cloud, i)
        lam = tempered(self.temperature, problem.lam, problem.grid, i)
        log_g, potential = cloud.potential.step(reward, lam)
        weights = weights.times(log_g)
        k, ess = len(weights), weights.ess
        record = len(problem.trace.records)
        cloud = replace(cloud, potential=potential, past={**cloud.past, record: reward})
        resample = k > 1 and (self.ess_threshold == 1 or ess < 1 + self.ess_threshold * (k - 1))
        ancestors = torch.arange(k)
        if resample:
            uniforms = problem.streams.uniform("resampling", 0, i, k)
            ancestors, weights = weights.resample(RESAMPLERS[self.resampler], uniforms)
            cloud = cloud[ancestors]
        problem.trace.record(
            step=i,
            model_t=problem.grid[i].model_t,
            ess=ess,
            resampled=resample,
            ancestors=ancestors,
            distinct=len(torch.unique(cloud.roots)),
            reward=reward,
        )
        return cloud, weights

    def _reward(self, problem: Problem, cloud: Cloud, i: int) -> Run:
        """Intermediate reward ``(k,)`` of each particle."""
        if not self.lookahead:
            scores = yield Score(cloud.posterior.x_0)
            return scores.total
        m, k, grid = self.lookahead, len(cloud.x_t), problem.grid
        path = [grid[j] for j in self._path(i, grid.steps)]
        draws = range(i * k * m, (i + 1) * k * m)
        rows = torch.arange(k, device=cloud.x_t.device).repeat_interleave(m)
        law = DDIM(1.0)(cloud.posterior[rows], path[0], path[1])
        x = law.sample(problem.noise("lookahead", draws, 0)) if law.std > 0 else law.mean
        if len(path) > 2:
            x = yield Rollout(x, i + 1, DDIM(1.0), draws, path[1:], purpose="lookahead")
        scores = yield Score(x)
        return soft_value(scores.total.reshape(k, m), problem.lam)

    def _affords(self, problem: Problem, k: int, i: int) -> bool:
        """Whether time remains to carry all particles on and still finish one."""
        left = problem.grid.steps - i - 1
        step = Cost(seconds=problem.seconds_for(k))
        return problem.affords(step, holding_back=Cost(seconds=problem.seconds_for(left)))

    def _outcome(
        self, problem: Problem, cloud: Cloud, weights: Weights, final: Scores, complete: bool
    ) -> Outcome:
        for record, rewards in cloud.past.items():
            problem.trace.records[record]["correlation"] = correlation(rewards, final.total)
        chosen = self._choose(problem, weights, final)
        problem.trace.record(
            step=problem.grid.steps,
            ess=weights.ess,
            distinct=len(torch.unique(cloud.roots)),
            reward=final.total,
            chosen=chosen,
        )
        log_z = weights.log_z if complete else None
        return Outcome(cloud.x_t, final, weights.log_w, chosen, log_z, complete)

    def _choose(self, problem: Problem, weights: Weights, final: Scores) -> list[int]:
        if self.returns == "best":
            return [int(final.total.argmax())]
        if self.returns == "draw":
            u = problem.streams.uniform("selection", 0, 0, 1)
            cumulative = torch.cumsum(weights.normalised, 0)
            return [int(torch.searchsorted(cumulative, u * cumulative[-1], right=True))]
        return torch.argsort(final.total, descending=True, stable=True).tolist()


def soft_value(rewards: Tensor, lam: float) -> Tensor:
    """Log mean exp(lambda r) / lambda over the last axis: ``(k, m)`` to ``(k,)``; the mean at 0."""
    if lam == 0:
        return rewards.mean(-1)
    m = rewards.shape[-1]
    return (torch.logsumexp(tilt(rewards, lam), -1) - torch.log(torch.tensor(float(m)))) / lam
