"""Over-optimisation: cells on the embedded model, and the page's figures against small pools by hand."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from steering import shapes

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from benchmarks import overoptimisation
from overoptimisation_page import figures_of, remedies, table, write


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


# ---- the cells themselves

SEARCHES = [("fk", 4.0), ("dts-star", 4.0), ("svdd-draw", 4.0), ("adaptive", 4.0)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One pool of 4, and searches with 2 candidates; the second clip is a copy of the first."""
    folder = tmp_path_factory.mktemp("overoptimisation")
    second = folder / "second" / "shapes-clip"
    shutil.copytree(shapes.folder("shapes-clip"), second)
    words = ["--json", str(folder / "rows.json"), "--second", str(second), "--device", "cpu"]
    words += ["--sizes", "2", "4", "--pool_prompts", "1", "--prompts", "1", "--batch_size", "8"]
    options = _options([*words, "--seeds", "1"])
    options.sizes = [4]
    pool = next(overoptimisation.cells(options))
    options.sizes = [2]
    searches = [
        c
        for c in overoptimisation.cells(options)
        if (c.get("sampler"), c.get("strength")) in SEARCHES
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overoptimisation, "cells", lambda _: [pool, *searches])
        options.sizes = [2, 4]
        overoptimisation.run(options)
        before = options.json.read_text()
        overoptimisation.run(options)  # nothing is left to do
        assert options.json.read_text() == before
    return options, json.loads(before)["rows"]


def _options(words):
    parser = ArgumentParser()
    overoptimisation.add_arguments(parser)
    return parser.parse_args(words)


def test_a_pool_holds_every_score_and_what_each_rule_makes_of_groups(measured):
    pool = measured[1][0]
    scores = {name: np.array(values) for name, values in pool["scores"].items()}
    assert {len(values) for values in scores.values()} == {4}
    np.testing.assert_array_equal(scores["reward"], scores["second"])  # the same clip
    assert set(scores["accuracy"]) <= {0, 1}
    assert {key.split(":")[0] for key in pool["rules"]} == set(overoptimisation.RULES)
    pairs = scores["reward"].reshape(2, 2)
    assert pool["rules"]["best:2"]["reward"] == pytest.approx(pairs.max(1).mean(), rel=1e-3)
    assert pool["rules"]["best:4"]["reward"] == pytest.approx(scores["reward"].max(), rel=1e-3)
    winners = pairs.argmax(1) + np.array([0, 2])
    assert pool["rules"]["best:2"]["accuracy"] == pytest.approx(scores["accuracy"][winners].mean())
    assert pool["rules"]["rank:2"]["reward"] == pytest.approx(pairs.max(1).mean(), rel=1e-3)


def test_searches_are_measured_at_their_strength_within_their_budget(measured):
    rows = measured[1][1:]
    done = {(row["sampler"], row["strength"]) for row in rows}
    assert done == set(SEARCHES) <= set(overoptimisation.SEARCHES)
    for row in rows:
        assert 25 <= row["nfe"] <= 50
        per_prompt = row["per_prompt"]
        assert np.shape(per_prompt["second"]) == np.shape(per_prompt["reward"]) == (1, 1)
        # the searched score is of the pictures before their rounding to 8 bits
        np.testing.assert_allclose(per_prompt["second"], per_prompt["reward"], rtol=2e-3)


def test_rows_tell_their_judge_and_how_they_were_computed(measured):
    options, rows = measured
    digest = overoptimisation.digest_of(options.second)
    for row in rows:
        assert row["second_clip"] == digest
        assert (row["tf32"], row["batch_size"], row["processes"]) == (False, 8, 1)


def test_rows_of_another_second_clip_are_not_gone_on_with(measured, tmp_path):
    options, rows = measured
    other = tmp_path / "rows.json"
    told = [{**row, "second_clip": "0123"} for row in rows]
    other.write_text(json.dumps({"meta": {}, "rows": told}))
    options = _options(["--json", str(other), "--second", str(options.second), "--device", "cpu"])
    with pytest.raises(ValueError, match=r"judged by the second clip 0123.*another --json"):
        overoptimisation.run(options)
    options.second = tmp_path / "none" / "shapes-clip"
    with pytest.raises(ValueError, match="yet to be trained"):
        overoptimisation.run(options)


def test_the_page_tells_the_judge_and_shows_every_method(measured, tmp_path):
    options, _ = measured
    page = tmp_path / "page.md"
    write(options.json, page)
    text = page.read_text()
    assert f"Second clip {overoptimisation.digest_of(options.second)}" in text
    assert "float32 matrix products; batches of up to 8 rows" in text
    for name in ("best-of-n", "rank", "majority", "fk@4", "dts-star@4", "svdd-draw@4"):
        assert f"| {name} | " in text
    assert page.with_suffix(".png").stat().st_size > 10_000
