"""Costs, counted in one unit each, and budgets in any of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What work costs. Addition and multiplication by a number act on every part.

    Attributes:
        nfe: denoiser rows (one row of a batch is one; guidance passes are reported apart).
        decodes: latents decoded.
        reward_calls: media scored, times the reward models that scored them.
        backwards: denoiser rows through which a gradient was taken.
        seconds: wall-clock seconds.
    """

    nfe: float = 0
    decodes: float = 0
    reward_calls: float = 0
    backwards: float = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.nfe + other.nfe,
            self.decodes + other.decodes,
            self.reward_calls + other.reward_calls,
            self.backwards + other.backwards,
            self.seconds + other.seconds,
        )

    def __mul__(self, factor: float) -> Cost:
        return Cost(
            self.nfe * factor,
            self.decodes * factor,
            self.reward_calls * factor,
            self.backwards * factor,
            self.seconds * factor,
        )

    __rmul__ = __mul__


@dataclass(frozen=True)
class Budget:
    """The most that one prompt may cost; None means no limit.

    Counted limits are never exceeded. ``seconds`` may overshoot by one micro-batch and is exempt
    from reproducibility.
    """

    nfe: int | None = None
    decodes: int | None = None
    reward_calls: int | None = None
    backwards: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            limit = getattr(self, f.name)
            if limit is not None and not limit > 0:
                raise ValueError(
                    f"budget.{f.name} must be positive or None (no limit), got {limit}"
                )

    @property
    def unlimited(self) -> bool:
        """Whether nothing is limited."""
        return self == _UNLIMITED

    def exceeded_by(self, cost: Cost) -> str | None:
        """Name of the first part in which ``cost`` is over the limit, or None."""
        for name in _PARTS:
            limit = getattr(self, name)
            if limit is not None and getattr(cost, name) > limit:
                return name
        return None

    def times(self, cost: Cost, spent: Cost | None = None) -> float:
        """How often ``cost`` still fits beside ``spent``: a whole number, or inf."""
        spent = spent or Cost()
        fits = math.inf
        for f in fields(self):
            limit, unit = getattr(self, f.name), getattr(cost, f.name)
            if limit is not None and unit > 0:
                fits = min(fits, (limit - getattr(spent, f.name)) // unit)
        return max(fits, 0)


_UNLIMITED = Budget()
_PARTS = tuple(f.name for f in fields(Budget))


@dataclass
class Usage:
    """What a run or a search spent, as the engine counted it.

    Beyond :class:`Cost`: ``renders`` are final media by the pipeline's own tail; ``held_out_*`` is
    what judging the chosen candidates cost; ``passes`` are network passes (guidance included);
    ``padding`` are rows added to fill a bucket (no NFE); ``repeated`` are rows that ran again because
    another search of the same call failed; ``seconds_*`` is the time inside each kind
    of model call.
    """

    nfe: int = 0
    decodes: int = 0
    reward_calls: int = 0
    backwards: int = 0
    renders: int = 0
    held_out_decodes: int = 0
    held_out_calls: int = 0
    passes: int = 0
    padding: int = 0
    repeated: int = 0
    seconds: float = 0.0
    seconds_denoise: float = 0.0
    seconds_decode: float = 0.0
    seconds_reward: float = 0.0
    seconds_backward: float = 0.0
    seconds_render: float = 0.0

    @property
    def cost(self) -> Cost:
        """The parts that a budget can limit."""
        return Cost(self.nfe, self.decodes, self.reward_calls, self.backwards, self.seconds)

    @property
    def seconds_in_models(self) -> float:
        """Seconds inside denoiser, decoder and reward, backward passes included."""
        return (
            self.seconds_denoise + self.seconds_decode + self.seconds_reward + self.seconds_backward
        )

    def add(self, other: Usage) -> None:
        """Add another usage to this one, part by part."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    def take_back(self, before: Usage) -> None:
        """Return to an earlier usage; rows spent since then count as repeated, not as cost."""
        rows = self.nfe - before.nfe + self.decodes - before.decodes
        repeated = self.repeated + rows
        for f in fields(self):
            setattr(self, f.name, getattr(before, f.name))
        self.repeated = repeated

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return dict(vars(self))
