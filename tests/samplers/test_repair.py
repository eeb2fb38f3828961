"""The repair loop against a world in which every answer is known: pictures are single numbers."""

from dataclasses import replace

import pytest
import torch

from samplers import Repair
from samplers.repair_state import load_states, save_states
from steering.cost import Budget, Cost
from steering.flaws import Editor, Flaw, Painted, Painter, Planner
from steering.reward import Item
from steering.search import BudgetTooSmall


class Wants:
    """Each picture holds how many flaws it has; the planner lists them, worst first."""

    calls_per_row = 1

    def __init__(self):
        self.asked = []

    def plan(self, pictures, items):
        self.asked.append([item.prompt for item in items])
        counts = [round(float(p.mean())) for p in pictures]
        return [[Flaw("wrong", f"mend {n}") for n in range(count, 0, -1)] for count in counts]


class Mends:
    """Takes one flaw away where ``works`` says so of the seed, else adds one."""

    def __init__(self, works=lambda seed: True, nfe=10):
        self.works, self.nfe, self.calls = works, nfe, []

    def cost(self):
        return Cost(nfe=self.nfe, decodes=1)

    def edit(self, pictures, items, flaws, seeds):
        self.calls.append([(i.prompt, f.instruction) for i, f in zip(items, flaws, strict=True)])
        change = torch.tensor([-1.0 if self.works(seed) else 1.0 for seed in seeds])
        return Painted(pictures + change[:, None, None, None], [self.cost()] * len(pictures))


class Paints:
    """Pictures with as many flaws as the prompt says."""

    def __init__(self):
        self.keys = []

    def cost(self):
        return Cost(nfe=25, decodes=1, reward_calls=1)

    def paint(self, items, keys):
        self.keys += keys
        flaws = torch.tensor([float(item.prompt) for item in items])
        return Painted(flaws[:, None, None, None].expand(-1, 3, 2, 2), [self.cost()] * len(items))


class Fewer:
    """Minus the number of flaws."""

    name, differentiable, calls_per_row = "fewer", False, 1

    def prepare(self, item):
        return item

    def __call__(self, media, features):
        return -media.mean((1, 2, 3))


def repair(editor=None, **options):
    options = {"rounds": 20, "painter": Paints(), **options}
    return Repair(Wants(), editor or Mends(), Fewer(), **options)


def test_the_parts_are_what_the_protocols_ask_for():
    assert isinstance(Wants(), Planner)
    assert isinstance(Mends(), Editor)
    assert isinstance(Paints(), Painter)


def test_every_flaw_is_mended_and_everything_is_counted():
    loop = repair()
    states = loop(["0", "1", "3"])
    assert [s.done for s in states] == ["right"] * 3
    assert [s.best_score for s in states] == [0, 0, 0]
    assert [
        (s.spent.nfe, s.spent.decodes, s.spent.reward_calls, s.judge_calls) for s in states
    ] == [
        (25, 1, 2, 1),  # the painter's own reward call, and the loop's
        (35, 2, 3, 2),
        (55, 4, 5, 4),
    ]
    assert [s.edits for s in states] == [0, 1, 3]


def test_a_painter_that_searched_by_the_same_reward_scores_for_both():
    class Scores(Paints):
        def __init__(self, reward):
            super().__init__()
            self.reward = reward

        def paint(self, items, keys):
            painted = super().paint(items, keys)
            return replace(painted, rewards=[-float(item.prompt) for item in items])

    reward = Fewer()
    painter = Scores(reward)
    (state,) = Repair(Wants(), Mends(), reward, painter, budget=Budget(reward_calls=3))(["9"])
    assert (state.spent.reward_calls, state.edits, state.best_score) == (3, 2, -7)
    assert state.history[0] == {"event": "picture", "reward": -9.0, "nfe": 25}
    with pytest.raises(BudgetTooSmall):  # by another reward, a picture costs two calls
        Repair(Wants(), Mends(), Fewer(), painter, budget=Budget(reward_calls=1)).begin(["9"])
    assert Repair(Wants(), Mends(), reward, painter, budget=Budget(reward_calls=1)).begin(["9"])


