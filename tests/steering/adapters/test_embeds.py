"""Prompts that the user encoded go through every door as they go through the pipeline's own call."""

import diffusers
import pytest
import torch
from as_found import state_of
from helpers import FunctionReward

from rewards import PythonFunction
from samplers import BestOfN, FKSteering
from steering.adapters.embeds import Embeds, joined, rows_of
from steering.pipeline import SteeredPipeline
from steering.strength import Strength

PROMPTS = ["a red ring", "two blue cube on the left"]
BRIGHT = PythonFunction(lambda images, prompts: images.mean((1, 2, 3)))
SMALL = {"num_inference_steps": 3, "height": 16, "width": 16}


def generators():
    return [torch.Generator().manual_seed(seed) for seed in (5, 6)]


def encoded(pipe):
    """What the pipeline's own encoder makes of the prompts, moved away from any text's."""
    names: tuple[str, ...] = ("prompt_embeds", "negative_prompt_embeds")
    pooled = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    if isinstance(pipe, diffusers.FluxPipeline):
        names, made = (names[0], pooled[0]), pipe.encode_prompt(PROMPTS, None)[:2]
    elif type(pipe).__name__.startswith("PixArt"):
        names = (names[0], "prompt_attention_mask", names[1], "negative_prompt_attention_mask")
        made = pipe.encode_prompt(PROMPTS, True, clean_caption=False)
    elif isinstance(pipe, diffusers.StableDiffusionXLPipeline):
        names, made = (*names, *pooled), pipe.encode_prompt(PROMPTS)
    else:
        made = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    found = dict(zip(names, made, strict=True))
    return {n: v if "mask" in n else 1.5 * v + 0.1 for n, v in found.items()}


def sd(tiny):
    return tiny.sd(), {"num_inference_steps": 3}


def flux(tiny):
    return tiny.flux(), SMALL


def pixart(tiny):
    return tiny.pixart(), {**SMALL, "use_resolution_binning": False}


def control(tiny):
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return tiny.control(), {"num_inference_steps": 3, "image": picture}


def edm(tiny):
    return tiny.sdxl(diffusers.EDMEulerScheduler()), SMALL


CASES = {
    "replay": (sd, "auto", "replay"),
    "replay, pooled": (flux, "auto", "replay"),
    "replay, masks": (pixart, "auto", "replay"),
    "own loop": (control, "auto", "inverted"),
    "own loop, pooled": (flux, "inverted", "inverted"),
    "black box": (sd, "black-box", "black-box"),
    "black box, pooled": (edm, "auto", "black-box"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_pipelines_own_picture_of_encoded_prompts(tiny, name):
    make, asked, door = CASES[name]
    pipe, call = make(tiny)
    embeds = {**encoded(pipe), "output_type": "pt", **call}
    by_text = pipe(prompt=PROMPTS, generator=generators(), output_type="pt", **call)[0]
    expected = pipe(negative_prompt=None, generator=generators(), **embeds)[0]
    assert float((expected - by_text).abs().max()) > 2e-3
    before = state_of(pipe)
    steered = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0, door=asked)
    for texts in (None, PROMPTS):
        found = steered(prompt=texts, generator=generators(), **embeds).images
        assert float((found - expected).abs().max()) < 1e-4
    assert steered.model(**embeds).door == door
    assert state_of(pipe) == before


def test_other_numbers_of_the_same_form_are_not_learned_anew(tiny):
    pipe, call = sd(tiny)
    embeds = encoded(pipe)
    steered = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0)
    for factor in (1.0, -1.0):
        given = {name: factor * value for name, value in embeds.items()}
        expected = pipe(generator=generators(), output_type="pt", **given, **call)[0]
        found = steered(generator=generators(), output_type="pt", **given, **call).images
        assert float((found - expected).abs().max()) < 1e-4
        assert len(steered._models) == 1


