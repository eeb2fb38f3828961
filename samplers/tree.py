"""A search tree with no node objects: one frozen dataclass of tensors, and pure functions on it.

The way of mctx (Danihelka et al. 2022): nodes are rows, an algorithm is one search loop and a function
that selects. Every roll-out adds one node at each branching depth below the node it starts from, and
one finished leaf; the rest follows from the leaves by :func:`back_up`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from samplers.potentials import tilt

ROOT = 0  #: row of the root, which stands for "nothing drawn yet" and has no state
NO_PARENT = -1  #: parent of the root
NO_SLOT = -1  #: slot of a node whose state is not stored
UNBORN = -1  #: the roll-out that the root came from


@dataclass(frozen=True, eq=False)
class Tree:
    """A tree of ``n`` nodes; parents come before their children, roll-outs in order.

    Attributes:
        parent: row of each node's parent, ``NO_PARENT`` at the root, int64 ``(n,)``.
        depth: 0 at the root, 1 at the first branching depth and so on, ``depths + 1`` at finished
            leaves, int64 ``(n,)``.
        born: roll-out that made the node, int64 ``(n,)``.
        slot: where its state lies in the store, or ``NO_SLOT``, int64 ``(n,)``.
        visits: roll-outs through the node, int64 ``(n,)``.
        children: its children, int64 ``(n,)``.
        log_base: log of the weight under the base law of the leaves below it, float64 ``(n,)``.
        value: soft value, log of the weighted mean of exp(lambda r) below, over lambda, ``(n,)``.
        reward: reward of finished leaves, NaN elsewhere, float64 ``(n,)``.
        depths: branching depths.
    """

    parent: Tensor
    depth: Tensor
    born: Tensor
    slot: Tensor
    visits: Tensor
    children: Tensor
    log_base: Tensor
    value: Tensor
    reward: Tensor
    depths: int

    def __len__(self) -> int:
        return len(self.parent)

    @classmethod
    def empty(cls, depths: int) -> Tree:
        """The root alone."""
        if depths < 1:
            raise ValueError(f"a tree needs at least 1 branching depth, got {depths}")
        zero, real = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
        lacks = torch.full((1,), NO_PARENT)
        return cls(
            lacks, zero, lacks, lacks, zero, zero, real - math.inf, real, real + math.nan, depths
        )

    @property
    def leaves(self) -> Tensor:
        """Rows of the finished leaves, one a roll-out, in order, ``(m,)``."""
        return torch.nonzero(self.depth == self.depths + 1)[:, 0]

    @property
    def rollouts(self) -> int:
        """Roll-outs so far."""
        return int((self.depth == self.depths + 1).sum())

    def arrays(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "depths"}

    def before(self, rollouts: int) -> Tree:
        """The tree of the first so many roll-outs; visits and values are left to :func:`back_up`."""
        keep = int((self.born < rollouts).sum())
        return Tree(**{name: a[:keep] for name, a in self.arrays().items()}, depths=self.depths)

    def path(self, row: int) -> list[int]:
        """Rows from the root to a node."""
        found = [row]
        while found[-1] != ROOT:
            found.append(int(self.parent[found[-1]]))
        return found[::-1]


def expand(
    tree: Tree, parents: Tensor, slots: Tensor, rewards: Tensor, log_base: Tensor | None = None
) -> Tree:
    """Add roll-outs: below each parent a node a depth, and a finished leaf.

    Args:
        tree: what they are added to.
        parents: rows where they start ``(b,)``.
        slots: of their states: of each roll-out's new nodes in order, the leaf last, flat.
        rewards: of their leaves ``(b,)``.
        log_base: log of each leaf's weight under the base law ``(b,)``; None: zeros.
    """
    first = tree.depth[parents]
    counts = tree.depths + 1 - first
    total, begins = int(counts.sum()), counts.cumsum(0) - counts
    which = torch.repeat_interleave(torch.arange(len(parents)), counts)
    within = torch.arange(total) - begins[which]
    row = len(tree) + torch.arange(total)
    leaf = within == counts[which] - 1
    base = torch.zeros(len(parents), dtype=torch.float64) if log_base is None else log_base
    missing = torch.full((total,), math.nan, dtype=torch.float64)
    new = {
        "parent": torch.where(within == 0, parents[which], row - 1),
        "depth": first[which] + 1 + within,
        "born": tree.rollouts + which,
        "slot": slots,
        "visits": torch.ones(total, dtype=torch.int64),
        "children": (~leaf).long(),
        "log_base": base[which],
        "value": rewards.double()[which],
        "reward": torch.where(leaf, rewards.double()[which], missing),
    }
    joined = {name: torch.cat([a, new[name]]) for name, a in tree.arrays().items()}
    return Tree(**joined, depths=tree.depths)


def back_up(tree: Tree, lam: float, *, by_count: bool) -> Tree:
    """Visits, children, base weights and soft values of all nodes, from the leaves.

    The soft Bellman backup: ``exp(lambda v)`` of a node is the mean of its children's, weighted by
    their base weights; at lambda 0 the value is the mean reward.

    Args:
        tree: any.
        lam: lambda, in units of one over the reward.
        by_count: give all children of a node the same base weight (Jain et al. 2025, 2506.20701)
            instead of the weights that the leaves bring along.
    """
    n, inner = len(tree), tree.parent > NO_PARENT
    children = torch.zeros(n, dtype=torch.int64)
    children.index_add_(0, tree.parent[inner], torch.ones(int(inner.sum()), dtype=torch.int64))
    leaf = tree.depth == tree.depths + 1
    visits, base = leaf.long(), torch.where(leaf, tree.log_base, -math.inf)
    levels = [torch.nonzero(tree.depth == d)[:, 0] for d in range(tree.depths + 2)]
    if by_count:
        base = torch.zeros(n, dtype=torch.float64)
        for rows in levels[1:]:
            above = tree.parent[rows]
            base[rows] = base[above] - children[above].double().log()
    tilted = torch.where(leaf, tilt(tree.reward.nan_to_num(neginf=-math.inf), lam), 0.0)
    mass = torch.where(leaf, base + tilted, -math.inf)
    mean = torch.where(leaf, tree.reward, 0.0)
    for rows in reversed(levels[1:]):
        above = tree.parent[rows]
        visits.index_add_(0, above, visits[rows])
        if not by_count:
            base = torch.logaddexp(base, _sums(base[rows], above, n))
        mass = torch.logaddexp(mass, _sums(mass[rows], above, n))
    if lam == 0:
        for rows in reversed(levels[1:]):
            above = tree.parent[rows]
            share = (base[rows] - base[above]).exp()
            mean.index_add_(0, above, share * mean[rows])
    value = mean if lam == 0 else (mass - base) / lam
    value = torch.where(leaf, tree.reward, value)
    return replace(tree, visits=visits, children=children, log_base=base, value=value)


def log_masses(tree: Tree, lam: float) -> Tensor:
    """Log of the tilted weight below each node, ``(n,)``: what Boltzmann selection draws by."""
    return tree.log_base + tilt(tree.value, lam)


def descend(
    tree: Tree,
    log_mass: Tensor,
    uniforms: Tensor,
    stop: Callable[[Tensor], Tensor],
) -> Tensor:
    """Walk many roll-outs down from the root at once, each to a child drawn by its mass.

    Args:
        tree: with at least one roll-out.
        log_mass: of each node ``(n,)``; only ratios among siblings count. Siblings that all have
            none are drawn evenly.
        uniforms: on [0, 1), a row a roll-out and a column a depth ``(b, depths)``.
        stop: of rows ``(b,)``, whether a roll-out at this node goes no further, ``(b,)``.

    Returns:
        Where each stopped, ``(b,)``; never at a finished leaf.
    """
    order = torch.argsort(tree.parent, stable=True)
    ends = torch.searchsorted(tree.parent[order], torch.arange(len(tree)), right=True)
    begins = torch.searchsorted(tree.parent[order], torch.arange(len(tree)))
    group = tree.parent.clamp(min=0)
    top = torch.full((len(tree),), -math.inf, dtype=torch.float64)
    top = top.scatter_reduce(0, group[1:], log_mass[1:], "amax")
    share = torch.where(torch.isneginf(top[group]), 0.0, log_mass - top[group]).exp()
    total = torch.cat([torch.zeros(1, dtype=torch.float64), share[order].cumsum(0)])
    at = torch.full((len(uniforms),), ROOT)
    for column in range(tree.depths):
        going = torch.nonzero(~stop(at) & (tree.depth[at] < tree.depths))[:, 0]
        if not len(going):
            break
        low, high = begins[at[going]], ends[at[going]]
        target = total[low] + uniforms[going, column] * (total[high] - total[low])
        found = torch.searchsorted(total, target, right=True) - 1
        at[going] = order[torch.minimum(torch.maximum(found, low), high - 1)]
    return at


def children_of(tree: Tree, row: int) -> Tensor:
    """Rows of a node's children."""
    return torch.nonzero(tree.parent == row)[:, 0]


def best_descent(tree: Tree) -> int:
    """The leaf that one reaches by the child of the largest soft value, again and again."""
    row = ROOT
    while int(tree.depth[row]) <= tree.depths:
        below = children_of(tree, row)
        row = int(below[tree.value[below].argmax()])
    return row


def _sums(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Log-sum-exp of values ``(m,)`` by group, ``(count,)``; minus infinity where a group is empty."""
    top = torch.full((count,), -math.inf, dtype=torch.float64)
    top = top.scatter_reduce(0, groups, values, "amax")
    safe = torch.where(torch.isneginf(top), 0.0, top)
    held = torch.zeros(count, dtype=torch.float64)
    held.index_add_(0, groups, (values - safe[groups]).exp())
    return held.log() + safe
