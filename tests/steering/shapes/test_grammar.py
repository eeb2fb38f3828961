import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering.shapes import Group, Relation, kind, parse
from steering.shapes.grammar import EASY_KINDS, HARD_KINDS
from steering.shapes.sampling import held_out, held_out_pairs, random_scene

KINDS = (*EASY_KINDS, *HARD_KINDS)


@given(st.sampled_from(KINDS), st.integers(0, 2**32))
def test_a_scene_is_its_prompt(wanted, seed):
    scene = random_scene(wanted, random.Random(seed))
    assert parse(str(scene)) == scene
    assert parse(f"  {str(scene).upper()} ") == scene
    assert kind(str(scene)) == wanted


def test_a_prompt_is_read_into_groups_and_relations():
    scene = parse("two red rings left of a cross that is above an orange star")
    assert scene.groups == (Group(2, "ring", "red"), Group(1, "cross"), Group(1, "star", "orange"))
    assert scene.relations == (Relation(0, "left of", 1), Relation(1, "above", 2))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "not a group"),
        ("a red dog", "'dog'"),
        ("a mauve ring", "'mauve'"),
        ("six rings", "'six' is not a count"),
        ("two ring", "'ring'"),
        ("an ring", "should read 'a ring'"),
        ("three rings and three crosses", "at most 5 objects, got 6"),
        ("a ring and a red ring", "cannot tell"),
        ("a ring and a ring", "cannot tell"),
        ("a ring left of a cross above a star", "that is above"),
        ("two rings left of two stars that is above a cross", "does not agree"),
        ("a ring, a cross, a star and a square", "1 to 3 groups"),
        ("a ring near a cross", "not a group"),
    ],
)
def test_other_text_is_refused_by_name(prompt, message):
    with pytest.raises(ValueError, match=message):
        parse(prompt)


def test_a_prompt_must_be_text():
    with pytest.raises(TypeError, match="must be text, got int"):
        parse(3)


def test_held_out_combinations_are_few_and_symmetric():
    table = held_out_pairs()
    assert (table == table.T).all()
    assert table.diagonal().sum() == 4
    assert 0.1 < table.float().mean() < 0.35
    assert held_out(parse("a ring and a star"))
    assert not held_out(parse("a ring"))
