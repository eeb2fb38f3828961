import csv
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torchvision
from open_clip.transform import PreprocessCfg
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
from torchmetrics.image.kid import poly_mmd
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchmetrics.multimodal import CLIPScore as TheirCLIPScore

from rewards import CLIPScore
from rewards.extractors import ImageFeatures, load_pair
from steering import shapes
from steering.media import load_pictures
from steering.reward import Item
from steering.shapes.grammar import EASY_KINDS

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"
PROMPTS = ["a ring", "two stars", "a red cross", "three squares", "a star", "a blue ring"]
CONFIG = {
    "embed_dim": 4,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        spec = importlib.util.spec_from_file_location("evaluate_script", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def measure(script, tmp_path):
    """Evaluate folders; what is not given takes no model that must be downloaded."""

    def run(*folders, **options):
        options = {"clip": None, "resamples": 50, "fid_resamples": 5} | options
        options.setdefault("output", str(tmp_path / "tables"))
        return script.evaluate(script.Choice(tuple(map(str, folders)), **options))

    return run


@pytest.fixture
def no_models(script, monkeypatch):
    """Fails the test if a model is loaded."""

    def refuse(*_, **__):
        raise AssertionError("a model was loaded before the input was checked")

    for name in ("Extractor", "Scorer", "Lpips"):
        monkeypatch.setattr(f"evaluation.study.{name}", refuse)


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


def rows(result, *metrics, kind="all"):
    found = [row for row in result["rows"] if row["kind"] == kind]
    return [row for row in found if not metrics or row["metric"] in metrics]


# ---- values


def test_clip_score_is_that_of_torchmetrics_and_of_the_reward(measure, clip, tmp_path):
    folder = write(tmp_path / "made", PROMPTS)
    result = measure(folder, clip=clip, batch=4, metrics=("clip-score",))
    (row,) = rows(result)
    media = load_pictures(sorted(folder.glob("*.png")))
    pair = load_pair(clip)
    theirs = TheirCLIPScore(lambda: (pair, pair.processor))
    theirs.update(media, PROMPTS)
    assert row["value"] == pytest.approx(float(theirs.compute()), abs=1e-4)
    reward = CLIPScore(clip)
    scores = reward(media / 255, [reward.prepare(Item(prompt)) for prompt in PROMPTS])
    (scored,) = result["pictures"]["made"]["scores"].values()
    assert scored == pytest.approx(scores.tolist(), abs=1e-4)
    assert (row["count"], row["unit"], row["better"]) == (6, "prompt", "higher")
    assert row["low"] <= row["value"] <= row["high"]


def test_distances_to_a_reference(measure, clip, tmp_path):
    made, real = write(tmp_path / "made", PROMPTS), write(tmp_path / "real", PROMPTS * 2, seed=1)
    names = ("fid", "kid", "cmmd", "precision", "recall")
    options = {"features": (clip,), "clip": clip, "batch": 4, "metrics": names}
    found = {row["metric"]: row for row in rows(measure(made, reference=str(real), **options))}
    assert tuple(found) == names
    assert found["fid"]["value"] == pytest.approx(frechet(clip, made, real), rel=1e-3)
    assert "note" not in found["fid"]
    assert (found["precision"]["count"], found["recall"]["count"]) == (6, 12)
    assert found["recall"]["unit"] == "reference picture"
    for row in found.values():
        assert row["low"] <= row["value"] <= row["high"]
    same = {
        row["metric"]: row["value"] for row in rows(measure(made, reference=str(made), **options))
    }
    assert same["fid"] == pytest.approx(0, abs=1e-3)
    assert (same["precision"], same["recall"]) == (1, 1)


def test_kid_of_sets_of_one_size_is_the_mmd_of_all(measure, clip, tmp_path):
    made, real = write(tmp_path / "made", PROMPTS), write(tmp_path / "real", PROMPTS, seed=1)
    (row,) = rows(measure(made, reference=str(real), features=(clip,), metrics=("kid",)))
    x, y = (features_of(clip, folder).double() for folder in (made, real))
    assert row["value"] == pytest.approx(float(poly_mmd(y, x)), rel=1e-6)


def features_of(clip, folder):
    return ImageFeatures(load_pair(clip))(load_pictures(sorted(folder.glob("*.png"))))


def frechet(clip, *folders):
    moments = []
    for folder in folders:
        features = features_of(clip, folder).double()
        moments.append((features.mean(0), features.T.cov()))
    (mean, cov), (mean_2, cov_2) = moments
    root = torch.linalg.eigvals(cov @ cov_2).sqrt().real.sum()
    return float((mean - mean_2).square().sum() + cov.trace() + cov_2.trace() - 2 * root)


def test_accuracy_by_kind_and_rewards_by_name(measure, tmp_path):
    right, wrong = shown(tmp_path / "right"), shown(tmp_path / "wrong", swap=True)
    options = {"reward": ("shapes-verifier", "jpeg"), "metrics": ("accuracy",)}
    result = measure(right, wrong, **options)
    kinds = {(r["run"], r["kind"]): r["value"] for r in result["rows"] if r["metric"] == "accuracy"}
    assert [kind for run, kind in kinds if run == "right"] == ["all", "mean of kinds", *EASY_KINDS]
    assert {value for (run, _), value in kinds.items() if run == "right"} == {1}
    # The last prompt's picture shows another: one of seven prompts, the whole of one kind of six.
    assert kinds["wrong", "all"] == pytest.approx(6 / 7)
    assert kinds["wrong", "mean of kinds"] == pytest.approx(5 / 6)
    assert kinds["wrong", "attributes"] == 0
    by_reward = [r["value"] for r in rows(result, "shapes-verifier")]
    assert by_reward == [r["value"] for r in rows(result, "accuracy")]
    scores = result["pictures"]["right"]["scores"]["jpeg"]
    assert rows(result, "jpeg")[0]["value"] == pytest.approx(np.mean(scores))


SHOWN = [
    "a ring",
    "a ring and a cross",
    "three squares",
    "two stars",
    "a red ring",
    "a ring left of a cross",
    "a red ring and a blue cross",
]


def shown(folder, *, prompts=SHOWN, swap=False, copies=1):
    """Pictures of the shapes world; with ``swap`` the last one shows another prompt's scene."""
    folder.mkdir()
    for i, prompt in enumerate(prompts):
        scene = shapes.parse("a green star" if swap and i == len(prompts) - 1 else prompt)
        for copy, media in enumerate(shapes.render([scene] * copies, seed=i)):
            info = PngInfo()
            info.add_itxt("prompt", prompt)
            pixels = (media * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / f"{i:03d}-{copy}.png", pnginfo=info)
    return folder


def test_what_lines_of_json_say_of_a_prompt_reaches_its_rewards(
    measure, tmp_path, monkeypatch, detects
):
    """GenEval on pictures that its detector has seen through: by kind, as its own summary is."""
    folder = shown(tmp_path / "made", prompts=["a ring", "two stars"])
    lines = [
        {"tag": "single", "prompt": "a ring", "include": [{"class": "ring", "count": 1}]},
        {"tag": "counting", "prompt": "two stars", "include": [{"class": "star", "count": 2}]},
    ]
    (tmp_path / "kinds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = {"reward": (detects,), "metrics": ("reward",)}
    result = measure(folder, kinds=str(tmp_path / "kinds.jsonl"), **options)
    found = {row["kind"]: row["value"] for row in result["rows"] if row["metric"] == "geneval"}
    assert found == {"all": 0.5, "single": 1, "counting": 0}
    with pytest.raises(ValueError, match="GenEval needs metadata"):
        measure(folder, **options)
    for path, line in zip(sorted(folder.glob("*.png")), lines, strict=True):
        picture, info = Image.open(path), PngInfo()
        info.add_itxt("prompt", line["prompt"])
        info.add_itxt("metadata", json.dumps(line))  # as steer generate writes them
        picture.save(path, pnginfo=info)
    result = measure(folder, **options)
    assert [row["value"] for row in rows(result, "geneval")] == [0.5]


@pytest.fixture
def detects(tmp_path, monkeypatch):
    """A reward file of GenEval whose detector finds one object of each class in every picture."""
    from rewards.detectors import Boxes, Detector

    class One(torch.nn.Module):
        def find(self, pictures, classes):
            box = Boxes(torch.tensor([[2.0, 2.0, 9.0, 9.0]]), torch.tensor([0.9]))
            return [dict.fromkeys(classes, box) for _ in pictures]

    monkeypatch.setattr(Detector, "load", lambda *_, **__: One())
    file = tmp_path / "detects.yaml"
    file.write_text("class_path: rewards.GenEval\n")
    return str(file)


def test_kinds_from_files_go_before_the_grammar(measure, tmp_path):
    folder = shown(tmp_path / "made", prompts=SHOWN[:4])
    (tmp_path / "kinds.json").write_text(json.dumps({"a ring": "round", "two stars": "round"}))
    lines = [{"tag": "round", "prompt": p} for p in ("a ring", "two stars")]
    (tmp_path / "kinds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("kinds.json", "kinds.jsonl"):
        result = measure(folder, metrics=("accuracy",), kinds=str(tmp_path / name))
        found = {row["kind"]: row["count"] for row in result["rows"]}
        assert found == {"all": 4, "mean of kinds": 4, "two": 1, "counting": 1, "round": 2}
    (tmp_path / "kinds.json").write_text("[1]")
    with pytest.raises(ValueError, match="object from prompt to kind"):
        measure(folder, metrics=("accuracy",), kinds=str(tmp_path / "kinds.json"))


def test_diversity_compares_pictures_of_one_prompt(measure, clip, tmp_path):
    folder = write(tmp_path / "made", [*PROMPTS, *PROMPTS[:3], PROMPTS[0]])
    result = measure(folder, features=(clip,), metrics=("diversity",))
    (row,) = rows(result)
    unit = torch.nn.functional.normalize(features_of(clip, folder).double(), dim=1)
    apart = 1 - unit @ unit.T
    ring = (apart[0, 6] + apart[0, 9] + apart[6, 9]) / 3
    assert row["value"] == pytest.approx(float(ring + apart[1, 7] + apart[2, 8]) / 3)
    assert row["count"] == 3


def test_lpips_looks_at_every_pair_once(measure, tmp_path, monkeypatch):
    folder = write(tmp_path / "made", PROMPTS[:2] * 2, size=(64, 64))
    torch.manual_seed(0)
    monkeypatch.setattr(
        "torchmetrics.functional.image.lpips._get_tv_model_features", random_features
    )
    result = measure(folder, metrics=("lpips",), lpips="squeeze", batch=1)
    torch.manual_seed(0)
    metric = LearnedPerceptualImagePatchSimilarity("squeeze", normalize=True)
    media = load_pictures(sorted(folder.glob("*.png"))) / 255
    assert rows(result)[0]["value"] == pytest.approx(float(metric(media[:2], media[2:])), rel=1e-5)


def random_features(net, pretrained=False):
    return getattr(torchvision.models, net)(weights=None).features


def test_the_inception_score_and_distance_share_a_forward(script, measure, tmp_path, monkeypatch):
    seen = []

    class Tiny(torch.nn.Module):
        def forward(self, pictures):
            seen.append(len(pictures))
            means = pictures.double().mean((2, 3)).float()
            return means, means[:, :2]

    monkeypatch.setattr("evaluation.models.fidelity_features", lambda *_: Tiny())
    made = write(tmp_path / "made", PROMPTS)
    result = measure(made, reference=str(made), metrics=("is", "fid"), batch=4)
    assert seen == [4, 2] * 2  # the reference, then the run
    found = {row["metric"]: row["value"] for row in rows(result)}
    logits = load_pictures(sorted(made.glob("*.png"))).double().mean((2, 3))[:, :2]
    p = logits.softmax(1)
    kl = (p * (p / p.mean(0)).log()).sum(1).mean()
    assert found["is"] == pytest.approx(float(kl.exp()), rel=1e-4)


# ---- several runs


def test_runs_are_compared_prompt_by_prompt(measure, tmp_path):
    base, same = shown(tmp_path / "base"), shown(tmp_path / "same")
    other = shown(tmp_path / "other", prompts=SHOWN[2:], swap=True)
    result = measure(base, same, other, metrics=("accuracy",))
    first, second = result["differences"]
    assert (first["difference"], first["low"], first["high"]) == (0, 0, 0)
    assert (second["run"], second["against"], second["count"]) == ("other", "base", 5)
    assert second["difference"] == pytest.approx(-1 / 5)
    assert second["low"] <= second["difference"] <= second["high"] <= 0


def test_a_distance_of_equal_runs_differs_by_nothing(measure, clip, tmp_path):
    made, again = (write(tmp_path / name, PROMPTS) for name in ("made", "again"))
    real = write(tmp_path / "real", PROMPTS, seed=1)
    result = measure(
        made, again, reference=str(real), features=(clip,), metrics=("fid", "kid", "recall")
    )
    for row in result["differences"]:
        assert (row["difference"], row["low"], row["high"]) == (0, 0, 0)


# ---- files


def test_tables_figures_and_the_command_line(script, clip, tmp_path, capsys):
    folder, target = shown(tmp_path / "made", copies=2), tmp_path / "out"
    words = [str(folder), "--reference", str(folder), "--clip", clip, "--features", clip]
    words += ["--reward", "jpeg", "shapes-verifier", "--resamples", "20", "--fid-resamples=3"]
    assert script.main([*words, "--output", str(target)]) == 0
    names = {"metrics.json", "metrics.csv", "metrics.md"} | {
        f"{name}.png" for name in ("metrics", "kinds", "scores")
    }
    assert {path.name for path in target.iterdir()} == names
    result = json.loads((target / "metrics.json").read_text())
    usual = [
        "clip-score",
        "fid",
        "kid",
        "precision",
        "recall",
        "jpeg",
        "shapes-verifier",
        "accuracy",
    ]
    assert [row["metric"] for row in rows(result)] == usual
    assert result["meta"]["extractors"][clip]
    with (target / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["value"]) for line in lines] == [row["value"] for row in result["rows"]]
    text = (target / "metrics.md").read_text()
    assert "| metric | model | made |" in text
    assert text in capsys.readouterr().out
    assert Image.open(target / "kinds.png").size[0] > 300


def test_the_embedded_model_is_loaded_once_for_both(measure, clip, tmp_path, monkeypatch):
    folder = write(tmp_path / "made", PROMPTS)
    loads = []

    def load_clip():
        loads.append(clip)
        name = f"local-dir:{clip}"
        return open_clip.create_model(name), open_clip.get_tokenizer(name)

    monkeypatch.setattr("steering.shapes.load_clip", load_clip)
    both = {"clip": "shapes-clip", "features": ("shapes-clip",), "reference": str(folder)}
    names = {"metrics": ("clip-score", "fid")}
    values = [row["value"] for row in rows(measure(folder, **both, **names))]
    options = {"clip": clip, "features": (clip,), "reference": str(folder)}
    assert values == [row["value"] for row in rows(measure(folder, **options, **names))]
    assert len(loads) == 1


# ---- saved statistics


def test_saved_statistics_stand_for_the_reference(measure, clip, tmp_path):
    made, real = write(tmp_path / "made", PROMPTS), write(tmp_path / "real", PROMPTS, seed=1)
    file = str(tmp_path / "real.safetensors")
    names = {"features": (clip,), "clip": clip}
    names |= {"metrics": ("fid", "kid", "cmmd", "precision", "recall")}
    direct = measure(made, reference=str(real), save_statistics=file, **names)
    assert measure(made, reference=file, **names)["rows"] == direct["rows"]
    alone = str(tmp_path / "alone.safetensors")
    measure(reference=str(real), save_statistics=alone, features=(clip,))
    saved, again = load_file(file), load_file(alone)
    assert saved.keys() == again.keys() == {"0.mean", "0.covariance", "0.features"}
    assert all(torch.equal(again[name], saved[name]) for name in again)


def test_statistics_of_other_weights_are_refused_by_name(measure, clip, tmp_path):
    made, other = write(tmp_path / "made", PROMPTS), tmp_path / "other"
    file = tmp_path / "real.safetensors"
    measure(reference=str(made), save_statistics=str(file), features=(clip,))
    shutil.copytree(clip, other)
    weights = load_file(other / "model.safetensors")
    save_file({k: v * 1.01 for k, v in weights.items()}, other / "model.safetensors")
    with pytest.raises(ValueError, match=r"statistics are of '.*tiny' .* features of '.*other'"):
        measure(made, reference=str(file), features=(str(other),))
    moved = tmp_path / "moved"
    shutil.copytree(clip, moved)  # the same weights elsewhere are the same
    measure(made, reference=str(file), features=(str(moved),), metrics=("fid",))


def test_statistics_without_features_serve_fid_alone(measure, script, clip, tmp_path):
    reference = importlib.import_module("evaluation.reference")
    made, file = write(tmp_path / "made", PROMPTS), tmp_path / "real.safetensors"
    measure(reference=str(made), save_statistics=str(file), features=(clip,))
    saved = reference.load_statistics(file)
    reference.save_statistics(file, saved, features=False)
    measure(made, reference=str(file), features=(clip,), metrics=("fid",))
    with pytest.raises(ValueError, match="hold no features"):
        measure(made, reference=str(file), features=(clip,), metrics=("fid", "kid"))
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="holds no reference statistics"):
        measure(made, reference=str(file), features=(clip,))


# ---- live runs, several processes


def test_a_run_made_for_it(script, tmp_path, monkeypatch):
    made = []

    def steer(words):
        folder = Path(words[words.index("--output") + 1])
        shown(folder)
        made.append((words, folder))
        return 0

    monkeypatch.setattr("evaluation.live.steer", steer)
    live = ["--", "--sampler", "fk", "--reward", "shapes-clip"]
    kept = [*live, "--output", str(tmp_path / "kept")]
    words = ["--clip", "null", "--metrics", "accuracy", "--output", str(tmp_path / "out")]
    assert script.main([*words, *live, *live, *kept]) == 0
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(result["pictures"]) == ["fk", "fk@2", "kept"]
    assert [folder.exists() for _, folder in made] == [False, False, True]
    assert made[0][0][:3] == ["generate", "--sampler", "fk"]
    monkeypatch.setattr("evaluation.live.steer", lambda _: 2)
    assert script.main([*words, *live]) == 1


@pytest.mark.slow
def test_a_run_that_is_really_made(script, tmp_path):
    words = ["--clip", "null", "--metrics", "accuracy", "--output", str(tmp_path / "out")]
    live = ["--pipeline", "shapes-sd", "--pipeline.call.num_inference_steps", "2"]
    live += ["--sampler", "best-of-n", "--sampler.n", "1", "--reward", "shapes-clip"]
    assert script.main([*words, "--", *live, "--prompt", "a ring", "--prompt", "two stars"]) == 0


def test_two_processes_write_the_same_files(script, clip, tmp_path):
    folder = shown(tmp_path / "made", copies=2)
    real = write(tmp_path / "real", PROMPTS, seed=1)
    words = [str(folder), "--reference", str(real), "--clip", clip, "--features", clip]
    words += ["--reward", "jpeg", "--batch", "3", "--resamples", "20", "--fid_resamples", "3"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert script.main([*words, "--output", str(tmp_path / "one")]) == 0
    finally:
        torch.set_num_threads(threads)
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    launch += ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
    command = [sys.executable, *launch, str(SCRIPT), *words, "--output", str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    for name in ("metrics.json", "metrics.csv", "metrics.md", "metrics.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


# ---- what is refused


def test_fewer_pictures_than_features_are_said_to_mislead(measure, clip, tmp_path):
    folder = write(tmp_path / "made", PROMPTS[:3])
    options = {"features": (clip,), "metrics": ("fid",)}
    with pytest.warns(UserWarning, match="3 pictures for 4 features"):
        result = measure(folder, reference=str(folder), **options)
    assert "singular" in result["rows"][0]["note"]


def test_features_that_are_not_finite_are_an_error(measure, clip, tmp_path):
    folder, broken = write(tmp_path / "made", PROMPTS), tmp_path / "broken"
    shutil.copytree(clip, broken)
    weights = load_file(broken / "model.safetensors")
    save_file({k: v * torch.nan for k, v in weights.items()}, broken / "model.safetensors")
    with pytest.raises(ValueError, match=r"broken' are not finite"):
        measure(folder, reference=str(folder), features=(str(broken),))


@pytest.mark.parametrize("form", ["list.json", "mapping.json", "lines.txt"])
def test_prompts_from_a_file(measure, clip, tmp_path, form):
    inside = write(tmp_path / "a" / "made", PROMPTS)
    outside = write(tmp_path / "b" / "made", PROMPTS, inside=False)
    names = [path.name for path in sorted(outside.glob("*.png"))]
    content = {
        "list.json": json.dumps(PROMPTS),
        "mapping.json": json.dumps(dict(reversed(list(zip(names, PROMPTS, strict=True))))),
        "lines.txt": "\n".join(PROMPTS) + "\n",
    }[form]
    (tmp_path / form).write_text(content)
    given = measure(outside, prompts=str(tmp_path / form), clip=clip)
    assert given["rows"] == measure(inside, clip=clip)["rows"]


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
def test_prompt_files_that_do_not_fit(measure, tmp_path, content, name, message):
    folder = write(tmp_path / "made", PROMPTS)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        measure(folder, prompts=str(tmp_path / name), clip="shapes-clip")


@pytest.mark.usefixtures("no_models")
def test_folders_that_cannot_be_evaluated(measure, tmp_path):
    def look(folder):
        return measure(folder, clip="shapes-clip")

    with pytest.raises(NotADirectoryError, match="no folder"):
        look(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        look(tmp_path / "empty")
    mixed = write(tmp_path / "mixed", PROMPTS[:1])
    write(tmp_path / "mixed" / "sub", PROMPTS[:1], size=(16, 16))
    with pytest.raises(ValueError, match=r"differ in size: .* is 32 x 40, .* is 16 x 16"):
        look(mixed)
    bare = write(tmp_path / "bare", PROMPTS, inside=False)
    with pytest.raises(ValueError, match="6 of 6 pictures have no prompt written inside"):
        look(bare)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"a\.png is not a picture"):
        look(tmp_path / "bad")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to do"),
        ({"batch": 0}, "batch is at least 1, got 0"),
        ({"resamples": 1}, "resamples is at least 2, got 1"),
        ({"lpips": "alexa"}, "alex, vgg, squeeze, got 'alexa'"),
        ({"metrics": ("fids",)}, r"unknown metric 'fids' \(did you mean 'fid'\?\)"),
        ({"metrics": ("fid",)}, "metric 'fid' compares with real pictures"),
        ({"metrics": ("clip-score",)}, "metric 'clip-score' needs --clip"),
        ({"metrics": ("is",), "features": ("vgg16",)}, "metric 'is' needs --features inception"),
        ({"metrics": ("diversity",)}, "has one picture a prompt"),
        ({"metrics": ("accuracy",)}, r"64 x 64 .* 'made' has 32 x 40"),
        ({"reward": ("jpag",)}, r"unknown reward 'jpag' \(did you mean 'jpeg'"),
        ({"save_statistics": "x.safetensors"}, "save_statistics needs the pictures"),
        ({"reference": "x", "save_statistics": "x.npz"}, "is a .safetensors file"),
    ],
)
@pytest.mark.usefixtures("no_models")
def test_options_that_make_no_sense(measure, tmp_path, options, message):
    folder = write(tmp_path / "made", PROMPTS)
    with pytest.raises(ValueError, match=message):
        measure(folder, **options)


@pytest.mark.usefixtures("no_models")
def test_what_is_refused_of_folders_together(measure, tmp_path):
    folder, one = write(tmp_path / "made", PROMPTS), write(tmp_path / "one", PROMPTS[:1])
    with pytest.raises(ValueError, match="nothing to evaluate"):
        measure(clip="shapes-clip")
    with pytest.raises(ValueError, match="needs 2 pictures a side at least, the reference has 1"):
        measure(folder, reference=str(one))
    with pytest.raises(ValueError, match="needs 2 pictures a side at least, one has 1"):
        measure(one, reference=str(folder))
    with pytest.raises(ValueError, match="given twice"):
        measure(folder, folder, clip="shapes-clip")
    with pytest.raises(ValueError, match="would count as pictures"):
        measure(folder, clip="shapes-clip", output=str(folder / "out"))


def test_an_unknown_option_is_refused(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main([str(tmp_path), "--refrence", "x"])
    assert "refrence" in capsys.readouterr().err


def test_what_to_put_where_without_a_network(script, tmp_path, monkeypatch, capsys):
    folder = str(write(tmp_path / "made", PROMPTS * 2))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert script.main([folder, "--clip", "nobody/clip"]) == 1
    assert "give that folder" in capsys.readouterr().err
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    place = str(tmp_path / "hub" / "checkpoints")
    for name, file in (("inception", "6726825d"), ("vgg16", "397923af")):
        words = ["--reference", folder, "--clip", "null", "--features", name]
        assert script.main([folder, *words]) == 1
        said = capsys.readouterr().err
        assert place in said
        assert f"begins with {file}" in said
        assert f"--features {name}:FILE" in said
    assert script.main([folder, "--metrics", "lpips", "--clip", "null"]) == 1
    said = capsys.readouterr().err
    assert "alexnet" in said
    assert place in said


def offline(*_, **__):
    raise OSError("no network")


def test_inception_weights_must_be_plain(measure, tmp_path):
    folder = write(tmp_path / "made", PROMPTS)
    weights = tmp_path / "inception.pth"
    options = {"reference": str(folder), "features": (f"inception:{weights}",), "metrics": ("fid",)}
    with pytest.raises(FileNotFoundError, match="weights"):
        measure(folder, **options)
    torch.save({"weights": Path("/")}, weights)
    with pytest.raises(OSError, match="not a plain file"):
        measure(folder, **options)


@pytest.mark.slow
def test_inception_from_a_local_safetensors_file(measure, tmp_path):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        load = torch.nn.Module.load_state_dict
        patch.setattr(torch.nn.Module, "load_state_dict", lambda m, s: load(m, s, strict=False))
        net = module.FeatureExtractorInceptionV3("inception", ["2048"])
    file = tmp_path / "weights.safetensors"
    save_file(net.state_dict(), file)
    folder = write(tmp_path / "made", PROMPTS)
    options = {
        "features": (f"inception:{file}",),
        "metrics": ("is", "kid"),
        "reference": str(folder),
    }
    assert [row["metric"] for row in measure(folder, **options)["rows"]] == ["is", "kid"]
