"""Diffusion latent beam search: several candidates a beam, the best of all go on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from samplers.initial import InitialNoise, Prior, at_least_one, together
from samplers.keep import Keep, keeper, kept
from samplers.smc import check_step, step_of
from samplers.values import LookAhead
from steering.cost import Cost
from steering.model import Stage
from steering.moves import move
from steering.paths import SamplingPath
from steering.prediction import Posterior
from steering.requests import Denoise, Request, Score
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.transitions import DDIM, Transition
from steering.watching import in_time


@dataclass(frozen=True)
class DLBS(Search):
    """Beam search on the path of the sampler, with look-ahead (Oshima et al. 2025, 2501.19252).

    At every step each of B beams draws K candidates of the next state; all are scored by the x_0 that
    is foreseen for them, and the best B of the B K go on. ``beams=1`` is greedy search,
    ``candidates=1`` is best-of-B. The last transition is drawn once a beam, and the finished samples are
    compared. Claims no law: its output is an arg max.

    The prediction at a candidate is the first of its look-ahead, and what the next step needs once it
    is kept; so the search costs B + (T - 1) B K max(T', 1) denoiser calls at most, less than the
    T (B + B K T') of the paper, whose code predicts twice. Candidates near the end look ahead over
    fewer points than T', which is why it costs less still.

    Attributes:
        beams: B, at most; fewer where the budget does not allow them.
        candidates: K of each beam.
        lookahead: T', noise-free steps by which a candidate's x_0 is foreseen; 0 and 1 are the
            prediction at the candidate itself.
        start: first step (0 is pure noise) at which candidates are compared, or its share of the grid;
            before it every beam goes on alone.
        stop: none are compared from this step on; None: until the end.
        keep: which candidates go on: ``"best"``, or a rule of :mod:`samplers.keep`.
        transition: how candidates are drawn, ``"ddim"`` is DDIM(1.0); must draw noise if K > 1.
        path: interpolant to sample along; None is the pipeline's own grid.
        initial: how the initial noises are chosen: a stage of :mod:`samplers.initial`.
        returns: the ``"best"`` finished beam, or ``"all"`` of them, best first.
    """

    beams: int = 4
    candidates: int = 2
    lookahead: int = 0
    start: int | float = 0
    stop: int | float | None = None
    keep: Keep | Literal["best"] = "best"
    transition: Transition | Literal["ddim"] = "ddim"
    path: SamplingPath | None = None
    initial: InitialNoise | Literal["prior"] = "prior"
    returns: Literal["best", "all"] = "best"

    def __post_init__(self) -> None:
        at_least_one(self, "beams", "candidates")
        if self.lookahead < 0:
            raise ValueError(f"lookahead must not be negative, got {self.lookahead}")
        for name in ("start", "stop"):
            check_step(name, getattr(self, name))
        for name, known in (("returns", ("best", "all")), ("keep", ("best",))):
            value = getattr(self, name)
            if isinstance(value, str) and value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        if self.candidates > 1 and not self._transition.stochastic:
            raise ValueError(
                f"DLBS is a stochastic search, but {self._transition} is deterministic: all candidates "
                "of a beam would be the same; use a transition with noise, such as DDIM(eta=1.0), or "
                "candidates=1"
            )

    @property
    def _transition(self) -> Transition:
        return DDIM(1.0) if isinstance(self.transition, str) else self.transition

    @property
    def _initial(self) -> InitialNoise:
        return Prior() if isinstance(self.initial, str) else self.initial

    @property
    def needs(self) -> Needs:
        """A noisy transition if candidates are to differ, and what its start needs."""
        needs = Needs(stochastic=self.candidates > 1, embeddings=keeper(self.keep).embeds)
        return together(needs, self._initial)

    # ---- what it costs

    def plan(self, facts: Facts) -> Plan:
        """As many beams as the budget allows; of one beam as many candidates.

        Raises:
            BudgetTooSmall: one trajectory does not fit.
        """
        beam = self._beam_cost(facts, self.candidates)

        def too_dear(more: int) -> bool:
            cost = self._initial.cost(facts, more + 1) + (more + 1) * beam
            return facts.budget.exceeded_by(cost) is not None

        most = bisect_left(range(self.beams), True, key=too_dear)
        sizes = [(most, self.candidates)] if most else []
        sizes += [(1, k) for k in range(self.candidates - 1, 0, -1)]
        one = self._cost(facts, 1, 1)
        for beams, candidates in sizes:
            cost = self._cost(facts, beams, candidates)
            if facts.budget.exceeded_by(cost) is None:
                settings = {"beams": beams, "candidates": candidates}
                compared = bool(self._compared(facts.steps))
                rows = beams * (candidates if compared else 1)
                exact = keeper(self.keep).fills or not compared or candidates == 1
                return Plan(cost, one, rows, exact, settings)
        raise BudgetTooSmall(
            f"one trajectory costs {one}, more than the budget {facts.budget} allows"
        )

    def _compared(self, steps: int) -> set[int]:
        """Grid indices at which candidates are compared: the finished samples are, in any case."""
        stop = steps if self.stop is None else min(step_of(self.stop, steps), steps)
        return set(range(max(step_of(self.start, steps), 1), stop))

    def _cost(self, facts: Facts, beams: int, candidates: int) -> Cost:
        """What so many beams and candidates spend."""
        return self._initial.cost(facts, beams) + beams * self._beam_cost(facts, candidates)

    def _beam_cost(self, facts: Facts, candidates: int) -> Cost:
        """What a beam spends after its noise is chosen."""
        steps, calls = facts.steps, facts.calls_per_row
        compared, value = self._compared(steps), LookAhead(self.lookahead)
        inner = self._transition.inner_calls
        looks = len(compared) if candidates > 1 else 0
        nfe = int(not self._initial.predicts) + inner  # first state, last step
        nfe += (steps - 1 - looks + looks * candidates) * (1 + inner)
        ahead = sum(len(value.path(i, steps)) - 1 for i in compared) if looks else 0
        nfe += candidates * ahead
        scored = 1 + looks * candidates
        return Cost(nfe=nfe, decodes=scored, reward_calls=scored * calls)

    # ---- the search

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Draw, foresee, keep; then compare the finished samples."""
        settings, steps = self.plan(problem.facts).settings, problem.grid.steps
        problem.trace.record(**settings)
        beams, candidates = settings["beams"], settings["candidates"]
        compared, complete = self._compared(steps), True
        started = yield from self._initial(problem, beams)
        x_t, posterior = started.x_t, started.posterior
        if posterior is None:
            posterior = yield Denoise(x_t, problem.grid[0])
        rows = torch.arange(len(x_t))  # of what is at hand, those that go on
        for i in range(1, steps):
            fan = candidates if i in compared and complete else 1
            if complete and not in_time(problem, len(rows) * fan * self._calls(i, steps, fan), i):
                problem.trace.record(step=i, event="out of time", ancestors=[0])
                rows, complete, fan = rows[:1], False, 1
            x_t = yield from self._moved(problem, x_t, posterior, rows, i, fan)
            posterior = yield Denoise(x_t, problem.grid[i])
            rows = torch.arange(len(x_t))
            if fan > 1:
                rows = yield from self._kept(problem, posterior, i, beams)
        x_0 = yield from self._moved(problem, x_t, posterior, rows, steps, 1)
        scores = yield Score(x_0, Stage.FINAL)
        order = torch.argsort(scores.total, descending=True, stable=True).tolist()
        chosen = order if self.returns == "all" else order[:1]
        problem.trace.record(step=steps, reward=scores.total, chosen=chosen)
        log_w = torch.zeros(len(x_0), dtype=torch.float64)
        return Outcome(x_0, scores, log_w, chosen, complete=complete)

    def _calls(self, i: int, steps: int, fan: int) -> float:
        """Denoiser calls of one candidate that arrives at a step."""
        ahead = LookAhead(self.lookahead).cost(i, steps, 1).nfe if fan > 1 else 0
        return 1 + self._transition.inner_calls + ahead

    def _moved(
        self, problem: Problem, x_t: Tensor, posterior: Posterior, rows: Tensor, i: int, fan: int
    ) -> Generator[Request, Any, Tensor]:
        """``fan`` children of each of the rows at grid index ``i``, those of one parent together."""
        parents = rows.repeat_interleave(fan)
        noise = problem.later("transition", range(len(parents)), i - 1)
        t, s = problem.grid[i - 1 : i + 1]
        return (
            yield from move(problem, self._transition, x_t, posterior, t, s, noise, rows=parents)
        )

    def _kept(
        self, problem: Problem, posterior: Posterior, i: int, beams: int
    ) -> Generator[Request, Any, Tensor]:
        """Rows of the candidates that go on, best first."""
        value = LookAhead(self.lookahead)(problem, posterior, i)
        reward, rows = yield from kept(keeper(self.keep), value, posterior.x_0, beams)
        problem.trace.record(step=i, model_t=problem.grid[i].model_t, reward=reward, ancestors=rows)
        return rows
