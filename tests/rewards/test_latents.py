"""Gradients of every differentiable reward of pictures, through a real decoder to the latents."""

import inspect

import pytest
import torch
from reward_models import bert_tokenizer
from reward_models import clip_folder as transformers_clip
from safetensors.torch import save_file
from transformers import BlipConfig

import rewards as package
from rewards import (
    AestheticScore,
    CLIPScore,
    ContrastiveScore,
    HPSv2,
    ImageReward,
    OpenClipEncoder,
    PickScore,
    Product,
    PythonFunction,
    ShapesCLIP,
    TransformersCLIPScore,
    WeightedSum,
)
from rewards.blip import BlipReward
from steering import shapes
from steering.reward import Item

PROMPTS = ("a red ring", "two blue squares")
OF_VIDEOS = {"ColourMotion", "MotionAmount", "MotionSmoothness", "ShapesConsistency"}
STEP = 0.05  #: length in latents, whose spread is 1
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


@pytest.fixture
def made(net, tokenizer, clip_folder, tmp_path):
    """Every differentiable reward of pictures by its class's name, with tiny random weights."""
    torch.manual_seed(2)
    head = tmp_path / "head.safetensors"
    save_file({"layers.0.weight": torch.randn(1, 24), "layers.0.bias": torch.zeros(1)}, head)
    theirs = str(transformers_clip(tmp_path / "transformers", scale=1.0))
    clip = CLIPScore(str(clip_folder))
    light = PythonFunction(lambda media, _: media.mean((1, 2, 3)), name="l", differentiable=True)
    red = PythonFunction(lambda media, _: media[:, 0].mean((1, 2)), name="r", differentiable=True)
    return {
        "CLIPScore": clip,
        "ContrastiveScore": ContrastiveScore(OpenClipEncoder(net, tokenizer)),
        "HPSv2": HPSv2(str(clip_folder)),
        "AestheticScore": AestheticScore(str(head), str(clip_folder), None),
        "TransformersCLIPScore": TransformersCLIPScore(theirs),
        "PickScore": PickScore(theirs),
        "ImageReward": ImageReward(str(_image_reward(tmp_path / "image-reward"))),
        "ShapesCLIP": ShapesCLIP(),
        "PythonFunction": red,
        "WeightedSum": WeightedSum({"clip": clip, "light": light}, {"light": 20.0}),
        "Product": Product({"light": light, "red": red}, {"red": 2.0}),
    }


def _image_reward(folder):
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    text = {**TOWER, "vocab_size": 40, "max_position_embeddings": 40}
    config = BlipConfig(text_config=text, vision_config=vision)
    config.head_widths, config.head_places = [32, 1], [0]
    bert_tokenizer(folder)
    net = BlipReward(config)
    for weights in net.parameters():  # the library's own begin at next to nothing
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.3)
    save_file(
        {k: v.contiguous() for k, v in net.state_dict().items()}, folder / "model.safetensors"
    )
    config.save_pretrained(folder)
    return folder


def test_every_differentiable_class_is_looked_at(made):
    declared = {
        name
        for name in package.__all__
        if inspect.isclass(kind := getattr(package, name)) and getattr(kind, "differentiable", 0)
    }
    assert declared - OF_VIDEOS <= set(made)


def test_gradients_reach_the_latents(made, shapes_sd, monkeypatch):
    """Central differences along the gradient; of scores without the preprocessing's roundings to 8 bits.

    Gradients pass those as if they were not there, and a step across many of them leaves the slope.
    """
    vae = shapes_sd.vae
    scenes = torch.stack([shapes.render([shapes.parse(p)], seed=1)[0] for p in PROMPTS])
    with torch.no_grad():
        z = vae.encode(scenes * 2 - 1).latent_dist.mean

    def decoded(z):
        return (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)

    for name, reward in made.items():
        features = [reward.prepare(Item(prompt)) for prompt in PROMPTS]

        def total(z, reward=reward, features=features):
            found = reward(decoded(z), features)
            return found if isinstance(found, torch.Tensor) else found[reward.name]

        start = z.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(total(start).sum(), start)
        slope = gradient.flatten(1).norm(dim=1)
        assert bool((slope > 1e-5).all()), name
        step = STEP * gradient / slope[:, None, None, None]
        with torch.no_grad(), monkeypatch.context() as patch:
            patch.setattr("rewards.preprocessing._rounded", lambda levels: levels.clamp(0, 255))
            measured = (total(z + step) - total(z - step)) / (2 * STEP)
        torch.testing.assert_close(measured, slope, rtol=0.02, atol=0, msg=f"{name}: {measured}")
