"""The sweep over diffusers' own test classes, on a tiny checkout of our own; and the committed page."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import time

import diffusers
import torch


class Pattern:
    def get_dummy_components(self):
        raise NotImplementedError


class Parts:
    def get_dummy_components(self):
        return {}


class DDIMTests:
    pipeline_class = diffusers.DDIMPipeline

    def get_dummy_components(self):
        unet = diffusers.UNet2DModel(
            block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1, sample_size=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
        )
        unet.conv_out.weight.data.zero_()
        return {"unet": unet, "scheduler": diffusers.DDIMScheduler()}

    def get_dummy_inputs(self, device, seed=0):
        return {"batch_size": 1, "generator": torch.Generator(), "num_inference_steps": 2}


class HeirTests(DDIMTests):
    pass


class MissingTests(DDIMTests):
    def get_dummy_components(self):
        import transformers
        transformers.CLIPTokenizer.from_pretrained("nobody/nothing")


class SlowTests(DDIMTests):
    def get_dummy_components(self):
        time.sleep(600)


class CrashingTests(DDIMTests):
    def get_dummy_components(self):
        import os
        os._exit(3)


class BrokenTests(DDIMTests):
    def get_dummy_components(self):
        return super().get_dummy_components()

    def get_dummy_inputs(self):
        return {"eta": "much"}
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkout")
    folder = root / "tests" / "pipelines" / "ddim"
    folder.mkdir(parents=True)
    for place in (root / "tests", root / "tests" / "pipelines", folder):
        (place / "__init__.py").touch()
    (folder / "test_ddim.py").write_text(TESTS)
    return root


def test_each_class_has_its_outcome_and_is_kept(checkout, tmp_path, monkeypatch):
    script = importlib.import_module("sweep_diffusers")
    path = tmp_path / "found.json"
    quick = ["DDIM", "Missing", "Crashing", "Broken"]
    script.sweep(checkout, path, only=quick, processes=2, timeout=120)
    rows = {row["class"].split(":")[1]: row for row in json.loads(path.read_text())["rows"]}
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "DDIMTests": "measured",
        "MissingTests": "not built",
        "CrashingTests": "crashed",
        "BrokenTests": "fails itself",
    }
    one = rows["DDIMTests"]
    assert (one["pipeline"], one["door"], one["steps"]) == ("DDIMPipeline", "replay", 4)
    assert max(one["max_diff"], one["decode_diff"]) < 1e-4
    assert one["depends_on_noise"] > 1e-3
    assert one["notes"] == [
        "4 steps instead of 2",
        "1 layers that start at zero drawn anew",
    ]
    assert "nobody/nothing" in rows["MissingTests"]["reason"]
    monkeypatch.setattr(script, "_apart", None)  # nothing is left to run
    assert script.sweep(checkout, path, only=quick)["measured"] == 1
    made = lambda checkout, name, timeout: {"class": name, "door": None, "outcome": "crashed"}  # noqa: E731
    monkeypatch.setattr(script, "_apart", made)
    assert script.sweep(checkout, path, only=["DDIM"], again=True)["measured"] == 1
    assert "measured" not in script.sweep(checkout, path, only=["DDIM"], anew=True)


def test_a_class_has_its_time(checkout, tmp_path):
    script = importlib.import_module("sweep_diffusers")
    path = tmp_path / "slow.json"
    assert script.sweep(checkout, path, only=["Slow"], timeout=0.5) == {"too slow": 1}
    with pytest.raises(ValueError, match=r"no class of .* has a name with one of Nothing"):
        script.sweep(checkout, path, only=["Nothing"])
    with pytest.raises(ValueError, match="has no tests/pipelines"):
        script.sweep(tmp_path, path, only=[])


def test_which_classes_are_found(checkout):
    names = importlib.import_module("sweep.classes").found_in(checkout)
    found = [name.split(":")[1] for name in names]
    assert found == ["DDIMTests", "MissingTests", "SlowTests", "CrashingTests", "BrokenTests"]


def test_stand_in_tokenizers_tell_texts_apart():
    offline = importlib.import_module("sweep.offline")
    clip = offline.tokenizer(offline.TOKENIZERS["tiny-random-clip"])
    one, other = clip(["a cat", "a car"], padding="max_length").input_ids
    assert len(one) == len(other) == 77
    assert one != other
    assert (one[0], one[6], one[7]) == (0, 2, 1)  # begin, end, padding
    tiny = offline.tokenizer(offline.TOKENIZERS["dummy-gemma"])
    assert max(tiny("what a cat").input_ids) < 8


def test_the_committed_page_is_that_of_the_results():
    page = importlib.import_module("sweep_page")
    found = json.loads((ROOT / "docs" / "results" / "sweep.json").read_text())
    assert (ROOT / "docs" / "pipelines-sweep.md").read_text() == page.text(found)
    counts = page.counts(found["rows"])
    assert counts["replay"] + counts["inverted"] >= 167
