"""Rollover budget forcing: what it spends, what it keeps, and a plain loop beside it."""

import pytest
import torch
from helpers import FunctionReward, Recorder, jobs_for, mixture, run

from samplers import PCNL, RBF, BestOfN, Prior, Resampled, TopB
from steering.cost import Budget, Cost
from steering.flow_sde import FlowSDE
from steering.glass import GLASS
from steering.interpolants import VPLinear
from steering.live import SearchFailed
from steering.mixtures import MixtureModel, flow_grid
from steering.paths import SamplingPath
from steering.search import BudgetTooSmall, Facts
from steering.streams import Streams
from steering.transitions import DDIM

CONSTANT = FunctionReward(lambda x, f: x[:, 0] * 0)


def better_every_time():
    calls = iter(range(10**6))
    return FunctionReward(lambda x, f: torch.arange(len(x)) + 1000.0 * next(calls))


def counted(usage):
    return Cost(usage.nfe, usage.decodes, usage.reward_calls, usage.backwards)


SEARCHES = [
    RBF(nfe=200),
    RBF(nfe=123, speculative=4),
    RBF(nfe=150, chains=3, start=Prior(), path=None),
    RBF(nfe=150, chains=2, start=Resampled(8)),
    RBF(nfe=150, chains=2, start=PCNL(burn_in=2, gradients=False)),
    RBF(nfe=250, transition=GLASS(inner=3), path=SamplingPath(VPLinear(), "rbf")),
    RBF(nfe=150, transition=FlowSDE()),
]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize("constant", [True, False])
def test_it_spends_what_it_plans_whatever_it_finds(search, constant):
    problem, _ = mixture()
    model = MixtureModel(problem.mixture, flow_grid(10))
    plan = search.plan(Facts(10, 10))
    reward = CONSTANT if constant else problem.reward
    [result] = run(model, reward, jobs_for(model, ["a"], search, lam=problem.lam))
    assert plan.exact
    assert counted(result.usage) == plan.cost
    assert plan.cost.nfe <= search.nfe
    more = plan.settings["children"] + 1
    assert search._cost(Facts(10, 10), plan.settings["chains"], more).nfe > search.nfe


def test_what_is_not_needed_rolls_over():
    _, model = mixture(steps=10)
    search = RBF(nfe=200, chains=2, start=TopB(2, per_particle=True))
    [result] = run(model, better_every_time(), jobs_for(model, ["a"], search))
    plan = search.plan(Facts(10, 10))
    all_that_is_left = plan.settings["children"] - 8
    assert result.trace.column("drawn") == [[1, 1]] * 8 + [[all_that_is_left] * 2]
    assert counted(result.usage) == plan.cost


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_loop_of_the_paper(seed):
    """One chain, step by step, beside a plain loop that shares only the random numbers."""
    problem, model = mixture("quadratic", steps=10)
    search = RBF(nfe=65, chains=1, start=TopB(5), path=None)
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, seed=seed))

    streams, grid, spent, serial = Streams(seed, "text:0:a"), model.grid, 5, 0

    def look(x, t):
        posterior = model.denoise(x, [t] * len(x), [None] * len(x))
        return posterior, problem.reward(posterior.x_0)

    x = streams.normal("initial", range(5), 0, (2,))
    posterior, reward = look(x, grid[0])
    top = int(reward.argmax())
    posterior, record = posterior[top : top + 1], float(reward[top])
    quota = [7] * 6 + [6] * 3  # 60 rows on 9 steps
    left = 0
    for i in range(9):
        left += quota[i]
        best = None
        while left and (i == 8 or best is None or best[1] <= record):
            law = DDIM(1.0)(posterior, grid[i], grid[i + 1])
            x = law.sample(streams.normal("transition", [serial], i, (2,)))
            child, r = look(x, grid[i + 1])
            serial, spent, left = serial + 1, spent + 1, left - 1
            if best is None or float(r) > best[1]:
                best = child, float(r)
        posterior, record = best[0], max(record, best[1])
    law = DDIM(1.0)(posterior, grid[9], grid[10])
    x_0 = law.sample(streams.normal("transition", [serial], 9, (2,)))
    torch.testing.assert_close(result.outcome.x_0, x_0)
    torch.testing.assert_close(result.outcome.scores.total, problem.reward(x_0))
    assert result.usage.nfe == spent


def test_children_drawn_at_once_fill_calls_and_keep_the_budget():
    problem, inner = mixture(steps=10)
    calls = {}
    for speculative in (1, 6):
        model = Recorder(inner)
        search = RBF(nfe=300, speculative=speculative)
        [result] = run(model, problem.reward, jobs_for(model, ["a"], search))
        calls[speculative] = len(model.denoised)
        assert result.usage.nfe == search.plan(Facts(10, 10)).cost.nfe <= 300
        assert max(max(c) for c in result.trace.column("drawn")) > 1
    assert calls[6] < calls[1]


