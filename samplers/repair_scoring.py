"""Rewards of the pictures of repairs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from samplers.repair_costs import charge
from samplers.repair_state import RepairState
from steering.cost import Cost
from steering.flaws import Painted, Painter
from steering.reward import Reward


class Scoring:
    """Scores pictures by a reward, whose features of a prompt are computed once.

    Args:
        reward: the reward.

    Raises:
        ValueError: it cannot score pictures one by one.
    """

    def __init__(self, reward: Reward) -> None:
        if getattr(reward, "ranked", None) is not None:
            raise ValueError(
                f"the reward {reward.name!r} ranks candidates among each other and cannot say "
                "whether one got better; use WeightedSum"
            )
        self.reward = reward
        self._features: dict[str, Any] = {}

    @property
    def cost(self) -> Cost:
        """Of one picture."""
        return Cost(reward_calls=self.reward.calls_per_row)

    def painting(self, painter: Painter) -> Cost:
        """The most that a new picture and its reward cost."""
        return painter.cost() if self._has(painter) else painter.cost() + self.cost

    def of_painted(
        self, rows: Sequence[RepairState], painter: Painter, painted: Painted
    ) -> list[float]:
        """Rewards of new pictures: the painter's own where it searched by this reward."""
        if painted.rewards is None or not self._has(painter):
            return self(rows, painted.pictures)
        return self._checked(rows, painted.rewards)

    def __call__(self, rows: Sequence[RepairState], pictures: Tensor) -> list[float]:
        """Rewards of pictures ``(B, 3, H, W)``, one a row; charged to the rows.

        Raises:
            ValueError: one is not finite.
        """
        start = time.perf_counter()
        self.prepare(rows)
        with torch.no_grad():
            found = self.reward(pictures, [self._features[s.key] for s in rows])
        total = found[self.reward.name] if isinstance(found, Mapping) else found
        values = [float(v) for v in total.double().cpu()]
        charge(rows, [self.cost] * len(rows), start)
        return self._checked(rows, values)

    def prepare(self, states: Sequence[RepairState]) -> None:
        """The reward's features of each prompt, once."""
        for state in states:
            if state.key not in self._features:
                self._features[state.key] = self.reward.prepare(state.item)

    def forget(self) -> None:
        """Let go of the features of all prompts."""
        self._features.clear()

    def _has(self, painter: Painter) -> bool:
        """Whether the painter's pictures come with this very reward."""
        return getattr(painter, "reward", None) is self.reward

    def _checked(self, rows: Sequence[RepairState], values: Sequence[float]) -> list[float]:
        for state, value in zip(rows, values, strict=True):
            if not math.isfinite(value):
                raise ValueError(
                    f"reward {self.reward.name!r} gave {value} for the prompt {state.item.prompt!r}"
                )
        return list(values)
