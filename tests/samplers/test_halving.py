"""Early rejection: what it spends, what it finds, and the gate that says when to trust."""

from itertools import pairwise

import pytest
import torch
from helpers import FunctionReward, jobs_for, mixture, run

from samplers import BestOfN, Diverse, Gate, Halving, LookAhead
from steering.clarity import Clarity
from steering.cost import Budget, Cost
from steering.engine import Engine
from steering.glass import GLASS
from steering.interpolants import VPLinear
from steering.live import SearchFailed
from steering.mixtures import GaussianMixture, MixtureModel, flow_grid, vp_grid
from steering.paths import SamplingPath
from steering.reward import Item
from steering.search import BudgetTooSmall, Facts
from steering.transitions import DDIM
from steering.watching import Watched, measure

FACTS = Facts(10, 10)


def counted(usage):
    return Cost(usage.nfe, usage.decodes, usage.reward_calls, usage.backwards)


def one_gaussian():
    """Of one isotropic Gaussian every prediction is a multiple of the sample that the ODE ends at."""
    law = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    return MixtureModel(law, vp_grid(10))


def clarity(*ranked, model=None, looked=(1, 3, 5, 8)):
    grid = (model or mixture(steps=10)[1]).grid
    levels = tuple(grid[i].log_snr for i in looked)
    return Clarity("m", "r", grid.steps, looked, levels, ranked, 100, 4)


LINEAR = FunctionReward(lambda x, f: x[:, 0] + x[:, 1])
SEARCHES = [
    Halving(),
    Halving(7, steps=[2, 4, 6]),
    Halving(20, steps=[0.2], share=0.1),
    Halving(3, steps=[]),
    Halving(1),
    Halving(9, keep=Diverse()),
    Halving(8, value=LookAhead(4)),
    Halving(8, transition=GLASS(inner=3)),
    Halving(8, transition=DDIM(1.0), path=SamplingPath(VPLinear())),
]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_it_spends_what_it_plans(search):
    problem, _ = mixture()
    model = MixtureModel(problem.mixture, flow_grid(10))
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search))
    plan = search.plan(FACTS)
    assert plan.exact
    assert counted(result.usage) == plan.cost


def test_the_plan_shows_what_is_saved():
    assert Halving(16).plan(FACTS).cost == Cost(16 * 4 + 8 * 2 + 4 * 4, 16 + 8 + 4, 16 + 8 + 4)
    assert Halving(16).plan(FACTS).settings == {"n": 16, "rejections": [3, 5]}
    assert BestOfN(16).plan(FACTS).cost.nfe == 160


@pytest.mark.parametrize("seed", range(5))
def test_where_the_prediction_ranks_as_the_sample_it_finds_what_best_of_n_finds(seed):
    model = one_gaussian()
    options = {"deterministic": True, "bucket": 16}
    best = BestOfN(16, solver=DDIM(0.0))
    halved = Halving(16, steps=[1, 2, 3, 4])
    [a] = run(model, LINEAR, jobs_for(model, ["a"], best, seed=seed), **options)
    [b] = run(model, LINEAR, jobs_for(model, ["a"], halved, seed=seed), **options)
    assert torch.equal(a.outcome.x_0[a.outcome.chosen], b.outcome.x_0[b.outcome.chosen])
    assert b.usage.nfe < a.usage.nfe / 2.5


def test_it_is_best_of_n_where_nothing_is_rejected():
    problem, model = mixture(steps=10)
    options = {"deterministic": True, "bucket": 8}
    for kind in (DDIM(0.0), DDIM(1.0)):
        best = BestOfN(6, solver=kind, returns="all")
        whole = Halving(6, steps=[], transition=kind, returns="all")
        [a] = run(model, problem.reward, jobs_for(model, ["a"], best), **options)
        [b] = run(model, problem.reward, jobs_for(model, ["a"], whole), **options)
        assert torch.equal(a.outcome.x_0, b.outcome.x_0)
        assert a.outcome.chosen == b.outcome.chosen


