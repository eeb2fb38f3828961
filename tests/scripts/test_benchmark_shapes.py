"""The comparison on the embedded models: names and budgets, cells that are gone on with, the page."""

import importlib
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from steering.cost import Budget
from steering.search import BudgetTooSmall, Facts
from steering.statistics import interval

SCRIPTS = Path(__file__).parents[2] / "scripts"
STEPS = 25


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield


@pytest.fixture(scope="module")
def embedded():
    return importlib.import_module("benchmarks.embedded")


@pytest.fixture(scope="module")
def shapes():
    return importlib.import_module("benchmarks.shapes")


@pytest.fixture(scope="module")
def cells():
    return importlib.import_module("benchmarks.shapes_cells")


@pytest.fixture(scope="module")
def report():
    return importlib.import_module("benchmarks.report")


# ---- names and budgets


@pytest.mark.parametrize("nfe", [100, 250, 500])
def test_every_family_keeps_within_its_budget_and_uses_most_of_it(embedded, nfe):
    for name in embedded.FAMILIES:
        search = embedded.search_named(name, nfe, STEPS)
        spent = search.plan(Facts(STEPS, STEPS, budget=Budget(nfe=nfe))).cost.nfe
        assert spent <= nfe
        if name in ("zeno", "paths"):  # grow by pairs of candidates, by one a round
            assert spent > nfe - 2 * STEPS
        elif name not in ("base", "rbf-glass"):
            assert spent >= (0.9 if name == "halving" else 0.95) * nfe, name


def test_families_are_made_as_published(embedded):
    svdd, code = (embedded.search_named(name, 500, STEPS) for name in ("svdd", "code"))
    assert (svdd.particles, svdd.islands) == (20, 1)
    assert (code.particles, code.islands) == (20, 5)
    assert embedded.search_named("rbf-glass", 500, STEPS).transition.inner == 4
    assert embedded.search_named("rbf-glass", 100, STEPS).transition.inner == 2
    assert embedded.search_named("best-of-n-ddim", 250, STEPS).solver.stochastic
    assert type(embedded.search_named("svdd-sde", 250, STEPS).transition).__name__ == "FlowSDE"
    assert embedded.search_named("fk-vp", 250, STEPS).path is not None
    for name in ("fk", "svdd", "fk-draw", "svdd-draw", "fk-draw-sde", "dts-draw"):
        wanted = "draw" if "draw" in name else "best"
        assert embedded.search_named(name, 250, STEPS).returns == wanted


def test_all_that_walks_by_noise_has_a_form_for_flows(embedded):
    stems = [*("auto", "fk", "bfs", "dlbs", "dlbs-la", "evo", "dts", "dts-star", "treeg"),
             *("best-first", "depth-first", "rbf", "rbf-lean")]  # fmt: skip
    for stem in stems:
        search = embedded.search_named(f"{stem}-sde", 400, STEPS)
        assert type(getattr(search, "transition", search)).__name__ == "FlowSDE" or (
            type(search.solver).__name__ == "FlowSDE"
        )
        assert type(search) is type(embedded.search_named(stem, 400, STEPS))


def test_noises_are_looked_at_ahead_before_most_are_dropped(embedded):
    search = embedded.search_named("halving-ahead", 160, STEPS)
    plan = search.plan(Facts(STEPS, STEPS, budget=Budget(nfe=160)))
    assert (search.n, plan.settings["rejections"]) == (29, [0])
    assert plan.cost.nfe == 29 * 3 + 3 * 24


def test_names_with_a_number_of_candidates_bring_their_own_budget(embedded):
    assert embedded.search_named("best-of-16").n == 16
    assert embedded.search_named("fk-16", 100, STEPS).particles == 16
    assert [embedded.own_budget(n, STEPS) for n in ("base", "fk-16", "fk")] == [25, 400, None]


def test_wrong_names_and_small_budgets_are_refused(embedded):
    for name in ("nonsense", "svdd-4", "best-of"):
        with pytest.raises(ValueError, match=f"unknown sampler '{name}'"):
            embedded.search_named(name, 100, STEPS)
    with pytest.raises(ValueError, match="needs a number of denoiser calls"):
        embedded.search_named("fk")
    with pytest.raises(BudgetTooSmall):
        embedded.search_named("fk", 24, STEPS)


def test_only_flows_get_the_flow_paths(embedded):
    for model in embedded.MODELS:
        names = embedded.samplers_of(model)
        assert set(names) <= set(embedded.FAMILIES)
        assert embedded.samplers_of(model, names) == names, "all that is compared suits the model"
        stems = {"fk", "svdd", "code", "bfs", "tempered", "entropic", "smc", "rbf", "best-of-n"}
        assert stems <= {name.removesuffix("-sde") for name in names}
    assert embedded.samplers_of("shapes-sd", ["fk", "rbf-vp"]) == ["fk"]


