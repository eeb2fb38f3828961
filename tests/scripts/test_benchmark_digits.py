"""The comparison on real digits: figures against closed forms, names and budgets, cells, the page."""

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import samplers
from samplers import BestOfN
from steering.cost import Budget
from steering.search import BudgetTooSmall, Facts

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield


@pytest.fixture(scope="module")
def figures():
    return importlib.import_module("benchmarks.digits_figures")


@pytest.fixture(scope="module")
def methods():
    return importlib.import_module("benchmarks.digits_methods")


# ---- the distance


def covariance(rng, dim):
    factor = rng.normal(size=(dim, dim))
    return torch.from_numpy(factor @ factor.T / dim)


def test_the_distance_of_gaussians_is_the_closed_form(figures):
    rng = np.random.default_rng(0)
    m_a, m_b = torch.from_numpy(rng.normal(size=(2, 5)))
    s_a, s_b = torch.from_numpy(rng.uniform(0.5, 2, (2, 5)))
    a, b = figures.Moments(m_a, s_a.square().diag()), figures.Moments(m_b, s_b.square().diag())
    exact = float((m_a - m_b).square().sum() + (s_a - s_b).square().sum())
    assert figures.frechet(a, b) == pytest.approx(exact, rel=1e-10)
    turn = torch.linalg.qr(torch.from_numpy(rng.normal(size=(5, 5)))).Q
    turned = [figures.Moments(turn @ m.mean, turn @ m.covariance @ turn.T) for m in (a, b)]
    assert figures.frechet(*turned) == pytest.approx(exact, rel=1e-10), "no axes are special"
    assert figures.frechet(a, a) == pytest.approx(0, abs=1e-10)


def test_covariances_that_do_not_commute_are_as_scipy_has_them(figures):
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    c_a, c_b, zero = covariance(rng, 6), covariance(rng, 6), torch.zeros(6, dtype=torch.float64)
    exact = np.trace(c_a + c_b) - 2 * np.trace(sqrtm(c_a.numpy() @ c_b.numpy()).real)
    a, b = figures.Moments(zero, c_a), figures.Moments(zero, c_b)
    assert figures.frechet(a, b) == pytest.approx(exact, rel=1e-6)
    assert figures.frechet(a, b) == pytest.approx(figures.frechet(b, a))


def test_the_distance_is_that_of_torchmetrics(figures):
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Flat(torch.nn.Module):
        num_features = 4

        def forward(self, pictures):
            return pictures.flatten(1).double()

    torch.manual_seed(0)
    a, b = torch.randn(400, 1, 2, 2) @ torch.randn(2, 2), torch.randn(300, 1, 2, 2) + 0.5
    metric = FrechetInceptionDistance(Flat(), input_img_size=(1, 2, 2)).set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    ours = [
        figures.Moments(m.mean, m.covariance * n / (n - 1))  # theirs divides by n - 1
        for m, n in ((figures.Moments.of(x.flatten(1)), len(x)) for x in (a, b))
    ]
    assert figures.frechet(*ours) == pytest.approx(float(metric.compute()), rel=1e-4)


def test_weights_are_repetitions_and_pooling_is_joining(figures):
    torch.manual_seed(0)
    points, counts = torch.randn(5, 3, dtype=torch.float64), torch.tensor([1, 0, 4, 2, 1])
    weighted = figures.Moments.of(points, counts / counts.sum().double())
    repeated = figures.Moments.of(points.repeat_interleave(counts, 0))
    torch.testing.assert_close(weighted.mean, repeated.mean)
    torch.testing.assert_close(weighted.covariance, repeated.covariance)
    parts = torch.randn(3, 7, 2, dtype=torch.float64)
    pooled = figures.Moments.pooled([figures.Moments.of(part) for part in parts])
    joined = figures.Moments.of(parts.flatten(0, 1))
    torch.testing.assert_close(pooled.mean, joined.mean)
    torch.testing.assert_close(pooled.covariance, joined.covariance)


