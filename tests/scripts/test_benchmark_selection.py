"""Best of any N and best of the majority, from one pool of candidates."""

import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def selection():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("benchmarks.selection")


@pytest.mark.parametrize("tied", [False, True])
def test_the_expected_winner_is_the_mean_over_all_subsets(selection, tied):
    rng = np.random.default_rng(0)
    searched = rng.integers(0, 3, 7).astype(float) if tied else rng.normal(size=7)
    judged = rng.normal(size=7)

    def winner(subset):
        best = max(searched[i] for i in subset)
        return np.mean([judged[i] for i in subset if searched[i] == best])

    wanted = [
        np.mean([winner(s) for s in itertools.combinations(range(7), n)]) for n in range(1, 8)
    ]
    assert selection.expected_winner(searched, judged, range(1, 8)) == pytest.approx(wanted)


@pytest.mark.parametrize("n", [1, 2, 64, 511, 512])
def test_chances_of_a_large_pool_sum_to_one(selection, n):
    assert selection.winning_chances(512, n).sum() == pytest.approx(1, abs=1e-12)


def test_wrong_sizes_and_shapes_are_refused(selection):
    for n in (0, 4):
        with pytest.raises(ValueError, match=f"from 1 to the pool's 3 candidates, got {n}"):
            selection.winning_chances(3, n)
    with pytest.raises(ValueError, match="one shape"):
        selection.expected_winner(np.zeros(3), np.zeros(2), [1])
    with pytest.raises(ValueError, match="got 2 for 3 rewards"):
        selection.best_of_majority(np.zeros(3), np.ones((2, 2)))


def test_a_rare_cluster_is_dropped_however_high_its_reward(selection):
    features = np.array(
        [[1, 0.01 * i] for i in range(6)] + [[0.01 * i, 1] for i in range(3)] + [[-1, 0]]
    )
    rewards = np.array([1, 2, 3, 4, 5, 0, 8, 9, 7, 100.0])
    choose = selection.best_of_majority
    assert choose(rewards, features, share=0.05) == 9
    assert choose(rewards, features, share=0.2) == 7
    assert choose(rewards, features, share=0.5) == 4
    assert choose(rewards, features, share=0.9) == 4, "none is frequent: the largest"
    assert choose(rewards[:1], features[:1]) == 0
