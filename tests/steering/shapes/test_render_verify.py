import random

import pytest
import torch

from steering.shapes import parse, prompts, render, see, verify
from steering.shapes.grammar import EASY_KINDS, HARD_KINDS, SHAPES
from steering.shapes.render import draw, fill_colours, place, tabulate
from steering.shapes.sampling import (
    fill_allowed_colours,
    hard_negative,
    held_out,
    held_out_pairs,
    random_scene,
)

KINDS = (*EASY_KINDS, *HARD_KINDS)


@pytest.fixture(scope="module")
def scenes():
    rng = random.Random(0)
    return [random_scene(kind, rng) for kind in KINDS for _ in range(24)]


def test_pictures_depend_on_the_seed_alone(scenes):
    first, again, other = (render(scenes[:20], seed=seed) for seed in (1, 1, 2))
    assert first.shape == (20, 3, 64, 64)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert (first != other).flatten(1).any(1).all()
    assert first.min() >= 0
    assert first.max() <= 1


def test_objects_do_not_touch_and_stay_inside(scenes):
    table = tabulate(scenes)
    centres, radii = place(table, torch.Generator().manual_seed(0))
    distance = torch.cdist(centres, centres) - radii[:, None] - radii[:, :, None]
    present = table.group >= 0
    both = present[:, None] & present[:, :, None] & ~torch.eye(5, dtype=torch.bool)
    assert distance[both].min() >= 3 - 1e-4
    reach = radii[..., None]
    assert ((centres - reach)[present] >= 1).all()
    assert ((centres + reach)[present] <= 63).all()


def test_the_judge_accepts_the_renderer_and_rejects_hard_negatives(scenes):
    texts = [str(scene) for scene in scenes]
    rng = random.Random(1)
    negatives = [hard_negative(scene, rng) for scene in scenes]
    assert verify(render(scenes, seed=3), texts).float().mean() >= 0.995
    assert verify(render(negatives, seed=4), texts).float().mean() <= 0.01


def test_the_judge_stands_noise_and_half_precision(scenes):
    texts = [str(scene) for scene in scenes]
    images = render(scenes, seed=5)
    noisy = images + 0.04 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert verify(noisy.clamp(0, 1).half(), texts).float().mean() >= 0.99


def test_the_judge_names_what_it_sees():
    (seen,) = see(render([parse("a red ring left of a blue cross")], seed=0))
    ring, cross = sorted(seen, key=lambda item: item.x)
    assert (ring.colour, ring.shape, cross.colour, cross.shape) == ("red", "ring", "blue", "cross")
    assert min(ring.match, cross.match) > 0.95


@pytest.mark.parametrize("extra", ["a ring and a star", "two rings", "a ring and a cross"])
def test_extra_objects_make_a_picture_wrong(extra):
    assert not verify(render([parse(extra)] * 8, seed=0), ["a ring"] * 8).any()


def test_blots_and_two_coloured_objects_are_no_shapes():
    half = render([parse("a red circle")] * 4, seed=0)
    rows = half.clone()
    rows[:, :, :, 32:] = half[:, [2, 1, 0], :, 32:]  # red becomes blue
    middle = [abs(seen[0].x - 32) < 3 for seen in see(half)]
    blot = render([parse("a star")], seed=0).roll(30, -1)
    blot[..., 2:20, 2:8] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    assert not verify(blot, ["a star"]).any()
    for is_middle, seen in zip(middle, see(rows), strict=True):
        assert not is_middle or any(item.colour is None for item in seen)
    assert see(torch.full((1, 3, 64, 64), 0.3)) == [[]]


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 3, 32, 32), ValueError, r"\(B, 3, 64, 64\), got \(1, 3, 32, 32\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "got torch.uint8"),
        (torch.full((1, 3, 64, 64), torch.nan), ValueError, "not finite"),
    ],
)
def test_other_pictures_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        verify(images, ["a ring"])


def test_other_arguments_are_refused():
    images = torch.zeros(2, 3, 64, 64)
    with pytest.raises(ValueError, match="expected a list of 2 prompts, one a picture; got 1"):
        verify(images, ["a ring"])
    with pytest.raises(ValueError, match="one text"):
        verify(images, "a ring")
    with pytest.raises(ValueError, match="empty"):
        render([], seed=0)
    with pytest.raises(TypeError, match="use parse"):
        render(["a ring"], seed=0)
    with pytest.raises(ValueError, match="unknown kind 'easy'"):
        random_scene("easy", random.Random(0))


def test_hard_negatives_differ_in_what_is_asked(scenes):
    rng = random.Random(2)
    for scene in scenes:
        assert hard_negative(scene, rng) != scene
    negative = hard_negative(parse("a ring left of a cross"), rng)
    assert str(negative) == "a ring right of a cross"
    assert hard_negative(parse("five rings"), rng) == parse("four rings")


def test_training_colours_avoid_held_out_combinations(scenes):
    allowed = [scene for scene in scenes if not held_out(scene)]
    table, good = fill_allowed_colours(tabulate(allowed), torch.Generator().manual_seed(0))
    assert good.float().mean() > 0.95
    code = table.shape * 8 + table.colour
    present = (table.group >= 0) & good[:, None]
    both = present[:, :, None] & present[:, None, :]
    assert not (held_out_pairs()[code[:, :, None], code[:, None, :]] & both).any()


def test_the_six_easy_kinds_and_all_shapes_are_in_the_prompts():
    easy = " ".join(prompts("easy"))
    assert all(shape in easy for shape in SHAPES)


def test_drawing_takes_given_places():
    table = fill_colours(tabulate([parse("a red circle")]), torch.Generator().manual_seed(0))
    centres, radii = torch.full((1, 5, 2), 20.0), torch.full((1, 5), 10.0)
    (seen,) = see(draw(table, centres, radii, torch.Generator().manual_seed(0)))
    assert seen[0].x == pytest.approx(20, abs=0.2)
    assert seen[0].y == pytest.approx(20, abs=0.2)
