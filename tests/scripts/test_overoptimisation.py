"""Figures of the over-optimisation page against small pools counted by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from overoptimisation_page import figures_of, remedies, table


def _pool(first: int) -> dict:
    scores = {"reward": [1, 2, 3], "second": [5, 1, 0], "accuracy": [1, 1, 0]}
    rules = {
        "best:2": {"reward": 0, "second": 0, "accuracy": 0},
        "rank:2": {"reward": 2, "second": 3, "accuracy": 1},
    }
    return {"kind": "pool", "first": first, "n": 3, "scores": scores, "rules": rules}


def test_best_of_n_is_the_mean_over_all_pairs():
    found = figures_of([_pool(0), _pool(1)])
    assert found["best-of-n", 2]["reward"][0] == pytest.approx(8 / 3)
    assert found["best-of-n", 2]["accuracy"][1] == pytest.approx(1 / 3)
    assert "second" not in found["rank", 2]  # the rank searches it


def test_a_remedy_is_compared_with_what_it_mends():
    text = remedies(figures_of([_pool(0), _pool(1)]))
    assert "| rank | best-of-n | 2 | -0.667 [-0.667, -0.667] |  | +0.667" in text


def test_searches_are_means_over_seeds():
    row = {"kind": "search", "sampler": "fk", "strength": 4.0, "n": 2, "first": 3}
    row["per_prompt"] = {"reward": [[1, 2], [3, 4]], "accuracy": [[0, 1], [1, 1]]}
    found = figures_of([row])
    assert found["fk@4", 2]["reward"] == {3: 2.0, 4: 3.0}
    assert np.isclose(found["fk@4", 2]["accuracy"][3], 0.5)
    assert "fk@4" in table(found)
