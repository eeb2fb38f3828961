"""Samples whose predictions are scored on the way to the end, to learn how clear they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steering.clarity import Clarity
from steering.cost import Budget, Cost
from steering.engine import Engine
from steering.live import Job
from steering.model import Stage
from steering.moves import move
from steering.paths import SamplingPath
from steering.prediction import Posterior
from steering.requests import Denoise, Request, Score, Scores
from steering.reward import Item
from steering.search import Facts, Needs, Outcome, Plan, Problem, Search
from steering.transitions import DDIM, Transition

if TYPE_CHECKING:
    from steering.pipeline import SteeredPipeline

#: What denoised states ``(n, *shape)`` at a step of the grid are worth, float64 ``(n,)``.
Foresee = Callable[[Problem, Posterior, int], Generator[Request, Any, Tensor]]


@dataclass(frozen=True)
class Watched(Search):
    """Independent samples whose predictions are scored on the way; none is chosen.

    Attributes:
        n: how many.
        levels: steps at which predictions are scored, or their shares of the grid.
        transition: how states move.
        path: interpolant to sample along; None is the pipeline's own grid.
    """

    n: int = 16
    levels: Sequence[int | float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    transition: Transition = DDIM(0.0)
    path: SamplingPath | None = None

    @property
    def needs(self) -> Needs:
        return Needs()

    def plan(self, facts: Facts) -> Plan:
        """All of them; a pilot is outside any budget."""
        looks = len(steps_of(self.levels, facts.steps))
        nfe = facts.steps * (1 + self.transition.inner_calls)
        scored = Cost(decodes=1, reward_calls=facts.calls_per_row)
        one = Cost(nfe=nfe) + (1 + looks) * scored
        return Plan(self.n * one, one, self.n)

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        watched = yield from watch(problem, self.n, self.levels, self.transition)
        extra = {"grid": problem.grid, "looked": watched.looked, "rewards": watched.rewards}
        log_w = torch.zeros(self.n, dtype=torch.float64)
        return Outcome(watched.x_0, watched.scores, log_w, chosen=[], extra=extra)


@dataclass(frozen=True, eq=False)
class Watch:
    """Samples, and the rewards of their predictions on the way.

    Attributes:
        x_0: finished states ``(n, *shape)``.
        scores: their rewards.
        looked: steps at which predictions were scored.
        rewards: of the predictions, float64 ``(len(looked), n)``.
        complete: False where time allowed to finish the first alone; nothing was then learned.
    """

    x_0: Tensor
    scores: Scores
    looked: list[int]
    rewards: Tensor
    complete: bool = True


def watch(
    problem: Problem,
    n: int,
    levels: Sequence[int | float],
    transition: Transition,
    *,
    foresee: Foresee | None = None,
) -> Generator[Request, Any, Watch]:
    """Carry the first candidates of a search to the end, scoring their predictions at some steps.

    Args:
        problem: whose grid, model and reward.
        n: candidates, of the draw ids below ``n``.
        levels: steps at which they are scored, or their shares of the grid.
        transition: how they move.
        foresee: what a state is worth, from its posterior and step; None: the reward of the
            predicted x_0.
    """
    foresee, x_t, complete = foresee or _predicted, problem.initial(range(n)), True
    looked = steps_of(levels, problem.grid.steps)
    rewards: list[Tensor] = []
    for i, (t, s) in enumerate(pairwise(problem.grid)):
        if len(x_t) > 1 and not in_time(problem, len(x_t) * (1 + transition.inner_calls), i):
            problem.trace.record(step=i, event="out of time", ancestors=[0])
            x_t, looked, rewards, complete = x_t[:1], [], [], False
        posterior = yield Denoise(x_t, t)
        if i in looked:
            rewards.append((yield from foresee(problem, posterior, i)))
        noise = problem.later("transition", range(len(x_t)), i)
        x_t = yield from move(problem, transition, x_t, posterior, t, s, noise)
    final = yield Score(x_t, Stage.FINAL)
    seen = torch.stack(rewards) if rewards else final.total.new_zeros(0, len(x_t))
    return Watch(x_t, final, looked, seen, complete)


def in_time(problem: Problem, calls: float, i: int) -> bool:
    """Whether there is time for so many denoiser calls, and to finish one row from index ``i`` on."""
    if problem.facts.budget.seconds is None:
        return True
    step = Cost(seconds=problem.seconds_for(calls))
    finish = Cost(seconds=problem.seconds_for(problem.grid.steps - i))
    return problem.affords(step, holding_back=finish)


def _predicted(
    problem: Problem, posterior: Posterior, step: int
) -> Generator[Request, Any, Tensor]:
    scores = yield Score(posterior.x_0)
    return scores.total


def steps_of(levels: Sequence[int | float], steps: int) -> list[int]:
    """Distinct steps, rising, of a grid of ``steps``; those between 0 and 1 are shares of it.

    Raises:
        ValueError: no level, or one outside the grid.
    """
    found = {min(round(v * steps), steps - 1) if 0 < v < 1 else v for v in levels}
    if not found or min(found) < 0 or max(found) >= steps or any(v != int(v) for v in found):
        raise ValueError(
            f"levels must be steps from 0 to {steps - 1} of the grid, or shares of it between 0 and 1; "
            f"got {list(levels)}"
        )
    return sorted(map(int, found))


def measure(
    engine: Engine,
    prompts: Sequence[tuple[Item, str, Any]],
    *,
    seed: int,
    search: Watched = Watched(),
) -> Clarity:
    """Measure the clarity of the engine's reward over samples of some prompts.

    Args:
        engine: runs and counts.
        prompts: item, random key and conditioning of each.
        seed: seed of the run; the numbers drawn are apart from those of searches.
        search: how many samples, where they are looked at, and how they are drawn.

    Raises:
        SearchFailed: a sample could not be drawn or scored.
        ValueError: the reward varies within no prompt.
    """
    jobs = [Job(item, f"{key}\x1fclarity", search, handle, seed) for item, key, handle in prompts]
    found = {}
    for result in engine.run(jobs):
        if result.outcome is None:
            raise result.error or RuntimeError("a pilot search ended without an outcome")
        found[result.job.key] = result.outcome
    outcomes = [found[job.key] for job in jobs]
    rewards = [(o.extra["rewards"], o.scores.total) for o in outcomes]
    extra = outcomes[0].extra
    key = getattr(engine.reward, "key", engine.reward.name)
    return Clarity.of(engine.model.name, key, extra["grid"], extra["looked"], rewards)


def clarity_of(
    steered: SteeredPipeline,
    prompt: str | Sequence[str],
    *,
    search: Watched = Watched(),
    seed: int = 0,
    **call: Any,
) -> Clarity:
    """Measure the clarity of a pipeline's reward, to be saved and given to a gate.

    Args:
        steered: the pipeline with its reward; its sampler and budget do not matter.
        prompt: whose samples are watched.
        search: how many samples a prompt, where they are looked at, and how they are drawn: let its
            transition and path be those of the search that will trust it.
        seed: of the samples.
        call: the pipeline's own keyword arguments.

    Raises:
        SearchFailed: a sample could not be drawn or scored.
        ValueError: the reward varies within no prompt.
    """
    watching = copy.copy(steered)
    watching.sampler, watching.budget = search, Budget()
    prepared = watching.prepare(prompt, **call)
    prompts = [(job.item, job.key, job.conditioning) for job in prepared.jobs]
    found = measure(prepared.engine, prompts, seed=seed, search=search)
    model, reward = steered.calibration_key(call.get("negative_prompt"), **_own(call))
    return replace(found, model=model, reward=reward)


def _own(call: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that are the pipeline's alone."""
    ours = ("negative_prompt", "num_images_per_prompt", "generator", "latents", "keys", "metadata")
    return {name: value for name, value in call.items() if name not in ours}
