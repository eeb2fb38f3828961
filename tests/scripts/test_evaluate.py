import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from rewards import CLIPScore
from rewards.extractors import ImageFeatures, load_pair
from steering.media import load_pictures
from steering.reward import Item

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"
PROMPTS = ["a ring", "two stars", "a red cross", "three squares", "a star", "a blue ring"]
CONFIG = {
    "embed_dim": 4,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("evaluate_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_models(monkeypatch):
    """Fails the test if a model is loaded."""

    def refuse(*_, **__):
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr("rewards.extractors.load_pair", refuse)
    monkeypatch.setattr("rewards.extractors.inception_distance", refuse)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Folder of a tiny random open_clip model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    torch.manual_seed(0)
    net = open_clip.CLIP(**CONFIG)
    save_file(
        {k: v.contiguous() for k, v in net.state_dict().items()}, folder / "model.safetensors"
    )
    config = {"model_cfg": CONFIG, "preprocess_cfg": vars(PreprocessCfg(size=32))}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return str(folder)


def write(folder, prompts, *, size=(40, 32), seed=0, inside=True):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i, prompt in enumerate(prompts):
        info = PngInfo()
        if inside:
            info.add_itxt("prompt", prompt)
            info.add_text("seed", str(i))
        pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png", pnginfo=info)
    return folder


def test_clip_score_is_the_mean_of_the_reward(script, clip, tmp_path):
    folder = write(tmp_path / "made", PROMPTS)
    result = script.evaluate(str(folder), clip=clip, batch=4)
    reward = CLIPScore(clip)
    media = load_pictures(sorted(folder.glob("*.png"))) / 255
    scores = reward(media, [reward.prepare(Item(prompt)) for prompt in PROMPTS])
    (row,) = result["rows"]
    assert row["metric"] == "clip_score"
    assert row["pictures"] == 6
    assert row["value"] == pytest.approx(max(float(scores.mean()), 0), abs=1e-4)
    written = json.loads((folder / "evaluation.json").read_text())
    assert written == result
    assert "torchmetrics" in written["meta"]["versions"]
    assert [path.name for path in folder.iterdir() if path.suffix != ".png"] == ["evaluation.json"]


def test_fid_is_that_of_the_features(script, clip, tmp_path):
    made, real = write(tmp_path / "made", PROMPTS), write(tmp_path / "real", PROMPTS * 2, seed=1)
    options = {"clip": None, "features": clip, "batch": 4, "output": str(tmp_path / "x/r.json")}
    result = script.evaluate(str(made), reference=str(real), **options)
    (row,) = json.loads((tmp_path / "x/r.json").read_text())["rows"]
    assert row == result["rows"][0]
    assert row["metric"] == "fid"
    assert (row["pictures"], row["reference_pictures"], row["features"]) == (6, 12, 4)
    assert "note" not in row
    assert row["value"] == pytest.approx(by_hand(clip, made, real), rel=1e-3)
    same = script.evaluate(str(made), reference=str(made), clip=None, features=clip)
    assert same["rows"][0]["value"] == pytest.approx(0, abs=1e-3)


def by_hand(clip, *folders):
    extract = ImageFeatures(load_pair(clip))
    moments = []
    for folder in folders:
        features = extract(load_pictures(sorted(folder.glob("*.png")))).double()
        moments.append((features.mean(0), features.T.cov()))
    (mean, cov), (mean_2, cov_2) = moments
    root = torch.linalg.eigvals(cov @ cov_2).sqrt().real.sum()
    return float((mean - mean_2).square().sum() + cov.trace() + cov_2.trace() - 2 * root)


def test_both_at_once_from_the_command_line(script, clip, tmp_path, capsys):
    folder = write(tmp_path / "made", PROMPTS)
    arguments = [str(folder), "--reference", str(folder), "--clip", clip, "--features", clip]
    assert script.main(arguments) == 0
    assert {
        row["metric"] for row in json.loads((folder / "evaluation.json").read_text())["rows"]
    } == {
        "clip_score",
        "fid",
    }
    shown = capsys.readouterr().out
    assert "clip_score" in shown
    assert "evaluation.json" in shown


def test_the_embedded_model_is_loaded_once_for_both(script, clip, tmp_path, monkeypatch):
    folder = str(write(tmp_path / "made", PROMPTS))
    loads = []

    def load_clip():
        loads.append(clip)
        name = f"local-dir:{clip}"
        return open_clip.create_model(name), open_clip.get_tokenizer(name)

    monkeypatch.setattr("steering.shapes.load_clip", load_clip)
    embedded = {"clip": "shapes-clip", "features": "shapes-clip"}
    values = [row["value"] for row in script.evaluate(folder, reference=folder, **embedded)["rows"]]
    by_folder = script.evaluate(folder, reference=folder, clip=clip, features=clip)["rows"]
    assert values == [row["value"] for row in by_folder]
    assert len(loads) == 1


def test_fewer_pictures_than_features_are_said_to_mislead(script, clip, tmp_path):
    folder = write(tmp_path / "made", PROMPTS[:3])
    with pytest.warns(UserWarning, match="3 pictures for 4 features"):
        result = script.evaluate(str(folder), reference=str(folder), clip=None, features=clip)
    assert "singular" in result["rows"][0]["note"]


def test_features_that_are_not_finite_are_an_error(script, clip, tmp_path):
    folder, broken = str(write(tmp_path / "made", PROMPTS)), tmp_path / "broken"
    shutil.copytree(clip, broken)
    weights = load_file(broken / "model.safetensors")
    save_file({k: v * torch.nan for k, v in weights.items()}, broken / "model.safetensors")
    with pytest.raises(ValueError, match=r"broken' are not finite"):
        script.evaluate(folder, reference=folder, clip=None, features=str(broken))


@pytest.mark.parametrize("form", ["list.json", "mapping.json", "lines.txt"])
def test_prompts_from_a_file(script, clip, tmp_path, form):
    inside = write(tmp_path / "inside", PROMPTS)
    outside = write(tmp_path / "outside", PROMPTS, inside=False)
    names = [path.name for path in sorted(outside.glob("*.png"))]
    content = {
        "list.json": json.dumps(PROMPTS),
        "mapping.json": json.dumps(dict(reversed(list(zip(names, PROMPTS, strict=True))))),
        "lines.txt": "\n".join(PROMPTS) + "\n",
    }[form]
    (tmp_path / form).write_text(content)
    given = script.evaluate(str(outside), prompts=str(tmp_path / form), clip=clip)
    assert given["rows"] == script.evaluate(str(inside), clip=clip)["rows"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ('["a ring"]', "p.json", "has 1 prompts for 6 pictures"),
        ('{"000.png": "a ring"}', "p.json", r"no prompt for 5 pictures, say 001\.png"),
        ("{", "p.json", "is not JSON"),
        ("[1, 2, 3, 4, 5, 6]", "p.json", "must hold texts"),
        ("a\nb\n\nd\ne\nf", "p.txt", "must hold texts, none of them empty"),
    ],
)
@pytest.mark.usefixtures("no_models")
def test_prompt_files_that_do_not_fit(script, tmp_path, content, name, message):
    folder = write(tmp_path / "made", PROMPTS)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        script.evaluate(str(folder), prompts=str(tmp_path / name))


@pytest.mark.usefixtures("no_models")
def test_folders_that_cannot_be_evaluated(script, tmp_path):
    with pytest.raises(NotADirectoryError, match="no folder"):
        script.evaluate(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        script.evaluate(str(tmp_path / "empty"))
    mixed = write(tmp_path / "mixed", PROMPTS[:1])
    write(tmp_path / "mixed" / "sub", PROMPTS[:1], size=(16, 16))
    with pytest.raises(ValueError, match=r"differ in size: .* is 32 x 40, .* is 16 x 16"):
        script.evaluate(str(mixed))
    bare = write(tmp_path / "bare", PROMPTS, inside=False)
    with pytest.raises(ValueError, match="6 of 6 pictures have no prompt written inside"):
        script.evaluate(str(bare))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"a\.png is not a picture"):
        script.evaluate(str(tmp_path / "bad"))


@pytest.mark.usefixtures("no_models")
def test_options_that_make_no_sense(script, tmp_path):
    folder = str(write(tmp_path / "made", PROMPTS))
    with pytest.raises(ValueError, match="nothing to do"):
        script.evaluate(folder, clip=None)
    with pytest.raises(ValueError, match="batch is at least 1, got 0"):
        script.evaluate(folder, batch=0)
    one = str(write(tmp_path / "one", PROMPTS[:1]))
    with pytest.raises(ValueError, match="two pictures a side at least, got 6 and 1"):
        script.evaluate(folder, reference=one)


def test_an_unknown_option_is_refused(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main([str(tmp_path), "--refrence", "x"])
    assert "refrence" in capsys.readouterr().err


def test_what_to_put_where_without_a_network(script, tmp_path, monkeypatch, capsys):
    folder = str(write(tmp_path / "made", PROMPTS))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert script.main([folder, "--clip", "nobody/clip"]) == 1
    assert "give that folder" in capsys.readouterr().err
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    assert script.main([folder, "--reference", folder, "--clip", "null"]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "hub" / "checkpoints") in said
    assert "--features inception:FILE" in said


def offline(*_, **__):
    raise OSError("no network")


def test_inception_weights_must_be_plain(script, tmp_path):
    folder = str(write(tmp_path / "made", PROMPTS))
    weights = tmp_path / "inception.pth"
    with pytest.raises(FileNotFoundError, match="Inception weights"):
        script.evaluate(folder, reference=folder, clip=None, features=f"inception:{weights}")
    torch.save({"weights": Path("/")}, weights)
    with pytest.raises(OSError, match="not a plain file"):
        script.evaluate(folder, reference=folder, clip=None, features=f"inception:{weights}")
