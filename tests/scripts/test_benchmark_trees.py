import importlib
import json
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"
ARGS = ["--nfe", "200", "--problems", "linear", "--total", "600", "--least", "2"]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


def command(*args):
    threads = torch.get_num_threads()
    importlib.import_module("benchmark").main(list(args))
    torch.set_num_threads(threads)


def test_cells_are_measured_once_and_drawn(tmp_path):
    file = tmp_path / "trees.json"
    words = ["trees", "--json", str(file), *ARGS]
    command(*words, "--samplers", "dts")
    command(*words, "--samplers", "dts", "smc")
    rows = json.loads(file.read_text())["rows"]
    assert [row["sampler"] for row in rows] == ["dts", "smc"]
    keys = {"problem", "sampler", "nfe", "runs", "mode_tv", "mode_tv_chain", "se", "seconds"}
    assert keys <= set(rows[0])
    assert all(row["nfe"] <= 200 and 0 <= row["mode_tv"] <= 1 for row in rows)
    command(*words, "--plot", str(tmp_path / "trees.png"))
    assert (tmp_path / "trees.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["dts", "dts-star", "best-first", "depth-first", "treeg"])
def test_families_spend_what_they_are_given(name):
    from steering.search import Facts

    embedded = importlib.import_module("benchmarks.embedded")
    for nfe in (25, 100, 400):
        plan = embedded.search_named(name, nfe, 25).plan(Facts(25, 25))
        assert 0.75 * nfe < plan.cost.nfe <= nfe
