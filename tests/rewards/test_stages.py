"""Verifiers of the stages of a video that grows."""

import pytest

from rewards import MotionAmount, OnFrames, PythonFunction, stage_rewards
from samplers import ChunkLevel


def bright():
    return PythonFunction(lambda images, prompts: images.mean((1, 2, 3)), name="bright")


def test_pictures_then_motion_then_all():
    found = stage_rewards(bright())
    assert {stage: sorted(judges) for stage, judges in found.items()} == {
        "first": ["bright"],
        "middle": ["motion-amount", "motion-smoothness"],
        "last": ["bright", "motion-amount", "motion-smoothness"],
    }
    assert found["first"]["bright"].frames == "first"
    assert found["last"]["bright"].frames == "mean"
    assert [len(level.members) for level in ChunkLevel.stages(4, **found)] == [1, 2, 2, 3]


def test_a_reward_of_videos_judges_the_whole():
    whole = OnFrames(bright(), "worst")
    assert stage_rewards(bright(), whole)["last"] == {"bright": whole}


def test_rewards_of_the_wrong_media_are_refused():
    with pytest.raises(ValueError, match="'motion-amount' scores videos"):
        stage_rewards(MotionAmount())
    with pytest.raises(ValueError, match="'bright' scores pictures"):
        stage_rewards(bright(), bright())