@pytest.mark.parametrize("painter", [None, Paints()])
def test_an_editor_that_costs_nothing_needs_another_limit(painter):
    free = Mends(lambda seed: False, nfe=0)
    with pytest.raises(ValueError, match=r"an edit costs no nfe, .* a budget of decodes, reward_c"):
        repair(free, painter=painter, rounds=None, budget=Budget(nfe=100))
    for limit in ({"rounds": 5}, {"rounds": None, "budget": Budget(reward_calls=9)}):
        (state,) = repair(free, painter=painter, **limit)(["2"], pictures=torch.ones(1, 3, 2, 2))
        assert state.done in ("rounds", "budget", "stuck")


@pytest.mark.parametrize("works", [False, True])
def test_an_editor_that_never_spends_what_it_says_gets_stuck(works):
    class Lies(Mends):
        def edit(self, *given):
            painted = super().edit(*given)
            return replace(painted, costs=[Cost()] * len(painted.costs))

    editor = Lies(lambda seed: works)
    options = {"painter": None, "rounds": None, "patience": None, "budget": Budget(nfe=100)}
    (state,) = repair(editor, **options)(["a"], pictures=torch.full((1, 3, 2, 2), 5.0))
    assert (state.done, state.rounds) == ("stuck", 1)
    assert state.best_score == (-4 if works else -5)


def test_a_turn_is_one_batch_of_each_kind():
    loop = repair()
    loop(["2", "1", "2"])
    assert loop.planner.asked == [["2", "1", "2"], ["2", "1", "2"], ["2", "2"]]
    assert [[prompt for prompt, _ in call] for call in loop.editor.calls] == [
        ["2", "1", "2"],
        ["2", "2"],
    ]


def test_worse_edits_are_rejected_and_all_flaws_are_tried_in_order():
    loop = repair(Mends(lambda seed: False), rounds=1)
    (state,) = loop(["3"])
    assert state.done == "rounds"
    assert state.best_score == -3
    told = [record["instruction"] for record in state.history if record["event"] == "edit"]
    assert told == ["mend 3", "mend 2", "mend 1"]
    assert not any(r["accepted"] for r in state.history if r["event"] == "edit")
    assert state.judge_calls == 1  # the picture has not changed, so neither has the plan


def test_without_replanning_a_plan_is_carried_out_to_its_end():
    loop = repair(replan=False)
    (state,) = loop(["3"])
    assert [flaw for ((_, flaw),) in loop.editor.calls] == ["mend 3", "mend 2", "mend 1"]
    assert state.judge_calls == 2
    assert state.rounds == 1


@pytest.mark.parametrize(("gain", "accepted"), [(0.5, True), (1.0, False)])
def test_the_reward_must_rise_by_more_than_the_gain(gain, accepted):
    (state,) = repair(gain=gain, rounds=1)(["1"])
    assert (state.done == "right") is accepted


def test_the_best_of_several_tries_is_judged():
    seeds = []
    loop = repair(Mends(lambda seed: seeds.append(seed) or len(seeds) % 3 == 0), tries=3)
    (state,) = loop(["1"])
    assert len(set(seeds)) == 3
    assert state.done == "right"
    assert state.history[-2]["rewards"] == [-2, -2, 0]
    assert state.spent.nfe == 25 + 30


def test_a_picture_without_luck_is_given_up_for_a_new_one():
    loop = repair(Mends(lambda seed: False), rounds=6, patience=2)
    (state,) = loop(["1"])
    assert loop.painter.keys == ["text:0:1", *(f"text:0:1\x1fimage {i}" for i in (1, 2, 3))]
    assert state.rounds == 6
    assert state.best_score == -1
    (state,) = repair(Mends(lambda seed: False), painter=None)(
        ["1"], pictures=torch.ones(1, 3, 2, 2)
    )
    assert state.done == "stuck"
    assert state.best_score == -1


def test_what_is_left_of_a_budget_goes_to_edits():
    loop = repair(Mends(lambda seed: False), budget=Budget(nfe=25 + 45), patience=1)
    (state,) = loop(["1"])
    assert (state.paints, state.edits) == (2, 2)  # given up while a new picture can be paid for
    (state,) = repair(Mends(lambda seed: False), budget=Budget(nfe=25 + 34), patience=1)(["1"])
    assert (state.paints, state.edits) == (1, 3)


def test_an_accepted_edit_renews_patience():
    luck = iter([False, True] * 3)
    (state,) = repair(Mends(lambda seed: next(luck)), patience=2, replan=False)(["3"])
    assert state.done == "right"
    assert state.paints == 1


