"""Small models and rewards on which the engine and the searches are tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steering.cost import Cost
from steering.engine import Engine
from steering.live import Job, JobResult
from steering.mixtures import MixtureModel, vp_grid
from steering.model import Stage
from steering.reward import Item
from steering.search import Needs, Outcome, Plan, Search
from steering.tilted import PROBLEMS, TiltedProblem


def mixture(name: str = "linear", steps: int = 10) -> tuple[TiltedProblem, MixtureModel]:
    problem = PROBLEMS[name]()
    return problem, MixtureModel(problem.mixture, vp_grid(steps))


@dataclass
class FunctionReward:
    """A reward from a function of the points, which may look at the features."""

    function: Callable[[Tensor, Sequence[Any]], Any] = lambda x, f: x[:, 0]
    name: str = "function"
    differentiable: bool = True
    calls_per_row: int = 1
    batches: list[int] = field(default_factory=list)

    def prepare(self, item: Item) -> str:
        return item.prompt

    def __call__(self, media: Tensor, features: Sequence[Any]) -> Any:
        self.batches.append(len(media))
        return self.function(media, features)


@dataclass
class Recorder:
    """A model that records the size of every call and can be made to fail."""

    inner: MixtureModel
    denoised: list[int] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)
    most_rows: int = 10**9

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def denoise(self, x_t: Tensor, times: Any, conditioning: Any) -> Any:
        self._guard(x_t)
        self.denoised.append(len(x_t))
        return self.inner.denoise(x_t, times, conditioning)

    def decode(self, x_0: Tensor, conditioning: Any, stage: Stage) -> Tensor:
        self._guard(x_0)
        self.decoded.append(len(x_0))
        return self.inner.decode(x_0, conditioning, stage)

    def _guard(self, x: Tensor) -> None:
        if len(x) > self.most_rows:
            raise torch.OutOfMemoryError(f"{len(x)} rows do not fit")


def jobs_for(model: Any, prompts: Sequence[str], search: Search, **options: Any) -> list[Job]:
    handles = model.encode(list(prompts))
    return [
        Job(Item(p), f"text:0:{p}", search, h, **options)
        for p, h in zip(prompts, handles, strict=True)
    ]


def run(model: Any, reward: Any, jobs: Sequence[Job], **engine: Any) -> list[JobResult]:
    """Results in the order of the jobs; raises the first error."""
    found = {id(r.job): r for r in Engine(model, reward, **engine).run(jobs)}
    results = [found[id(job)] for job in jobs]
    for result in results:
        if result.error is not None:
            raise result.error
    return results


@dataclass(frozen=True)
class Custom(Search):
    """A search made of a generator function."""

    body: object
    wants: Needs = field(default_factory=Needs)

    @property
    def needs(self):
        return self.wants

    def plan(self, facts):
        return Plan(Cost(), Cost(), 1)

    def __call__(self, problem):
        return self.body(problem)


def outcome(x_0, scores):
    return Outcome(x_0, scores, torch.zeros(len(x_0), dtype=torch.float64), [0])
