"""Rewards that judge the results of a command and are never searched on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rewards.base import RewardModel
from steering.command.options import UsageError


def by_name(held_out: Sequence[RewardModel], reward: RewardModel) -> dict[str, RewardModel]:
    """Held-out rewards under the names of their columns.

    Args:
        held_out: the judges.
        reward: the searched one.

    Raises:
        UsageError: two of one name, or one of the searched reward's.
    """
    found = {reward.name: reward}
    for judge in held_out:
        if judge.name in found:
            raise UsageError(
                f"two rewards are called {judge.name!r}: {found[judge.name]!r} and the held-out "
                f"{judge!r}; hold out another one, or give one of them a name where its class takes one"
            )
        found[judge.name] = judge
    del found[reward.name]
    return found


def placed(judges: dict[str, RewardModel], device: torch.device) -> dict[str, RewardModel]:
    """The same, with their weights on a device."""
    return {name: judge.to(device) for name, judge in judges.items()}
