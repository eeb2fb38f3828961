import importlib
import json
import math
import subprocess
from pathlib import Path

import pytest
import torch

from steering.chain_law import saved_laws
from steering.tilted import PROBLEMS

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield


@pytest.fixture(scope="module")
def exactness():
    return importlib.import_module("benchmarks.exactness")


def command(*args: str) -> None:
    threads = torch.get_num_threads()
    importlib.import_module("benchmark").main(list(args))
    torch.set_num_threads(threads)


KEYS = {
    "problem",
    "sampler",
    "k",
    "nfe",
    "runs",
    "reward_mean",
    "reward_exact",
    "mode_tv",
    "mode_tv_se",
    "mode_tv_chain",
    "log_z",
    "log_z_se",
    "log_z_exact",
}


def test_exactness_writes_flat_rows_and_goes_on_where_it_stopped(tmp_path, exactness, monkeypatch):
    file = tmp_path / "new folder" / "exactness.json"
    cell = ["exactness", "--json", str(file), "--k", "4", "--runs", "6", "--problems", "linear"]
    command(*cell, "--samplers", "fk-difference")
    first = json.loads(file.read_text())
    assert {"versions", "device", "seed", "command", "date"} <= first["meta"].keys()
    (row,) = first["rows"]
    assert row.keys() >= KEYS
    assert row["nfe"] == 50 * 4
    assert row["runs"] == 6
    assert row["reward_exact"] == pytest.approx(3.170, abs=1e-3)
    assert all(isinstance(v, int | float | str | list | None) for v in row.values())

    ran = []
    simulate = exactness.simulate
    monkeypatch.setattr(
        exactness,
        "simulate",
        lambda *args, **options: ran.append(args[0].name) or simulate(*args, **options),
    )
    command(*cell, "indicator", "--samplers", "fk-difference", "best-of-n")
    rows = json.loads(file.read_text())["rows"]
    assert rows[0] == row
    assert len(rows) == 4
    assert ran == ["linear", "indicator", "indicator"], "the finished cell was not run again"
    assert [r["log_z"] is None for r in rows if r["sampler"] == "best-of-n"] == [True, True]
    assert not list(file.parent.glob("*.tmp"))


def test_cells_go_on_until_their_standard_error_is_small_enough(tmp_path, exactness, monkeypatch):
    monkeypatch.setitem(exactness.FIRST, 4, 20)
    file = tmp_path / "exactness.json"
    words = ["exactness", "--json", str(file), "--k", "4", "--problems", "linear", "indicator"]
    command(*words, "--samplers", "weighted-best-of-n", "tds", "--error", "0.045", "--most", "90")
    rows = json.loads(file.read_text())["rows"]
    names = [(r["problem"], r["sampler"]) for r in rows]
    assert ("indicator", "tds") not in names, "the indicator has no gradient to follow"
    assert len(rows) == 3
    for row in rows:
        assert row["mode_tv_se"] <= 0.045 or row["runs"] == 90
        assert 20 <= row["runs"] <= 90
    assert any(row["runs"] > 20 for row in rows)


def test_cells_are_measured_by_several_processes_alike(tmp_path):
    words = ["--k", "4", "--problems", "linear", "--samplers", "fk-difference", "code", "--runs"]
    for processes in (1, 2):
        file = tmp_path / f"{processes}.json"
        command("exactness", "--json", str(file), *words, "4", "--processes", str(processes))
    one, two = (json.loads((tmp_path / f"{p}.json").read_text())["rows"] for p in (1, 2))
    figures = [{r["sampler"]: r["mode_tv"] for r in rows} for rows in (one, two)]
    assert figures[0] == figures[1]


def test_every_search_keeps_to_the_rows_of_its_particles(exactness):
    problem = PROBLEMS["linear"]()
    for name, make in exactness.SAMPLERS.items():
        for k in (4, 16):
            budget = exactness.Budget(nfe=50 * k)
            nfe = float(exactness.simulate(problem, make(k), 1, 0, budget=budget).nfe)
            assert 0.8 * 50 * k <= nfe <= 50 * k, name


