"""Diffusion tree search: the greedy form, which looks for one good sample."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from samplers.potentials import spread_of
from samplers.tree import ROOT, Tree, back_up, best_descent, children_of
from samplers.tree_search import Chosen, TreeSearch, chosen_outcome, from_root
from samplers.tree_state import TreeState
from steering.search import Outcome, Problem


@dataclass(frozen=True)
class DTSStar(TreeSearch):
    """Diffusion tree search, DTS* (Jain et al. 2025, 2506.20701): greedy descent by upper bounds.

    A roll-out walks down to the child of the largest ``v + c_uct spread sqrt(log N(parent) / N)`` and
    branches off at the first node that may have another child; values are backed up softly. It looks
    for a branch of much good mass rather than for one narrow spike. The paper descends by value in the
    end; that leaf is reported, and so, always, is the best finished leaf of all.

    Selections of one turn follow one another, each seeing those before it as visits that are still
    out: these count as visits, as children to be, and lower the value of what they pass.

    Attributes:
        c_uct: weight of the exploration bonus, in units of the spread (standard deviation) of the
            rewards seen, so that it does not depend on the reward's unit. The paper states no value.
        virtual_loss: what a visit that is out lowers a value by, in the same units, over the visits.
        returns: the ``"best"`` finished leaf, the one that ``"descent"`` by value ends at, or
            ``"all"``, best first.
    """

    c_uct: float = 0.5
    virtual_loss: float = 1.0
    returns: Literal["best", "descent", "all"] = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("c_uct", "virtual_loss"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.returns not in ("best", "descent", "all"):
            raise ValueError(f"returns must be 'best', 'descent' or 'all', got {self.returns!r}")

    @property
    def _known(self) -> bool:
        return False

    def _depths(self, done: int, depths: int) -> Generator[int, None, None]:
        number = done
        while True:
            yield 0 if number < self.in_flight else depths
            number += 1

    def _choose(self, problem: Problem, tree: Tree, rollouts: range) -> Chosen:
        if rollouts.start == 0:
            return from_root(len(rollouts))
        tree = back_up(tree, problem.lam, by_count=True)
        spread = spread_of(tree.reward[tree.leaves])
        out = torch.zeros(len(tree), dtype=torch.int64)
        added = torch.zeros(len(tree), dtype=torch.int64)
        parents = []
        for _ in rollouts:
            row = self._descend(tree, out, added, spread)
            out[tree.path(row)] += 1
            added[row] += 1
            parents.append(row)
        return Chosen(torch.tensor(parents), torch.zeros(len(parents), dtype=torch.float64))

    def _descend(self, tree: Tree, out: Tensor, added: Tensor, spread: float) -> int:
        """The first node on the way of the best bounds that may have another child."""
        row = ROOT
        while int(tree.depth[row]) < tree.depths:
            visits = int(tree.visits[row] + out[row])
            if int(tree.children[row] + added[row]) < self.widening * visits**self.alpha:
                break
            below = children_of(tree, row)
            seen = (tree.visits[below] + out[below]).double()
            bonus = (torch.log(torch.tensor(float(visits))) / seen).sqrt()
            value = tree.value[below] - self.virtual_loss * spread * out[below] / seen
            row = int(below[(value + self.c_uct * spread * bonus).argmax()])
        return row

    def _outcome(self, problem: Problem, state: TreeState, complete: bool) -> Outcome:
        tree = back_up(state.tree, problem.lam, by_count=True)
        total = state.columns[state.total]
        descent = int(tree.born[best_descent(tree)])
        order = torch.argsort(total, descending=True, stable=True).tolist()
        kept = {"best": order[:1], "descent": [descent], "all": order}[self.returns]
        problem.trace.record(chosen=kept, descent=descent, descent_reward=total[descent])
        log_w = torch.zeros(len(kept), dtype=torch.float64)
        return chosen_outcome(state, kept, log_w, list(range(len(kept))), complete=complete)
