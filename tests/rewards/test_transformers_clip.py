"""CLIP-like models of transformers, against the library's own processors and forward."""

import pytest
import torch
from PIL import Image
from reward_models import clip_folder, siglip_folder
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BlipImageProcessor,
    CLIPImageProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from rewards import PickScore, TransformersCLIPScore, WeightsUnavailable
from rewards.preprocessing import Preprocess
from rewards.testing import check_reward
from steering.reward import Item

ITEMS = [Item("a red ring"), Item("two star"), Item("a blue cross left of a ring")]
SIZES = [(32, 32), (20, 32), (97, 160), (301, 200), (768, 512)]
MAKERS = {"clip": clip_folder, "siglip": siglip_folder}


@pytest.fixture(scope="module", params=list(MAKERS))
def folder(request, tmp_path_factory):
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param) / "tiny")


def pil(pictures):
    return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures]


def official(folder, pictures, prompt):
    """What the library's documentation does: PIL pictures through processor and model."""
    net = AutoModel.from_pretrained(folder)
    siglip = net.config.model_type == "siglip"
    config = AutoImageProcessor.from_pretrained(folder).to_dict()
    kind = SiglipImageProcessorPil if siglip else CLIPImageProcessorPil
    options = {k: config[k] for k in ("size", "crop_size") if config.get(k)}
    pixels = kind(**options)(images=pil(pictures), return_tensors="pt").pixel_values
    told = AutoTokenizer.from_pretrained(folder)(
        [prompt],
        padding="max_length" if siglip else True,
        truncation=True,
        max_length=16,
        return_tensors="pt",
    )
    with torch.no_grad():
        return net(pixel_values=pixels, **told).logits_per_image[:, 0]


@pytest.mark.parametrize("size", SIZES)
def test_scores_are_those_of_the_library(folder, pictures, size):
    media = pictures(16, *size)
    reward = TransformersCLIPScore(str(folder), output="logit")
    feature = reward.prepare(Item("two red ring"))
    ours = reward(media / 255, [feature] * 16)
    theirs = official(folder, media, "two red ring")
    assert (ours - theirs).square().mean().sqrt() < 1e-3 * theirs.std()


def test_cosine_and_logit(folder, pictures):
    media = pictures(3, 40, 36) / 255
    cosine, logit = (TransformersCLIPScore(str(folder), output=o) for o in ("cosine", "logit"))
    assert cosine.encoder is logit.encoder
    features = [cosine.prepare(item) for item in ITEMS]
    net = cosine.encoder.net
    bias = getattr(net, "logit_bias", torch.tensor(0.0))
    expected = cosine(media, features) / 100 * net.logit_scale.exp() + bias
    torch.testing.assert_close(logit(media, features), expected)
    assert cosine.name == "clip-tiny"


@pytest.mark.parametrize("kind", list(MAKERS))
def test_declared_abilities(kind, tmp_path, pictures):
    reward = TransformersCLIPScore(str(MAKERS[kind](tmp_path / "tiny", scale=1.0)))
    check_reward(reward, pictures(3, 32, 32) / 255 * 0.8 + 0.1, ITEMS, step=0.02)


def test_pickscore_is_the_logit(tmp_path, pictures):
    folder = clip_folder(tmp_path / "tiny")
    media = pictures(3, 40, 36)
    reward = PickScore(str(folder))
    assert reward.name == "pickscore"
    assert reward.differentiable
    ours = reward(media / 255, [reward.prepare(Item("two red ring"))] * 3)
    torch.testing.assert_close(ours, official(folder, media, "two red ring"), rtol=1e-3, atol=1e-3)


def test_pickles_are_refused_with_a_command_that_converts_them(tmp_path, pictures):
    from rewards.conversion import main

    folder = clip_folder(tmp_path / "tiny")
    net = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(net.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is a pickle") as error:
        PickScore(str(folder))
    loaded = PickScore(str(folder), allow_pickle=True).encoder.net
    command = next(line for line in str(error.value).splitlines() if "rewards.conversion" in line)
    main(command.split()[3:])
    for again in (loaded, PickScore(str(folder)).encoder.net):
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in again.state_dict().items())


def test_without_a_network_it_says_what_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailable, match=r"copy config\.json, model\.safetensors"):
        PickScore(cache_dir=str(tmp_path))


def test_nonsense_is_refused(tmp_path):
    with pytest.raises(ValueError, match="output is cosine or logit, got 'sigmoid'"):
        TransformersCLIPScore(str(tmp_path), output="sigmoid")


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (CLIPImageProcessor(do_center_crop=False), "needs a reward class of its own"),
        (CLIPImageProcessor(resample=0), "resample"),
        (BlipImageProcessor(do_rescale=False), "BlipImageProcessor is not a resize"),
        (
            CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size=30),
            "give one size for both",
        ),
    ],
)
def test_processors_that_do_something_else_are_refused(processor, message):
    with pytest.raises(ValueError, match=message):
        Preprocess.from_processor(processor)


def test_a_resize_larger_than_the_crop(pictures):
    options = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 33}}
    ours = Preprocess.from_processor(CLIPImageProcessor(**options))
    media = pictures(2, 77, 61)
    theirs = CLIPImageProcessorPil(**options)(images=pil(media), return_tensors="pt").pixel_values
    assert ours(media / 255).shape == theirs.shape
    assert (ours(media / 255) - theirs).abs().mean() < 1e-3