def test_those_that_are_left_are_what_they_would_have_been():
    """Rejection changes who is finished, never what a candidate becomes."""
    problem, model = mixture(steps=10)
    options = {"deterministic": True, "bucket": 8}
    search = Halving(8, steps=[2, 5], transition=DDIM(1.0), returns="all")
    [some] = run(model, problem.reward, jobs_for(model, ["a"], search), **options)
    every = BestOfN(8, solver=DDIM(1.0), returns="all")
    [every] = run(model, problem.reward, jobs_for(model, ["a"], every), **options)
    left = some.trace.column("ancestors")[-1]
    assert len(left) == 2
    assert torch.equal(some.outcome.x_0, every.outcome.x_0[left])


def test_it_finds_more_than_best_of_n_at_equal_nfe():
    problem, model = mixture("quadratic", steps=10)
    found = {}
    budget = Budget(nfe=80)
    for name, search in {
        "best": BestOfN(99, solver=DDIM(0.0)),
        "halving": Halving(99, steps=[0.3, 0.4, 0.5]),
    }.items():
        jobs = jobs_for(model, [str(i) for i in range(100)], search, budget=budget)
        results = run(model, problem.reward, jobs, batch_size=4096)
        assert 70 <= max(r.usage.nfe for r in results) <= 80
        total = torch.stack([r.outcome.scores.total.max() for r in results])
        found[name] = float(total.mean()), float(total.std()) / 10
    (best, e), (halving, f) = found.values()
    assert halving - best > 3 * (e**2 + f**2) ** 0.5


# ---- the gate


def test_a_saved_clarity_delays_what_lies_before_the_first_trusted_step(tmp_path):
    known = clarity(0.1, 0.4, 0.7, 0.9)
    path = str(known.save(tmp_path))
    for given in (known, path):
        search = Halving(16, steps=[1, 4, 6], gate=Gate(0.5, given))
        plan = search.plan(FACTS)
        assert plan.exact
        assert plan.settings == {"n": 16, "rejections": [5, 6]}
        assert plan.cost.nfe == 16 * 6 + 4 * 1 + 2 * 3  # two rejections meet at step 5
        problem, model = mixture(steps=10)
        [result] = run(model, problem.reward, jobs_for(model, ["a"], search))
        assert counted(result.usage) == plan.cost
    never = Halving(16, gate=Gate(0.95, known)).plan(FACTS)
    assert never.settings["rejections"] == []
    assert never.cost == BestOfN(16).plan(FACTS).cost


def test_a_clarity_of_another_grid_is_refused():
    problem, _ = mixture(steps=10)
    search = Halving(4, gate=Gate(0.5, clarity(0.1, 0.4, 0.7, 0.9)))
    with pytest.raises(ValueError, match="on a grid of 10 steps, but this one has 20"):
        search.plan(Facts(20, 20))
    other = MixtureModel(problem.mixture, flow_grid(10))
    with pytest.raises(SearchFailed, match="measured on a grid of 10 steps, at log-SNR"):
        run(other, problem.reward, jobs_for(other, ["a"], search))


def test_a_gate_learns_from_the_prompts_own_pilot():
    """Where predictions rank as samples do it opens at the first level; where they lie, never."""
    model = one_gaussian()
    search = Halving(20, steps=[0.2, 0.4], gate=Gate(0.9, pilot=4))
    [result] = run(model, LINEAR, jobs_for(model, ["a"], search))
    assert result.trace.column("trusted") == [1]
    assert result.outcome.extra["clarity"].ranked == pytest.approx([1.0] * 8)
    assert result.usage.nfe == 4 * 10 + 16 * 3 + 8 * 2 + 4 * 5
    assert len(result.outcome.x_0) == 4 + 4

    calls = iter(range(10**6))
    liar = FunctionReward(lambda x, f: x[:, 0] * (-1) ** (next(calls) < 8))
    [lied] = run(model, liar, jobs_for(model, ["a"], search), batch_size=64)
    assert lied.trace.column("trusted") == [None]
    assert lied.outcome.extra["clarity"].ranked == pytest.approx([-1.0] * 8)
    assert lied.usage.nfe == 200
    assert len(lied.outcome.x_0) == 20


