"""Wherever something breaks, by whichever door: the pipeline is left as it was found, and works on."""

import pytest
import torch
from as_found import state_of
from helpers import FunctionReward

from samplers import BestOfN, FKSteering
from steering.pipeline import SteeredPipeline
from steering.strength import Strength

CALL = {"num_inference_steps": 3, "output_type": "pt"}
FLUX = {**CALL, "height": 16, "width": 16}
BRIGHT = FunctionReward(lambda images, features: images.mean((1, 2, 3)))
DOORS = ("replay", "inverted", "black-box")
#: A part, and the call of it that breaks: at once, while the pipeline is learned, while it is searched.
PLACES = [
    *(("denoiser", call) for call in (0, 1, 3, 6)),
    ("text_encoder", 0),
    ("text_encoder", 2),
    ("vae.decoder", 0),
    ("vae.decoder", 1),
    ("reward", 0),
]


class Broken(Exception):
    """What breaks."""


class Stopped(BaseException):
    """As a user who presses a key."""


def part_of(pipe, name):
    if name == "denoiser":
        return pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    if name == "reward":
        return BRIGHT
    found = pipe
    for word in name.split("."):
        found = getattr(found, word)
    return found


def breaking(monkeypatch, part, call, error):
    """Let a part raise in one of its calls, without a trace on the part itself."""
    count, method = 0, "prepare" if part is BRIGHT else "forward"
    real = getattr(type(part), method)

    def broken(self, *args, **kwargs):
        nonlocal count
        if self is part:
            count += 1
            if count > call:
                raise error("it broke")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(part), method, broken)


@pytest.mark.parametrize("error", [Broken, pytest.param(Stopped, marks=pytest.mark.slow)])
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_after_an_error(tiny, monkeypatch, door, place, error):
    pipe = tiny.sd()
    expected = pipe(["a cat"], generator=torch.Generator().manual_seed(1), **CALL).images
    before, scheduler = state_of(pipe), pipe.scheduler
    steered = SteeredPipeline(pipe, sampler=BestOfN(2), reward=BRIGHT, seed=0, door=door)
    with monkeypatch.context() as patch:
        breaking(patch, part_of(pipe, place[0]), place[1], error)
        with pytest.raises((Broken, Stopped, RuntimeError, ValueError)):
            steered(["a cat", "two stars"], **CALL)
    assert pipe.scheduler is scheduler
    assert state_of(pipe) == before
    again = pipe(["a cat"], generator=torch.Generator().manual_seed(1), **CALL).images
    assert torch.equal(again, expected)
    one = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0, door=door)
    found = one(["a cat"], generator=torch.Generator().manual_seed(1), **CALL).images
    assert float((found - expected).abs().max()) < 1e-4
    assert state_of(pipe) == before


@pytest.mark.parametrize("door", DOORS[:2])
def test_after_an_error_in_a_search_by_steps_of_a_model_that_was_learned(tiny, monkeypatch, door):
    """The same steered pipeline goes on, its suspended calls among it."""
    pipe = tiny.flux()
    pipe(["a cat"], **FLUX)
    before = state_of(pipe)
    search, lam = FKSteering(3, start=1, every=1), Strength(1.0, "raw")
    steered = SteeredPipeline(pipe, sampler=search, reward=BRIGHT, strength=lam, seed=0, door=door)
    expected = steered(["a cat"], **FLUX).images
    with monkeypatch.context() as patch:
        breaking(patch, pipe.transformer, 1, Broken)
        with pytest.raises(RuntimeError, match="it broke"):
            steered(["a cat"], **FLUX)
        assert state_of(pipe) == before
    assert torch.equal(steered(["a cat"], **FLUX).images, expected)
    assert state_of(pipe) == before
