"""What the page of results computes: where searches reach best of N, published orderings, levels."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
STEPS = 25


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield


def module(name):
    return importlib.import_module(f"benchmarks.{name}")


def row(sampler, budget, rewards, told=None, *, seconds=None, calls=None, model="shapes-sd"):
    """A row of one chunk and one seed; accuracy is the reward's excess over 80."""
    rewards = np.asarray(rewards, float)
    return {
        **{"model": model, "prompt_set": "hard", "strength": 4.0, "seeds": 1, "first": 0},
        **{"device": "a device", "batch_size": None, "equal_seconds": told},
        **{"sampler": sampler, "budget": budget, "prompts": len(rewards)},
        "seconds": budget / 1000 if seconds is None else seconds,
        "per_prompt": {
            "reward": [rewards.tolist()],
            "accuracy": [(rewards > 80).astype(int).tolist()],
            "nfe": budget,
            "decodes": budget // STEPS,
            "reward_calls": budget // STEPS if calls is None else calls,
        },
    }


def entries(*rows):
    return module("report").gather(rows)


# ---- where a search reaches best of N


def test_the_first_crossing_is_linear_in_log_nfe():
    crossing = module("report_reach").first_crossing
    log_nfe = np.log([100.0, 400.0, 1600.0])
    values = np.array([[1.0, 2.0, 3.0], [1, 3, 2], [5, 6, 7], [0, 1, 1.5], [0, 0, 4]])
    found = np.exp(crossing(log_nfe, values, np.array([1.5, 2.0, 3.0, 2.0, 4.0])))
    assert found[:3] == pytest.approx([200, 200, 100])
    assert found[3] == np.inf
    assert found[4] == pytest.approx(1600)


def by_level(sampler, levels, **extra):
    """Rows of 40 prompts whose mean rewards grow as given; prompts differ, searches do not."""
    hard = np.random.default_rng(0).normal(0, 5, 40)
    return [row(sampler, b, hard + level, **extra) for b, level in levels.items()]


def test_costs_where_the_target_is_reached():
    reach = module("report_reach").reach
    best = entries(*by_level("best-of-n", {100: 80, 400: 82, 1600: 84}))
    fk = entries(*by_level("fk", {100: 82, 400: 86}))
    found = reach(fk, best, 1600, "reward")
    assert found.costs["nfe"] == pytest.approx(200)
    assert found.costs["decodes"] == pytest.approx(8)
    assert found.costs["seconds"] == pytest.approx(0.2)
    assert found.fewer[0] == pytest.approx(8)
    assert found.faster[0] == pytest.approx(8)
    assert found.fewer[1] == pytest.approx((8, 8)), "prompts are resampled for both together"
    assert not found.at_least
    itself = reach(best, best, 1600, "reward")
    assert itself.nfe == pytest.approx((1600, 1600))
    already = reach(fk, best, 400, "reward")
    assert already.at_least
    assert already.costs["nfe"] == pytest.approx(100)
    assert reach(fk, best, 3200, "reward") is None, "no target beyond what was measured"
    never = reach(best, fk, 400, "reward")
    assert never.costs == {}
    assert never.nfe == (np.inf, np.inf)
    assert never.fewer == (0, (0, 0))


def test_the_interval_of_a_noisy_crossing_covers_it():
    reach = module("report_reach").reach
    levels, covered = {100: 80.0, 200: 81.0, 400: 82.0, 800: 83.0}, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rows = {
            s: [row(s, b, rng.normal(level + up, 4, 80)) for b, level in levels.items()]
            for s, up in (("best-of-n", 0.0), ("fk", 0.5))
        }
        found = reach(entries(*rows["fk"]), entries(*rows["best-of-n"]), 400, "reward")
        covered += found.nfe[0] <= 400 / np.sqrt(2) <= found.nfe[1]
    assert covered >= 51


def test_unfinished_budgets_are_left_out_and_one_prompt_has_no_interval():
    reach = module("report_reach").reach
    best = entries(*by_level("best-of-n", {100: 80, 400: 82}))
    rows = by_level("fk", {100: 81, 400: 83})
    few = entries(*rows, row("fk", 1600, [99.0, 99.0]))
    assert reach(few, best, 400, "reward").most == pytest.approx(400)
    single = [entries(*(row(s, b, [v]) for b, v in ((100, 80), (400, 82)))) for s in ("a", "b")]
    found = reach(*single, 400, "reward")
    assert found.nfe is None
    assert found.fewer == (pytest.approx(1), None)