def test_every_chain_is_finished_and_the_best_is_returned():
    problem, _ = mixture()
    model = MixtureModel(problem.mixture, flow_grid(10))
    search = RBF(nfe=150, chains=3, returns="all")
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search))
    total = result.outcome.scores.total
    assert len(total) == len(result.media) == 3
    assert result.outcome.chosen == torch.argsort(total, descending=True).tolist()
    torch.testing.assert_close(total, problem.reward(result.outcome.x_0))
    assert float(problem.mixture.log_prob(result.outcome.x_0).min()) > -12  # no blurred prediction
    [one] = run(model, problem.reward, jobs_for(model, ["a"], RBF(nfe=150, chains=3)))
    assert one.outcome.chosen == result.outcome.chosen[:1]
    assert len(one.media) == 1


@pytest.mark.parametrize("grid", [10, pytest.param(25, marks=pytest.mark.slow)])
def test_it_finds_more_reward_than_best_of_n_at_equal_nfe(grid):
    problem, _ = mixture("quadratic")
    model = MixtureModel(problem.mixture, flow_grid(grid))
    found = {}
    for name, search in {"best": BestOfN(250 // grid), "rbf": RBF(nfe=250)}.items():
        jobs = jobs_for(model, [str(i) for i in range(50)], search)
        results = run(model, problem.reward, jobs, batch_size=1024)
        assert max(r.usage.nfe for r in results) <= 250
        found[name] = sum(float(r.outcome.scores.total.max()) for r in results) / 50
    assert found["rbf"] > found["best"]


def test_a_seed_gives_the_same_answer_whatever_runs_beside_it():
    problem, model = mixture(steps=10)
    options = {"deterministic": True, "bucket": 8}
    [alone] = run(model, problem.reward, jobs_for(model, ["a"], RBF(nfe=150)), **options)
    jobs = jobs_for(model, ["b", "a", "c"], RBF(nfe=150))
    among = run(model, problem.reward, jobs, **options)[1]
    assert torch.equal(alone.outcome.x_0, among.outcome.x_0)
    assert alone.trace.first_difference(among.trace) is None


def test_budgets():
    facts = Facts(10, 10)
    assert RBF().plan(facts).settings == {"chains": 2, "children": 225}
    assert RBF().plan(facts).cost == Cost(nfe=500, decodes=502, reward_calls=502)
    fewer = Facts(10, 10, budget=Budget(nfe=300, decodes=100))
    assert RBF().plan(fewer).settings == {"chains": 2, "children": 24}
    assert RBF().plan(Facts(10, 10, budget=Budget(nfe=40))).settings == {
        "chains": 1,
        "children": 15,
    }
    with pytest.raises(BudgetTooSmall, match=r"one child at each step costs.*nfe=34.*more than"):
        RBF().plan(Facts(10, 10, budget=Budget(nfe=33)))
    with pytest.raises(BudgetTooSmall, match="nfe=20"):
        RBF(nfe=20).plan(facts)


def test_a_grid_of_one_step_leaves_the_start():
    problem, _ = mixture()
    model = MixtureModel(problem.mixture, flow_grid(1))
    [result] = run(model, problem.reward, jobs_for(model, ["a"], RBF()))
    assert counted(result.usage) == RBF().plan(Facts(1, 1)).cost
    assert result.usage.nfe == 50


def test_out_of_time_it_finishes_the_best_chain():
    problem, model = mixture(steps=10)
    jobs = jobs_for(model, ["a"], RBF(chains=3), budget=Budget(seconds=1e-6))
    [result] = run(model, problem.reward, jobs)
    assert not result.outcome.complete
    assert len(result.outcome.x_0) == 1
    assert result.trace.column("drawn") == [[1]] * 9


def test_impossible_children_lose_to_possible_ones():
    problem, model = mixture(steps=10)
    reward = FunctionReward(lambda x, f: torch.where(x[:, 0] > 0, problem.reward(x), -torch.inf))
    [result] = run(model, reward, jobs_for(model, ["a"], RBF()), non_finite="zero_weight")
    assert torch.isfinite(result.outcome.scores.total[result.outcome.chosen]).all()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"nfe": 0}, "nfe must be at least 1, got 0"),
        ({"chains": 0}, "chains"),
        ({"speculative": 0}, "speculative"),
        ({"returns": "some"}, "returns"),
        ({"transition": DDIM(0.0)}, r"DDIM\(eta=0.0\) is deterministic.*DDIM\(eta=1.0\)"),
    ],
)
def test_bad_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        RBF(**option)


def test_a_failing_reward_names_the_prompt():
    _, model = mixture(steps=10)
    reward = FunctionReward(lambda x, f: x[:, 0] * float("nan"))
    with pytest.raises(SearchFailed, match="prompt 'a'"):
        run(model, reward, jobs_for(model, ["a"], RBF()))
