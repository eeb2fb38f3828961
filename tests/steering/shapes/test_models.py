import json
import warnings

import pytest
import torch

from steering.shapes import folder, load_clip, parse, prompts, render, verify
from steering.shapes.files import MODELS

FLUX = {
    "true_cfg_scale": 1.5,
    "negative_prompt": "",
    "height": 64,
    "width": 64,
    "max_sequence_length": 24,
}


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        warnings.simplefilter("ignore", FutureWarning)
        yield


def test_weights_are_small_safetensors():
    weights = folder("shapes-sd").parent
    files = [path for path in weights.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json"}
    sizes = [path.stat().st_size for path in files]
    assert max(sizes) < 16e6
    assert sum(sizes) < 50e6


def test_shapes_sd_is_a_plain_pipeline():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder("shapes-sd"))
    pipeline.set_progress_bar_config(disable=True)
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    texts = ["a red ring", "a blue star"] * 2
    images = pipeline(
        texts,
        num_inference_steps=10,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    assert images.shape == (4, 3, 64, 64)
    assert verify(images, texts).sum() >= 3


def test_shapes_flux_is_a_plain_pipeline():
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(folder("shapes-flux"))
    pipeline.set_progress_bar_config(disable=True)
    assert {pipeline.transformer.dtype, pipeline.text_encoder_2.dtype} == {torch.float32}
    texts = ["a red ring", "a blue star"] * 2
    images = pipeline(
        texts,
        num_inference_steps=15,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        **FLUX,
    ).images
    assert images.shape == (4, 3, 64, 64)
    assert verify(images, texts).sum() >= 3


def test_pictures_survive_the_autoencoder():
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder("shapes-sd"), subfolder="vae")
    texts = prompts("easy")[::8]
    images = render([parse(text) for text in texts], seed=0)
    with torch.no_grad():
        copies = vae(2 * images - 1).sample / 2 + 0.5
    assert verify(copies, texts).float().mean() >= 0.98
    other = AutoencoderKL.from_pretrained(folder("shapes-flux"), subfolder="vae")
    assert torch.equal(vae.decoder.conv_in.weight, other.decoder.conv_in.weight)


def test_shapes_clip_prefers_the_true_caption():
    model, tokenizer = load_clip()
    assert next(model.parameters()).dtype == torch.float32
    texts = [f"a {colour} ring left of a cross" for colour in ("red", "green", "blue")] * 8
    wrong = [text.replace("left", "right").replace("cross", "star") for text in texts]
    images = 2 * render([parse(text) for text in texts], seed=0) - 1
    with torch.no_grad():
        seen = model.encode_image(images, normalize=True)
        told, tempted = (
            model.encode_text(tokenizer(lines), normalize=True) for lines in (texts, wrong)
        )
    assert ((seen * told).sum(-1) > (seen * tempted).sum(-1)).float().mean() > 0.8


def test_words_of_the_grammar_are_single_tokens():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder("shapes-sd"), subfolder="tokenizer")
    for text in prompts("hard"):
        words = text.replace(",", " ,").split()
        numbers = tokenizer(text).input_ids
        assert len(numbers) == len(words) + 2 <= 24
        assert tokenizer.unk_token_id not in numbers[:-1]


def test_the_card_states_the_bars():
    card = json.loads((folder("shapes-sd").parent / "card.json").read_text())
    assert card["judge"]["accepts"] >= 0.995
    assert card["judge"]["accepts_after_vae"] >= 0.98
    assert card["judge"]["rejects_negatives"] >= 0.99
    assert 0.90 <= card["shapes-clip"]["overall"] <= 0.98
    assert min(card["shapes-clip"].values()) >= 0.75
    assert 0.70 <= card["shapes-sd"]["easy"]["overall"] <= 0.93
    assert card["shapes-sd"]["easy"]["single"] >= 0.97
    assert card["shapes-sd"]["easy"]["counting"] >= 0.85
    assert 0.50 <= card["shapes-flux"]["easy"]["overall"] <= 0.85
    for name in MODELS[:2]:
        assert 0.02 <= card[name]["hard"]["overall"] <= 0.15
        assert card[name]["hard"]["samples_per_prompt"] >= 64
        assert list(card[name]["hard"]["by_prompt"]) == prompts("hard")
        assert card[name]["spread"] > 0