def test_the_same_seed_gives_the_same_rows(exactness):
    problem = PROBLEMS["rare"]()
    search = exactness.SAMPLERS["smc-ess"](4)
    a = exactness.simulate(problem, search, 5, seed=1, batch_size=64)
    b = exactness.simulate(problem, search, 5, seed=1, batch_size=64)
    c = exactness.simulate(problem, search, 5, seed=2, batch_size=64)
    assert torch.equal(a.log_z, b.log_z)
    assert not torch.isin(a.log_z, c.log_z).any()


def test_figures_of_a_cell_by_hand(exactness):
    """Half the runs at one mode, half at another: every figure can be said in advance."""
    problem, law = PROBLEMS["linear"](), saved_laws()["linear"]
    masses = torch.zeros(100, 8, dtype=torch.float64)
    masses[:50, 1] = masses[50:, 2] = 1
    rewards = torch.arange(100).double() % 2
    runs = exactness.Runs(masses, rewards, rewards, rewards.log1p(), torch.full((100,), 800.0))
    row = exactness.summarise(runs, problem, law)
    exact = problem.masses
    apart = float((0.5 - exact[[1, 2]]).abs().sum() + exact.sum() - exact[[1, 2]].sum())
    assert row["mode_tv"] == pytest.approx(0.5 * apart)
    assert row["reward_mean"] == 0.5
    assert row["reward_se"] == pytest.approx(0.5 / math.sqrt(99))
    assert row["independent"] == pytest.approx(0.99)
    assert row["log_z"] == pytest.approx(math.log(1.5))
    assert row["log_z_se"] == pytest.approx(0.5 / math.sqrt(99) / 1.5, rel=0.15)
    assert row["z_ratio"] == pytest.approx(1.5 / math.exp(law.log_z))
    assert row["z_largest"] == pytest.approx(2 / 150)
    assert 0 < row["mode_tv_se"] < 0.1


def test_unknown_names_are_refused_before_any_work(tmp_path, capsys):
    for wrong in (["--samplers", "nonsense"], ["--problems", "nonsense"]):
        with pytest.raises(SystemExit):
            command("exactness", "--json", str(tmp_path / "x.json"), *wrong)
        assert "nonsense" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_result_file_is_not_overwritten(tmp_path):
    file = tmp_path / "notes.json"
    file.write_text('{"something": "else"}')
    with pytest.raises(ValueError, match="not a result file"):
        command("exactness", "--json", str(file), "--quick")
    assert file.read_text() == '{"something": "else"}'


def test_a_killed_write_leaves_the_old_file(tmp_path, monkeypatch):
    common = importlib.import_module("benchmarks.common")
    file = tmp_path / "rows.json"
    common.write_atomically(file, "old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        common.write_atomically(file, "new")
    assert [f.name for f in tmp_path.iterdir()] == ["rows.json"]
    assert file.read_text() == "old"


def test_chain_laws_are_written_in_the_saved_form(tmp_path):
    file = tmp_path / "laws.json"
    command("chain-laws", "--json", str(file), "--samples", "1000")
    laws = json.loads(file.read_text())["laws"]
    assert [law["problem"] for law in laws] == list(PROBLEMS)


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (
            [
                "shapes",
                "--models",
                "shapes-sd",
                "--samplers",
                "base",
                "--prompts",
                "1",
                "--seeds",
                "1",
            ],
            "model prompt_set sampler nfe decodes reward_calls seconds reward accuracy accuracy_low "
            "accuracy_high prompts seeds",
        ),
        (
            ["overhead", "--samplers", "best-of", "--rows", "1", "--repeats", "1"],
            "model sampler rows share_outside_models",
        ),
    ],
)
def test_benchmarks_of_the_embedded_models_write_their_fixed_keys(tmp_path, words, keys):
    file = tmp_path / "out.json"
    command(*words, "--json", str(file), "--device", "cpu")
    found = json.loads(file.read_text())
    assert {"versions", "device", "seed"} <= set(found["meta"])
    [row] = found["rows"]
    assert set(keys.split()) <= set(row)