@pytest.mark.parametrize(
    ("limits", "spent"),
    [
        ({"nfe": 49}, (45, 3, 4)),
        ({"nfe": 45}, (45, 3, 4)),
        ({"decodes": 2}, (35, 2, 3)),
        ({"reward_calls": 4}, (45, 3, 4)),
    ],
)
def test_budgets_hold_and_the_best_so_far_is_there(limits, spent):
    (state,) = repair(budget=Budget(**limits))(["9"])
    assert state.done == "budget"
    assert (state.spent.nfe, state.spent.decodes, state.spent.reward_calls) == spent
    assert state.best_score == -9 + state.edits


def test_the_last_tries_are_as_many_as_the_budget_pays():
    (state,) = repair(tries=4, budget=Budget(nfe=25 + 40 + 20))(["9"])
    assert state.spent.nfe == 85
    assert [len(r["rewards"]) for r in state.history if r["event"] == "edit"] == [4, 2]


def test_judge_calls_are_limited():
    (state,) = repair(judge_calls=2)(["9"])
    assert (state.judge_calls, state.edits, state.done) == (2, 2, "budget")


def test_it_can_be_stopped_saved_and_gone_on_with(tmp_path):
    half = lambda seed: seed % 2 == 0  # noqa: E731
    prompts = [Item("3", {"id": 1}), Item("2"), Item("0")]
    whole = repair(Mends(half), patience=None, rounds=200)(prompts)
    loop = repair(Mends(half), patience=None, rounds=200)
    states = loop.begin(prompts)
    for turn, now in enumerate(loop.run(states)):
        assert now is states
        if turn == 4:
            break
    save_states(tmp_path / "states.safetensors", states)
    again = load_states(tmp_path / "states.safetensors")
    assert again[0].item == prompts[0]
    for _ in repair(Mends(half), patience=None, rounds=200).run(again):
        pass
    for a, b in zip(whole, again, strict=True):
        assert torch.equal(a.best, b.best)
        assert a.history == b.history
        assert replace(a.spent, seconds=0) == replace(b.spent, seconds=0)


def test_a_larger_budget_goes_on():
    states = repair(budget=Budget(nfe=45))(["4"])
    assert states[0].done == "budget"
    for _ in repair(budget=Budget(nfe=100)).run(states):
        pass
    assert states[0].done == "right"
    assert states[0].spent.nfe == 65


def test_neighbours_change_nothing():
    half = lambda seed: seed % 2 == 0  # noqa: E731
    options = {"patience": 3, "rounds": 9}
    together = repair(Mends(half), **options)(["3", "1", "2"])
    for prompt, state in zip(["3", "1", "2"], together, strict=True):
        (alone,) = repair(Mends(half), **options)([prompt])
        assert alone.history == state.history


def test_given_pictures_are_repaired():
    pictures = torch.tensor([2.0, 1.0])[:, None, None, None].expand(-1, 3, 2, 2)
    states = repair(painter=None)(["a", "b"], pictures=pictures)
    assert [s.done for s in states] == ["right", "right"]
    assert [s.spent.nfe for s in states] == [20, 10]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tries": 0}, "tries must be at least 1, got 0"),
        ({"rounds": None}, "nothing ends the repair"),
        ({"gain": -1.0}, "gain must be at least 0"),
        ({"patience": 0}, "patience must be at least 1"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        repair(**options)


def test_what_cannot_begin_is_refused():
    with pytest.raises(BudgetTooSmall, match="one picture costs"):
        repair(budget=Budget(nfe=24)).begin(["1"])
    with pytest.raises(ValueError, match="give pictures, or a painter"):
        repair(painter=None).begin(["1"])
    with pytest.raises(ValueError, match="pictures must be"):
        repair().begin(["1"], pictures=torch.ones(2, 3, 2, 2))


def test_a_reward_that_is_no_number_names_the_prompt():
    loop = repair(Mends())
    with pytest.raises(ValueError, match="gave nan for the prompt 'a bad one'"):
        loop.begin(["a bad one"], pictures=torch.full((1, 3, 2, 2), torch.nan))


def test_other_files_are_no_states(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no states of repairs"):
        load_states(tmp_path / "other.safetensors")
