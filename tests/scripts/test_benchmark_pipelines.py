"""Tiny pipelines against the doors: a few here, all of them slowly, and the committed table."""

import importlib
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "pipelines.json"
SOME = (
    "StableDiffusionXLImg2Img",
    "Kandinsky",
    "HunyuanDiT",
    "CogVideoX",
    "Latte",
    "DDPM",
    "DeepFloyd IF, inpainting",
    "LTXImageToVideo",
)
WANTED = [
    "StableDiffusion",
    "StableDiffusionImg2Img",
    "StableDiffusionInpaint",
    "StableDiffusionControlNet",
    "StableDiffusionXL",
    "StableDiffusionXLImg2Img",
    "StableDiffusionXLInpaint",
    "StableDiffusionXLControlNet",
    "StableDiffusion3",
    "Flux",
    "FluxImg2Img",
    "Flux2",
    "PixArtAlpha",
    "PixArtSigma",
    "DiT",
    "Sana",
    "Lumina2",
    "AuraFlow",
    "HunyuanDiT",
    "QwenImage",
    "ZImage",
    "Kandinsky",
    "LatentConsistencyModel",
    "DeepFloyd IF",
    "DeepFloyd IF, inpainting",
    "DDPM",
    "DDIM",
    "Wan",
    "LTX",
    "LTXImageToVideo",
    "CogVideoX",
    "HunyuanVideo",
    "Mochi",
    "Latte",
    "AnimateDiff",
    "HunyuanImage, classifier-free guider",
    "HunyuanImage, guider with momentum",
    "HunyuanVideo15, classifier-free guider",
]
#: Each of their steps remembers those before it, so that only whole calls are left.
WHOLE = ("HunyuanImage, guider with momentum",)


@pytest.fixture(scope="module")
def pipelines():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module("benchmarks.pipelines")
    torch.set_num_threads(threads)


def check(row, name):
    if name in WHOLE:
        assert row["door"] == "black-box"
        assert "depends on the steps before it" in row["reason"]
        assert row["decode_diff"] < 1e-4
        return
    assert row["door"] in ("replay", "inverted"), row["reason"]
    assert row["max_diff"] < 1e-4
    assert row["decode_diff"] < 1e-4
    assert row["mixed_diff"] < 1e-4
    assert all(moved is None or moved > 1e-3 for moved in row["depends"].values())
    assert (row["reason"] == "") == (row["door"] == "replay")


@pytest.mark.parametrize("name", SOME)
def test_whole_trajectories_are_the_pipelines_own(pipelines, name):
    check(pipelines.measure(pipelines.CASES[name]), name)


@pytest.mark.slow
def test_all_of_them(pipelines):
    for name, case in pipelines.CASES.items():
        if name not in SOME:
            check(pipelines.measure(case), name)


def test_a_refusal_has_its_reason(pipelines):
    row = pipelines.measure(pipelines.CASES["StableDiffusionControlNet"], "replay")
    assert row["door"] is None
    assert "several networks" in row["reason"]


def test_the_command_keeps_what_is_there(pipelines, tmp_path):
    path = tmp_path / "found.json"
    words = ["pipelines", "--json", str(path), "--pipelines", "DDIM"]
    for _ in range(2):
        importlib.import_module("benchmark").main(words)
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["pipeline"], row["door"]) == ("DDIM", "replay")


def test_the_committed_table_is_complete_and_on_the_page():
    rows = json.loads(RESULTS.read_text())["rows"]
    for row in rows:
        check(row, row["pipeline"])
        assert row.get("max_abs_diff", 0.0) < 1e-4
    assert {row["pipeline"] for row in rows} >= set(WANTED)
    page = importlib.import_module("pipelines_page")
    text = (ROOT / "docs" / "pipelines.md").read_text()
    assert page.table(rows) in text


def test_the_page_keeps_what_is_beside_the_table(tmp_path):
    page = importlib.import_module("pipelines_page")
    copy = tmp_path / "page.md"
    begin, end = page.OFFLOAD
    copy.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\n{begin}\nold\n{end}\nafter\n")
    page.write(RESULTS, copy)
    text = copy.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "Not measured yet" in text or (RESULTS.parent / "offload.json").is_file()
    measured = {"own_seconds": 1.0, "own_peak_bytes": 2**30, "one_seconds": 2.0}
    measured |= {"one_peak_bytes": 2**31, "search_seconds": 4.0, "search_peak_bytes": None}
    measured |= {"mode": "model", "steps": 10, "candidates": 4, "weights_bytes": 2**31}
    found = {"meta": {"device": "a card"}, "rows": [measured | {"max_diff": 1e-3}]}
    (tmp_path / "offload.json").write_text(json.dumps(found))
    page.write(RESULTS, copy, tmp_path / "offload.json")
    line = "| model | 1.0 s, 1.00 GiB | 2.0 s, 2.00 GiB | - | 4.0 s, - | - | 1.0e-03 |"
    assert line in copy.read_text()
    assert "a card; 10 steps, N = 4, weights of 2.00 GiB" in copy.read_text()
    copy.write_text("no marks")
    with pytest.raises(ValueError, match="must hold each of the lines"):
        page.write(RESULTS, copy)