def test_a_pilot_that_tells_nothing_trusts_nothing():
    model = one_gaussian()
    flat = FunctionReward(lambda x, f: x[:, 0] * 0)
    [result] = run(model, flat, jobs_for(model, ["a"], Halving(8, gate=Gate())))
    assert result.usage.nfe == 80
    assert result.outcome.extra["clarity"] is None


@pytest.mark.parametrize("nfe", [10, 29, 30, 65, 120, 200, 1000])
@pytest.mark.parametrize("threshold", [0.2, 0.99])
def test_a_learned_gate_keeps_within_any_budget(nfe, threshold):
    problem, model = mixture(steps=10)
    budget = Budget(nfe=nfe, decodes=nfe)
    search = Halving(200, steps=[0.2, 0.4], gate=Gate(threshold, pilot=4))
    plan = search.plan(Facts(10, 10, budget=budget))
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, budget=budget))
    assert not plan.exact
    assert result.usage.nfe <= plan.cost.nfe <= nfe
    assert result.usage.decodes <= plan.cost.decodes <= nfe
    assert result.usage.nfe >= nfe - 10
    chosen = result.outcome.scores.total[result.outcome.chosen]
    assert float(chosen) == float(result.outcome.scores.total.max())


def test_without_a_budget_the_plan_of_a_learned_gate_is_an_upper_bound():
    problem, model = mixture(steps=10)
    for value in ("predicted", LookAhead(3)):
        search = Halving(12, value=value, gate=Gate(0.3))
        [result] = run(model, problem.reward, jobs_for(model, ["a"], search))
        cost = search.plan(FACTS).cost
        assert result.usage.nfe <= cost.nfe
        assert result.usage.decodes <= cost.decodes


def test_clarity_rises_as_noise_falls_and_is_the_same_by_hand():
    problem, model = mixture("quadratic", steps=10)
    engine = Engine(model, problem.reward, batch_size=256)
    prompts = [(Item(p), p, h) for p, h in zip("abcd", model.encode(list("abcd")), strict=True)]
    found = measure(engine, prompts, seed=0, search=Watched(40, transition=DDIM(1.0)))
    assert found.looked == (1, 2, 3, 4, 5, 6, 7, 8)
    assert (found.samples, found.prompts) == (160, 4)
    assert found.ranked[0] < 0.6 < 0.95 < found.ranked[-1]
    assert all(b >= a for a, b in pairwise(found.rising))
    assert engine.usage.cost.nfe == 4 * Watched(40).plan(FACTS).cost.nfe


# ---- the rest


def test_a_seed_gives_the_same_answer_whatever_runs_beside_it():
    problem, model = mixture(steps=10)
    options = {"deterministic": True, "bucket": 8}
    search = Halving(12, gate=Gate(0.3, pilot=4), transition=DDIM(1.0))
    [alone] = run(model, problem.reward, jobs_for(model, ["a"], search), **options)
    among = run(model, problem.reward, jobs_for(model, ["b", "a", "c"], search), **options)[1]
    assert torch.equal(alone.outcome.x_0, among.outcome.x_0)
    assert alone.trace.first_difference(among.trace) is None


def test_budgets():
    def planned(**budget):
        return Halving(16).plan(Facts(10, 10, budget=Budget(**budget)))

    assert planned(nfe=60).settings["n"] == 9  # of 10: 10 x 4 + 5 x 2 + 3 x 4 = 62
    assert planned(nfe=60).cost.nfe <= 60
    assert planned(decodes=7).settings["n"] == 4
    with pytest.raises(BudgetTooSmall, match=r"one candidate costs .*nfe=10"):
        planned(nfe=9)


def test_out_of_time_one_is_finished():
    problem, model = mixture(steps=10)
    jobs = jobs_for(model, ["a"], Halving(16), budget=Budget(seconds=1e-6))
    [result] = run(model, problem.reward, jobs)
    assert not result.outcome.complete
    assert result.usage.nfe == 16 + 9


