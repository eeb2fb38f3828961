"""The trained model of moving shapes."""

import json

import pytest
import torch

from steering import SteeredPipeline
from steering.shapes import folder, judge_motion

CALL = {"num_inference_steps": 8, "guidance_scale": 2.0, "num_frames": 8}


@pytest.fixture(scope="module")
def path():
    try:
        return folder("shapes-video")
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pipe(path):
    from diffusers import AnimateDiffPipeline

    pipeline = AnimateDiffPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_it_is_a_plain_pipeline_that_moves_shapes(pipe):
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    texts = ["a red circle moving left", "a blue square moving down"]
    frames = pipe(
        texts, generator=torch.Generator().manual_seed(0), output_type="pt", **CALL
    ).frames
    assert frames.shape == (2, 8, 3, 64, 64)
    verdict = judge_motion(frames.clamp(0, 1), texts)
    assert verdict.shows.float().mean() > 0.5
    assert verdict.moves.any()


def test_it_is_replayed_and_differentiable(pipe):
    from rewards import ColourMotion
    from samplers import BestOfN

    steered = SteeredPipeline(pipe, sampler=BestOfN(1), reward=ColourMotion(), seed=0)
    model = steered.model(**(CALL | {"num_inference_steps": 4}))
    assert model.door == "replay"
    assert model.abilities.gradients


def test_its_words_are_single_tokens(path):
    from transformers import CLIPTokenizer

    from steering.shapes import prompts

    tokenizer = CLIPTokenizer.from_pretrained(path, subfolder="tokenizer")
    for text in prompts("motion"):
        assert len(tokenizer(text).input_ids) == len(text.split()) + 2 <= 24


def test_the_card_states_the_bars(path):
    card = json.loads((path.parent / "card-video.json").read_text())
    assert card["judge"]["accepts"] == 1
    assert card["judge"]["accepts_after_vae"] >= 0.97
    assert card["judge"]["rejects_backwards"] == 1
    assert 0.1 <= card["right"]["overall"] <= 0.95, "a base that a search can better"
    assert sum(p.stat().st_size for p in path.rglob("*.safetensors")) < 25e6