def test_the_table_names_who_needs_least():
    table = module("report_reach").reach_table
    rows = by_level("best-of-n", {100: 80, 400: 82, 1600: 84}) + by_level("fk", {100: 82, 400: 86})
    rows += by_level("svdd", {100: 70, 400: 71}) + by_level("base", {25: 60})
    text = table(entries(*rows), 64, "reward")
    assert "Reward of best of 64 (" in text
    assert "| `fk` | 200 | 8 | 8 | .200 | 200 to 200 | 8.0 [8.0, 8.0] | 8.0 [8.0, 8.0] |" in text
    assert "| `best-of-n` | 1600 | 64 | 64 | 1.600 |" in text
    assert "| `svdd` | not by 400 | - | - | - | - | - | - |" in text
    assert "Most: 8.0 [8.0, 8.0] times fewer NFE (`fk`)" in text
    assert "`base`" not in text
    assert table(entries(*rows), 256, "reward") == ""
    assert table(entries(*rows[3:]), 64, "reward") == ""


# ---- published orderings


def test_orderings_are_decided_by_the_paired_interval():
    claims = module("report_claims")
    hard = np.random.default_rng(1).normal(80, 5, 30)
    noise = np.random.default_rng(2).normal(0, 1, 30)
    pool = entries(
        row("best-of-n", 100, hard),
        row("fk", 100, hard + 1 + 0.1 * noise),
        row("fk-max", 100, hard - 1 + 0.1 * noise),
        row("svdd", 100, hard + noise - noise.mean()),
    )

    def verdict(better, *than):
        found = claims.decide(claims.Claim("", "", better, than), pool, "reward")
        return found and found.verdict

    assert verdict("fk", "best-of-n") == "holds", "far less than prompts differ, but in each"
    assert verdict("fk-max", "best-of-n") == "reversed"
    assert verdict("svdd", "best-of-n") == "open"
    assert verdict("fk-max", "fk", "best-of-n") == "reversed"
    assert verdict("svdd", "fk-max") == "holds"
    assert verdict("svdd", "fk-max", "fk") == "reversed", "against the best of the rivals"
    assert verdict("bfs", "fk") is None
    assert verdict("fk", "bfs") is None


def test_on_flows_a_name_means_the_sde_and_best_of_n_the_ode():
    claims = module("report_claims")
    hard = np.random.default_rng(1).normal(80, 5, 30)
    names = {"best-of-n": 0, "best-of-n-sde": 9, "fk": -2, "fk-sde": 2, "fk-vp": 1}
    pool = entries(*(row(s, 100, hard + up, model="shapes-flux") for s, up in names.items()))
    [fk] = [claims.decide(claims.Claim("", "", "fk", ("best-of-n",)), pool, "reward")]
    assert (fk.verdict, fk.gap[0], fk.rival) == ("holds", pytest.approx(2), "best-of-n")
    vp = claims.decide(claims.Claim("", "", "fk-vp", ("fk",)), pool, "reward")
    assert (vp.verdict, vp.rival) == ("reversed", "fk-sde")


def test_every_budget_and_equal_seconds_have_a_column():
    claims = module("report_claims")
    hard = np.random.default_rng(1).normal(80, 5, 30)
    rows = [
        row(s, b, hard + (s == "fk") * (b - 150)) for s in ("fk", "best-of-n") for b in (100, 250)
    ]
    rows.append(row("fk", 75, hard - 9, "best-of-n:100"))
    own = [claims.Claim("FK wins", "a paper", "fk", ("best-of-n",))]
    own.append(claims.Claim("never run", "a paper", "tds", ("best-of-n",)))
    head, _, line = claims.claims_table(entries(*rows), own, "reward").strip().splitlines()
    assert "| 100 NFE | 250 NFE | seconds of best-of-n:100 | in all |" in head
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "FK wins (a paper)"
    assert [c.split(",")[0] for c in cells[1:]] == [
        "**reversed**",
        "holds",
        "**reversed**",
        "mixed",
    ]
    assert claims.claims_sections(entries(*rows[:1]), own) == ""


