"""Planners: the exact judge's flaws, and those that a vision-language model writes."""

import random

import pytest
import torch
from reward_models import llava_folder

from rewards import FlawCount, JSONPlanner, ShapesPlanner
from rewards.json_planner import read_flaws
from rewards.shapes_planner import find_flaws
from rewards.testing import check_reward
from steering import shapes
from steering.flaws import Flaw, Planner
from steering.reward import Item
from steering.shapes.outlines import SIZE
from steering.shapes.sampling import random_scene
from steering.shapes.verify import Seen, direction, matches


def at(shape, colour, x, y):
    return Seen(shape, colour, x, y, 1.0, (int(x) - 8, int(y) - 8, int(x) + 8, int(y) + 8))


def centre(box):
    left, top, right, bottom = (side * SIZE for side in box)
    return (left + right) / 2, (top + bottom) / 2


def flaws(prompt, *seen):
    return find_flaws(shapes.parse(prompt), seen)


def test_a_picture_is_right_if_and_only_if_nothing_is_wrong():
    rng = random.Random(0)
    kinds = ["single", "two", "counting", "attributes", "groups", "relation", "chain"]
    scenes = [random_scene(kind, rng) for kind in kinds for _ in range(4)]
    seen = shapes.see(shapes.render(scenes, seed=1))
    verdicts = [(find_flaws(a, s) == []) == matches(a, s) for a in scenes for s in seen]
    assert all(verdicts)
    assert all(find_flaws(a, s) == [] for a, s in zip(scenes, seen, strict=True))


def test_boxes_hold_the_objects():
    scene = shapes.parse("two red rings and a star")
    pictures = shapes.render([scene] * 4, seed=0)
    for picture, objects in zip(pictures, shapes.see(pictures), strict=True):
        inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        for item in objects:
            left, top, right, bottom = item.box
            assert left < item.x < right
            assert top < item.y < bottom
            inside[top:bottom, left:right] = True
        ground = picture.flatten(1).median(1).values[:, None, None]
        assert ((picture - ground).square().sum(0)[~inside] < 0.3**2).all()


def test_a_wrong_object_is_turned_into_what_is_missing():
    (flaw,) = flaws("a red ring and a star", at("star", "blue", 20, 20), at("ring", "pink", 44, 44))
    assert flaw.kind == "wrong"
    assert flaw.instruction == "turn the pink ring at the bottom right into a red ring"
    assert flaw.target == "a red ring"
    assert flaw.boxes[0] == (36 / 64, 36 / 64, 52 / 64, 52 / 64)


def test_the_most_alike_object_is_turned():
    kinds = flaws("a red ring and a star", at("ring", "pink", 20, 20), at("cross", "pink", 44, 44))
    assert [f.instruction.split(" at ")[0] for f in kinds] == [
        "turn the pink ring",
        "turn the pink cross",
    ]
    assert [f.target for f in kinds] == ["a red ring", "a star"]


def test_what_is_too_much_is_removed():
    (flaw,) = flaws("a ring", at("ring", "red", 20, 20), at("ring", "red", 44, 20))
    assert (flaw.kind, flaw.target) == ("extra", "")
    assert flaw.instruction == "remove the red ring at the top right"
    assert centre(flaw.boxes[0]) == (44, 20)


def test_what_is_missing_comes_where_there_is_room_and_its_relation_holds():
    cross = at("cross", "blue", 50, 32)
    (flaw,) = flaws("a ring left of a cross", cross)
    assert (flaw.kind, flaw.instruction) == ("missing", "add a ring")
    assert direction(centre(flaw.boxes[0]), (cross.x, cross.y)) == "left of"
    first, second = flaws("three rings", at("ring", "red", 12, 12))
    (x, y), (u, v) = centre(first.boxes[0]), centre(second.boxes[0])
    assert abs(x - u) + abs(y - v) > 16


def test_a_broken_relation_moves_the_group_that_has_room():
    ring, cross = at("ring", "red", 54, 32), at("cross", "blue", 32, 32)
    (flaw,) = flaws("a ring left of a cross", ring, cross)
    assert flaw.kind == "relation"
    assert flaw.instruction.endswith("so that a ring is left of a cross")
    old, new = flaw.boxes
    moved, other = (ring, cross) if centre(old) == (ring.x, ring.y) else (cross, ring)
    subject, reference = (
        (centre(new), (other.x, other.y)) if moved is ring else ((other.x, other.y), centre(new))
    )
    assert direction(subject, reference) == "left of"


def test_the_middle_of_a_chain_moves_where_both_relations_hold():
    ring, cross, star = (
        at("ring", "red", 12, 50),
        at("cross", "blue", 50, 50),
        at("star", "pink", 16, 12),
    )
    plan = flaws("a ring below a cross that is right of a star", ring, cross, star)
    assert [flaw.kind for flaw in plan] == ["relation"] * 2
    for flaw in plan:
        if centre(flaw.boxes[0]) == (cross.x, cross.y):
            place = centre(flaw.boxes[1])
            assert direction((ring.x, ring.y), place) == "below"
            assert direction(place, (star.x, star.y)) == "right of"


