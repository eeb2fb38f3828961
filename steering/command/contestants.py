"""Samplers by name and options, sized for budgets: what ``steer compare`` compares."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from samplers import BestOfN
from steering.command.options import UsageError, find
from steering.comparison.sizes import grown
from steering.cost import Budget, Cost
from steering.files import safe_name
from steering.search import BudgetTooSmall, Facts, Search

BASE = "base"  #: the unsteered model: one sample, whatever the budget


@dataclass(frozen=True)
class Contestant:
    """A sampler to compare.

    Attributes:
        label: what it is called.
        search: with its options.
        fixed: options that were given, which no budget changes.
        unsteered: whether it is the base model, which no budget concerns.
    """

    label: str
    search: Search
    fixed: frozenset[str] = frozenset()
    unsteered: bool = False


@dataclass(frozen=True)
class Cell:
    """A sampler at one budget.

    Attributes:
        label: of the sampler.
        budget: what it may cost a prompt; unlimited for the base model.
        search: sized for it.
    """

    label: str
    budget: Budget
    search: Search

    @property
    def limits(self) -> dict[str, float]:
        """The parts of the budget that are limited."""
        return {k: v for k, v in asdict(self.budget).items() if v is not None}

    @property
    def name(self) -> str:
        """Name of its folder."""
        told = "-".join(f"{k}-{v:g}" for k, v in self.limits.items())
        return safe_name(f"{self.label}--{told}" if told else self.label)

    @property
    def enforced(self) -> Budget:
        """What the engine holds the search to: a size that was set for a time is not cut short."""
        return replace(self.budget, seconds=None)


def contestant(spec: str) -> Contestant:
    """A sampler from ``name``, ``name:option=value,option=value`` or ``label=name:...``.

    The name is a configuration's, a YAML file or a class path, as for ``--sampler``; values are read
    as on the command line. ``base`` is the unsteered model.

    Raises:
        UsageError: an unknown name.
        jsonargparse.ArgumentError: an option that the sampler does not have, or a wrong value.
    """
    labelled = re.fullmatch(r"([^:=]+)=(.+)", spec)
    label, told = labelled.groups() if labelled else (None, spec)
    name, _, given = told.partition(":")
    if name == BASE and not given:
        return Contestant(label or BASE, BestOfN(1), unsteered=True)
    options = re.split(r",(?=[\w.]+=)", given) if given else []
    if any("=" not in option for option in options):
        raise UsageError(
            f"sampler {spec!r}: options are written name:option=value,option=value, as in "
            "fk:particles=8,potential=max"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--sampler", type=Search, enable_path=True)
    words = [f"--sampler={find('sampler', name)}", *(f"--sampler.{o}" for o in options)]
    search = parser.instantiate(parser.parse_args(words)).sampler
    stem = Path(name).stem if name.endswith(".yaml") else name
    fixed = frozenset(o.partition("=")[0] for o in options)
    return Contestant(label or (f"{stem}:{given}" if given else stem), search, fixed)


def contestants(specs: Sequence[str]) -> list[Contestant]:
    """All samplers of a comparison.

    Raises:
        UsageError: none, or two of one label.
    """
    found = [contestant(spec) for spec in specs]
    labels = [safe_name(c.label) for c in found]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UsageError(f"two samplers are called {twice!r}; name one otherwise: label={twice}")
    if not found:
        raise UsageError("no samplers: give --samplers NAME NAME ..., such as best-of-n fk auto")
    return found


def budgets(
    nfe: Sequence[int], reward_calls: Sequence[int], seconds: Sequence[float]
) -> list[Budget]:
    """The budgets of a comparison, ascending; each limits one thing.

    Raises:
        UsageError: none, or one that is not positive.
    """
    try:
        found = [Budget(nfe=n) for n in sorted(set(nfe))]
        found += [Budget(reward_calls=n) for n in sorted(set(reward_calls))]
        found += [Budget(seconds=s) for s in sorted(set(seconds))]
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not found:
        raise UsageError("no budget: give --nfe, --reward_calls or --seconds, one or more of each")
    return found


def cells(
    samplers: Sequence[Contestant],
    limits: Sequence[Budget],
    facts: Facts,
    price: Callable[[Cost], Cost] | None = None,
) -> list[Cell]:
    """Every sampler at every budget; those of one budget together.

    Args:
        samplers: to compare.
        limits: their budgets.
        facts: of the pipeline and the reward.
        price: adds the seconds that a cost takes; None leaves searches at a time their own size.

    Raises:
        UsageError: a budget pays for no candidate of a sampler.
    """
    found: dict[str, Cell] = {}
    for limit in limits:
        for one in samplers:
            cell = Cell(one.label, Budget() if one.unsteered else limit, one.search)
            if not (one.unsteered or (limit.seconds is not None and price is None)):
                cell = _sized(cell, one.fixed, facts, price)
            found.setdefault(cell.name, cell)
    return list(found.values())


def _sized(
    cell: Cell, fixed: Collection[str], facts: Facts, price: Callable[[Cost], Cost] | None
) -> Cell:
    extra: dict[str, Any] = {} if price is None else {"price": price}
    try:
        search = grown(cell.search, replace(facts, budget=cell.budget), fixed=fixed, **extra)
    except BudgetTooSmall as error:
        told = ", ".join(f"{k}={v:g}" for k, v in cell.limits.items())
        raise UsageError(f"sampler {cell.label!r} with the budget {told}: {error}") from error
    return replace(cell, search=search)
