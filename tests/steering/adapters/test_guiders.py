"""Pipelines that take a guider object go on as they are guided, and the user's guider is left alone."""

import copy

import pytest
import torch
from as_found import state_of
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AdaptiveProjectedMixGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    TangentialClassifierFreeGuidance,
)
from helpers import FunctionReward

from samplers import BestOfN, FKSteering
from steering.engine import MissingAbility
from steering.pipeline import SteeredPipeline
from steering.strength import Strength

BRIGHT = FunctionReward(lambda media, features: media.flatten(1).mean(1))
IMAGE = {"num_inference_steps": 6, "height": 16, "width": 16, "output_type": "pt"}
VIDEO = {**IMAGE, "num_frames": 5}

#: A guider for each, what it is beside, and the door that serves.
GUIDERS = {
    "classifier-free": (ClassifierFreeGuidance(3.0), "replay"),
    "rescaled": (ClassifierFreeGuidance(3.0, guidance_rescale=0.7), "inverted"),
    "zero star": (ClassifierFreeZeroStarGuidance(3.0, zero_init_steps=1), None),
    "tangential": (TangentialClassifierFreeGuidance(3.0), "inverted"),
    "projected": (AdaptiveProjectedGuidance(3.0), "inverted"),
    "projected late": (
        AdaptiveProjectedMixGuidance(
            3.0,
            adaptive_projected_guidance_momentum=None,
            adaptive_projected_guidance_start_step=2,
        ),
        "inverted",
    ),
    "with momentum": (
        AdaptiveProjectedMixGuidance(3.0, adaptive_projected_guidance_start_step=2),
        "black-box",
    ),
}


def generator():
    return torch.Generator().manual_seed(3)


def plain(value):
    """State of a guider in comparable form."""
    return {k: str(v) for k, v in vars(value).items()}


def agrees(pipe, call, door):
    expected = pipe(["a red cat"], generator=generator(), **call)[0]
    before, guider = state_of(pipe), plain(pipe.guider)
    steered = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0)
    out = steered(["a red cat"], generator=generator(), **call)
    assert float((out[0] - expected).abs().max()) < 1e-4
    assert state_of(pipe) == before
    assert plain(pipe.guider) == guider
    if door is not None:
        assert out.steering.settings["door"] == door, out.steering.settings["reason"]
    return expected


SLOW = ("zero star", "tangential", "projected")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in GUIDERS]
)
def test_the_pipelines_own_picture_by_each_guider(tiny, name):
    guider, door = GUIDERS[name]
    unguided = tiny.hunyuan_image(ClassifierFreeGuidance(1.0))
    without = unguided(["a red cat"], generator=generator(), **IMAGE)[0]
    found = agrees(tiny.hunyuan_image(copy.deepcopy(guider)), IMAGE, door)
    assert float((found - without).abs().max()) > 1e-3


def test_videos(tiny):
    agrees(tiny.hunyuan_video(), VIDEO, "replay")


def test_another_guider_is_seen_at_once(tiny):
    pipe = tiny.hunyuan_image(ClassifierFreeGuidance(3.0))
    steered = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0)
    for scale in (3.0, 8.0):
        pipe.guider = pipe.guider.new(guidance_scale=scale)
        expected = pipe(["a red cat"], generator=generator(), **IMAGE)[0]
        found = steered(["a red cat"], generator=generator(), **IMAGE)[0]
        assert float((found - expected).abs().max()) < 1e-4


def test_a_search_by_steps_is_refused_where_each_step_remembers_others(tiny):
    search = FKSteering(2, start=2, every=2)
    options = {"sampler": search, "reward": BRIGHT, "strength": Strength(1.0, "raw"), "seed": 0}
    pipe = tiny.hunyuan_image(ClassifierFreeGuidance(3.0))
    out = SteeredPipeline(pipe, **options)(["a red cat", "two"], **IMAGE)
    assert len(out.images) == 2
    pipe = tiny.hunyuan_image()
    with pytest.raises(MissingAbility, match="depends on the steps before it"):
        SteeredPipeline(pipe, **options)(["a red cat"], **IMAGE)