def test_out_of_time_in_the_pilot_one_is_finished():
    problem, model = mixture(steps=10)
    jobs = jobs_for(model, ["a"], Halving(16, gate=Gate()), budget=Budget(seconds=1e-6))
    [result] = run(model, problem.reward, jobs)
    assert not result.outcome.complete
    assert result.usage.nfe == 6 + 9
    assert len(result.outcome.x_0) == 1


def test_there_is_no_pilot_where_none_is_left_to_be_rejected():
    problem, model = mixture(steps=10)
    [result] = run(model, problem.reward, jobs_for(model, ["a"], Halving(6, gate=Gate())))
    assert counted(result.usage) == BestOfN(6).plan(FACTS).cost


def test_impossible_candidates_are_dropped_first():
    problem, model = mixture(steps=10)
    reward = FunctionReward(lambda x, f: torch.where(x[:, 0] > 0, problem.reward(x), -torch.inf))
    for gate in (None, Gate(pilot=8)):
        jobs = jobs_for(model, ["a"], Halving(32, gate=gate))
        [result] = run(model, reward, jobs, non_finite="zero_weight")
        assert torch.isfinite(result.outcome.scores.total[result.outcome.chosen]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Halving(0), "n must be at least 1, got 0"),
        (lambda: Halving(share=1.0), "share must lie between 0 and 1, got 1.0"),
        (lambda: Halving(steps=[-1]), "steps must not be negative"),
        (lambda: Halving(keep="worst"), "keep must be 'best' or a rule, got 'worst'"),
        (lambda: Halving(value="x"), "value must be 'predicted'"),
        (lambda: Halving(returns="some"), "returns"),
        (lambda: Halving(steps=[2.5]).plan(FACTS), r"levels must be steps from 0 to 9"),
        (lambda: Halving(steps=[10]).plan(FACTS), r"got \[10\]"),
        (lambda: Gate(1.0), "threshold is a correlation below 1"),
        (lambda: Gate(pilot=2), "pilot must be at least 3"),
        (
            lambda: Halving(gate=Gate(0.5, clarity(0, 0, 0, 1)), value=LookAhead(2)),
            "a saved clarity says when the reward of the predicted x_0",
        ),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(FileNotFoundError):
        Gate(clarity="/nowhere/clarity.json")


def test_on_the_embedded_model(shapes_sd, shapes_clip):
    from steering import SteeredPipeline

    search = Halving(6, gate=Gate(0.5, pilot=3))
    steered = SteeredPipeline(shapes_sd, sampler=search, reward=shapes_clip, seed=0)
    out = steered("a red ring left of a blue cross", num_inference_steps=4, guidance_scale=2.0)
    assert out.steering.usage.nfe <= 24
    assert out.images[0].size == (64, 64)


def test_a_clarity_that_the_command_wrote_is_read_by_a_gate(
    tmp_path, shapes_sd, shapes_clip, capsys
):
    from steering import SteeredPipeline
    from steering.command.main import main

    words = ["--pipeline", "shapes-sd", "--reward", "shapes-clip", "--prompt", "a red ring"]
    steps = ["--pipeline.call.num_inference_steps", "4", "--pipeline.call.guidance_scale", "2.0"]
    given = ["--count", "1", "--samples", "4", "--clarity", "true", "--output", str(tmp_path / "c")]
    assert main(["calibrate", *words, *steps, *given]) == 0, capsys.readouterr().err
    assert "rank correlation by step 0: " in capsys.readouterr().out
    [file] = (tmp_path / "clarity").glob("*.json")
    search = Halving(4, gate=Gate(-0.9, clarity=str(file)))
    assert search.plan(Facts(4, 4)).exact
    steered = SteeredPipeline(shapes_sd, sampler=search, reward=shapes_clip, seed=0)
    out = steered("a red ring", num_inference_steps=4, guidance_scale=2.0)
    assert out.steering.usage.nfe == search.plan(Facts(4, 4)).cost.nfe
    saved = Clarity.load(file)
    key = steered.calibration_key(num_inference_steps=4, guidance_scale=2.0)
    assert (saved.model, saved.reward) == key
