"""The number of flaws that a judge finds, as a reward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rewards.base import RewardModel
from steering.flaws import Planner
from steering.reward import Item


class FlawCount(RewardModel):
    """Minus the number of flaws that a planner finds: 0 for a picture that is right.

    A graded reward made of a judge, so that a picture can get better one edit at a time. It asks the
    planner about every picture that is scored; those calls count as reward calls.

    Args:
        planner: the judge.
    """

    name = "flaws"
    needs_text = True

    def __init__(self, planner: Planner) -> None:
        super().__init__()
        self.planner = planner
        self.calls_per_row = planner.calls_per_row

    def featurize(self, item: Item) -> Item:
        """The prompt itself."""
        return item

    def score(self, media: Tensor, features: Sequence[Item]) -> Tensor:
        """Minus the flaws of each picture ``(B,)``."""
        counts = [-len(plan) for plan in self.planner.plan(media, list(features))]
        return torch.tensor(counts, dtype=torch.float32, device=media.device)
