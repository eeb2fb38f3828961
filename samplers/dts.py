"""Diffusion tree sampling: roll-outs from nodes drawn by their soft values, weighted as drawn."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import torch

from samplers.initial import at_least_one
from samplers.potentials import tilt
from samplers.tree import ROOT, Tree, back_up, descend, log_masses
from samplers.tree_search import Chosen, TreeSearch, chosen_outcome, from_root
from samplers.tree_state import TreeState
from steering.particles import Weights, multinomial
from steering.search import Outcome, Problem


@dataclass(frozen=True)
class DTS(TreeSearch):
    """Diffusion tree sampling (Jain et al. 2025, 2506.20701), with weights as they were drawn.

    Each roll-out walks down from the root to a child drawn by exp(lambda v), v the soft value, and
    branches off. As published, all children of a node count the same, and whether a node gets a
    further child depends on what its first ones were worth: nodes whose first leaf was good are
    averaged down, those whose first leaf was poor are left alone, and the law of the leaves stays
    biased for very long. Here a roll-out keeps the weight that it was drawn with: if it branches off
    node x, its leaf weighs what x weighs under the base law over the probability of having chosen x;
    and the depth at which it branches off follows from its number alone (the widening rule holds for
    the mean node of each depth). Values then only steer: the weighted leaves are importance samples of
    the tilted law, self-normalised, so their bias is of the order of one over the number of roll-outs.

    Attributes:
        explore: share of roll-outs whose node is drawn by the base law instead of by value, which
            bounds weights by its inverse; only for ``weights="drawn"``.
        weights: ``"drawn"``, or ``"count"`` as published: biased, for comparison.
        returns: ``"all"`` leaves with weights, ``"draw"`` some by weight, or the ``"best"``.
        draws: leaves to draw, for ``"draw"``; repeated draws cost nothing.
    """

    explore: float = 0.1
    weights: Literal["drawn", "count"] = "drawn"
    returns: Literal["all", "draw", "best"] = "best"
    draws: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "draws")
        if not 0 < self.explore <= 1:
            raise ValueError(f"explore must lie in (0, 1], got {self.explore}")
        for name, known in (("weights", ("drawn", "count")), ("returns", ("all", "draw", "best"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")

    @property
    def _known(self) -> bool:
        return self.weights == "drawn"

    def _depths(self, done: int, depths: int) -> Generator[int, None, None]:
        if self._known:
            yield from _widened(self, done, depths)
        for number in range(10**18):
            yield 0 if done + number < self.in_flight else depths

    def _choose(self, problem: Problem, tree: Tree, rollouts: range) -> Chosen:
        if rollouts.start == 0:
            return from_root(len(rollouts))
        tree = back_up(tree, problem.lam, by_count=not self._known)
        masses = log_masses(tree, problem.lam)
        if torch.isneginf(masses[ROOT]):  # nothing possible was found yet
            masses = tree.log_base
        # a generator hands each number out once; those of roll-outs already made are not needed
        uniforms = torch.stack(
            [problem.streams.uniform("selection", r, 0, tree.depths + 1) for r in rollouts]
        )
        if not self._known:
            full = tree.children < self.widening * tree.visits.double() ** self.alpha
            parents = descend(tree, masses, uniforms, lambda rows: full[rows])
            return Chosen(parents, torch.zeros(len(parents), dtype=torch.float64))
        source = _widened(self, rollouts.start, tree.depths)
        target = torch.tensor([next(source) for _ in rollouts])
        by_value = descend(tree, masses, uniforms, lambda rows: tree.depth[rows] >= target)
        by_base = descend(tree, tree.log_base, uniforms, lambda rows: tree.depth[rows] >= target)
        parents = torch.where(uniforms[:, -1] < self.explore, by_base, by_value)
        base, mass = (w[parents] - w[ROOT] for w in (tree.log_base, masses))
        ratio = math.log1p(-self.explore) + mass - base if self.explore < 1 else base - math.inf
        log_base = -torch.logaddexp(ratio, torch.full_like(base, math.log(self.explore)))
        return Chosen(parents, torch.where(target == 0, 0.0, log_base))

    def _outcome(self, problem: Problem, state: TreeState, complete: bool) -> Outcome:
        tree = back_up(state.tree, problem.lam, by_count=not self._known)
        leaves, total = tree.leaves, state.columns[state.total]
        log_w = tree.log_base[leaves] + tilt(total, problem.lam)
        count = math.log(len(leaves)) if self._known else 0.0
        log_z = float(torch.logsumexp(log_w, 0)) - count
        if self.returns == "all":
            kept = list(range(len(leaves)))
            chosen = torch.argsort(total, descending=True, stable=True).tolist()
        else:
            kept = [int(total.argmax())]
            if self.returns == "draw":
                u = problem.streams.uniform("choice", 0, 0, max(self.draws, len(leaves)))
                weights = Weights.uniform(len(leaves)).times(log_w).normalised
                kept = multinomial(weights, u, self.draws).tolist()
            log_w, chosen = torch.zeros(len(kept), dtype=torch.float64), list(range(len(kept)))
        problem.trace.record(chosen=[kept[i] for i in chosen], log_z=log_z)
        return chosen_outcome(state, kept, log_w, chosen, log_z=log_z, complete=complete)


def _widened(search: DTS, done: int, depths: int) -> Generator[int, None, None]:
    """Depth at which each roll-out branches off: the first whose mean node may have another child."""
    counts = [1] + [0] * (depths + 1)
    number = 0
    while True:
        depth = 0
        if number >= search.in_flight:
            allowed = (
                d
                for d in range(depths)
                if counts[d + 1]
                < search.widening * counts[d] * (number / counts[d]) ** search.alpha
            )
            depth = next(allowed, depths)
        for below in range(depth + 1, depths + 2):
            counts[below] += 1
        if number >= done:
            yield depth
        number += 1
