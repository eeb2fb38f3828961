"""HPS v2, the aesthetic predictor and ImageReward, against the published way to compute them."""

import json

import open_clip
import pytest
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from reward_models import bert_tokenizer, spread
from safetensors.torch import save_file
from torch import nn
from torchvision import transforms
from transformers import AutoTokenizer, BertConfig, BertModel

from rewards import AestheticScore, CLIPScore, HPSv2, ImageReward
from rewards.conversion import hps_config, main
from rewards.testing import check_reward
from steering.reward import Item

ITEMS = [Item("a red ring"), Item("two star"), Item("a blue cross left of a ring")]
SIZES = [(32, 32), (97, 160), (768, 512)]


def pil(pictures):
    return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures]


def agree(ours, theirs):
    return (ours - theirs).square().mean().sqrt() < 1e-3 * theirs.std()


def command_of(error):
    """Arguments of the conversion that a refusal names."""
    [line] = [x for x in str(error.value).splitlines() if "rewards.conversion" in x]
    return line.split()[3:]


# ---- HPS v2


@pytest.fixture
def hps_folder(net, clip_folder, tmp_path, monkeypatch):
    """The tiny CLIP as HPS is published, converted by the command that the refusal names."""
    tiny = json.loads((clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: tiny)
    published = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"epoch": 1, "state_dict": net.state_dict()}, published)
    with pytest.raises(ValueError, match="is a pickle") as error:
        HPSv2(str(published))
    return main(command_of(error))


@pytest.mark.parametrize("size", SIZES)
def test_hps_is_the_published_one(net, tokenizer, hps_folder, pictures, size):
    media = pictures(16, *size)
    reward = HPSv2(str(hps_folder))
    assert reward.name == "hps-v2.1"
    ours = reward(media / 255, [reward.prepare(Item("two red rings"))] * 16)
    transform = image_transform_v2(PreprocessCfg(size=32, resize_mode="longest"), is_train=False)
    with torch.no_grad():
        images = net.encode_image(torch.stack([transform(p) for p in pil(media)]), normalize=True)
        texts = net.encode_text(tokenizer(["two red rings"]), normalize=True)
    assert agree(ours, (images @ texts.T)[:, 0])


def test_hps_abilities(hps_folder, pictures):
    check_reward(HPSv2(str(hps_folder)), pictures(3, 32, 32) / 255 * 0.8 + 0.1, ITEMS)


def test_hps_published_file_itself(hps_folder, pictures, tmp_path):
    media = pictures(2, 40, 32) / 255
    rewards = [HPSv2(str(hps_folder))]
    rewards += [HPSv2(str(tmp_path / "HPS_v2.1_compressed.pt"), allow_pickle=True)]
    scores = [r(media, [r.prepare(Item("a ring"))] * 2) for r in rewards]
    assert torch.equal(*scores)


def test_hps_is_a_vit_h():
    config = hps_config()
    assert config["model_cfg"]["embed_dim"] == 1024
    assert config["preprocess_cfg"]["resize_mode"] == "longest"
    assert config["preprocess_cfg"]["size"] == 224


def test_hub_ids_say_how_to_convert():
    with pytest.raises(ValueError, match=r"hf download xswu/HPSv2 HPS_v2\.1_comp") as error:
        HPSv2()
    assert command_of(error) == [
        "weights/HPS_v2.1_compressed.pt",
        "weights/HPS_v2.1_compressed",
        "--layout",
        "hps",
    ]
    with pytest.raises(ValueError, match=r"hf download THUDM/ImageReward ImageReward\.pt"):
        ImageReward()
    with pytest.raises(ValueError, match=r"hf download trl-lib/ddpo-aesthetic-predictor"):
        AestheticScore()
    with pytest.raises(ValueError, match=r"version is one of v2\.0, v2\.1; got 'v3'"):
        HPSv2(version="v3")


# ---- aesthetic


def published_head(width):
    """The head as published: linear layers with dropout between."""
    torch.manual_seed(1)
    layers = [nn.Linear(width, 20), nn.Dropout(0.2), nn.Linear(20, 8), nn.Linear(8, 1)]
    head = nn.Module()
    head.layers = nn.Sequential(*layers)
    return head.eval()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("old", [False, True])
def test_aesthetic_is_the_published_one(net, clip_folder, pictures, tmp_path, size, old):
    head = nn.Linear(24, 1) if old else published_head(24)
    file = tmp_path / "head.pth"
    torch.save(head.state_dict(), file)
    with pytest.raises(ValueError, match="is a pickle") as error:
        AestheticScore(str(file), str(clip_folder), None)
    reward = AestheticScore(str(main(command_of(error))), str(clip_folder), None)
    media = pictures(16, *size)
    transform = image_transform_v2(PreprocessCfg(**net.visual.preprocess_cfg), is_train=False)
    with torch.no_grad():
        images = net.encode_image(torch.stack([transform(p) for p in pil(media)]), normalize=True)
        theirs = (head if old else head.layers)(images)[:, 0]
    assert agree(reward(media / 255, [None] * 16), theirs)


@pytest.fixture
def head_file(tmp_path):
    file = tmp_path / "head.safetensors"
    save_file(published_head(24).state_dict(), file)
    return str(file)


def test_aesthetic_abilities(clip_folder, head_file, pictures):
    reward = AestheticScore(head_file, str(clip_folder), None)
    check_reward(reward, pictures(3, 32, 32) / 255 * 0.8 + 0.1, [Item("")] * 3)
    assert reward.encoder is CLIPScore(str(clip_folder)).encoder