# ---- cells


def made_up(cell, rng, *, speed=1000.0):
    """A row as the benchmark writes it, its figures drawn."""
    shape = (cell["seeds"], cell["prompts"])
    reward, accuracy = rng.normal(80, 3, shape).round(2), rng.integers(0, 2, shape)
    return {
        "device": "a device",
        "batch_size": None,
        **cell,
        "nfe": float(cell["budget"]),
        "seconds": cell["budget"] / speed,
        "per_prompt": {
            "reward": reward.tolist(),
            "accuracy": accuracy.tolist(),
            "nfe": cell["budget"],
            "decodes": 4,
            "reward_calls": rng.integers(4, 9, shape).tolist(),
            "diversity_pixel": rng.uniform(0.1, 0.3, shape[1]).tolist(),
            "diversity_clip": rng.uniform(0.1, 0.3, shape[1]).tolist(),
        },
    }


@pytest.fixture
def bench(shapes, monkeypatch):
    """Runs the command with cells that only note that they ran."""
    ran = []

    def fake(self, cell):
        ran.append(cell)
        speed = 500.0 if cell.sampler == "svdd" else 1000.0
        return made_up(asdict(cell), np.random.default_rng(0), speed=speed)

    monkeypatch.setattr(shapes.Doors, "row", fake)

    def command(file, *args):
        ran.clear()
        parser = ArgumentParser()
        shapes.add_arguments(parser)
        words = ["--json", str(file), "--models", "shapes-sd", "--device", "cpu", *args]
        shapes.run(parser.parse_args(words))
        return list(ran)

    return command


def test_a_file_is_gone_on_with_whatever_the_chunks(bench, tmp_path):
    file = tmp_path / "rows.json"
    words = ["--samplers", "base", "fk", "best-of-2", "--nfe", "100", "50"]
    first = bench(file, *words, "--prompts", "5", "--chunk", "2")
    assert [(c.sampler, c.budget, c.first, c.prompts) for c in first[:4]] == [
        ("base", 25, 0, 2),
        ("best-of-2", 50, 0, 2),
        ("fk", 100, 0, 2),
        ("fk", 50, 0, 2),
    ]
    assert len(first) == 4 * 3
    assert bench(file, *words, "--prompts", "5") == []
    more = bench(file, *words, "--prompts", "9", "--chunk", "8")
    assert sorted({(c.first, c.prompts) for c in more}) == [(5, 3), (8, 1)]
    others = bench(file, *words, "--prompts", "2", "--seeds", "2")
    assert len(others) == 4, "other seeds are other cells"


def test_minutes_end_before_a_cell_that_would_not_fit(bench, tmp_path, capsys):
    file = tmp_path / "rows.json"
    words = ["--samplers", "fk", "--nfe", "100", "--prompts", "100", "--chunk", "10"]
    [only] = bench(file, *words, "--minutes", "0.02")  # a cell takes 30 x 0.1 seconds
    assert (only.first, only.prompts) == (0, 10)
    assert "9 cells left" in capsys.readouterr().out
    assert len(bench(file, *words)) == 9


def test_equal_seconds_follow_from_measured_speeds_once(bench, tmp_path):
    file = tmp_path / "rows.json"
    words = ["--samplers", "base", "best-of-n", "svdd", "fk", "--nfe", "250", "--prompts", "4"]
    words += ["--equal_seconds", "best-of-n:250"]
    ran = bench(file, *words, "--chunk", "4")
    timed = {c.sampler: c.budget for c in ran if c.equal_seconds}
    assert timed == {"svdd": 125, "fk": 250}, "svdd is half as fast"
    later = bench(file, *words[:-4], "--prompts", "8", *words[-2:])
    assert {c.sampler: c.budget for c in later if c.equal_seconds} == timed
    with pytest.raises(ValueError, match="SAMPLER:NFE"):
        bench(tmp_path / "x.json", "--equal_seconds", "best-of-n")


def test_what_a_budget_cannot_pay_is_left_out_and_said(bench, tmp_path, capsys):
    ran = bench(tmp_path / "rows.json", "--samplers", "fk", "rbf", "--nfe", "30", "--prompts", "1")
    assert [c.sampler for c in ran] == ["fk"]
    assert "rbf left out at 30 NFE" in capsys.readouterr().out