def test_what_has_no_row_at_equal_seconds_is_named():
    rows = [row(s, 100, [80.0, 81.0, 82.0]) for s in ("base", "best-of-n", "fk", "svdd")]
    rows.append(row("fk", 75, [80.0, 81.0, 82.0], "best-of-n:100"))
    text = module("report_tables").seconds_sections(entries(*rows))
    assert "Not measured: `svdd`." in text
    rows.append(row("svdd", 75, [80.0, 81.0, 82.0], "best-of-n:100"))
    assert "Not measured" not in module("report_tables").seconds_sections(entries(*rows))


def test_claims_are_about_searches_that_exist():
    claims, known = module("report_claims"), module("embedded").FAMILIES
    for claim in (*claims.CLAIMS, *claims.SEARCH_CLAIMS):
        for name in (claim.better, *claim.than):
            assert name in known, name
        assert "arxiv.org/abs/" in claim.source


# ---- exact laws


def exact(sampler, problem, k, distance, **more):
    figures = {"mode_tv": distance, "mode_tv_se": 0.005, "independent": 2.0, "adaptive": False}
    figures |= {"mode_tv_chain": distance + 0.001, "reward_mean": 3.0, "reward_se": 0.1}
    figures |= {"z_ratio": 1.0, "z_ratio_se": 0.02, "z_largest": 0.01}
    return {"sampler": sampler, "problem": problem, "k": k} | figures | more


def test_cells_are_set_beside_the_best_known():
    report = module("report_exact")
    rows = [
        exact("auto", "linear", 4, 0.04),
        exact("auto", "linear", 64, 0.017, adaptive=True),
        exact("auto", "rare", 64, 0.03),
        exact("auto", "rare-16d", 64, 0.9),
        exact("tds", "linear", 16, 0.01, z_ratio=0.5),
        exact("bfs", "linear", 16, 0.01, z_ratio=0.5, adaptive=True),
    ]
    text = report.exactness_tables(rows)
    assert "| `auto` | 3 | 2 | 1 | rare 64 (5.0) |" in text
    assert "| best known | .008 | .008 | .024 | .006 | - | - |" in text
    auto = "**.017 ± .005** (.018) | missing | missing | .030 ± .005 (.031) | missing |"
    assert f"| `auto` | {auto} .900 ± .005 (.901) |" in text
    assert "`auto` or `auto-in-run` reaches the best known in 2 of 3 cells." in text
    assert "Neither does at rare, k = 64: .030 ± .005, where .006 is known: 3.4 standard" in text
    assert "| the chain | .006 | .006 | .019 | .027 |" in text
    assert "| `tds` | **.010 ± .005** (.011) | missing | - | missing |" in text, "no gradient"
    assert "| `tds` | 3.000 ± .100 |" in text
    assert "| `tds` | **.50 ± .02**; 2.0 |" in text
    assert "| `bfs` | .50 ± .02*; 2.0 |" in text
    told = "Of 5 cells without adaptation 4 are within 3 standard errors of 1.\n"
    told += "Of the other 1, 1 are too low"
    assert told in text, "the default that is told the spread does not adapt"
    assert "In 0 of them a single run gives more than 5 % of the mean; in the rest less:" in text


def test_longer_runs_stand_beside_the_pages_own():
    report = module("report_exact")
    own = exact("tds", "rare", 4, 0.1, runs=300, z_ratio=0.5)
    longer = exact("tds", "rare", 4, 0.1, runs=20_000, z_ratio=0.95, z_largest=0.2)
    line = "| `tds` | rare | 4 | 300 | **.50 ± .02** | 1.0 % | 20,000 | .95 ± .02 | 20.0 % |"
    assert line in report.longer_runs({("tds", 4, "rare"): own}, [longer])


# ---- flows, trees


def test_children_and_quality_stand_in_one_table():
    cell = {"part": "shapes-flux", "path": "flow", "steps": 10, "prompts": 2}
    quality = {"measure": "quality", "reward": 75.0, "accuracy": 0.5}
    quality |= {"accuracy_low": 0.4, "accuracy_high": 0.6}
    apart = {"measure": "children", "pixels_step": 0.1, "features_step": 0.2}
    apart |= {"pixels_onwards": 0.3, "features_onwards": 0.4}
    rows = [cell | {"transition": "ode"} | quality]
    rows += [cell | {"transition": "glass-2", "level": v} | apart for v in (0.4, 0.8)]
    text = module("report_flows").flow_tables(rows)
    assert "| path / transition | reward | accuracy | share 0.8 | share 0.4 |" in text
    assert "| flow / ode | 75.0 | .50 [.40, .60] | - | - |" in text
    assert "| flow / glass-2 | - | - | .100 (.20), .300 (.40) | .100 (.20), .300 (.40) |" in text
    assert "Not measured: flow / sde-square-exact" in text


