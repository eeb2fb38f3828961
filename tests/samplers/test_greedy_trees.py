"""Best-first, depth-first and TreeG: greedy searches that claim no law."""

import itertools
import math
import statistics

import pytest
import torch
from helpers import FunctionReward, jobs_for, mixture, run

from samplers import BestFirst, BestOfN, DepthFirst, DTSStar, TreeG
from steering.comparison.genealogy import genealogy
from steering.cost import Budget
from steering.mixtures import MixtureModel, flow_grid
from steering.search import BudgetTooSmall, Facts
from steering.transitions import DDIM

SEARCHES = [
    BestFirst(nfe=200),
    DepthFirst(nfe=200),
    DepthFirst(nfe=200, thresholds=(1e9, 1e9, 1e9, 1e9)),
    TreeG(),
    TreeG(space="x_0", active=3),
]


def searched(search, prompts=("a",), steps=20, budget=None, name="rare", **engine):
    problem, model = mixture(name, steps=steps)
    jobs = jobs_for(model, prompts, search, lam=problem.lam, budget=budget or Budget())
    return run(model, problem.reward, jobs, **engine)


@pytest.mark.parametrize("search", SEARCHES, ids=repr)
@pytest.mark.parametrize(
    "budget", [Budget(), Budget(nfe=55), Budget(nfe=130, decodes=21), Budget(reward_calls=60)]
)
def test_none_exceeds_its_plan(search, budget):
    try:
        plan = search.plan(Facts(20, 20, budget=budget))
    except BudgetTooSmall:
        pytest.skip("not one sample fits")
    [result] = searched(search, budget=budget)
    assert budget.exceeded_by(plan.cost) is None
    for part in ("nfe", "decodes", "reward_calls"):
        spent, planned = getattr(result.usage, part), getattr(plan.cost, part)
        assert spent == planned if plan.exact else spent <= planned
    assert (
        result.outcome.scores.total[result.outcome.chosen[0]] == result.outcome.scores.total.max()
    )


@pytest.mark.parametrize("search", SEARCHES, ids=repr)
def test_packing_does_not_matter(search):
    together = searched(search, ["a", "b", "c"], deterministic=True, bucket=4)
    [alone] = searched(search, ["b"], deterministic=True, bucket=4)
    assert torch.equal(together[1].outcome.x_0, alone.outcome.x_0)


