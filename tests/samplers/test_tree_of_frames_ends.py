"""The tree of frames: going on, budgets, and what is refused."""

import pytest
import torch
from frames_world import Numbers, Of, number, seeds, total, tree

from rewards import MeanRank, OnFrames, PythonFunction
from samplers import ChunkLevel
from samplers.frames_state import load_frames, save_frames
from steering.chunks import Prefix
from steering.cost import Budget
from steering.reward import Item
from steering.search import BudgetTooSmall


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