def test_the_shapes_planner_answers_in_order():
    prompts = ["a red ring", "two stars", "a cross above a ring"]
    pictures = shapes.render([shapes.parse(p) for p in prompts], seed=0)
    planner = ShapesPlanner()
    assert isinstance(planner, Planner)
    assert planner.plan(pictures, [Item(p) for p in prompts]) == [[], [], []]
    crossed = planner.plan(pictures[[1, 0]], [Item(p) for p in prompts[:2]])
    assert [len(plan) for plan in crossed] == [2, 2]  # a star turned, one removed; and one added


def test_masks_cover_the_boxes():
    flaw = Flaw("wrong", "mend", boxes=((0.25, 0.5, 0.5, 1.0),))
    mask = flaw.mask(8, 16)
    assert mask.shape == (1, 8, 16)
    assert mask.sum() == 4 * 4
    assert mask[0, 4:, 4:8].all()
    assert flaw.mask(8, 16, 0.125).sum() == 5 * 8
    assert Flaw("wrong", "mend").mask(4, 4).all()
    with pytest.raises(ValueError, match="fractions of the picture"):
        Flaw("wrong", "mend", boxes=((0.5, 0, 0.5, 1),))


def test_flaws_are_counted():
    items = [Item("a red ring"), Item("two stars"), Item("a cross above a ring")]
    pictures = shapes.render([shapes.parse(i.prompt) for i in items], seed=0)
    reward = FlawCount(ShapesPlanner())
    check_reward(reward, pictures, items)
    assert reward(pictures, items).tolist() == [0, 0, 0]
    assert reward(pictures[[1, 0, 2]], items).tolist() == [-2, -2, 0]


# ---- JSON


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llava_folder(tmp_path_factory.mktemp("llava") / "tiny")


def answering(folder, answer, **options):
    planner = JSONPlanner(str(folder), **options)
    planner.judge = type("Fixed", (), {"answers": staticmethod(answer)})()
    return planner


def test_flaws_are_read():
    told = (
        'Well:\n```json\n{"flaws": [{"kind": "wrong", "instruction": "make it red", '
        '"box": [0, 0.5, 1, 1]}, {"kind": "missing", "instruction": "add a cup", "target": "a cup", '
        '"box": null}]}\n```'
    )
    assert read_flaws(told) == [
        Flaw("wrong", "make it red", "", ((0.0, 0.5, 1.0, 1.0),)),
        Flaw("missing", "add a cup", "a cup"),
    ]
    assert read_flaws('{"note": 1} {"flaws": []}') == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "no JSON object"),
        ("the picture is fine", "no JSON object"),
        ('{"flaws": 3}', "no JSON object"),
        ('{"flaws": ["too dark"]}', "must be an object"),
        ('{"flaws": [{"kind": "wrong"}]}', "needs an instruction"),
        ('{"flaws": [{"kind": "odd", "instruction": "x"}]}', "kind is one of"),
        ('{"flaws": [{"kind": "wrong", "instruction": "x", "box": [1, 2]}]}', "a box is"),
        ('{"flaws": [{"kind": "wrong", "instruction": "x", "box": [0, 0, 9, 1]}]}', "fractions"),
        ('{"flaws": [{"kind": "wrong", "instruction": "x", "box": [0, 0, true, 1]}]}', "a box is"),
    ],
)
def test_other_answers_are_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        read_flaws(answer)


def test_plans_stay_with_their_picture_and_are_kept(folder, pictures):
    asked = []

    def answer(rows, questions, _):
        asked.append(len(rows))
        assert all("a red ring" in q and "at most 2 flaws" in q for q in questions)
        flaw = '{"kind": "quality", "instruction": "level %d"}'
        return ['{"flaws": [' + ", ".join([flaw % row.sum()] * 3) + "]}" for row in rows]

    planner = answering(folder, answer, most=2, batch_limit=2)
    media, items = pictures(3, 16, 16) / 255, [Item("a red ring")] * 3
    plans = planner.plan(media, items)
    levels = (media * 255).round().sum((1, 2, 3)).tolist()
    assert plans == [[Flaw("quality", f"level {level:.0f}")] * 2 for level in levels]
    assert planner.plan(media[[2, 0]], items[:2]) == [plans[2], plans[0]]
    assert asked == [2, 1]


def test_an_unreadable_answer_never_means_that_all_is_right(folder, pictures):
    def answer(rows, questions, _):
        return ["looks fine"] * len(rows)

    media, items = pictures(1, 16, 16) / 255, [Item("a ring")]
    with pytest.raises(ValueError, match="looks fine"):
        answering(folder, answer).plan(media, items)
    ((flaw,),) = answering(folder, answer, invalid="redo").plan(media, items)
    assert (flaw.kind, flaw.boxes) == ("unreadable", ())


def test_a_real_model_is_asked(folder, pictures):
    planner = JSONPlanner(str(folder), question="{prompt}", invalid="redo", max_new_tokens=4)
    plans = planner.plan(pictures(2, 40, 32) / 255, [Item("a red ring"), Item("two star")])
    assert [plan[0].kind for plan in plans] == ["unreadable"] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": "flaws?"}, "must hold {prompt}"),
        ({"invalid": "skip"}, "'error' or 'redo'"),
        ({"most": 0}, "most must be at least 1"),
    ],
)
def test_nonsense_planners_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        JSONPlanner(str(folder), **options)