def test_few_points_of_the_very_same_law_are_too_far_by_as_much_as_is_said(figures):
    torch.manual_seed(0)
    law = figures.Moments(torch.zeros(8).double(), torch.eye(8).double())
    found = [figures.frechet(figures.Moments.of(torch.randn(200, 8)), law) for _ in range(200)]
    assert np.mean(found) == pytest.approx(8 / 200 * (1 + 9 / 4), rel=0.1)


def test_figures_of_a_cell_by_hand(figures):
    features = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    seen = figures.Judged(features, torch.tensor([3, 3, 8]))
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    usage = importlib.import_module("steering.cost").Usage(nfe=150, decodes=3, reward_calls=3)
    rewards = torch.tensor([0.0, -1.0, -2.0], dtype=torch.float64)
    run = figures.measure(seen, weights, rewards, usage)
    real = figures.Moments(torch.tensor([1.5]).double(), torch.tensor([[1.0]]).double())
    row = figures.summarise([run, run], figures.Reference((3,), real, real))
    assert row["reward"] == -0.75
    assert (row["right"], row["classes_tv"]) == (0.75, 0.25)
    assert row["ess"] == pytest.approx(1 / 0.375)
    variance = 0.5 * 1.5**2 + 0.25 * 0.5**2 + 0.25 * 3.5**2
    assert row["diversity"] == pytest.approx(variance)
    assert row["fd"] == pytest.approx((variance**0.5 - 1) ** 2)
    assert row["fd_pooled"] == pytest.approx(row["fd"]) == pytest.approx(row["fd_model"])
    assert (row["fd_se"], row["nfe"], row["decodes"], row["backwards"]) == (0, 150, 3, 0)


# ---- names and budgets


@pytest.mark.parametrize("nfe", [1000, 10_000])
def test_every_search_keeps_within_its_budget_and_uses_it(methods, nfe):
    for name, make in methods.SEARCHES.items():
        if name.startswith("dts"):
            continue  # another version of the package may lack them
        plan = make(nfe, 50).plan(Facts(50, 50, budget=Budget(nfe=nfe)))
        assert plan.cost.nfe == nfe, name
        assert (plan.cost.backwards > 0) == (name in ("das", "tds"))


def test_the_best_of_each_group_counts(methods):
    rewards = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0, 5.0, 9.0], dtype=torch.float64)
    weights = methods.method("best-of-3").weigh(torch.zeros_like(rewards), rewards)
    assert weights.tolist() == [0, 0.5, 0, 0, 0, 0.5, 0], "what is no whole group is left out"
    weights = methods.method("best-of-64").weigh(torch.zeros_like(rewards), rewards)
    assert weights.argmax() == 6
    assert weights.sum() == 1


def test_finished_samples_are_weighed_by_the_reward(methods):
    rewards = torch.tensor([0.0, 1.0], dtype=torch.float64)
    tilted = methods.method("weighted").weigh(torch.zeros(2).double(), rewards)
    assert float(tilted[1] / tilted[0]) == pytest.approx(np.e)
    assert methods.method("base").weigh(torch.zeros(2).double(), rewards).tolist() == [0.5, 0.5]
    own = methods.method("smc").weigh(torch.tensor([0.0, 2.0]).double(), rewards)
    assert float(own[1] / own[0]) == pytest.approx(np.e**2)


def test_particles_look_where_trees_branch(methods):
    assert methods.looks(50) == [0, 10, 20, 30, 40]
    search = methods.SEARCHES["smc"](1000, 50)
    assert (search.particles, search.looks(50)) == (20, [0, 10, 20, 30, 40])


def test_wrong_names_and_small_budgets_are_refused(methods):
    for name in ("nonsense", "best-of-", "best-of-0"):
        with pytest.raises(ValueError, match="unknown sampler"):
            methods.method(name)
    with pytest.raises(BudgetTooSmall):
        methods.SEARCHES["smc"](49, 50)


