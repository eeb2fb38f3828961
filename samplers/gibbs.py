"""Particle Gibbs: sweeps of a particle filter around one retained path."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from samplers.cloud import Cloud
from samplers.pool import joined
from samplers.potentials import Potential, warn_if_unsteered
from samplers.temperature import Look, Temperature, TemperatureName, temperature_of
from steering.cost import Cost
from steering.model import Stage
from steering.moves import move
from steering.particles import Weights, multinomial
from steering.paths import SamplingPath
from steering.prediction import Posterior
from steering.requests import Denoise, Request, Score, Scores
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.transitions import DDIM, Transition


@dataclass(frozen=True, eq=False)
class RetainedPath:
    """One particle's whole way, with all that was paid for on it; what a later sweep goes on from.

    Attributes:
        owner: seed and key of the prompt that it belongs to.
        sweeps: sweeps done so far.
        x_t: states at every time of the grid ``(steps + 1, *shape)``, the finished sample last.
        x_0: predicted clean states ``(steps, *shape)``.
        eps: predicted noises ``(steps, *shape)``.
        rewards: reward of each predicted x_0 that was looked at, NaN elsewhere, float64 ``(steps,)``.
        columns: named rewards of the finished sample, each ``(1,)``.
        total: name of the column that is searched.
    """

    owner: str
    sweeps: int
    x_t: Tensor
    x_0: Tensor
    eps: Tensor
    rewards: Tensor
    columns: dict[str, Tensor]
    total: str

    @property
    def scores(self) -> Scores:
        """Rewards of the finished sample, one row."""
        return Scores(self.columns[self.total], self.columns)

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file."""
        tensors = {f"column {name}": column for name, column in self.columns.items()}
        tensors |= {name: getattr(self, name) for name in ("x_t", "x_0", "eps", "rewards")}
        plain = {name: t.cpu().contiguous().clone() for name, t in tensors.items()}
        about = {"owner": self.owner, "sweeps": str(self.sweeps), "total": self.total}
        save_file(plain, str(path), metadata=about)

    @classmethod
    def load(cls, path: str | Path) -> RetainedPath:
        """Read what :meth:`save` wrote."""
        with safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = file.metadata()
        named = {name: tensors.pop(name) for name in ("x_t", "x_0", "eps", "rewards")}
        columns = {name.removeprefix("column "): t for name, t in tensors.items()}
        sweeps = int(about["sweeps"])
        return cls(about["owner"], sweeps, **named, columns=columns, total=about["total"])


