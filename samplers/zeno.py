"""Gradient-free noise optimisation: perturbed noises, weighted by reward, pull the noise along."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from samplers.initial import at_least_one
from samplers.pool import Pool, finished, one_cost
from samplers.potentials import tilt
from steering.requests import Request
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.transitions import Transition


@dataclass(frozen=True)
class ZeNO(Search):
    """Langevin-like chains on the initial noise, their drift measured by reward-weighted perturbations.

    After ZeNO (2605.11347), which sees noise optimisation as path-integral control with an
    Ornstein-Uhlenbeck reference. The exact published form could not be verified; this is our derivation
    of the idea. Around the noise n of a chain, one step of the reference is a n + b z with
    a = sqrt(1 - step) and b = sqrt(step). Of perturbations z_i, in pairs of opposite sign, all are
    carried to finished samples and scored, and with w_i proportional to exp(lambda r_i)::

        n' = a n + (1 - a) / b sum_i w_i z_i + b z.

    The weighted mean estimates b lambda grad r, smoothed over the perturbations, so n' takes a step of
    Langevin dynamics whose law at rest is N(0, I) exp(lambda r): the tilted law, where the map from
    noise to sample is deterministic. For a reward that is linear in the noise it is so at any
    step size as perturbations grow; in general as ``step`` falls and perturbations grow; a constant
    reward leaves N(0, I) alone with any number of them. No gradient is needed.

    Attributes:
        rounds: steps of each chain; fewer if the budget does not allow them.
        samples: perturbations a step, an even number.
        step: variance of a perturbation, in (0, 1); a chain forgets where it was in 2 / step rounds.
        chains: side by side.
        solver: ``"scheduler"`` is the pipeline's own; a transition walks the time grid. Noise on the way
            is averaged over, not steered.
        in_flight: candidates carried at once, which bounds memory.
        returns: the ``"best"`` sample over all rounds, one ``"draw"`` of the chains' last states (for
            the tilted law), or ``"all"`` samples, best first.
    """

    rounds: int = 8
    samples: int = 8
    step: float = 0.2
    chains: int = 1
    solver: Transition | Literal["scheduler"] = "scheduler"
    in_flight: int = 16
    returns: Literal["best", "draw", "all"] = "best"

    def __post_init__(self) -> None:
        at_least_one(self, "rounds", "samples", "chains", "in_flight")
        if self.returns not in ("best", "draw", "all"):
            raise ValueError(f"returns must be 'best', 'draw' or 'all', got {self.returns!r}")
        if self.samples % 2:
            raise ValueError(
                f"samples must be even, for pairs of opposite sign, got {self.samples}"
            )
        if not 0 < self.step < 1:
            raise ValueError(f"step must lie in (0, 1), got {self.step}")

    @property
    def needs(self) -> Needs:
        """A fixed density."""
        return Needs(density=True, denoises=self.solver != "scheduler")

    def plan(self, facts: Facts) -> Plan:
        """Fewer rounds where the budget is small, then fewer chains, then fewer perturbations."""
        one = one_cost(facts, self.solver)
        most = facts.budget.times(one)
        if most < 1:
            raise BudgetTooSmall(
                f"one candidate costs {one}, more than the budget {facts.budget} allows"
            )
        samples = int(min(self.samples, max((most - 1) // 2 * 2, 2)))
        chains = int(min(self.chains, max(most // (samples + 1), 1)))
        rounds = int(min(self.rounds, (most - chains) // (chains * samples)))
        settings = {"chains": chains, "rounds": rounds, "samples": samples}
        rows = min(self.in_flight, chains * (samples if rounds else 1))
        return Plan(chains * (rounds * samples + 1) * one, one, rows, settings=settings)

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Perturb, score and step; finish the chains."""
        settings = self.plan(problem.facts).settings
        chains, samples = settings["chains"], settings["samples"]
        pool, serial = Pool(keep_all=self.returns != "best"), itertools.count(chains)
        centres, complete = problem.unit(problem.initial(range(chains))), True
        problem.trace.record(**settings)
        for n in range(settings["rounds"]):
            draws = [next(serial) for _ in range(chains * samples)]
            half = problem.noise("perturbation", draws[::2], n).unflatten(0, (chains, -1))
            z = torch.cat([half, -half], 1)  # (chains, samples, *shape)
            keep, size = math.sqrt(1 - self.step), math.sqrt(self.step)
            x_t = problem.started((keep * centres[:, None] + size * z).flatten(0, 1))
            places = yield from finished(problem, pool, x_t, draws, self.solver, self.in_flight)
            if len(places) < len(draws):
                problem.trace.record(event="out of time")
                complete = False
                break
            reward = pool.values[places].reshape(chains, samples)
            pull = _weighted(z, tilt(reward, problem.lam))
            fresh = problem.noise("step", range(chains), n)
            centres = keep * centres + (1 - keep) / size * pull + size * fresh
            problem.trace.record(round=n + 1, reward=reward.mean(1), best=pool.values.max())
        last: list[int] = []
        if complete:
            x_t, draws = problem.started(centres), list(range(chains))
            last = yield from finished(problem, pool, x_t, draws, self.solver, self.in_flight)
        return self._outcome(problem, pool, last, complete=len(last) == chains)

    def _outcome(self, problem: Problem, pool: Pool, last: list[int], *, complete: bool) -> Outcome:
        outcome = pool.outcome(complete=complete, last=last)
        if self.returns == "draw":
            among = last or list(range(len(pool)))
            u = float(problem.streams.uniform("selection", 0, 0, 1))
            outcome.chosen[:] = [among[int(u * len(among))]]
        problem.trace.record(totals=pool.values, chosen=outcome.chosen)
        return outcome


def _weighted(z: Tensor, log_w: Tensor) -> Tensor:
    """Weighted mean of perturbations ``(chains, samples, *shape)``; 0 where none is possible."""
    weights = torch.softmax(log_w, 1).nan_to_num(0.0).to(z.device, z.dtype)
    return (weights.reshape(*weights.shape, *[1] * (z.ndim - 2)) * z).sum(1)
