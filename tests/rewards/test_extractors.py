import json

import pytest
import torch
from torchmetrics.multimodal import CLIPScore
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from rewards import WeightsUnavailable
from rewards.extractors import ImageFeatures, load_pair

PROMPTS = ["a ring", "two stars", "three squares"]
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory):
    """A tiny random CLIP model of transformers, with a tokenizer of single letters."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(i) for i in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), model_max_length=40)
    text = {**TOWER, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    net = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    net.save_pretrained(folder)
    side = {"shortest_edge": 32}
    images = CLIPImageProcessor(size=side, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_transformers_models_score_as_they_do_themselves(transformers_folder, pictures):
    media = pictures(3, 50, 40)
    pair = load_pair(str(transformers_folder))
    metric = CLIPScore(lambda: (pair, pair.processor))
    net = CLIPModel.from_pretrained(transformers_folder).eval()
    processor = CLIPProcessor.from_pretrained(transformers_folder)
    inputs = processor(text=PROMPTS, images=list(media), return_tensors="pt", padding=True)
    with torch.no_grad():
        metric.update(media, PROMPTS)
        cosines = net(**inputs).logits_per_image.diagonal() / net.logit_scale.exp()
    assert float(metric.compute()) == pytest.approx(max(float(100 * cosines.mean()), 0), abs=1e-4)
    assert ImageFeatures(pair)(media).shape == (3, 16)


def test_open_clip_folders_are_told_from_those_of_transformers(clip_folder, net, pictures):
    media = pictures(3, 32, 32)
    features = ImageFeatures(load_pair(str(clip_folder)))(media)
    mean, std = (torch.tensor(net.visual.preprocess_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    torch.testing.assert_close(features, net.encode_image((media / 255 - mean) / std))


@pytest.mark.parametrize("name", ["openai/no-such-clip", "hf-hub:nobody/no-such-clip"])
def test_without_a_network_it_says_what_to_put_where(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailable, match="give that folder"):
        load_pair(name)


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown CLIP model 'shapes-clop'"):
        load_pair("shapes-clop")
    with pytest.raises(ValueError, match="is neither a file nor a tag"):
        load_pair("ViT-L-14:opanai")