def test_a_tree_search_is_found_by_name_and_bound_by_the_budget_alone(methods, monkeypatch):
    importlib.import_module("benchmark")  # other benchmarks need what is taken away now
    monkeypatch.delattr(samplers, "DTS", raising=False)
    with pytest.raises(methods.NotThere, match=r"no samplers\.DTS"):
        methods.SEARCHES["dts"](1000, 50)

    @dataclasses.dataclass(frozen=True)
    class Tree:
        returns: str = "best"
        rollouts: int = 64
        widening: float = 1.0
        in_flight: int = 4

    monkeypatch.setattr(samplers, "DTS", Tree, raising=False)
    assert methods.SEARCHES["dts"](1000, 50) == Tree("all", 1000, 1.0, 8)
    assert methods.SEARCHES["dts"](100_000, 50).in_flight == 62
    with pytest.raises(methods.NotThere, match=r"no options \['weights'\]"):
        methods.SEARCHES["dts-published"](1000, 50)


# ---- the command


@pytest.fixture(scope="module")
def world(tmp_path_factory, scripts):
    """Untrained models of tiny width, and made-up digits."""
    folder = tmp_path_factory.mktemp("digits")
    data = importlib.import_module("digits_training.data")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (100, 1, 28, 28), generator=generator, dtype=torch.uint8)
    data.save_digits(data.Digits(images, torch.arange(100) % 10), folder / "digits.safetensors")
    words = ["classifiers", "model", "--size", "tiny", "--device", "cpu", "--steps", "1"]
    words += ["--data", str(folder / "digits.safetensors")]
    words += ["--out", str(folder), "--work", str(folder / "work")]
    importlib.import_module("train_digits").main(words)
    return folder


def command(world, file, *args):
    words = ["digits", "--json", str(file), "--weights", str(world), "--device", "cpu", "--quick"]
    words += ["--data", str(world / "digits.safetensors")]
    importlib.import_module("benchmark").main([*words, *args])
    return json.loads(file.read_text())["rows"]


