"""Paths and transitions of the flow benchmark by name, and the two searches that it runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from steering.cost import Cost
from steering.flow_sde import FlowSDE
from steering.glass import GLASS
from steering.interpolants import Interpolant, RectifiedFlow
from steering.model import Stage
from steering.moves import move
from steering.paths import SamplingPath
from steering.prediction import Posterior
from steering.requests import Denoise, Request, Rollout, Score, Scores
from steering.search import Facts, Needs, Outcome, Plan, Problem, Search
from steering.times import TimeGrid
from steering.transitions import DDIM, Transition

PATHS: dict[str, SamplingPath | None] = {
    "flow": None,
    "vp": SamplingPath(),
    "vp-rbf": SamplingPath(warp="rbf"),
}


def _sde(g: Any, form: Any) -> Callable[[Interpolant], Transition]:
    return lambda interpolant: FlowSDE(g, interpolant=interpolant, discretisation=form)


#: Transitions by name, for the interpolant that is sampled in.
TRANSITIONS: dict[str, Callable[[Interpolant], Transition]] = {
    "ode": lambda _: DDIM(0.0),
    "ddim": lambda _: DDIM(1.0),
    **{
        f"sde-{g}-{form}": _sde(g, form)
        for g in ("square", "linear", "constant", "ancestral", "largest")
        for form in ("exact", "euler")
    },
    "glass-2": lambda _: GLASS("ddpm", 2),
    "glass-4": lambda _: GLASS("ddpm", 4),
}

#: What is drawn on the embedded Flux: (path, transition).
DRAWN = [
    ("flow", "ode"),
    *[("flow", name) for name in TRANSITIONS if name.startswith("sde-")],
    ("flow", "glass-2"),
    ("flow", "glass-4"),
    ("vp", "ode"),
    ("vp", "ddim"),
    ("vp-rbf", "ddim"),
]


def transition_of(path: str, name: str) -> Transition:
    """A transition of :data:`TRANSITIONS` whose g and Euler step are those of the named path."""
    laid = PATHS[path]
    return TRANSITIONS[name](RectifiedFlow() if laid is None else laid.interpolant)


@dataclass(frozen=True)
class Sample(Search):
    """One unsteered sample.

    Attributes:
        transition: how every step is made.
        path: along which.
    """

    transition: Transition
    path: SamplingPath | None = None

    @property
    def needs(self) -> Needs:
        """Nothing."""
        return Needs()

    def plan(self, facts: Facts) -> Plan:
        """A trajectory."""
        nfe = facts.steps * (1 + self.transition.inner_calls)
        cost = Cost(nfe=nfe, decodes=1, reward_calls=facts.calls_per_row)
        return Plan(cost, cost, 1)

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Sample and score."""
        x_0 = yield Rollout(problem.initial([0]), solver=self.transition, draws=[0])
        scores = yield Score(x_0, Stage.FINAL)
        return Outcome(x_0, scores, torch.zeros(1, dtype=torch.float64), [0])


@dataclass(frozen=True)
class Branch(Sample):
    """Children of one state, which the ODE carried to a noise level from the prompt's own noise.

    The first half of the rows differ by the noise of a single step and are finished by the ODE; the
    second half go on with noises of their own.

    Attributes:
        level: where to branch, as the noise share ``sigma / (alpha + sigma)``; the nearest on the grid.
        children: how many.
    """

    level: float = 0.5
    children: int = 4

    def index(self, grid: TimeGrid) -> int:
        """Index in the grid of the time to branch at; the last step has no noise for most."""
        away = [abs(t.sigma / (t.alpha + t.sigma) - self.level) for t in grid[:-2]]
        return away.index(min(away))

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Walk, branch, finish twice."""
        grid, i, n = problem.grid, self.index(problem.grid), self.children
        ode, draws = DDIM(0.0), range(self.children)
        x_t = yield Rollout(problem.initial([0]), solver=ode, path=grid[: i + 1])
        one = yield Denoise(x_t, grid[i])
        x_t = x_t.repeat_interleave(n, 0)
        posterior = Posterior(one.x_0.repeat_interleave(n, 0), one.eps.repeat_interleave(n, 0))
        noise = partial(problem.noise, "transition", draws, i)
        x_s = yield from move(problem, self.transition, x_t, posterior, grid[i], grid[i + 1], noise)
        by_ode = yield Rollout(x_s, i + 1, ode)
        onwards = yield Rollout(x_s, i + 1, self.transition, draws)
        none = torch.zeros(2 * n, dtype=torch.float64)
        return Outcome(torch.cat([by_ode, onwards]), Scores(none, {}), none, list(range(2 * n)))
