"""The ways before the first branching and after the last, by the pipeline's own scheduler."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from samplers.cloud import Cloud, joined_states, split
from steering.requests import Request, Rollout
from steering.search import Facts

#: By what states move where no search branches: the search's transition, or the pipeline's scheduler.
Ends = Literal["transition", "scheduler"]


@dataclass(frozen=True)
class Branching:
    """Where a search of ``steps`` transitions branches.

    Attributes:
        first: step before which the scheduler moves the states.
        last: step from which on it does so again.
        steps: of the grid.
    """

    first: int
    last: int
    steps: int

    @classmethod
    def of(cls, ends: Ends, looks: Sequence[int], steps: int) -> Branching:
        """Between the first look and the step after the last, which must draw noise; or everywhere."""
        if ends == "transition":
            return cls(0, steps, steps)
        if not looks:
            return cls(steps, steps, steps)
        return cls(looks[0], min(looks[-1] + 1, steps), steps)

    @property
    def inside(self) -> range:
        """Steps that the search makes itself."""
        return range(self.first, self.last)


def check_ends(ends: Ends, facts: Facts) -> None:
    """Refuse a scheduler that cannot be left and entered part-way.

    Raises:
        ValueError: it calls its network more than once in a step.
    """
    if ends == "scheduler" and facts.scheduler_calls != facts.steps:
        raise ValueError(
            "ends='scheduler' needs a scheduler that calls its network once a step; the pipeline's "
            f"calls it {facts.scheduler_calls} times in {facts.steps} steps: use ends='transition'"
        )


def carried(
    clouds: list[Cloud], start: int, stop: int, steps: int
) -> Generator[Request, Any, list[Cloud]]:
    """Clouds carried by the pipeline's own scheduler from one step of the grid to another.

    Raises:
        ValueError: the scheduler cannot be entered or left there.
    """
    if start >= stop:
        return clouds
    slots = [slot for cloud in clouds for slot in cloud.slots]
    end = None if stop == steps else stop
    x_t = yield Rollout(joined_states(clouds), start, "scheduler", slots, stop=end)
    parts = split(x_t, clouds)
    return [replace(cloud, x_t=x) for cloud, x in zip(clouds, parts, strict=True)]
