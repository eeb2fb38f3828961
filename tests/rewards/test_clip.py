import shlex

import open_clip
import pytest
import torch

from rewards import CLIPScore, ContrastiveScore, OpenClipEncoder, WeightsUnavailable
from rewards.encoders import conversion_command
from rewards.testing import check_reward
from steering.reward import Item

ITEMS = [Item("a red ring"), Item("two stars"), Item("a blue cross left of a ring")]


def test_declared_abilities(net, tokenizer, pictures):
    reward = ContrastiveScore(OpenClipEncoder(net, tokenizer))
    check_reward(reward, pictures(3, 32, 32) / 255 * 0.8 + 0.1, ITEMS)


def test_declared_abilities_with_a_resize(net, tokenizer, pictures):
    reward = ContrastiveScore(OpenClipEncoder(net, tokenizer))
    check_reward(reward, pictures(3, 64, 48) / 255 * 0.8 + 0.1, ITEMS, step=1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_declared_abilities_on_a_gpu(net, tokenizer, pictures):
    media = (pictures(3, 32, 32) / 255 * 0.8 + 0.1).cuda()
    check_reward(ContrastiveScore(OpenClipEncoder(net, tokenizer)), media, ITEMS, tolerance=1e-3)
    stays = ContrastiveScore(OpenClipEncoder(net, tokenizer), device="cpu")
    assert stays(media, [stays.prepare(item) for item in ITEMS]).device == media.device
    assert next(stays.encoder.parameters()).device.type == "cpu"


def test_is_a_hundred_times_the_cosine(net, tokenizer, pictures):
    media = pictures(3, 32, 32) / 255
    reward = ContrastiveScore(OpenClipEncoder(net, tokenizer))
    scores = reward(media, [reward.prepare(item) for item in ITEMS])
    mean, std = (torch.tensor(net.visual.preprocess_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    images = net.encode_image((media - mean) / std)
    texts = net.encode_text(tokenizer([item.prompt for item in ITEMS]))
    torch.testing.assert_close(scores, 100 * torch.cosine_similarity(images, texts))


def test_half_precision_scores_are_close(net, tokenizer, pictures):
    media = pictures(3, 32, 32) / 255
    exact = ContrastiveScore(OpenClipEncoder(net, tokenizer))
    reference = exact(media, [exact.prepare(item) for item in ITEMS])
    half = ContrastiveScore(OpenClipEncoder(net, tokenizer, dtype="bfloat16"))
    scores = half(media, [half.prepare(item) for item in ITEMS])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, reference, atol=3.0, rtol=0)


def test_loads_a_folder(net, clip_folder, tokenizer, pictures):
    media = pictures(3, 40, 32) / 255
    expected = ContrastiveScore(OpenClipEncoder(net, tokenizer))
    for name in (str(clip_folder), f"local-dir:{clip_folder}"):
        loaded = CLIPScore(name)
        assert loaded.name == "clip-tiny-clip"
        torch.testing.assert_close(
            loaded(media, [loaded.prepare(item) for item in ITEMS]),
            expected(media, [expected.prepare(item) for item in ITEMS]),
        )


def test_loading_sounds_no_alarm(clip_folder, caplog):
    CLIPScore(str(clip_folder))
    assert "randomly" not in caplog.text


def test_pickles_are_refused_with_a_command_that_converts_them(net, clip_folder):
    (clip_folder / "open_clip_model.safetensors").unlink()
    pickled = clip_folder / "open_clip_pytorch_model.bin"
    torch.save({"state_dict": net.state_dict()}, pickled)
    with pytest.raises(ValueError, match="is a pickle") as error:
        CLIPScore(str(clip_folder))
    command = conversion_command(pickled)
    assert command in str(error.value)
    assert CLIPScore(str(clip_folder), allow_pickle=True).name == "clip-tiny-clip"
    run_here(command)
    loaded = CLIPScore(str(clip_folder)).encoder.net.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in net.state_dict().items())


def run_here(command):
    """Run a ``python -c`` command in this process: a new one would import torch again."""
    words = shlex.split(command)
    assert words[:2] == ["python", "-c"]
    arguments = ["-c", *words[3:]]
    exec(words[2].replace("import sys; ", f"sys = type('', (), {{'argv': {arguments!r}}}); "), {})


def test_a_pickle_never_wins_over_safetensors(clip_folder):
    (clip_folder / "open_clip_model.safetensors").rename(clip_folder / "other.safetensors")
    (clip_folder / "open_clip_pytorch_model.bin").write_bytes(b"no weights")
    CLIPScore(str(clip_folder))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("ViT-L-41", "openai"), ValueError, "unknown CLIP model 'ViT-L-41'; nearest .*ViT-L-14"),
        (("ViT-L-14",), ValueError, "needs pretrained=…: a file, or one of the tags openai"),
        (("ViT-L-14", "opanai"), ValueError, "neither a file nor a tag .* its tags: openai"),
        (("./nowhere",), FileNotFoundError, "no folder 'nowhere'"),
        (("someone/something", "openai"), ValueError, "goes with a built-in name only"),
    ],
)
def test_unknown_models(arguments, error, message):
    with pytest.raises(error, match=message):
        CLIPScore(*arguments)


def test_a_folder_that_lacks_a_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"open_clip_config\.json .* holds config\.json"):
        CLIPScore(str(tmp_path))


@pytest.mark.parametrize("arguments", [("hf-hub:nobody/nothing",), ("RN50", "openai")])
def test_without_a_network_it_says_what_to_put_where(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailable, match=r"copy open_clip_config\.json and"):
        CLIPScore(*arguments, cache_dir=str(tmp_path))


def test_quick_gelu_of_the_weights_is_obeyed(net, clip_folder, monkeypatch):
    asked = {}

    def create(*_, **options):
        asked.update(options)
        return net

    weights = clip_folder / "open_clip_model.safetensors"
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *_, **__: str(weights))
    monkeypatch.setattr(open_clip, "create_model", create)
    assert CLIPScore("ViT-L-14", "openai").name == "clip-ViT-L-14-openai"
    assert asked["force_quick_gelu"] is True
    CLIPScore("ViT-L-14", "laion2b_s32b_b82k")
    assert asked["force_quick_gelu"] is False


def test_weights_from_a_file(net, clip_folder, monkeypatch):
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: net)
    reward = CLIPScore("ViT-L-14", str(clip_folder / "open_clip_model.safetensors"))
    assert reward.name == "clip-ViT-L-14-open_clip_model"