@dataclass(frozen=True)
class ParticleGibbs(Search):
    """A Markov chain of particle filters, each run around a path drawn from the one before.

    The retained path competes with fresh particles and is never overwritten, though copies of it may
    branch off; at the end of a sweep a new one is drawn by weight. The chain leaves the tilted law of
    whole paths unchanged for any number of particles, so it is exact as sweeps grow, and it can be
    stopped and gone on with after any sweep. Andrieu, Doucet and Holenstein 2010; Puri et al. 2025
    (2502.01618) on language models, whose released code weighs the retained path by the wrong score.
    What the retained path cost is paid once: a sweep denoises one row less a step.

    Attributes:
        particles: particles of a sweep, the retained one included; at least 2.
        sweeps: how many.
        burn_in: first sweeps that do not count among the returned particles.
        temperature: a schedule of lambda that is fixed beforehand.
        start: first step at which rewards are looked at.
        every: steps between looks.
        ess_threshold: resample below ``1 + ess_threshold (k - 1)`` effective particles.
        transition: how states move, ``"ddim"`` is DDIM(1.0); it must draw noise.
        path: interpolant to sample along; None is the pipeline's own grid.
        returns: ``"all"`` particles of all counted sweeps, weighted, each sweep the same; the path
            retained last (``"draw"``); or the ``"best"`` finished sample of all.
        state: a retained path of the same prompt and seed to go on from.
    """

    particles: int = 4
    sweeps: int = 4
    burn_in: int = 0
    temperature: Temperature | TemperatureName = "constant"
    start: int = 0
    every: int = 1
    ess_threshold: float = 0.5
    transition: Transition | Literal["ddim"] = "ddim"
    path: SamplingPath | None = None
    returns: Literal["all", "draw", "best"] = "best"
    state: RetainedPath | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("particles", 2),
            ("sweeps", 1),
            ("burn_in", 0),
            ("start", 0),
            ("every", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.burn_in >= self.sweeps:
            raise ValueError(
                f"burn_in={self.burn_in} leaves none of {self.sweeps} sweeps to return"
            )
        if not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ess_threshold must lie in [0, 1], got {self.ess_threshold}")
        if self.returns not in ("all", "draw", "best"):
            raise ValueError(f"returns must be 'all', 'draw' or 'best', got {self.returns!r}")
        if not temperature_of(self.temperature).fixed:
            raise ValueError(
                f"particle Gibbs needs a schedule of lambda that is fixed beforehand, not "
                f"{self.temperature}: its chain would not leave the target alone"
            )
        if not self._transition.stochastic:
            raise ValueError(
                f"particle Gibbs cannot search along the deterministic {self.transition}: copies of the "
                "retained path would never leave it; use DDIM(1.0), a FlowSDE or GLASS"
            )

    @property
    def _transition(self) -> Transition:
        return DDIM(1.0) if isinstance(self.transition, str) else self.transition

    @property
    def needs(self) -> Needs:
        """A noisy transition and a fixed density."""
        return Needs(stochastic=True, posterior_mean=self._transition.reads_means, density=True)

    def plan(self, facts: Facts) -> Plan:
        """As many sweeps as the budget allows, ``sweeps`` at most.

        Raises:
            BudgetTooSmall: one sweep does not fit.
        """
        calls, steps = facts.calls_per_row, facts.steps
        scored = len(range(self.start, steps, self.every)) + 1
        one = Cost(
            nfe=steps * (1 + self._transition.inner_calls),
            decodes=scored,
            reward_calls=scored * calls,
        )
        first = (self.particles - (self.state is not None)) * one
        later = (self.particles - 1) * one
        if facts.budget.exceeded_by(first) is not None:
            raise BudgetTooSmall(
                f"one sweep costs {first}, more than the budget {facts.budget} allows; lower particles"
            )
        more = int(min(self.sweeps - 1, facts.budget.times(later, first)))
        return Plan(first + more * later, first, self.particles, settings={"sweeps": 1 + more})

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Sweep after sweep, each around the path drawn from the last."""
        sweeps = self.plan(problem.facts).settings["sweeps"]
        warn_if_unsteered(problem)
        looks = range(self.start, problem.grid.steps, self.every)
        reference = None if self.state is None else _mine(self.state, problem, looks)
        done = 0 if reference is None else reference.sweeps
        kept: list[tuple[Cloud, Scores]] = []
        complete = True
        for index in range(done, done + sweeps):
            if kept and not self._affords(problem):
                complete = False
                break
            cloud, final, reference = yield from self._sweep(problem, index, reference)
            if index - done >= min(self.burn_in, sweeps - 1):
                kept.append((cloud, final))
        assert reference is not None
        return self._outcome(problem, kept, reference, complete)

    def _affords(self, problem: Problem) -> bool:
        """Whether time remains for another sweep."""
        rows = (self.particles - 1) * problem.grid.steps * (1 + self._transition.inner_calls)
        return problem.affords(Cost(seconds=problem.seconds_for(rows)))

    def _sweep(
        self, problem: Problem, index: int, reference: RetainedPath | None
    ) -> Generator[Request, Any, tuple[Cloud, Scores, RetainedPath]]:
        """One conditional particle filter: particles, their rewards, and the path drawn from them."""
        k, grid = self.particles, problem.grid
        held = int(reference is not None)
        slots = tuple(range(index * k, (index + 1) * k))
        x_t = _with(reference, "x_t", 0, problem.initial(slots[held:]))
        zero = torch.zeros(k, dtype=torch.float64)
        start = Potential.start("difference", zero)
        cloud = Cloud(x_t, Weights.uniform(k), start, torch.arange(k), slots)
        history, looks = _History(), range(self.start, grid.steps, self.every)
        for i in range(grid.steps):
            posterior = yield Denoise(cloud.x_t[held:], grid[i])
            cloud = replace(
                cloud,
                posterior=Posterior(
                    _with(reference, "x_0", i, posterior.x_0),
                    _with(reference, "eps", i, posterior.eps),
                ),
            )
            reward = torch.full((k,), torch.nan, dtype=torch.float64)
            ancestors, before = torch.arange(k), cloud
            if i in looks:
                scores = yield Score(cloud.known.x_0[held:])
                reward = _with(reference, "rewards", i, scores.total)
                ancestors, cloud = self._looked(problem, cloud, reward, i, index, held)
            history.add(before, reward, ancestors)
            t, s = grid[i], grid[i + 1]
            fresh = slots[held:]
            known = cloud.known
            moved = yield from move(
                problem,
                self._transition,
                cloud.x_t[held:],
                Posterior(known.x_0[held:], known.eps[held:]),
                t,
                s,
                problem.later("transition", fresh, i),
            )
            cloud = replace(cloud, x_t=_with(reference, "x_t", i + 1, moved))
        scores = yield Score(cloud.x_t[held:], Stage.FINAL)
        final = scores if reference is None else joined([reference.scores, scores])
        weights = cloud.weights.times(cloud.potential.last(final.total, problem.lam))
        cloud = replace(cloud, weights=weights)
        u = problem.streams.uniform("selection", index, 0, 1)
        chosen = int(multinomial(weights.normalised, u, 1))
        problem.trace.record(
            sweep=index,
            ess=weights.ess,
            reward=final.total,
            retained=chosen,
            renewed=chosen != 0 or reference is None,
        )
        return cloud, final, history.path(problem, cloud, final, chosen, index + 1)

    def _looked(
        self, problem: Problem, cloud: Cloud, reward: Tensor, i: int, index: int, held: int
    ) -> tuple[Tensor, Cloud]:
        """Weigh; resample all but the retained path, which is its own ancestor."""
        k = len(cloud)
        lam = temperature_of(self.temperature)(Look(problem.grid, i, problem.lam, cloud, reward))
        log_g, potential = cloud.potential.step(reward, lam)
        cloud = replace(cloud, weights=cloud.weights.times(log_g), potential=potential, lam=lam)
        ess = cloud.weights.ess
        resample = self.ess_threshold == 1 or ess < 1 + self.ess_threshold * (k - 1)
        ancestors = torch.arange(k)
        if resample:
            uniforms = problem.streams.uniform("resampling", index, i, k)
            drawn = multinomial(cloud.weights.normalised, uniforms[held:], k - held)
            ancestors = torch.cat([torch.arange(held), drawn])
            cloud = cloud.select(ancestors, Weights.uniform(k))
        problem.trace.record(
            sweep=index, step=i, ess=ess, resampled=resample, ancestors=ancestors, lam=lam
        )
        return ancestors, cloud

    def _outcome(
        self,
        problem: Problem,
        kept: list[tuple[Cloud, Scores]],
        reference: RetainedPath,
        complete: bool,
    ) -> Outcome:
        x_0 = torch.cat([cloud.x_t for cloud, _ in kept])
        scores = joined([final for _, final in kept])
        log_w = torch.cat([cloud.weights.normalised.log() for cloud, _ in kept])
        if self.returns == "best":
            chosen = [int(scores.total.argmax())]
        elif self.returns == "all":
            chosen = torch.argsort(scores.total, descending=True, stable=True).tolist()
        else:  # the retained path is one of the last sweep's particles
            last = len(x_0) - self.particles
            chosen = [last + problem.trace.column("retained")[-1]]
        problem.trace.record(chosen=chosen)
        extra = {"state": reference}
        return Outcome(x_0, scores, log_w, chosen, None, complete, extra)


class _History:
    """States of a sweep, step by step, from which any particle's path can be read."""

    def __init__(self) -> None:
        self._clouds: list[Cloud] = []
        self._rewards: list[Tensor] = []
        self._ancestors: list[Tensor] = []

    def add(self, cloud: Cloud, rewards: Tensor, ancestors: Tensor) -> None:
        """A step: its cloud before resampling, and who stems from whom after it."""
        self._clouds.append(cloud)
        self._rewards.append(rewards)
        self._ancestors.append(ancestors)

    def path(
        self, problem: Problem, last: Cloud, final: Scores, row: int, sweeps: int
    ) -> RetainedPath:
        """The way of one particle of the last cloud."""
        columns = {name: column[row : row + 1] for name, column in final.columns.items()}
        total = next(name for name, c in final.columns.items() if torch.equal(c, final.total))
        x_t, x_0, eps, rewards = [last.x_t[row]], [], [], []
        for cloud, seen, ancestors in zip(
            reversed(self._clouds), reversed(self._rewards), reversed(self._ancestors), strict=True
        ):
            row = int(ancestors[row])
            x_t.append(cloud.x_t[row])
            x_0.append(cloud.known.x_0[row])
            eps.append(cloud.known.eps[row])
            rewards.append(seen[row])
        return RetainedPath(
            _owner(problem),
            sweeps,
            torch.stack(x_t[::-1]),
            torch.stack(x_0[::-1]),
            torch.stack(eps[::-1]),
            torch.stack(rewards[::-1]),
            columns,
            total,
        )


def _with(reference: RetainedPath | None, part: str, step: int, fresh: Tensor) -> Tensor:
    """The retained path's row of a step before the fresh rows, if there is such a path."""
    if reference is None:
        return fresh
    return torch.cat([getattr(reference, part)[step : step + 1], fresh])


def _owner(problem: Problem) -> str:
    return f"{problem.streams.seed}\x1f{problem.streams.prompt_key}"


def _mine(state: RetainedPath, problem: Problem, looks: range) -> RetainedPath:
    """The saved path on the problem's device.

    Raises:
        ValueError: it belongs to another prompt, seed or grid, or was not scored at all ``looks``.
    """
    if state.owner != _owner(problem):
        raise ValueError(
            "the retained path belongs to another prompt or seed; a state goes on with the search that "
            "left it, one prompt at a time"
        )
    if len(state.x_0) != problem.grid.steps:
        raise ValueError(
            f"the retained path has {len(state.x_0)} steps, the grid {problem.grid.steps}; use the "
            "number of steps that it was made with"
        )
    missing = [i for i in looks if bool(torch.isnan(state.rewards[i]))]
    if missing:
        raise ValueError(
            f"the retained path has no rewards at steps {missing}; use the start and every that it was "
            "made with"
        )
    moved = {name: getattr(state, name).to(problem.device) for name in ("x_t", "x_0", "eps")}
    return replace(state, **moved)
