"""The tree of frames: what it makes, keeps and chooses, where every answer is known."""

import itertools

import pytest
import torch
from frames_world import Numbers, Of, number, seeds, total, tree

from samplers import ChunkLevel, TreeOfFrames
from samplers.frames_state import NO_PARENT
from steering.chunks import Continue


def test_the_generator_is_what_the_protocol_asks_for():
    assert isinstance(Numbers(), Continue)


def test_one_candidate_a_level_is_a_plain_chain():
    [state] = tree([1, 1, 1], [1, 1, 1])(["a"])
    own = [seeds("a", 1, level, level)[0] for level in range(3)]
    assert [node.seed for node in state.nodes] == own
    assert state.video.mean((1, 2, 3)).tolist() == pytest.approx([number(s) for s in own])
    assert state.path() == [0, 1, 2]
    assert state.spent.nfe == 30
    assert state.done
    assert not state.narrowed


def test_a_full_tree_finds_the_best_of_all_paths():
    [state] = tree([3, 2, 2], [3, 6, 1])(["a"])
    levels = [seeds("a", 3, 0, 0), seeds("a", 6, 1, 3), seeds("a", 12, 2, 9)]
    sums = [
        number(levels[0][i // 4]) + number(levels[1][i // 2]) + number(levels[2][i])
        for i in range(12)
    ]
    assert float(state.video[:, 0, 0, 0].sum()) == pytest.approx(max(sums))
    assert state.best == 9 + sums.index(max(sums))


def test_a_greedy_tree_takes_the_best_of_each_level():
    [state] = tree([4, 3, 5], [1, 1, 1])(["a"])
    first = 0
    for level, count in enumerate([4, 3, 5]):
        made = [number(s) for s in seeds("a", count, level, first)]
        assert float(state.video[level, 0, 0, 0]) == pytest.approx(max(made))
        assert state.path()[level] == first + made.index(max(made))
        first += count


def test_parents_and_kept_chunks_are_told():
    [state] = tree([4, 2, 1], [2, 2, 1])(["a"])
    of_level = [[i for i, n in enumerate(state.nodes) if n.level == level] for level in range(3)]
    assert [len(nodes) for nodes in of_level] == [4, 4, 2]
    for above, below in itertools.pairwise(of_level):
        kept = {i for i in above if state.nodes[i].kept}
        assert {state.nodes[i].parent for i in below} == kept
    assert all(state.nodes[i].parent == NO_PARENT for i in of_level[0])
    for nodes in of_level:
        judged = sorted(nodes, key=lambda i: -state.nodes[i].value)
        kept = sum(state.nodes[i].kept for i in nodes)
        assert all(state.nodes[i].kept for i in judged[:kept])


def test_best_of_whole_videos_when_only_the_first_level_branches():
    n, chunks = 6, 4
    [state] = tree([n] + [1] * (chunks - 1), [n] * (chunks - 1) + [1])(["a"])
    videos = [
        [number(seeds("a", n, level, n * level)[i]) for level in range(chunks)] for i in range(n)
    ]
    best = max(videos, key=sum)
    assert state.video[:, 0, 0, 0].tolist() == pytest.approx(best)
    assert state.spent.nfe == 10 * n * chunks
    assert state.spent.reward_calls == n  # there is no choice before the end


@pytest.mark.parametrize(("n", "chunks"), [(5, 2), (8, 10), (1, 7)])
def test_chunks_are_as_many_as_candidates_and_levels_together(n, chunks):
    generator = Numbers()
    search = tree([n] + [1] * (chunks - 1), [1] * chunks, generator)
    [state] = search(["a"])
    assert sum(generator.calls) == len(state.nodes) == search.chunk_count == n + chunks - 1
    assert state.spent.nfe == 10 * (n + chunks - 1)


@pytest.mark.parametrize(
    ("branch", "keep"), [([4, 2, 1, 2], [2, 2, 2, 1]), ([3, 1, 1, 1], [3, 3, 1, 1]), ([2], [1])]
)
def test_the_plan_is_what_is_spent(branch, keep):
    search = tree(branch, keep)
    [state] = search(["a"])
    planned = search.plan()
    for part in ("nfe", "decodes", "reward_calls", "backwards"):
        assert getattr(planned, part) == getattr(state.spent, part)


def test_nothing_is_scored_or_decoded_where_there_is_no_choice():
    judge = total()
    [state] = tree([4, 1, 1, 2], [2, 2, 2, 1], verifiers=judge)(["a"])
    assert judge.rows == state.spent.reward_calls == state.spent.decodes == 4 + 4
    assert [n.value is None for n in state.nodes] == [False] * 4 + [True] * 4 + [False] * 4


def test_equals_go_to_the_first():
    [state] = tree([3, 3], [2, 1], Numbers(of=lambda seed: 0.5))(["a"])
    assert [n.kept for n in state.nodes] == [True, True, False, True] + [False] * 5
    assert state.path() == [0, 3]
    assert {n.value for n in state.nodes} == {0.5}


def test_videos_that_are_only_carried_on_stay_in_the_order_of_the_last_look():
    search = tree([4, 1, 1], [2, 2, 1])
    state = search.begin(["a"])[0]
    runs = search.run([state])
    next(runs)
    leader = state.best
    next(runs)
    assert state.nodes[state.best].parent == leader


def test_several_verifiers_choose_by_weighted_mean_rank():
    columns = {"a": torch.tensor([3.0, 2.0, 1.0]), "b": torch.tensor([0.0, 900.0, 900.0])}
    judges = {name: Of(name, None) for name in columns}
    ranks = {"a": [1.0, 0.5, 0.0], "b": [0.0, 0.75, 0.75]}
    for weights in ({}, {"a": 3.0}, {"b": 0.0}):
        wa, wb = weights.get("a", 1.0), weights.get("b", 1.0)
        expected = [
            (wa * a + wb * b) / (wa + wb) for a, b in zip(ranks["a"], ranks["b"], strict=True)
        ]
        level = ChunkLevel(judges, weights=weights)
        assert level.values(columns).tolist() == pytest.approx(expected)


def test_each_stage_has_its_verifiers_and_branches_where_they_change():
    first, middle, last = total(), total(), total()
    levels = ChunkLevel.stages(5, first=first, middle=middle, last=last, branch=(6, 3, 2), keep=2)
    assert [level.branch for level in levels] == [6, 3, 1, 1, 2]
    assert [level.keep for level in levels] == [2, 2, 2, 2, 1]
    assert [level.verifiers for level in levels] == [first, middle, middle, middle, last]
    TreeOfFrames(Numbers(), levels)(["a"])
    assert [judge.rows for judge in (first, middle, last)] == [6, 6, 4]
    for chunks, expected in ((1, [6]), (2, [6, 2])):
        levels = ChunkLevel.stages(chunks, first=first, middle=middle, last=last, branch=(6, 3, 2))
        assert [level.branch for level in levels] == expected
        assert levels[-1].verifiers is last


def test_prompts_do_not_disturb_each_other_and_batches_change_nothing():
    alone = [tree([4, 2, 1], [2, 2, 1])([p])[0] for p in ("a", "b")]
    generator = Numbers()
    for size in (1, 3, 100):
        together = tree([4, 2, 1], [2, 2, 1], generator, batch_size=size)(["a", "b"])
        for one, other in zip(alone, together, strict=True):
            assert one.nodes == other.nodes
            assert torch.equal(one.video, other.video)
    assert generator.calls[-3:] == [8, 8, 4]


def test_equal_prompts_and_other_seeds_get_numbers_of_their_own():
    one, two = tree([2, 2], [1, 1])(["a", "a"])
    [three] = tree([2, 2], [1, 1], seed=1)(["a"])
    drawn = [{n.seed for n in state.nodes} for state in (one, two, three)]
    assert len(set.union(*drawn)) == sum(len(found) for found in drawn)
    [again] = tree([2, 2], [1, 1])(["b"], keys=["text:0:a"])
    assert again.nodes == one.nodes
