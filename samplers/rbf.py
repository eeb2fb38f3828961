"""Rollover budget forcing: one child at a time, and what a step does not need the next may spend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from samplers.initial import InitialNoise, TopB, at_least_one, predicted, predicted_cost, together
from steering.cost import Budget, Cost
from steering.interpolants import VPLinear
from steering.model import Stage
from steering.moves import move
from steering.paths import SamplingPath
from steering.prediction import Posterior, joined
from steering.requests import Denoise, Request, Score
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.transitions import DDIM, Transition

#: variance-preserving, steps of equal time
VP_PATH = SamplingPath(VPLinear())
#: the initial noises of its code: 25 a chain, the best kept
TOP_25 = TopB(25, per_particle=True)


@dataclass(frozen=True, eq=False)
class Chain:
    """One chain at one step.

    Attributes:
        x_t: its state ``(1, *shape)``.
        posterior: what the denoiser said of it.
        reward: of the predicted x_0.
        record: r*, the best reward of the chain so far.
        left: children that it may still draw.
        draw: id of the noise that the state was drawn with.
    """

    x_t: Tensor
    posterior: Posterior
    reward: float
    record: float
    left: int = 0
    draw: int = -1


@dataclass(frozen=True)
class RBF(Search):
    """Chains that advance as soon as a child beats the best reward so far (Kim et al. 2025, 2503.19385).

    At every step of the grid a chain may draw a quota of children, each looked at by one prediction of
    x_0 (which the next step reuses). It advances to the first that beats its running maximum r*, and
    the rest of its quota rolls over to the next step; if none does it advances to the best child.
    Quotas are equal parts of the budget; the first steps take what does not divide, and the last one
    that is searched spends all that is left. Claims no law: its output is an arg max.

    Where this differs from the released code: that stops at a grid point of high noise and returns
    the one-step estimate there; here every chain is carried to the end of the grid within the budget,
    the last transition being drawn once, and finished samples are compared. Its path also warps time,
    which leaves the last transition a leap from a noise level of .7 where there are 10 steps: right for
    a model that was distilled to leap, while others end blurred; ``SamplingPath(VPLinear(), "rbf")``
    asks for it. Reward calls are as many as predictions, ten times those of best-of-N at equal NFE:
    compare the plan's decodes and reward calls, too.

    Attributes:
        nfe: denoiser rows a prompt in all, the start included; a smaller budget goes first.
        chains: independent chains; fewer if the budget does not allow a child a step for each.
        start: chooses the initial noises.
        speculative: children drawn at once, to fill the hardware: the best of them is compared with
            r*, and those after the first good one count as spent.
        transition: how a child is drawn, ``"ddim"`` is DDIM(1.0); must be stochastic.
        path: interpolant along which it samples; None is the scheduler's own grid.
        returns: the ``"best"`` finished chain, or ``"all"`` of them, best first.
    """

    nfe: int = 500
    chains: int = 2
    start: InitialNoise = TOP_25
    speculative: int = 1
    transition: Transition | Literal["ddim"] = "ddim"
    path: SamplingPath | None = VP_PATH
    returns: Literal["best", "all"] = "best"

    def __post_init__(self) -> None:
        at_least_one(self, "nfe", "chains", "speculative")
        if self.returns not in ("best", "all"):
            raise ValueError(f"returns must be 'best' or 'all', got {self.returns!r}")
        if not self._transition.stochastic:
            raise ValueError(
                f"RBF is a stochastic search, but {self._transition} is deterministic: all children of "
                "a state would be the same; use a transition with noise, such as DDIM(eta=1.0)"
            )

    @property
    def _transition(self) -> Transition:
        return DDIM(1.0) if isinstance(self.transition, str) else self.transition

    @property
    def needs(self) -> Needs:
        """A noisy transition, and what its start needs."""
        return together(Needs(stochastic=True), self.start)

    def plan(self, facts: Facts) -> Plan:
        """As many children as fit, and fewer chains where they are less than one a step."""
        nfe = self.nfe if facts.budget.nfe is None else min(self.nfe, facts.budget.nfe)
        limit = replace(facts.budget, nfe=nfe)
        searched = facts.steps - 1
        for chains in range(self.chains, 0, -1):
            children = self._children_of(facts, limit, chains)
            if children >= searched:
                settings = {"chains": chains, "children": children}
                cost, minimum = (
                    self._cost(facts, c, n) for c, n in ((chains, children), (1, searched))
                )
                return Plan(cost, minimum, chains * (1 + self.speculative), settings=settings)
        raise BudgetTooSmall(
            f"one chain with one child at each step costs {self._cost(facts, 1, searched)}, more than "
            f"nfe={self.nfe} and the budget {facts.budget} allow; raise them, or start with fewer "
            "candidates"
        )

    def _cost(self, facts: Facts, chains: int, children: int) -> Cost:
        """Of starting and finishing chains that draw so many children each."""
        inner = self._transition.inner_calls
        child = predicted_cost(facts) + Cost(nfe=inner)
        last = predicted_cost(facts) + Cost(nfe=inner - 1)
        begin = self.start.cost(facts, chains)
        if not self.start.predicts:
            begin = begin + chains * predicted_cost(facts)
        return begin + chains * (children * child + last)

    def _children_of(self, facts: Facts, limit: Budget, chains: int) -> int:
        """Children that each chain may draw in all; -1 where it cannot be started and finished."""
        fixed = self._cost(facts, chains, 0)
        if limit.exceeded_by(fixed) is not None:
            return -1
        if facts.steps == 1:
            return 0
        return int(limit.times(self._cost(facts, chains, 1) + -1 * fixed, fixed))

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Start, search step by step, finish."""
        settings = self.plan(problem.facts).settings
        quota, more = divmod(settings["children"], max(problem.grid.steps - 1, 1))
        chains = yield from self._begin(problem, settings["chains"])
        serial, complete, last = itertools.count(), True, problem.grid.steps - 1
        problem.trace.record(**settings, reward=[c.reward for c in chains])
        for i in range(last):
            if len(chains) > 1 and not self._time(problem, len(chains), i):
                best = max(range(len(chains)), key=lambda j: chains[j].reward)
                problem.trace.record(step=i, event="out of time", ancestors=[best])
                chains, complete = [chains[best]], False
            chains = [replace(c, left=c.left + quota + (i < more)) for c in chains]
            chains = yield from self._step(problem, chains, i, serial)
        draws = [next(serial) for _ in chains]
        x_0 = yield from self._children(problem, chains, last, draws)
        scores = yield Score(x_0, Stage.FINAL)
        order = torch.argsort(scores.total, descending=True, stable=True).tolist()
        chosen = order if self.returns == "all" else order[:1]
        problem.trace.record(
            step=last,
            reward=scores.total,
            chosen=chosen,
            nodes=draws,
            parents=[c.draw for c in chains],
        )
        log_w = torch.zeros(len(x_0), dtype=torch.float64)
        return Outcome(x_0, scores, log_w, chosen, complete=complete)

    def _begin(self, problem: Problem, count: int) -> Generator[Request, Any, list[Chain]]:
        """Chains at the start of the grid, their first prediction made."""
        started = yield from self.start(problem, count)
        posterior, reward = started.posterior, started.reward
        if posterior is None or reward is None:
            point = yield from predicted(problem, started.x_t)
            posterior, reward = point.posterior, point.reward
        return [
            Chain(started.x_t[j : j + 1], posterior[j : j + 1], r, r)
            for j, r in enumerate(reward.tolist())
        ]

    def _step(
        self, problem: Problem, chains: list[Chain], i: int, serial: Iterator[int]
    ) -> Generator[Request, Any, list[Chain]]:
        """Draw children until each chain has found a better one or spent its quota.

        At the last step that is searched there is nothing to roll over to: all is spent.
        """
        best: dict[int, Chain] = {}
        drawn: list[tuple[int, int, float]] = []  # every child: its draw, its parent's, its reward
        last = i == problem.grid.steps - 2
        quota = [c.left for c in chains]
        left = list(quota)
        while searching := [
            j
            for j, c in enumerate(chains)
            if left[j] and (last or j not in best or best[j].reward <= c.record)
        ]:
            if len(best) == len(chains) and not self._time(problem, len(searching), i):
                problem.trace.record(step=i, event="out of time")
                break
            parents = [j for j in searching for _ in range(min(self.speculative, left[j]))]
            children = yield from self._look(problem, [chains[j] for j in parents], i, serial)
            for j, child in zip(parents, children, strict=True):
                left[j] -= 1
                drawn.append((child.draw, chains[j].draw, child.reward))
                if j not in best or child.reward > best[j].reward:
                    best[j] = child
        problem.trace.record(
            step=i,
            model_t=problem.grid[i + 1].model_t,
            drawn=[q - rest for q, rest in zip(quota, left, strict=True)],
            better=[best[j].reward > c.record for j, c in enumerate(chains)],
            reward=[best[j].reward for j in range(len(chains))],
            ancestors=[best[j].draw for j in range(len(chains))],
            nodes=[draw for draw, _, _ in drawn],
            parents=[parent for _, parent, _ in drawn],
            rewards=[reward for _, _, reward in drawn],
        )
        return [
            replace(best[j], record=max(c.record, best[j].reward), left=left[j])
            for j, c in enumerate(chains)
        ]

    def _look(
        self, problem: Problem, parents: list[Chain], i: int, serial: Iterator[int]
    ) -> Generator[Request, Any, list[Chain]]:
        """One child of each parent, predicted and scored."""
        draws = [next(serial) for _ in parents]
        x_s = yield from self._children(problem, parents, i, draws)
        posterior = yield Denoise(x_s, problem.grid[i + 1])
        scores = yield Score(posterior.x_0)
        rewards = scores.total.tolist()
        if len(rewards) == 1:  # nothing to part
            return [Chain(x_s, posterior, rewards[0], -math.inf, draw=draws[0])]
        return [
            Chain(x_s[n : n + 1], posterior[n : n + 1], r, -math.inf, draw=draws[n])
            for n, r in enumerate(rewards)
        ]

    def _children(
        self, problem: Problem, parents: list[Chain], i: int, draws: Sequence[int]
    ) -> Generator[Request, Any, Tensor]:
        """States one transition on, ``(n, *shape)``."""
        x_t, posterior = parents[0].x_t, parents[0].posterior
        if len(parents) > 1:
            x_t = torch.cat([c.x_t for c in parents])
            posterior = joined([c.posterior for c in parents])
        t, s = problem.grid[i : i + 2]
        noise = problem.later("transition", draws, i)
        return (yield from move(problem, self._transition, x_t, posterior, t, s, noise))

    def _time(self, problem: Problem, chains: int, i: int) -> bool:
        """Whether there is time for a round of children and for finishing one chain after it."""
        if problem.facts.budget.seconds is None:
            return True
        one = 1 + self._transition.inner_calls
        finish = Cost(seconds=problem.seconds_for((problem.grid.steps - i) * one))
        round_ = Cost(seconds=problem.seconds_for(chains * self.speculative * one))
        return problem.affords(round_, holding_back=finish)
