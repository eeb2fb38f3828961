"""What repairs cost, and what ends them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields

from samplers.repair_state import RepairState
from steering.cost import Budget, Cost


def check_limits(budget: Budget, rounds: int | None) -> None:
    """Refuse a repair that nothing would end.

    Raises:
        ValueError: neither rounds nor what an edit costs is limited.
    """
    ends = (budget.nfe, budget.decodes, budget.reward_calls, budget.seconds, rounds)
    if all(limit is None for limit in ends):
        raise ValueError(
            "nothing ends the repair of a picture that cannot be mended: set rounds, or a budget of "
            "nfe, decodes, reward_calls or seconds"
        )


def counted(cost: Cost) -> Cost:
    """Without seconds, which are known only afterwards."""
    return Cost(**{f.name: getattr(cost, f.name) for f in fields(cost) if f.name != "seconds"})


def charge(rows: Sequence[RepairState], costs: Sequence[Cost], start: float) -> None:
    """Add what each row cost to its state, and its share of the time."""
    seconds = (time.perf_counter() - start) / max(len(rows), 1)
    for state, cost in zip(rows, costs, strict=True):
        state.spent = state.spent + cost + Cost(seconds=seconds)