def test_trees_are_tabled_by_problem():
    cell = {"problem": "rare", "se": 0.01, "z_ratio": 0.987}
    rows = [
        cell | {"sampler": s, "budget": b, "mode_tv_chain": 0.2}
        for s, b in (("dts", 200), ("smc", 800))
    ]
    text = module("report_trees").trees_tables(rows)
    assert "| NFE a run | `dts` | `smc` |" in text
    assert "| 200 | .200 ± .010; .99 | - |" in text


def test_the_page_draws_the_trees(tmp_path):
    cell = {"se": 0.01, "z_ratio": 0.987, "sampler": "dts", "mode_tv_chain": 0.2}
    rows = [cell | {"problem": p, "budget": b, "nfe": b} for p in ("a", "b") for b in (9, 90)]
    meta = {"versions": {"torch": "2.0"}, "device": "a device", "command": "scripts/benchmark.py x"}
    meta |= {"date": "2026-01-01T00:00:00+00:00"}
    (tmp_path / "trees.json").write_text(json.dumps({"meta": meta, "rows": rows}))
    importlib.import_module("results_page").write(tmp_path, tmp_path / "page.md")
    assert "(results-trees.png)" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "results-trees.png").stat().st_size > 10_000


# ---- the page


def test_a_wide_range_of_budgets_has_its_own_section_and_pictures(tmp_path):
    rows = by_level("best-of-n", {100: 80, 400: 82, 1600: 84}) + by_level(
        "dts-star", {100: 82, 400: 86}
    )
    rows += by_level("base", {25: 70})
    meta = {"versions": {"torch": "2.0"}, "device": "a device", "command": "scripts/benchmark.py x"}
    meta |= {"date": "2026-01-01T00:00:00+00:00"}
    results = tmp_path / "results"
    results.mkdir()
    (results / "search-made-up.json").write_text(json.dumps({"meta": meta, "rows": rows}))
    page = tmp_path / "results.md"
    importlib.import_module("results_page").write(results, page)
    text = page.read_text()
    title = "The embedded world: from 50 to thousands of denoiser calls"
    assert f"[{title}](#the-embedded-world-from-50-to-thousands-of-denoiser-calls)" in text
    assert f"## {title}" in text
    assert "to reach best of 64" in text
    assert "DTS* beats best of N" in text
    assert "| `dts-star` | - | 8" in text
    assert "| `dts-star` | - | 4, 4, .100 | 16, 16, .400 | - |" in text
    assert "## Published orderings" not in text, "that of the few budgets"
    assert (tmp_path / "results-search-shapes-sd.png").stat().st_size > 10_000


# ---- digits


def test_orderings_on_digits_are_decided_over_targets():
    claims = module("report_digits_claims")
    hard = np.exp(np.random.default_rng(0).normal(0, 1, 10))
    noise = np.exp(np.linspace(-0.1, 0.1, 10))

    def rows(name, fd, targets=10):
        return [
            {"sampler": name, "budget": 1000, "target": str(i), "fd": hard[i] * fd[i]}
            | {"fd_pooled": hard[i] * noise[i] if name == "dts" else hard[i], "fd_model": None}
            for i in range(targets)
        ]

    level = np.ones(10)
    dts = rows("dts", 0.5 * level)
    text = claims.orderings(
        [*dts, *rows("das", level), *rows("smc", level, targets=2), *rows("tds", 0.25 * level)]
    )
    assert "| `dts` closer than `das` | holds, .50 [.50, .50] |" in text
    assert "| `dts` closer than `tds` | **reversed**, 2.00 [2.00, 2.00] |" in text
    assert "| `dts` closer than `smc` | .50 [.50, .50] |" in text, "two targets decide nothing"
    assert "| `dts` closer than `das` | open, 1.00 [.96, 1.04] |" in text, "pooled"
    assert "model's law" not in text
    assert claims.orderings(dts) == ""
