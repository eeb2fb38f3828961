import math

import pytest
import torch

from samplers.store import Room, Store
from samplers.tree import (
    NO_PARENT,
    ROOT,
    Tree,
    back_up,
    best_descent,
    children_of,
    descend,
    expand,
    log_masses,
)


def grown(rollouts=40, depths=3, seed=0):
    """A random tree with random base weights."""
    generator = torch.Generator().manual_seed(seed)
    tree = Tree.empty(depths)
    while tree.rollouts < rollouts:
        inner = torch.nonzero(tree.depth <= depths)[:, 0]
        parents = inner[torch.randint(len(inner), (4,), generator=generator)]
        reward = torch.randn(4, generator=generator).double()
        base = torch.randn(4, generator=generator).double()
        new = int((depths + 1 - tree.depth[parents]).sum())
        tree = expand(tree, parents, torch.arange(new), reward, base)
    return tree


def by_hand(tree, row, lam, by_count):
    """(base weight, tilted weight, visits) below a node, by recursion; siblings' means by count."""
    below = children_of(tree, row).tolist()
    if not below:
        base = 1.0 if by_count else math.exp(float(tree.log_base[row]))
        return base, base * math.exp(lam * float(tree.reward[row])), 1
    parts = [by_hand(tree, b, lam, by_count) for b in below]
    share = len(below) if by_count else 1
    return tuple(sum(p[i] for p in parts) / (share if i < 2 else 1) for i in range(3))


@pytest.mark.parametrize("by_count", [True, False])
@pytest.mark.parametrize("lam", [0.7, 30.0])
def test_the_soft_backup_is_the_recursion(lam, by_count):
    tree = grown()
    backed = back_up(tree, lam, by_count=by_count)
    for row in range(len(tree)):
        base, mass, visits = by_hand(tree, row, lam, by_count)
        assert float(backed.value[row]) == pytest.approx(math.log(mass / base) / lam, rel=1e-9)
        assert int(backed.visits[row]) == visits
        assert int(backed.children[row]) == len(children_of(tree, row))


def test_at_lambda_zero_values_are_means():
    tree = back_up(grown(), 0.0, by_count=False)
    leaves = tree.leaves
    expected = torch.softmax(tree.log_base[leaves], 0) @ tree.reward[leaves]
    torch.testing.assert_close(tree.value[ROOT], expected)
    near = back_up(grown(), 1e-7, by_count=False)
    torch.testing.assert_close(tree.value, near.value, atol=1e-5, rtol=0)


def test_impossible_leaves_have_no_mass():
    tree = expand(
        Tree.empty(2), torch.zeros(3, dtype=torch.int64), torch.zeros(9, dtype=torch.int64),
        torch.tensor([0.0, -math.inf, 1.0]),
    )  # fmt: skip
    tree = back_up(tree, 2.0, by_count=True)
    first = children_of(tree, ROOT)
    assert torch.isneginf(tree.value[first[1]])
    at = descend(tree, log_masses(tree, 2.0), torch.rand(500, 2), lambda rows: rows != ROOT)
    assert first[1] not in at


def test_many_descents_follow_the_masses():
    lam, tree = 0.8, back_up(grown(), 0.8, by_count=False)
    masses = log_masses(tree, lam)
    uniforms = torch.rand(200_000, 3, generator=torch.Generator().manual_seed(1)).double()
    at = descend(tree, masses, uniforms, lambda rows: tree.depth[rows] >= 2)
    level = torch.nonzero(tree.depth == 2)[:, 0]
    expected = torch.softmax(masses[level], 0)
    found = torch.bincount(at, minlength=len(tree))[level].double() / len(at)
    assert float((found - expected).abs().sum()) < 0.01


def test_a_tree_of_earlier_roll_outs_is_what_it_was():
    early, late = grown(20), grown(40)
    cut = late.before(20)
    for name, array in early.arrays().items():
        assert torch.equal(cut.arrays()[name].nan_to_num(), array.nan_to_num()), name
    assert cut.rollouts == 20
    assert late.parent[ROOT] == NO_PARENT
    assert int(late.depth[best_descent(late)]) == 4
    assert late.path(best_descent(late))[0] == ROOT


def test_a_store_spills_to_the_cpu_and_to_disk(tmp_path):
    row = torch.zeros(3, 4)
    store = Store(Room(2 * row.nbytes, 3 * row.nbytes, str(tmp_path)), "cpu")
    rows = torch.randn(9, 3, 4)
    assert store.put(rows[:4]) + store.put(rows[4:]) == list(range(9))
    assert store.held == {"device": 2, "cpu": 3, "disk": 4}
    assert torch.equal(store.get([8, 0, 3, 5]), rows[[8, 0, 3, 5]])
    other = store.copy(Room(0, 0), "cpu")
    other.put(rows[:1])
    assert (len(store), len(other), other.held["disk"]) == (9, 10, 10)
    del store
    assert torch.equal(other.get(range(9)), rows)
    with pytest.raises(KeyError, match="slot 10 was never written"):
        other.get([10])
    del other
    assert not list(tmp_path.glob("states-*"))


def test_a_cap_must_not_be_negative():
    with pytest.raises(ValueError, match="cpu_bytes must not be negative"):
        Room(cpu_bytes=-1)