def test_rewards_read_the_texts_that_are_given_beside(tiny):
    pipe, call = sd(tiny)
    embeds = encoded(pipe)
    seen = []

    def note(images, prompts):
        seen.extend(prompts)
        return images.mean((1, 2, 3))

    steered = SteeredPipeline(pipe, sampler=BestOfN(2), reward=PythonFunction(note), seed=0)
    steered(prompt=PROMPTS, **embeds, **call)
    assert sorted(set(seen)) == sorted(PROMPTS)
    reader = FunctionReward(lambda images, features: images.mean((1, 2, 3)))
    reader.needs_text = True
    steered = SteeredPipeline(pipe, sampler=BestOfN(2), reward=reader, seed=0)
    with pytest.raises(TypeError, match=r"reads the prompt.*give prompt= with a text for each"):
        steered(**embeds, **call)
    steered(prompt=PROMPTS, **embeds, **call)


def test_a_search_by_steps_with_a_pilot_and_several_images(tiny):
    pipe, call = sd(tiny)
    embeds = encoded(pipe)
    search = FKSteering(2, start=1, every=1)
    steered = SteeredPipeline(pipe, sampler=search, reward=BRIGHT, strength=Strength(1.0), seed=0)
    out = steered(**embeds, **call, num_images_per_prompt=2, output_type="pt")
    assert out.images.shape[0] == 4
    planned = steered.plan(**embeds, **call, num_images_per_prompt=2)["nfe"]
    assert planned == sum(result.usage.nfe for result in out.steering.results) == 4 * 2 * 3


def test_a_negative_encoding_alone_serves_all_prompts(tiny):
    pipe, call = sd(tiny)
    negative = encoded(pipe)["negative_prompt_embeds"][:1]
    call = {**call, "output_type": "pt"}
    doubled = negative.repeat(2, 1, 1)
    expected = pipe(prompt=PROMPTS, negative_prompt_embeds=doubled, generator=generators(), **call)[
        0
    ]
    steered = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0)
    found = steered(PROMPTS, negative_prompt_embeds=negative, generator=generators(), **call)
    assert float((found.images - expected).abs().max()) < 1e-4


WRONG = {
    "rows": ({"prompt_embeds": torch.zeros(3, 16, 16)}, PROMPTS, ValueError, "has 3 rows for 2"),
    "kind": ({"prompt_embeds": "a cat"}, PROMPTS, TypeError, "a row for each prompt"),
    "none": ({}, None, ValueError, "no prompts"),
    "negative alone": (
        {"negative_prompt_embeds": torch.zeros(1, 16, 16)},
        None,
        ValueError,
        "no prom",
    ),
    "unlike": (
        {"prompt_embeds": torch.zeros(2, 16, 16), "prompt_attention_mask": torch.ones(1, 16)},
        None,
        ValueError,
        "prompt_embeds 2, prompt_attention_mask 1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_before_any_work(tiny, name, monkeypatch):
    embeds, texts, kind, message = WRONG[name]
    pipe, call = sd(tiny)
    steered = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0)
    monkeypatch.setattr(pipe.unet, "forward", pytest.fail)
    before = state_of(pipe)
    with pytest.raises(kind, match=message):
        steered(prompt=texts, **embeds, **call)
    assert state_of(pipe) == before


def test_a_missing_companion_is_said_by_the_pipeline(tiny):
    pipe, call = flux(tiny)
    steered = SteeredPipeline(pipe, sampler=BestOfN(1), reward=BRIGHT, seed=0)
    with pytest.raises(ValueError, match="`pooled_prompt_embeds` also have to be passed"):
        steered(prompt_embeds=torch.zeros(2, 16, 16), **call)


def test_encodings_are_told_apart_by_their_numbers_and_varied_in_their_form():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    rows = rows_of({"prompt_embeds": torch.randn(2, 3, 4), "prompt_attention_mask": mask}, 2)
    again = Embeds({name: value.clone() for name, value in rows[0].arguments.items()})
    assert rows[0] == again
    assert hash(rows[0]) == hash(again)
    assert rows[0] != rows[1]
    assert rows[0].varied(0) is rows[0]
    other = rows[0].varied(1)
    assert other != rows[0]
    assert other == rows[0].varied(1)
    assert torch.equal(other.arguments["prompt_attention_mask"], mask[:1])
    listed = rows_of({"prompt_embeds": [torch.zeros(2, 4), torch.ones(3, 4)]}, 2)
    assert [len(x) for x in joined(listed)["prompt_embeds"]] == [2, 3]
    with pytest.raises(ValueError, match="unlike shapes cannot share"):
        joined([rows[0], Embeds({"prompt_embeds": torch.zeros(1, 9, 4)})])
