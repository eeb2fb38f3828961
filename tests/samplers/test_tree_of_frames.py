"""The tree of frames in a world where every answer is known: a chunk is one frame, a number."""

import itertools

import pytest
import torch

from rewards import MeanRank, OnFrames, PythonFunction
from samplers import ChunkLevel, TreeOfFrames
from samplers.frames_state import NO_PARENT, load_frames, save_frames
from steering.chunks import Continue, Extended, Prefix
from steering.cost import Budget, Cost
from steering.reward import Item
from steering.search import BudgetTooSmall
from steering.streams import Streams


def number(seed):
    """The frame that a seed makes, in [0, 1)."""
    return (seed % 10007) / 10007


class Numbers:
    """Videos of numbers; a chunk costs 10 denoiser calls, and a decode where frames are wanted."""

    def __init__(self, chunks=None, of=number):
        self.chunks, self.of, self.calls = chunks, of, []

    def cost(self, chunk, *, frames):
        return Cost(nfe=10, decodes=int(frames))

    def extend(self, prefixes, items, seeds, *, frames):
        self.calls.append(len(prefixes))
        made = []
        for prefix, seed in zip(prefixes, seeds, strict=True):
            new = torch.tensor([self.of(seed)], dtype=torch.float64)
            latents = new if prefix.latents is None else torch.cat([prefix.latents, new])
            parts = (latents[:, None, None, None].expand(-1, 3, 2, 2),) if frames else ()
            made.append(Prefix(prefix.chunks + 1, latents, parts))
        return Extended(made, [self.cost(0, frames=frames)] * len(made))


class Of:
    """A verifier by a function of the frames ``(B, F)``."""

    differentiable, calls_per_row = False, 1

    def __init__(self, name, function):
        self.name, self.function, self.rows = name, function, 0

    def prepare(self, item):
        return item.prompt

    def __call__(self, media, features):
        assert len(features) == len(media)
        self.rows += len(media)
        return self.function(media.mean((2, 3, 4)))


def total():
    return Of("total", lambda frames: frames.sum(1))


def tree(branch, keep, generator=None, verifiers=None, **options):
    judge = verifiers or total()
    levels = [ChunkLevel(judge, b, k) for b, k in zip(branch, keep, strict=True)]
    return TreeOfFrames(generator or Numbers(), levels, **options)


def seeds(prompt, count, level, first, seed=0, start=0):
    streams = Streams(seed, f"text:0:{prompt}")
    return [streams.integer("chunk", first + i, start + level) for i in range(count)]


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


def test_a_kept_video_is_gone_on_with():
    [begun] = tree([3, 2], [2, 1])(["a"])
    search = tree([2, 2], [1, 1])
    [gone_on] = search(["a"], starts=[begun.prefix])
    assert gone_on.prefix.chunks == 4
    assert torch.equal(gone_on.video[:2], begun.video)
    assert [n.seed for n in gone_on.nodes[:2]] == seeds("a", 2, 0, 0, start=2)


def test_a_stopped_search_goes_on_from_a_file(tmp_path):
    whole = tree([4, 2, 1, 2], [2, 2, 2, 1])(["a", "b"])
    search = tree([4, 2, 1, 2], [2, 2, 2, 1])
    states = search.begin([Item("a", {"n": 1}), "b"])
    runs = search.run(states)
    next(runs), next(runs)
    save_frames(tmp_path / "frames.safetensors", states)
    states = load_frames(tmp_path / "frames.safetensors")
    assert states[0].item == Item("a", {"n": 1})
    for _ in tree([4, 2, 1, 2], [2, 2, 2, 1]).run(states):
        pass
    for one, other in zip(whole, states, strict=True):
        assert one.nodes == other.nodes
        assert torch.equal(one.video, other.video)
        assert (one.spent.nfe, one.spent.reward_calls) == (
            other.spent.nfe,
            other.spent.reward_calls,
        )