# thresholds that nothing meets keep a sample at its first look until the calls are spent
@pytest.mark.parametrize("search", [s for s in SEARCHES if s != SEARCHES[2]], ids=repr)
def test_each_beats_as_many_calls_of_the_base(search):
    prompts = [str(i) for i in range(60)]
    found = searched(search, prompts)
    nfe = statistics.mean(r.usage.nfe for r in found)
    base = searched(BestOfN(max(int(nfe) // 20, 1), solver=DDIM(1.0)), prompts)
    best, plain = (
        statistics.mean(float(r.outcome.scores.total.max()) for r in results)
        for results in (found, base)
    )
    assert best > plain


@pytest.mark.parametrize("search", SEARCHES, ids=repr)
def test_the_budget_may_be_too_small(search):
    with pytest.raises(BudgetTooSmall, match="more than"):
        search.plan(Facts(20, 20, budget=Budget(nfe=19)))


def test_thresholds_that_all_meet_are_the_base():
    search = DepthFirst(nfe=200, chains=1, thresholds=(-1e9, -1e9, -1e9, -1e9))
    [result] = searched(search)
    [base] = searched(BestOfN(1, solver=DDIM(1.0)))
    assert result.usage.nfe == 20
    torch.testing.assert_close(result.outcome.x_0, base.outcome.x_0)


@pytest.mark.parametrize("search", SEARCHES[:2], ids=repr)
def test_the_trace_tells_who_descends_from_whom(search):
    [result] = searched(search)
    levels = genealogy(result.trace.records, returned=float(result.outcome.scores.total.max()))
    above = [p for level in levels for p in level.parents]
    starts = list(itertools.accumulate(len(level.rewards) for level in levels))
    assert above.count(-1) == {BestFirst: 8, DepthFirst: 2}[type(search)], "roots, or chains"
    for level, end in zip(levels, starts, strict=True):
        assert all(p < end - len(level.rewards) for p in level.parents), "parents come first"
    [best] = [level for level in levels if level.chosen]
    assert best.step == 20
    assert best.rewards[best.chosen[0]] == result.outcome.scores.total.max()


def test_one_active_sample_without_branches_is_the_base():
    [base] = searched(BestOfN(1, solver=DDIM(1.0)))
    for space in ("x_t", "x_0"):
        [result] = searched(TreeG(active=1, branches=1, space=space))
        torch.testing.assert_close(result.outcome.x_0, base.outcome.x_0)


@pytest.mark.parametrize("chains", [1, 2])
def test_without_thresholds_all_calls_are_spent(chains):
    """No finished sample is good enough where nothing says what is; 6 steps are the way back."""
    for result in searched(DepthFirst(nfe=200, chains=chains), prompts="abcd"):
        assert 200 - 6 * chains < result.usage.nfe <= 200
        assert len(result.outcome.x_0) > chains


@pytest.mark.parametrize("nfe", [33, 60, 70])
def test_what_finishing_one_sample_leaves_is_searched_with(nfe):
    """The next piece of the way takes 4 calls, and after a finished sample nothing is held back."""
    for result in searched(BestFirst(nfe=nfe, roots=4), prompts="abcd"):
        assert nfe - 4 < result.usage.nfe <= nfe


def test_a_hard_threshold_spends_all_it_may():
    [result] = searched(DepthFirst(nfe=200, chains=1, thresholds=(1e9,) * 4))
    assert 180 < result.usage.nfe <= 200
    [shallow] = searched(BestFirst(nfe=200, roots=4, depth_bonus=100.0))
    assert 150 < shallow.usage.nfe <= 200


@pytest.mark.parametrize("search", SEARCHES, ids=repr)
def test_they_run_on_a_flow_model(search):
    problem, _ = mixture()
    model = MixtureModel(problem.mixture, flow_grid(10))
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=1.0))
    assert torch.isfinite(result.outcome.x_0).all()


@pytest.mark.parametrize(
    ("kind", "option", "message"),
    [
        (BestFirst, {"nfe": 0}, "nfe must be at least 1"),
        (BestFirst, {"branching": (0.5,)}, "the first of them 1"),
        (BestFirst, {"transition": DDIM(0.0)}, "deterministic"),
        (BestFirst, {"returns": "some"}, "returns"),
        (DepthFirst, {"looks": (0.2, 0.4)}, "falling"),
        (DepthFirst, {"thresholds": (1.0,)}, "4 in all, got 1"),
        (DepthFirst, {"back": 1.5}, "back must lie"),
        (DepthFirst, {"returns": "some"}, "returns"),
        (TreeG, {"space": "x_1"}, "space must be one of"),
        (TreeG, {"spread": 0}, "spread must be positive"),
        (TreeG, {"transition": DDIM(0.0)}, "deterministic"),
    ],
)
def test_bad_options_are_refused(kind, option, message):
    with pytest.raises(ValueError, match=message):
        kind(**option)


@pytest.mark.parametrize("search", [*SEARCHES[:2], SEARCHES[3], DTSStar(rollouts=30)], ids=repr)
def test_impossible_candidates_lead_nowhere_and_spoil_nothing(search):
    """Half of the plane is impossible: the search goes on in the other half as ever."""
    problem, model = mixture("rare", steps=20)
    reward = FunctionReward(lambda x, f: torch.where(x[:, 1] > 0, problem.reward(x), -torch.inf))
    jobs = jobs_for(model, [str(i) for i in range(8)], search, lam=problem.lam)
    found = run(model, reward, jobs, non_finite="zero_weight")
    base = jobs_for(model, [str(i) for i in range(8)], BestOfN(5, solver=DDIM(1.0)), lam=1.0)
    plain = run(model, reward, base, non_finite="zero_weight")
    best = [float(r.outcome.scores.total[r.outcome.chosen[0]]) for r in found]
    assert all(map(math.isfinite, best))
    plain = [float(r.outcome.scores.total[r.outcome.chosen[0]]) for r in plain]
    assert statistics.mean(best) > statistics.mean(plain)
