"""What repairs cost, and what ends them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields

from samplers.repair_state import RepairState
from steering.cost import Budget, Cost


def check_limits(budget: Budget, rounds: int | None, edit: Cost | None = None) -> None:
    """Refuse a repair that nothing would end.

    Args:
        budget: of one prompt.
        rounds: most passes through a plan, or None.
        edit: what an edit and its reward cost, if that is known.

    Raises:
        ValueError: neither rounds nor what an edit costs is limited.
    """
    if rounds is not None or budget.seconds is not None:
        return
    parts = ("nfe", "decodes", "reward_calls")
    limited = [name for name in parts if getattr(budget, name) is not None]
    if not limited:
        raise ValueError(
            "nothing ends the repair of a picture that cannot be mended: set rounds, or a budget of "
            "nfe, decodes, reward_calls or seconds"
        )
    if edit is not None and not any(getattr(edit, name) > 0 for name in limited):
        spends = [name for name in parts if getattr(edit, name) > 0]
        raise ValueError(
            f"an edit costs no {' or '.join(limited)}, which is all that the budget limits, so that "
            f"nothing ends the repair: set rounds, or a budget of {', '.join([*spends, 'seconds'])}"
        )


def stands_still(state: RepairState, budget: Budget) -> bool:
    """Whether a round spent nothing of what the budget limits; the next one starts from here."""
    before, state.spent_before = state.spent_before, state.spent
    limited = [f.name for f in fields(budget) if getattr(budget, f.name) is not None]
    return all(getattr(state.spent, name) == getattr(before, name) for name in limited)


def counted(cost: Cost) -> Cost:
    """Without seconds, which are known only afterwards."""
    return Cost(**{f.name: getattr(cost, f.name) for f in fields(cost) if f.name != "seconds"})


def charge(rows: Sequence[RepairState], costs: Sequence[Cost], start: float) -> None:
    """Add what each row cost to its state, and its share of the time."""
    seconds = (time.perf_counter() - start) / max(len(rows), 1)
    for state, cost in zip(rows, costs, strict=True):
        state.spent = state.spent + cost + Cost(seconds=seconds)
