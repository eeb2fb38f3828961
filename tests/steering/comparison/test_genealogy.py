"""Descent read from traces whose truth is known."""

import itertools

import pytest
import torch
from helpers import FunctionReward, jobs_for, mixture, run

from samplers import RBF, Prior
from steering.comparison.genealogy import Looked, genealogy, thinned
from steering.comparison.sheets import picked, sheet
from steering.model import Stage
from steering.snapshots import Snapshot, shrunk


def look(step, reward, ancestors, **more):
    return {"step": step, "reward": reward, "ancestors": ancestors, "ess": 1.0, **more}


def parents(trace):
    return rows_before(genealogy(trace))


def rows_before(levels):
    """Parents as rows of the level before."""
    found, first = [], 0
    for before, level in itertools.pairwise([None, *levels]):
        if before is not None:
            found.append(tuple(p - first for p in level.parents))
            first += len(before.rewards)
        else:
            found.append(level.parents)
    return found


END = {"step": 9, "reward": [1.0, 2.0, 3.0], "chosen": [2]}


def test_rows_descend_from_the_ancestors_of_the_look_before():
    levels = genealogy(
        [{"particles": 3}, look(1, [0.0] * 3, [0, 0, 2]), look(5, [0.0] * 3, [1, 1, 1]), END],
        [Looked(1, (0.0,) * 3, 0), Looked(2, (0.0,) * 3, 3), Looked(3, (1.0, 2.0, 3.0), 6)],
    )
    assert [level.parents for level in levels] == [(), (0, 0, 2), (4, 4, 4)]
    assert rows_before(levels) == [(), (0, 0, 2), (1, 1, 1)]
    assert [level.pictures for level in levels] == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    assert levels[-1].chosen == (2,)
    assert [level.step for level in levels] == [1, 5, 9]


def test_islands_stand_side_by_side():
    trace = [
        look(1, [0.0, 0.0], [1, 1], island=0),
        look(1, [0.0], [0], island=1),
        {"step": 9, "reward": [0.0] * 3, "chosen": [0]},
    ]
    assert parents(trace) == [(), (1, 1, 2)]


def test_a_row_may_have_several_candidates_and_some_may_be_dropped():
    trace = [
        look(1, [0.0] * 4, [3, 0]),  # two of four go on
        look(2, [0.0] * 4, [1, 2]),  # each had two candidates
        {"step": 9, "reward": [0.0] * 2, "chosen": [0]},
    ]
    assert parents(trace) == [(), (3, 3, 0, 0), (1, 2)]


def test_where_time_ran_out_one_goes_on():
    trace = [
        look(1, [0.0] * 3, [2, 1, 1]),
        {"step": 1, "event": "out of time", "ancestors": [1]},
        {"step": 9, "reward": [0.0], "chosen": [0]},
    ]
    assert parents(trace) == [(), (1,)]


def test_thinning_keeps_descent():
    steps = [look(i, [0.0] * 3, [2, 0, 1]) for i in range(5)]
    levels = thinned(genealogy([*steps, END]), 3)
    assert [level.step for level in levels] == [0, 2, 9]
    whole = rows_before(genealogy([*steps, END]))
    row = rows_before(levels)[-1][0]
    line = 0
    for level in whole[:2:-1]:
        line = level[line]
    assert row == line


def test_trees_name_their_nodes():
    """Chains of rollover budget forcing: every child, and the one from which the next are drawn."""
    _, model = mixture(steps=4)
    (result,) = run(
        model,
        FunctionReward(),
        jobs_for(model, ["a"], RBF(nfe=30, chains=1, start=Prior(), path=None)),
    )
    levels = genealogy(result.trace.records)
    assert [level.step for level in levels] == [0, 1, 2, 3]
    assert all(p == -1 for p in levels[0].parents)
    first = 0
    for before, level in itertools.pairwise(levels):
        assert len(set(level.parents)) == 1
        parent = level.parents[0] - first
        assert before.rewards[parent] == max(before.rewards)
        first += len(before.rewards)
    assert len(levels[-1].rewards) == 1
    few = thinned(levels, 2)
    assert few[1].parents == (levels[1].parents[0],)


def test_a_node_may_come_from_any_that_was_before():
    trace = [
        {"reward": [1.0], "nodes": [7], "parents": [-1]},
        {"reward": [2.0, 3.0], "nodes": [8, 9], "parents": [7, -1]},
        {"reward": [4.0], "nodes": [10], "parents": [7], "chosen": [0]},
    ]
    levels = genealogy(
        trace, [Looked(0, (1.0,), 0), Looked(1, (2.0, 3.0), 1), Looked(2, (4.0,), 3)]
    )
    assert [level.parents for level in levels] == [(-1,), (0, -1), (0,)]
    assert [level.pictures for level in levels] == [(0,), (1, 2), (3,)]
    assert [level.parents for level in thinned(levels, 2)] == [(-1,), (0,)]


def test_values_of_several_samples_a_row_show_the_first():
    levels = genealogy(
        [look(1, [0.0] * 2, [0, 1]), {"step": 9, "reward": [0.0] * 2, "chosen": [0]}],
        [Looked(0, (0.0,) * 4, 0), Looked(1, (0.0,) * 2, 4)],
    )
    assert [level.pictures for level in levels] == [(0, 2), (4, 5)]


def test_searches_without_descent_show_what_they_scored():
    trace = [{"candidates": 3}, {"totals": [1.0, 5.0, 2.0], "chosen": [1]}]
    levels = genealogy(trace, [Looked(1, (1.0, 5.0), 0), Looked(1, (2.0,), 2)], returned=5.0)
    assert len(levels) == 1
    assert levels[0].rewards == (1.0, 5.0, 2.0)
    assert levels[0].pictures == (0, 1, 2)
    assert levels[0].chosen == (1,)


def test_ancestors_that_are_no_rows_are_not_taken_for_descent():
    """Draw ids, as rollover budget forcing records them."""
    trace = [look(0, [0.0], [0]), look(1, [0.0], [7]), {"step": 2, "reward": [0.0], "chosen": [0]}]
    assert all(level.parents == () for level in genealogy(trace))


def test_thumbnails_are_found_again_on_a_smaller_sheet(tmp_path):
    colours = torch.arange(0, 250, 25, dtype=torch.uint8)
    pictures = colours[:, None, None, None].expand(-1, 3, 8, 6)
    snapshots = [
        Snapshot(1, Stage.INTERMEDIATE, torch.zeros(4), pictures[:4]),
        Snapshot(2, Stage.FINAL, torch.zeros(6), pictures[4:]),
    ]
    whole, looks, columns = sheet(snapshots)
    assert [x.first for x in looks] == [0, 4]
    whole.save(tmp_path / "sheet.png")
    uri, few, size = picked(tmp_path / "sheet.png", columns, 10, [2, 9])
    assert size == (6, 8)
    assert few == 2

    import base64
    import io

    import numpy as np
    from PIL import Image

    small = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert abs(int(small[4, 3, 0]) - 50) < 8
    assert abs(int(small[4, 9, 0]) - 225) < 8


def test_copies_are_small_and_of_pictures_only():
    assert shrunk(torch.ones(2, 3, 40, 20), 10).shape == (2, 3, 10, 5)
    assert shrunk(torch.ones(2, 3, 4, 4), 10).max() == 255
    assert shrunk(torch.zeros(2, 5, 3, 8, 8), 4).shape == (2, 3, 4, 4)
    with pytest.raises(ValueError, match="pictures"):
        shrunk(torch.zeros(4, 2), 8)
