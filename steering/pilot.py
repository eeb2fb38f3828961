"""A counted pilot run: samples of the base model, to learn how much the reward varies."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steering.cost import Cost
from steering.engine import Engine
from steering.live import Job
from steering.model import Stage
from steering.requests import Request, Rollout, Score
from steering.reward import Item
from steering.search import Facts, Needs, Outcome, Plan, Problem, Search
from steering.strength import Calibration


@dataclass(frozen=True)
class BaseSamples(Search):
    """Independent samples by the pipeline's own scheduler, with their rewards; none is chosen.

    Attributes:
        n: how many.
    """

    n: int = 8

    @property
    def needs(self) -> Needs:
        return Needs(denoises=False)

    def plan(self, facts: Facts) -> Plan:
        """All of them; a pilot is outside any budget."""
        one = Cost(nfe=facts.scheduler_calls, decodes=1, reward_calls=facts.calls_per_row)
        return Plan(self.n * one, one, self.n)

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        draws = range(self.n)
        x_t = problem.started(problem.noise("initial", draws, 0))
        x_0 = yield Rollout(x_t, draws=draws)
        scores = yield Score(x_0, Stage.FINAL)
        return Outcome(x_0, scores, torch.zeros(self.n, dtype=torch.float64), chosen=[])


def calibrate(
    engine: Engine,
    prompts: Sequence[tuple[Item, str, Any]],
    *,
    seed: int,
    samples: int = 8,
) -> Calibration:
    """Measure the reward's variation over base samples of some prompts.

    Args:
        engine: runs and counts.
        prompts: item, random key and conditioning of each.
        seed: seed of the run; the pilot's numbers are apart from the searches'.
        samples: base samples a prompt, at least 2.

    Raises:
        SearchFailed: a sample could not be drawn or scored.
    """
    search = BaseSamples(samples)
    jobs = [Job(item, f"{key}\x1fpilot", search, handle, seed) for item, key, handle in prompts]
    totals = {}
    for result in engine.run(jobs):
        if result.outcome is None:
            raise result.error or RuntimeError("a pilot search ended without an outcome")
        totals[result.job.key] = result.outcome.scores.total
    return Calibration.of(engine.model.name, engine.reward.name, [totals[job.key] for job in jobs])
