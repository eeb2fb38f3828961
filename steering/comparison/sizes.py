"""How large a search may be within a budget."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields, replace
from typing import Any

from steering.cost import Budget, Cost
from steering.search import BudgetTooSmall, Facts, Search

#: fields that say how much a search does; the first that a search has is the one that grows
SIZES = (
    "sweeps",
    "nfe",
    "n",
    "particles",
    "beams",
    "active",
    "paths",
    "rollouts",
    "rounds",
    "iterations",
    "steps",
)
LARGEST = 4096


def size_of(search: Search) -> str | None:
    """The field that says how large a search is; None where there is none that is known."""
    own = {f.name for f in fields(search)}  # type: ignore[arg-type]  # searches are dataclasses
    sizes = (name for name in SIZES if name in own and isinstance(getattr(search, name), int))
    return next(sizes, None)


def _as_counted(cost: Cost) -> Cost:
    return cost


def grown(
    search: Search,
    facts: Facts,
    *,
    fixed: Collection[str] = (),
    price: Callable[[Cost], Cost] = _as_counted,
) -> Search:
    """The search with as many particles, candidates or sweeps as its budget pays for.

    Args:
        search: with its other options.
        facts: of the problem, the budget included.
        fixed: fields that are not to be changed; a size among them leaves the search as it is.
        price: adds to a cost what is known of its seconds.

    Raises:
        BudgetTooSmall: not one candidate fits the budget.
    """

    def fits(size: int) -> bool:
        return _fits(_sized(search, str(name), size), facts, price)

    name = size_of(search)
    if name is not None and name not in fixed and not facts.budget.unlimited:
        low, high = 1, 2
        while high < LARGEST and fits(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        search = _sized(search, name, low) or search
    cost = price(search.plan(facts).cost)
    if facts.budget.exceeded_by(cost) is not None:
        raise BudgetTooSmall(f"{search} costs {cost}, more than the budget {facts.budget} allows")
    return search


def _fits(search: Search | None, facts: Facts, price: Callable[[Cost], Cost]) -> bool:
    """Whether a search is within the budget; one that is too small to be anything is."""
    if search is None:
        return True
    try:
        plan = search.plan(replace(facts, budget=Budget()))
    except BudgetTooSmall:  # less than the search itself allows
        return True
    return facts.budget.exceeded_by(price(plan.cost)) is None


def _sized(search: Search, name: str, size: int) -> Search | None:
    changes: dict[str, Any] = {name: size}
    try:
        return replace(search, **changes)  # type: ignore[type-var]
    except ValueError:  # fewer than its other options need
        return None