def test_overhead_of_fused_steps_is_told_of_two_checkouts(tmp_path, monkeypatch):
    """Each in a process of its own, of which one runs here; the other is answered for."""
    fused = importlib.import_module("benchmarks.fused")
    real, folders = fused.subprocess.run, []

    def answered(words, *, cwd, **options):
        folders.append(cwd)
        if cwd != tmp_path:
            return real(words, cwd=cwd, **options)
        figures = json.dumps([str(tmp_path), {"us_per_call": 1.0, "syncs_per_step": 9.0}])
        return subprocess.CompletedProcess(words, 0, stdout=figures)

    monkeypatch.setattr(fused.subprocess, "run", answered)
    file = tmp_path / "fused.json"
    words = ["--prompts", "2", "--cells", "rbf-lean:60", "--repeats", "1"]
    command("overhead", "--json", str(file), *words, "--against", str(tmp_path))
    here, there = json.loads(file.read_text())["rows"]
    assert folders == [SCRIPTS.parent, tmp_path]
    assert (here["code"], there["code"], there["syncs_per_step"]) == ("this", "against", 9.0)
    assert (here["sampler"], here["nfe"], here["prompts"]) == ("rbf-lean", 60, 2)
    assert here["syncs_per_step"] == pytest.approx(1, abs=0.1)
    assert here["sends_per_step"] > 1
    assert min(here["ops_per_call"], here["us_per_call"]) > 0


@pytest.mark.parametrize("processes", [1, 2])
def test_a_cell_that_fails_costs_no_other_its_row(processes):
    pool = importlib.import_module("benchmarks.pool")
    rows = pool.pooled(math.sqrt, [4.0, -1.0, 9.0, 16.0], processes, lambda cell: cell < 16)
    found = []
    with pytest.raises(ExceptionGroup, match="1 cells failed") as caught:
        found.extend(rows)
    assert sorted(found) == [2.0, 3.0]
    [error] = caught.value.exceptions
    assert error.__notes__ == ["in -1.0"]


def test_rewards_are_timed_both_ways(tmp_path):
    file = tmp_path / "rewards.json"
    cell = ["rewards", "--json", str(file), "--devices", "cpu", "--quick", "--size", "64"]
    command(*cell, "--rewards", "clip+aesthetic")
    command(*cell, "--rewards", "clip+aesthetic", "image-reward")
    rows = json.loads(file.read_text())["rows"]
    assert [row["reward"] for row in rows] == ["clip+aesthetic", "image-reward"]
    for row in rows:
        assert row.keys() >= {"device", "batch", "images_per_s", "images_per_s_pil", "ratio"}
        assert row["ratio"] == pytest.approx(row["images_per_s"] / row["images_per_s_pil"])


def test_rank_correlations_are_means_over_prompts():
    decoders = importlib.import_module("benchmarks.decoders")
    same = torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
    other = torch.tensor([[10.0, 20.0, 30.0], [1.0, 3.0, 2.0]])
    mean, error = decoders.rank_correlation(same, other)
    assert mean == pytest.approx(0.0)  # 1 and -1
    assert error == pytest.approx(1.0)


@pytest.mark.slow
def test_decoders_are_ranked(tmp_path):
    file = tmp_path / "decoders.json"
    words = ("decoders", "--json", str(file), "--device", "cpu", "--quick")
    command(*words, "--decoders", "full", "linear")
    tiny = tmp_path / "tiny"
    command(*words, "--tiny", str(tiny), "--train_seconds", "5")
    assert (tiny / "diffusion_pytorch_model.safetensors").is_file()
    rows = json.loads(file.read_text())["rows"]
    assert [row["decoder"] for row in rows[:4]] == ["full", "full", "linear", "linear"]
    full = [row for row in rows if row["decoder"] == "full"]
    assert len(rows) == 5 * len(full) == 10
    assert all(row["rank_full"] == pytest.approx(1.0) for row in full)
