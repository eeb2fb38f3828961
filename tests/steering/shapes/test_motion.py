"""Moving shapes: grammar, movies, and the judge."""

import hashlib
import random

import pytest
import torch

from steering.shapes import judge_motion, parse_motion, prompts, render_motion, verify_motion
from steering.shapes.motion import FRAMES, KINDS, WAYS
from steering.shapes.motion_render import SPEEDS, place_motion
from steering.shapes.motion_sampling import random_movie

TEXTS = prompts("motion")[::4]


@pytest.fixture(scope="module")
def movies():
    return render_motion([parse_motion(text) for text in TEXTS], seed=3)


def test_prompts_read_back():
    rng = random.Random(0)
    for kind in KINDS:
        for _ in range(50):
            movie = random_movie(kind, rng)
            assert movie.kind == kind
            assert parse_motion(str(movie)) == movie
    movie = parse_motion(" A red Circle moving LEFT and a star standing still")
    assert str(movie.scene) == "a red circle and a star"
    assert [mover.way for mover in movie.movers] == ["left", None]


def test_the_prompt_set_is_fixed():
    texts = prompts("motion")
    assert len(set(texts)) == 128
    assert [parse_motion(text).kind for text in texts] == ["one"] * 32 + ["pace"] * 32 + [
        "two"
    ] * 64
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12] == "78752db34ad3"


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("a red ring", "'a red ring' is not a moving shape"),
        ("a ring moving north", "not a moving shape"),
        ("two rings moving left", "one shape moves at a time, got 'two rings'"),
        ("a star standing still slowly", "not a moving shape"),
        ("a ring moving up and a red ring moving down", "cannot tell 'a ring' from 'a red ring'"),
        ("a ring moving up and a star moving up and a cross moving up", "1 to 2 movers, got 3"),
    ],
)
def test_other_prompts_are_refused(prompt, problem):
    with pytest.raises(ValueError, match=f"cannot read the prompt '{prompt}'.*{problem}"):
        parse_motion(prompt)


def test_tracks_are_straight_inside_and_apart():
    movies = [parse_motion(text) for text in TEXTS]
    tracks, radii = place_motion(movies, torch.Generator().manual_seed(0))
    for movie, track, radius in zip(movies, tracks, radii, strict=True):
        for index, mover in enumerate(movie.movers):
            steps = track[:, index].diff(dim=0)
            assert torch.allclose(steps, steps[:1].expand_as(steps), atol=1e-4)
            assert (track[:, index] - 32).abs().max() + radius[index] <= 32
            ahead = float(steps[0] @ torch.tensor(WAYS.get(mover.way, (0, 0)), dtype=torch.float32))
            low, high = SPEEDS[mover.pace] if mover.way else (0, 0)
            assert low - 1e-4 <= ahead <= high + 1e-4
        if len(movie.movers) == 2:
            distance = (track[:, 0] - track[:, 1]).norm(dim=-1).min()
            assert distance >= radius[:2].sum() + 2.9


def test_the_judge_accepts_what_is_drawn(movies):
    verdict = judge_motion(movies, TEXTS)
    assert movies.shape == (len(TEXTS), FRAMES, 3, 64, 64)
    assert verdict.right.all()
    assert verdict.shows.all()
    again = render_motion([parse_motion(text) for text in TEXTS], seed=3)
    assert torch.equal(again, movies)


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [
        ("a red ring moving left", "a red ring moving up"),
        ("a red ring moving left", "a red ring standing still"),
        ("a red ring moving left", "a blue ring moving left"),
        ("a red ring moving left", "a red ring moving left and a star moving up"),
        ("a red ring moving left slowly", "a red ring moving left quickly"),
        ("a red ring standing still", "a red ring moving down slowly"),
        ("a ring moving up and a star moving down", "a ring moving down and a star moving up"),
    ],
)
def test_the_judge_rejects_what_differs(prompt, wrong):
    videos = render_motion([parse_motion(prompt)] * 6, seed=0)
    assert verify_motion(videos, [prompt] * 6).all()
    assert not verify_motion(videos, [wrong] * 6).any()


def test_the_judge_rejects_backwards_jumps_stops_and_missing_frames(movies):
    moving = [i for i, t in enumerate(TEXTS) if "still" not in t and "quickly" in t]
    videos, texts = movies[moving], [TEXTS[i] for i in moving]
    assert not judge_motion(videos.flip(1), texts).moves.any()
    jumps = videos[:, [0, 1, 2, 7, 4, 5, 6, 3]]
    assert not judge_motion(jumps, texts).moves.any()
    stops = videos[:, [0, 0, 0, 0, 0, 0, 0, 7]]
    assert not judge_motion(stops, texts).moves.any()
    blank = videos.clone()
    blank[:, 4] = 0.1
    verdict = judge_motion(blank, texts)
    assert not verdict.right.any()
    assert verdict.moves.all()
    assert verdict.shows.float().mean() == 7 / 8


def test_wrong_media_are_refused(movies):
    with pytest.raises(ValueError, match=r"expected videos \(B, F, 3, 64, 64\)"):
        verify_motion(movies[0], TEXTS[:8])
    with pytest.raises(ValueError, match="expected a list of 2 prompts"):
        verify_motion(movies[:2], TEXTS[:1])
