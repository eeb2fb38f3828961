"""Rewards of moving shapes."""

import pytest
import torch

from rewards import (
    ColourMotion,
    MotionSmoothness,
    MotionVerifier,
    ShapesConsistency,
    ShapesFrames,
    WeightedSum,
)
from rewards.testing import check_reward
from steering import shapes
from steering.reward import Item

PROMPTS = [
    "a red ring moving left",
    "a star moving up slowly",
    "a blue cross moving down quickly",
    "a green square standing still and a pink circle moving right",
]
OTHERS = [
    "a red ring moving right",
    "a star moving up quickly",
    "a blue cross moving down slowly",
    "a green square moving left and a pink circle moving right",
]


@pytest.fixture(scope="module")
def movies():
    return shapes.render_motion([shapes.parse_motion(prompt) for prompt in PROMPTS], seed=0)


def prepared(reward, prompts):
    return [reward.prepare(Item(prompt)) for prompt in prompts]


def test_the_verifier_knows(movies):
    reward = MotionVerifier()
    right, wrong = (reward(movies, prepared(reward, p)) for p in (PROMPTS, OTHERS))
    assert right["motion-verifier"].tolist() == [1, 1, 1, 1]
    assert wrong["motion-verifier"].tolist() == wrong["motion"].tolist() == [0, 0, 0, 0]
    assert wrong["frames"].tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="'a red ring' is not a moving shape"):
        reward.prepare(Item("a red ring"))


def test_colour_motion_is_higher_for_what_was_asked(movies):
    reward = ColourMotion()
    right, wrong = (reward(movies, prepared(reward, p)) for p in (PROMPTS, OTHERS))
    assert (right > wrong + 0.15).all()
    assert (reward(movies.flip(1), prepared(reward, PROMPTS))[[0, 2]] < 0).all()


def test_colour_motion_measures_pixels_a_frame():
    """A red square that moves two pixels right a frame is 2 - 1.4 = .6 too quick for slowly."""
    video = torch.full((1, 8, 3, 64, 64), 0.1)
    for frame in range(8):
        left = 10 + 2 * frame
        video[0, frame, :, 20:36, left : left + 16] = torch.tensor([0.9, 0.12, 0.12])[:, None, None]
    reward = ColourMotion()
    texts = [f"a red square moving right {pace}" for pace in ("slowly", "quickly")]
    slowly, quickly = reward(video.expand(2, -1, -1, -1, -1), prepared(reward, texts)).tolist()
    assert slowly == pytest.approx(1 - 0.6 / 1.4, abs=0.02)
    assert quickly == pytest.approx(1 - 1.2 / 3.2, abs=0.02)


def test_frames_are_compared_with_the_shapes_alone(movies):
    reward = ShapesFrames()
    others = ["a blue ring moving left", "a cross moving up", "a red star moving down", OTHERS[0]]
    assert (
        reward(movies, prepared(reward, PROMPTS)) > reward(movies, prepared(reward, others))
    ).all()
    backwards = ["a red ring moving right"]
    same = reward(movies[:1], prepared(reward, backwards))
    assert torch.equal(same, reward(movies[:1], prepared(reward, PROMPTS[:1])))


def test_consistency_is_one_where_nothing_changes(movies):
    reward = ShapesConsistency()
    still = movies[:, :1].expand(-1, 8, -1, -1, -1)
    assert reward(still, [None] * 4).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    mixed = torch.cat([movies[:1, :4], movies[1:2, 4:]], 1)
    assert reward(mixed, [None]) < reward(movies[:1], [None])


@pytest.mark.parametrize("kind", [MotionVerifier, ColourMotion])
def test_abilities(kind, movies):
    check_reward(kind(), 0.98 * movies[:2] + 0.01, [Item(prompt) for prompt in PROMPTS[:2]])


def test_ensembles_take_rewards_of_videos(movies):
    reward = WeightedSum({"motion": ColourMotion(), "smooth": MotionSmoothness()}, {"smooth": 2.0})
    features = prepared(reward, PROMPTS)
    columns = reward(movies, features)
    assert torch.allclose(columns["weighted-sum"], columns["motion"] + 2 * columns["smooth"])
    assert reward.looks_at(8) is None
    assert WeightedSum({"frames": ShapesFrames(2)}).looks_at(8) == {0, 7}
    with pytest.raises(ValueError, match="expects videos"):
        reward(movies[:, 0], features)