def test_a_quick_comparison_from_the_command_to_the_page(world, tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(samplers, "DTS", raising=False)
    file = tmp_path / "results" / "digits.json"
    file.parent.mkdir()
    rows = command(world, file)
    assert "dts left out at 40 NFE: this version of the package has no samplers.DTS" in (
        capsys.readouterr().out
    )
    names = [row["sampler"] for row in rows]
    assert {n: names.count(n) for n in names} == dict.fromkeys(
        ["real", "model", "base", "weighted", "best-of-4", "smc", "das"], 2
    )
    for row in rows:
        assert row["fd"] >= 0
        if row["budget"]:
            assert (row["nfe"], row["runs"], row["fd_model"] >= 0) == (40, 2, True)
            assert row["reward_calls"] == row["decodes"]
            assert row["seconds"] > 0
    costs = {row["sampler"]: (row["decodes"], row["backwards"]) for row in rows if row["budget"]}
    assert costs["base"] == costs["weighted"] == costs["best-of-4"] == (4, 0)
    assert costs["das"] == (44, 40)

    importlib.import_module("results_page").write(file.parent, tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text()
    assert "## Real digits" in page
    assert "### single digits, cpu" in page
    assert "### even and odd, cpu" in page
    assert "| `das` | 1 x 2 |" in page
    assert "| the model's own tilted law | - |" in page
    assert (tmp_path / "results-digits.png").stat().st_size > 10_000


def test_cells_are_gone_on_with_merged_and_timed(world, tmp_path, monkeypatch, capsys):
    digits = importlib.import_module("benchmarks.digits")
    ran = []
    run = digits.Bench._run
    monkeypatch.setattr(digits.Bench, "_run", lambda self, b: ran.append(b) or run(self, b))
    file = tmp_path / "digits.json"
    first = command(world, file, "--samplers", "weighted", "conditional")
    assert [(b.search, b.conditional, b.targets) for b in ran] == [
        ("independent", False, ("3", "even")),
        ("independent", True, ("3",)),
    ], "the model can be told one digit, not a set"
    ran.clear()
    again = command(world, file, "--samplers", "weighted", "base")
    assert again[: len(first)] == first
    assert len(again) == len(first) + 2
    assert len(ran) == 1
    weighted, base = (
        next(r for r in again if r["sampler"] == s and r["target"] == "3")
        for s in ("weighted", "base")
    )
    assert weighted["fd"] != base["fd"]
    both = tmp_path / "both.json"
    assert command(world, both, "--samplers", "smc", "--merge", str(file))[: len(again)] == again
    capsys.readouterr()
    ran.clear()
    command(world, both, "--samplers", "das", "--minutes", "1e-6")
    assert "1 blocks left" in capsys.readouterr().out
    assert not ran
    with pytest.raises(ValueError, match="there is no"):
        command(world, tmp_path / "x.json", "--merge", str(tmp_path / "missing.json"))


def test_the_same_seeds_give_the_same_figures(world, tmp_path):
    timed = ("seconds",)
    found = [
        [
            {k: v for k, v in row.items() if k not in timed}
            for row in command(world, tmp_path / f"{i}.json", "--samplers", "smc")
        ]
        for i in range(2)
    ]
    assert found[0] == found[1]


def test_other_weights_and_other_benchmarks_do_not_mix(world, tmp_path):
    file = tmp_path / "digits.json"
    file.write_text('{"meta": {}, "rows": [{"sampler": "fk-16", "prompts": 128}]}')
    with pytest.raises(ValueError, match="another benchmark"):
        command(world, file)
    with pytest.raises(ValueError, match=r"train_digits\.py model"):
        command(tmp_path, tmp_path / "x.json", "--data", str(world / "digits.safetensors"))
    with pytest.raises(ValueError, match="unknown sampler 'nonsense'"):
        command(world, tmp_path / "x.json", "--samplers", "nonsense")
    assert not (tmp_path / "x.json").exists()


def test_weighing_unsteered_samples_gives_the_tilted_law(world):
    """What exact samplers are measured by: weights and features of the model's own samples."""
    made = importlib.import_module("benchmarks.digits_world")
    place = made.World(world, world / "digits.safetensors", torch.device("cpu"), 10)
    run, reference = place.bound("model", "even", 32)
    seen, log_p = place._pool(32)
    weights = log_p[:, ::2].exp().sum(1)
    weights = weights / weights.sum()
    torch.testing.assert_close(run.moments.mean, weights @ seen.features)
    assert run.ess == pytest.approx(float(1 / weights.square().sum()))
    assert reference.classes == (0, 2, 4, 6, 8)
    again = made.World(world, world / "digits.safetensors", torch.device("cpu"), 10)
    torch.testing.assert_close(again._pool(32)[1], log_p)


def test_finished_samples_of_all_budgets_are_walked_alike(methods):
    search = methods.SEARCHES["independent"](1000, 50)
    assert isinstance(search, BestOfN)
    assert (search.n, search.returns, search.solver.eta) == (20, "all", 1.0)


def test_bounds_hold_on_every_device_and_tables_do_not_mix_devices():
    report = importlib.import_module("benchmarks.report_digits")
    figures = dict.fromkeys([*report.MEASURES, *report.COSTS, "seconds"], 0.5)
    common = {"steps": 50, "total": 100, "pool": 9, "weights": "a", "batch_size": 64, "runs": 3}

    def row(sampler, target, budget, device, **changed):
        settings = {"sampler": sampler, "target": target, "budget": budget, "device": device}
        return common | figures | settings | changed

    rows = [row("real", str(d), 0, "one", fd=0.1 * d) for d in (1, 2)]
    rows += [row("smc", str(d), 1000, "one", fd=float(d)) for d in (1, 2)]
    rows += [row("smc", "1", 1000, "two"), row("smc", "1", 2000, "two", reward=None)]
    text = report.digits_tables(rows)
    assert text.count("### single digits") == 3
    assert "### single digits, two, 64 rows a call, 50 steps: 2000 denoiser calls a run" in text
    assert text.count("| real digits | - | .150 ± .050 |") == 3
    assert "| `smc` | 2 x 3 | 1.500 ± .500 |" in text
    assert "even and odd" not in text
    assert report.digits_tables(rows[:2]) == "", "bounds alone compare nothing"