def test_a_head_of_another_model_is_refused(clip_folder, tmp_path):
    file = tmp_path / "head.safetensors"
    save_file(published_head(32).state_dict(), file)
    with pytest.raises(ValueError, match="takes embeddings of 32 numbers"):
        AestheticScore(str(file), str(clip_folder), None)
    save_file({"layers.0.weight": torch.zeros(4, 24), "layers.0.bias": torch.zeros(4)}, file)
    with pytest.raises(ValueError, match="linear layers that end in one number"):
        AestheticScore(str(file), str(clip_folder), None)


# ---- ImageReward


class Published(nn.Module):
    """The published architecture under the published names, of timm's ViT and BERT."""

    def __init__(self, words):
        super().__init__()
        torch.manual_seed(0)
        self.blip = nn.Module()
        self.blip.visual_encoder = timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2, num_classes=0
        )
        self.blip.visual_encoder.norm = self.blip.visual_encoder.norm or nn.LayerNorm(128, 1e-6)
        config = BertConfig(
            vocab_size=words,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=1,
            is_decoder=True,
            add_cross_attention=True,
            max_position_embeddings=40,
        )
        config._attn_implementation = "eager"
        self.blip.text_encoder = BertModel(config, add_pooling_layer=False)
        for layer in self.blip.text_encoder.encoder.layer:
            for name in ("key", "value"):  # they look at pictures of another width
                setattr(layer.crossattention.self, name, nn.Linear(128, 64))
        self.mlp = published_head(64)
        spread(self)
        nn.init.zeros_(self.blip.text_encoder.embeddings.token_type_embeddings.weight)  # has none
        # The published one looks both ways, which this library's BERT does only if it is no decoder.
        self.blip.text_encoder.config.is_decoder = False

    def forward(self, pixels, told):
        pictures = self.blip.visual_encoder.forward_features(pixels)
        out = self.blip.text_encoder(
            input_ids=told.input_ids,
            attention_mask=told.attention_mask,
            encoder_hidden_states=pictures,
            encoder_attention_mask=torch.ones(pictures.shape[:2], dtype=torch.long),
        )
        raw = self.mlp.layers(out.last_hidden_state[:, 0])[:, 0]
        return (raw - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture
def published(tmp_path):
    words = AutoTokenizer.from_pretrained(bert_tokenizer(tmp_path / "bert"))
    return Published(len(words)).eval(), words


@pytest.fixture
def image_reward(published, tmp_path):
    """The converted folder, by the command that the refusal of the published file names."""
    net, _ = published
    file = tmp_path / "ImageReward.pt"
    extra = {"blip.itm_head.weight": torch.zeros(2, 64), "blip.temp": torch.zeros(())}
    held = {k: v for k, v in net.state_dict().items() if "token_type" not in k}
    torch.save({**held, **extra}, file)
    with pytest.raises(ValueError, match="is a pickle") as error:
        ImageReward(str(file))
    folder = main(command_of(error))
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json"}
    return folder


@pytest.mark.parametrize("size", SIZES)
def test_image_reward_is_the_published_one(published, image_reward, pictures, tmp_path, size):
    net, words = published
    media = pictures(16, *size)
    reward = ImageReward(str(image_reward), tokenizer=str(tmp_path / "bert"))
    ours = reward(media / 255, [reward.prepare(Item("two red ring"))] * 16)
    channels = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    transform = transforms.Compose(
        [
            transforms.Resize(32, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(*channels),
        ]
    )
    told = words(
        ["two red ring"] * 16,
        padding="max_length",
        truncation=True,
        max_length=35,
        return_tensors="pt",
    )
    with torch.no_grad():
        theirs = net(torch.stack([transform(p) for p in pil(media)]), told)
    assert theirs.std() > 1e-2
    assert agree(ours, theirs)


def test_image_reward_abilities(image_reward, pictures, tmp_path):
    bert_tokenizer(image_reward)  # found in the folder
    reward = ImageReward(str(image_reward))
    check_reward(reward, pictures(3, 32, 32) / 255 * 0.8 + 0.1, ITEMS, step=0.1)
    config = json.loads((image_reward / "config.json").read_text())
    assert config["vision_config"]["layer_norm_eps"] == 1e-6


def test_image_reward_published_file_itself(image_reward, pictures, tmp_path):
    media, words = pictures(2, 40, 32) / 255, str(tmp_path / "bert")
    rewards = [ImageReward(str(image_reward), tokenizer=words)]
    rewards += [ImageReward(str(tmp_path / "ImageReward.pt"), tokenizer=words, allow_pickle=True)]
    scores = [r(media, [r.prepare(Item("a ring"))] * 2) for r in rewards]
    torch.testing.assert_close(*scores)


def test_conversions_that_cannot_be(tmp_path, net):
    file = tmp_path / "other.pt"
    torch.save(net.state_dict(), file)
    with pytest.raises(ValueError, match="it is no ImageReward checkpoint"):
        main([str(file), str(tmp_path / "folder"), "--layout", "image-reward"])
    with pytest.raises(ValueError, match=r"writes a file \*\.safetensors, got the target"):
        main([str(file), str(tmp_path / "folder")])
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        main([str(tmp_path / "none.pt"), str(tmp_path / "x.safetensors")])
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="is no weight file"):
        HPSv2(str(tmp_path / "notes.txt"))
    with pytest.raises(FileNotFoundError, match="should hold open_clip_model"):
        HPSv2(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no hub id of the form owner/name"):
        HPSv2("./nowhere")