def test_a_level_that_was_cut_off_is_made_anew_and_counted():
    generator = Numbers()
    search = tree([4, 2], [2, 1], generator, batch_size=2)
    [whole] = tree([4, 2], [2, 1])(["a"])
    [state] = search.begin(["a"])
    extend, left = generator.extend, [4]  # two batches a level: the last fails

    def failing(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return extend(*args, **kwargs)

    generator.extend = failing
    runs = search.run([state])
    next(runs)
    with pytest.raises(KeyboardInterrupt):
        next(runs)
    assert state.level == 1
    for _ in search.run([state]):
        pass
    assert state.nodes == whole.nodes
    assert state.spent.nfe == whole.spent.nfe + 20  # two chunks were made twice


def test_progress_counts_chunks():
    told = []
    tree([4, 1], [2, 1], batch_size=2, on_progress=lambda *made: told.append(made))(["a"])
    assert told == [(2, 6), (4, 6), (6, 6)]


def test_a_tree_that_does_not_fit_is_refused_before_any_work():
    generator = Numbers()
    for limits, part in (({"nfe": 89}, "90 nfe"), ({"reward_calls": 8}, "9 reward_calls")):
        search = tree([4, 1, 3], [2, 1, 1], generator, budget=Budget(**limits))
        with pytest.raises(BudgetTooSmall, match=f"costs {part} a prompt"):
            search(["a"])
    assert generator.calls == []
    tree([4, 1, 3], [2, 1, 1], generator, budget=Budget(nfe=90, reward_calls=9))(["a"])


def test_when_seconds_run_out_the_best_video_is_finished_alone(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    generator = Numbers()
    extend = generator.extend

    def slow(prefixes, *args, **kwargs):
        clock[0] += len(prefixes)
        return extend(prefixes, *args, **kwargs)

    generator.extend = slow
    [state] = tree([4, 2, 2], [2, 2, 1], generator, budget=Budget(seconds=4))(["a"])
    assert generator.calls == [4, 1, 1]
    assert state.narrowed
    assert state.done
    assert state.spent.seconds == pytest.approx(6)
    first = [number(s) for s in seeds("a", 4, 0, 0)]
    assert state.path()[0] == first.index(max(first))
    assert state.nodes[-1].scores


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ChunkLevel(total(), branch=0), "branch must be at least 1 video, got 0"),
        (lambda: ChunkLevel(total(), keep=0), "keep must be at least 1 video, got 0"),
        (lambda: ChunkLevel({}), "at least one verifier"),
        (lambda: ChunkLevel(total(), weights={"x": 1}), "weight for 'x'.*total"),
        (lambda: ChunkLevel(total(), weights={"total": -1}), "at least 0 and finite, got -1"),
        (lambda: ChunkLevel(total(), weights={"total": 0}), "all weights are 0"),
        (lambda: ChunkLevel(PythonFunction(lambda x, p: x)), "wrap it in rewards.OnFrames"),
        (
            lambda: ChunkLevel(MeanRank({"a": OnFrames(PythonFunction(lambda x, p: x))})),
            "name its members",
        ),
        (lambda: tree([], []), "levels is empty"),
        (lambda: tree([1], [1], batch_size=0), "batch_size must be at least 1 chunk, got 0"),
        (lambda: tree([1] * 3, [1] * 3, Numbers(chunks=2)), "a video of this generator has 2"),
        (lambda: tree([1], [1])(["a"], keys=["x", "y"]), "one distinct key"),
        (lambda: tree([1], [1])(["a"], starts=[]), "one start for each of 1 prompts, got 0"),
        (lambda: tree([1], [1]).begin(["a"])[0].video, "no chunk of 'a' was made yet"),
        (lambda: Prefix(2).video, "2 chunks holds no frames"),
        (
            lambda: tree([2], [1], verifiers=Of("odd", lambda f: f[:, 0] * float("nan")))(["a"]),
            "verifier 'odd' gave nan for the prompt 'a'",
        ),
        (
            lambda: ChunkLevel.stages(0, first=total(), middle=total(), last=total()),
            "chunks must be at least 1, got 0",
        ),
    ],
)
def test_errors_say_what_was_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_single_text_is_no_list_of_prompts():
    with pytest.raises(TypeError, match="must be a list"):
        tree([1], [1])("a red cat")


def test_a_file_of_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds no trees of frames"):
        load_frames(tmp_path / "x.safetensors")
