"""The benchmark of repair: cells on the embedded world, and what is told of given traces."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


def command(*args):
    threads = torch.get_num_threads()
    importlib.import_module("benchmark").main(["repair", *map(str, args)])
    torch.set_num_threads(threads)


def row(way, traces, **changes):
    settings = {"paint_steps": 25, "edit_steps": None, "tries": None, "patience": None}
    settings |= {"prompt_set": "hard", "nfe_limit": 100, "first": 0, "seed": 0, "seconds": 4.0}
    return settings | {"way": way, "prompts": len(traces), "traces": traces} | changes


BEST = row("best-of-n, judge", [[[25, 1, 2, 0, 0], [50, 2, 4, 0, 1]], [[25, 1, 2, 0, 0]]])
MORE = row("best-of-n, judge", [[[25, 1, 2, 0, 1]]], first=2)
REPAIR = row(
    "repair, judge",
    [
        [[25, 1, 2, 1, 0], [33, 2, 3, 2, 1]],
        [[25, 1, 2, 1, 0], [90, 3, 5, 2, 1]],
        [[25, 1, 2, 1, 1]],
    ],
    edit_steps=8,
)


def test_a_trace_tells_what_any_budget_would_have_returned():
    report = importlib.import_module("benchmarks.repair_report")
    best, repair = report.curves([BEST, MORE, REPAIR])
    assert [c.label for c in (best, repair)] == [
        "best-of-n, judge (25 steps)",
        "repair, judge (25 steps)",
    ]
    assert best.seconds == pytest.approx(8 / 3)
    assert report.by_prompt(best, 24) == {0: 0, 1: 0, 2: 0}
    assert report.by_prompt(best, 49) == {0: 0, 1: 0, 2: 1}
    assert report.by_prompt(best, 50) == {0: 1, 1: 0, 2: 1}
    assert report.by_prompt(repair, 89) == {0: 1, 1: 0, 2: 1}
    assert np.array_equal(repair.at(40)[0], [33, 2, 3, 2, 1])
    assert np.array_equal(repair.at(90)[:, 0], [33, 90, 25])


def test_seeds_of_a_prompt_are_averaged():
    report = importlib.import_module("benchmarks.repair_report")
    other = row("best-of-n, judge", [[[25, 1, 2, 0, 1]], [[25, 1, 2, 0, 0]]], seed=1)
    (curve,) = report.curves([BEST, other])
    assert report.by_prompt(curve, 30) == {0: 0.5, 1: 0}


def test_the_table_and_the_plot_are_made_of_a_file(tmp_path):
    file = tmp_path / "repair.json"
    file.write_text(json.dumps({"meta": {}, "rows": [BEST, MORE, REPAIR]}))
    command("--json", file, "--plot", tmp_path / "p.png", "--table", tmp_path / "t.md")
    assert (tmp_path / "p.png").stat().st_size > 1000
    table = (tmp_path / "t.md").read_text()
    assert "| repair, judge (25 steps) | 0.67 [" in table
    assert (
        "repair, judge (25 steps) less best-of-n, judge | +0.00 [+0.00, +0.00] | +0.33 [" in table
    )


def test_cells_are_measured_once(tmp_path):
    file = tmp_path / "repair.json"
    options = ["--json", file, "--prompts", 2, "--nfe", 12, "--paint_steps", 4, "--edit_steps", 2]
    command(*options, "--ways", "best-of-n, judge")
    command(*options, "--minutes", 0)
    assert len(json.loads(file.read_text())["rows"]) == 1
    command(*options)
    rows = json.loads(file.read_text())["rows"]
    bench = importlib.import_module("benchmarks.repair")
    assert [r["way"] for r in rows] == list(bench.WAYS)
    for found in rows:
        for trace in found["traces"]:
            nfe, decodes, rewards, judged, right = map(list, zip(*trace, strict=True))
            assert nfe == sorted(set(nfe))
            assert nfe[0] == 4  # every way paints the same picture first
            assert nfe[-1] <= 12
            assert judged[-1] == 0 or found["way"].startswith(("repair", "whole"))
            assert rewards[-1] >= decodes[-1] >= 1
            assert set(right) <= {0, 1}
    firsts = [[trace[0][4] for trace in found["traces"]] for found in rows]
    assert all(first == firsts[0] for first in firsts)