def test_files_are_merged_each_prompt_once(bench, tmp_path):
    a, b, both = (tmp_path / f"{name}.json" for name in "abc")
    words = ["--samplers", "fk", "--nfe", "50"]
    bench(a, *words, "--prompts", "2")
    bench(b, *words, "--prompts", "4", "--chunk", "2")
    bench(both, "--samplers", "--merge", str(a), str(b))
    rows = json.loads(both.read_text())["rows"]
    assert [(r["first"], r["prompts"]) for r in rows] == [(0, 2), (2, 2)]
    meta = [json.loads(file.read_text())["meta"] for file in (a, both)]
    assert meta[0] == meta[1], "where rows were made, not where they were merged"
    assert bench(both, *words, "--prompts", "4") == []
    with pytest.raises(ValueError, match="there is no"):
        bench(both, "--samplers", "--merge", str(tmp_path / "missing.json"))


def test_an_earlier_form_is_refused(bench, tmp_path):
    file = tmp_path / "old.json"
    file.write_text('{"meta": {}, "rows": [{"sampler": "fk-16", "prompts": 128}]}')
    with pytest.raises(ValueError, match="earlier form"):
        bench(file, "--prompts", "1")


def test_an_unknown_sampler_is_refused_before_any_work(bench, tmp_path):
    with pytest.raises(ValueError, match="unknown sampler 'nonsense'"):
        bench(tmp_path / "x.json", "--samplers", "fk", "nonsense")


# ---- figures of a cell


def test_figures_of_a_cell_by_hand(cells):
    from PIL import Image

    def result(colour, reward, right, calls):
        return SimpleNamespace(
            media=[Image.new("RGB", (4, 4), colour)],
            held_out={"accuracy": [right]},
            usage=SimpleNamespace(nfe=50, decodes=2, reward_calls=calls),
            outcome=SimpleNamespace(
                scores=SimpleNamespace(total=torch.tensor([0.0, reward])), chosen=[1]
            ),
        )

    found = [
        [result((0, 0, 0), 80.12345, 1.0, 3), result((255, 0, 0), 70.0, 0.0, 3)],
        [result((255, 255, 255), 82.0, 1.0, 4), result((255, 0, 0), 72.0, 0.0, 3)],
    ]
    encoder = SimpleNamespace(images=lambda x: x.flatten(2).mean(2) + torch.tensor([0.0, 1.0, 0.0]))
    door = SimpleNamespace(reward=SimpleNamespace(encoder=encoder))
    row = cells.summarise(door, found, 8.0)
    assert row["seconds"] == 2
    assert row["reward"] == pytest.approx((80.12345 + 70 + 82 + 72) / 4, rel=1e-3)
    assert row["accuracy"] == 0.5
    kept = row["per_prompt"]
    assert kept["reward"] == [[80.12, 70], [82, 72]]
    assert kept["accuracy"] == [[1, 0], [1, 0]]
    assert (kept["nfe"], kept["reward_calls"]) == (50, [[3, 3], [4, 3]])
    assert kept["diversity_pixel"] == [1, 0]
    black_white = 1 - 2 / np.sqrt(6)  # (0, 1, 0) and (1, 2, 1)
    assert kept["diversity_clip"] == pytest.approx([black_white, 0], abs=1e-4)
    assert cells.diversity(door, found[:1]) == {}


def test_the_whole_comparison_stays_small(cells, tmp_path):
    rows = cells.Rows(tmp_path / "rows.json", device="cpu", seed=0)
    rng = np.random.default_rng(0)
    cell = {"model": "shapes-flux", "sampler": "rbf-glass", "seeds": 3, "strength": 4.0}
    cell |= {"prompt_set": "hard", "equal_seconds": None, "first": 0, "prompts": 64, "budget": 500}
    rows.rows = [cells.rounded(made_up(cell, rng)) for _ in range(2 * 12 * 4 * 2)]
    rows.save()
    assert rows.path.stat().st_size < 4e6


# ---- statistics and the page


def test_chunks_are_joined_and_compared_prompt_by_prompt(report):
    cell = {"model": "m", "prompt_set": "hard", "strength": 4.0, "seeds": 2, "equal_seconds": None}
    cell |= {"budget": 100, "device": "a device", "batch_size": None}

    def row(sampler, first, rewards, seconds):
        settings = cell | {"sampler": sampler, "first": first, "prompts": len(rewards[0])}
        figures = {"reward": rewards, "nfe": 100, "diversity_clip": [0.5] * len(rewards[0])}
        return settings | {"seconds": seconds, "per_prompt": figures}

    fk, best = report.gather(
        [
            row("fk", 2, [[5.0, 9.0], [7.0, 9.0]], 3.0),
            row("fk", 0, [[1.0, 2.0], [3.0, 4.0]], 1.0),
            row("best-of-n", 0, [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], 1.0),
        ]
    )
    assert fk.prompts.tolist() == [0, 1, 2, 3]
    assert fk.values["reward"].tolist() == [2, 3, 6, 9]
    assert fk.seconds == 2
    assert (fk.mean("nfe"), fk.mean("diversity_clip")) == (100, 0.5)
    assert np.isnan(fk.mean("accuracy"))
    gap, low, high = report.difference(fk, best, "reward")
    assert gap == pytest.approx(8 / 3)  # 2, 2, 4
    assert 2 <= low <= gap <= high <= 4
    assert report.difference(fk, best, "accuracy") is None


def test_intervals_do_not_show_in_how_many_parts_they_were_drawn(monkeypatch):
    values = np.random.default_rng(2).normal(size=50)
    whole = interval(values)
    monkeypatch.setattr("steering.statistics._AT_ONCE", 777)
    assert interval(values) == whole


def test_intervals_cover_the_mean_as_often_as_they_say(report):
    rng = np.random.default_rng(1)
    ends = np.array([interval(rng.normal(size=100)) for _ in range(300)])
    covered = ((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean()
    assert 0.91 < covered < 0.98
    low, high = interval(np.zeros(10), share=True)
    assert low == pytest.approx(0, abs=1e-12)
    assert 0.2 < high < 0.35, "Wilson's: ten failures do not prove impossibility"


@pytest.fixture
def folder(tmp_path):
    """Made-up results of two models, the exactness benchmark and the flow benchmark."""
    results = tmp_path / "docs" / "results"
    results.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for model in ("shapes-sd", "shapes-flux"):
        plan = [("base", 25, None), ("svdd", 125, "best-of-n:250")]
        plan += [(s, n, None) for s in ("best-of-n", "fk") for n in (100, 250)]
        for sampler, budget, told in plan:
            for first in (0, 3):
                cell = {"model": model, "sampler": sampler, "budget": budget, "seeds": 2}
                cell |= {"strength": 4.0, "prompt_set": "hard", "equal_seconds": told}
                rows.append(made_up(cell | {"first": first, "prompts": 3}, rng))
    meta = {"versions": {"torch": "2.0"}, "device": "a device", "seed": 0}
    meta |= {"command": "scripts/benchmark.py x"}

    def save(name, rows, day=2):
        dated = meta | {"date": f"2026-01-0{day}T00:00:00+00:00"}
        (results / name).write_text(json.dumps({"meta": dated, "rows": rows}))

    save("shapes-made-up.json", rows)
    save("shapes-old.json", [{"sampler": "fk-16", "prompts": 128}])
    figures = {"mode_tv": 0.0234, "mode_tv_se": 0.003, "z_ratio": 1.01, "z_ratio_se": 0.02}
    figures |= {"independent": 12.8}
    cell = {"problem": "linear", "sampler": "smc-ess", "k": 16}
    save("exactness-a.json", [cell | figures | {"runs": 1000, "adaptive": True}])
    none = {"mode_tv": 0.9, "z_ratio": None, "log_z": None, "independent": None, "runs": 50}
    save("exactness-b.json", [cell | figures | none, cell | figures | none | {"k": 4}], day=1)
    flow = {"part": "gaussian", "path": "flow", "transition": "ode", "nfe": 10, "mean_error": 0}
    save("flows.json", [flow | {"steps": n, "std_ratio": r} for n, r in ((10, 0.86), (20, 0.93))])
    return results


def test_the_page_shows_every_table_and_the_discussion(folder):
    page = folder.parent / "results.md"
    (folder.parent / "results-discussion.md").write_text("What it means.\n")
    script = importlib.import_module("results_page")
    script.write(folder, page)
    text = page.read_text()
    assert "What it means." in text
    assert (
        "### shapes-sd, hard prompts, strength 4, a device, default rows a call: 250 denoiser "
        "calls a prompt" in text
    )
    assert "the seconds of best-of-n:250" in text
    assert "| `svdd` | 125 | .50 |" in text, "given half the calls, it took half the time"
    assert "| `smc-ess` | .023 ± .003 | missing |" in text, "of one cell the later file counts"
    assert "| `smc-ess` | 1.01 ± .02*; 12.8 |" in text
    assert "| `smc-ess` | -; - |" in text
    assert "| flow / ode | .860 | .930 |" in text
    assert "[shapes-made-up.json](results/shapes-made-up.json)" in text
    assert "shapes-old" not in text
    for model in ("shapes-sd", "shapes-flux"):
        assert f"](results-{model}.png)" in text
        assert (folder.parent / f"results-{model}.png").stat().st_size > 10_000
    script.write(folder, page)
    assert page.read_text() == text


def test_a_page_of_nothing_is_a_page(tmp_path):
    importlib.import_module("results_page").write(tmp_path, tmp_path / "results.md")
    assert (tmp_path / "results.md").read_text().startswith("# Results")
