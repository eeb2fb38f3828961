import math
import statistics
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import FunctionReward, jobs_for, mixture, run

from samplers import DTS, DTSStar, Room, TreeState
from samplers.tree import Tree, expand
from steering.chain_law import estimate
from steering.cost import Budget
from steering.live import SearchFailed
from steering.search import BudgetTooSmall, Facts
from steering.transitions import DDIM

SMALL = {"branching": (1.0, 0.6, 0.3), "in_flight": 3}
#: bit-identical whatever is packed together
FIXED = {"deterministic": True, "bucket": 4}


def searched(search, prompts=("a",), steps=10, budget=None, name="linear", **engine):
    problem, model = mixture(name, steps=steps)
    jobs = jobs_for(model, prompts, search, lam=problem.lam, budget=budget or Budget())
    return run(model, problem.reward, jobs, **engine)


@pytest.mark.slow
def test_the_evidence_is_that_of_the_chain_for_a_small_tree():
    problem, model = mixture("linear", steps=10)
    law = estimate(problem, model, DDIM(1.0), samples=200_000, seed=0)
    search = DTS(rollouts=18, widening=1.0, alpha=0.5, returns="all", **SMALL)
    found = searched(search, [str(i) for i in range(600)], batch_size=2048)
    ratios = [math.exp(r.outcome.log_z - law.log_z) for r in found]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    assert error < 0.05
    assert statistics.mean(ratios) == pytest.approx(1.0, abs=4 * error)


def test_weights_are_bounded_by_exploration():
    [result] = searched(DTS(rollouts=60, explore=0.25, alpha=0.5, returns="all", **SMALL))
    tree = result.outcome.extra["state"].tree
    assert float(tree.log_base[tree.leaves].max()) <= math.log(4) + 1e-9
    assert len(torch.unique(result.outcome.x_0[:, 0])) == 60


@pytest.mark.parametrize("kind", [DTS, DTSStar])
@pytest.mark.parametrize("first", [3, 8, 20])
def test_a_saved_tree_goes_on_where_it_stopped(kind, first, tmp_path):
    options = {"alpha": 0.5, "returns": "all", **SMALL}
    [whole] = searched(kind(rollouts=25, **options), **FIXED)
    [part] = searched(kind(rollouts=first, **options), **FIXED)
    part.outcome.extra["state"].save(tmp_path / "tree")
    state = TreeState.load(tmp_path / "tree")
    for _ in range(2):  # the saved tree is not changed by being gone on with
        [rest] = searched(kind(rollouts=25, state=state, **options), **FIXED)
        assert rest.usage.nfe + part.usage.nfe == whole.usage.nfe
        assert torch.equal(rest.outcome.x_0, whole.outcome.x_0)
        assert torch.equal(rest.outcome.log_w, whole.outcome.log_w)
        one, other = (r.outcome.extra["state"].tree.arrays() for r in (rest, whole))
        for name in ("parent", "depth", "born", "slot", "log_base"):
            assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("kind", [DTS, DTSStar])
def test_denoiser_calls_may_end_in_mid_turn(kind):
    options = {"rollouts": None, "alpha": 0.5, "returns": "all", **SMALL}
    [whole] = searched(kind(nfe=171, **options), **FIXED)
    [part] = searched(kind(nfe=77, **options), **FIXED)
    state = part.outcome.extra["state"]
    assert state.tree.rollouts % 3
    [rest] = searched(kind(nfe=171, state=state, **options), **FIXED)
    assert torch.equal(rest.outcome.x_0, whole.outcome.x_0)
    assert whole.usage.nfe <= 171 == 171
    assert rest.outcome.extra["state"].nfe == whole.usage.nfe
    [none] = searched(kind(nfe=77, state=state, **options), **FIXED)
    assert none.usage.nfe == 0


@pytest.mark.parametrize("kind", [DTS, DTSStar])
def test_two_budgets_are_their_sum_where_the_first_ends_in_mid_turn(kind, tmp_path):
    search = kind(rollouts=None, alpha=0.5, returns="all", **SMALL)
    [part] = searched(search, budget=Budget(nfe=77), **FIXED)
    state = part.outcome.extra["state"]
    assert state.tree.rollouts % 3
    state.save(tmp_path)
    more = Budget(nfe=94)
    search = replace(search, state=TreeState.load(tmp_path))
    [rest] = searched(search, budget=more, **FIXED)
    total = Budget(nfe=int(part.usage.nfe) + 94)  # what the first could not spend is not handed on
    [whole] = searched(replace(search, state=None), budget=total, **FIXED)
    assert whole.usage.nfe == part.usage.nfe + rest.usage.nfe
    assert torch.equal(rest.outcome.x_0, whole.outcome.x_0)
    assert torch.equal(rest.outcome.log_w, whole.outcome.log_w)


@pytest.mark.parametrize("kind", [DTS, DTSStar])
def test_neither_packing_nor_the_store_changes_anything(kind):
    search = kind(rollouts=14, alpha=0.5, returns="all", **SMALL)
    tiny = kind(rollouts=14, alpha=0.5, returns="all", room=Room(64, 64), **SMALL)
    together = searched(search, ["a", "b"], **FIXED)
    [alone] = searched(tiny, ["b"], **FIXED)
    assert torch.equal(together[1].outcome.x_0, alone.outcome.x_0)
    assert alone.outcome.extra["state"].nodes.held["disk"] > 0


def test_a_plan_is_what_is_spent():
    search = DTS(rollouts=30, alpha=0.5, **SMALL)
    plan = search.plan(Facts(10, 10, elements=2))
    [result] = searched(search)
    assert plan.exact
    state = result.outcome.extra["state"]
    assert plan.settings["stored"] == len(state.nodes)
    held = sum(s.get(range(len(s))).nbytes for s in (state.nodes, state.finished))
    assert plan.settings["bytes"] == result.trace.records[0]["bytes"] == held
    assert plan.cost.nfe == result.usage.nfe < 30 * 10
    assert plan.cost.decodes == result.usage.decodes == 30
    budget = Budget(nfe=100)
    cut = search.plan(Facts(10, 10, budget=budget))
    [result] = searched(search, budget=budget)
    assert cut.cost.nfe == result.usage.nfe <= 100
    with pytest.raises(BudgetTooSmall, match="one roll-out costs"):
        search.plan(Facts(10, 10, budget=Budget(nfe=9)))
    with pytest.raises(ValueError, match="neither rollouts, nor nfe"):
        DTS(rollouts=None).plan(Facts(10, 10))


@pytest.mark.parametrize("search", [DTSStar(rollouts=30), DTS(rollouts=30, weights="count")])
@pytest.mark.parametrize("nfe", [35, 100, 10_000])
def test_an_adaptive_tree_keeps_within_its_plan(search, nfe):
    budget = Budget(nfe=nfe)
    plan = search.plan(Facts(10, 10, budget=budget))
    [result] = searched(search, budget=budget)
    assert not plan.exact
    assert result.usage.nfe <= plan.cost.nfe <= nfe
    assert result.usage.decodes <= plan.cost.decodes


def test_a_child_of_a_known_node_costs_no_call_for_the_node():
    costs = DTS(branching=(1.0, 0.5)).costs(Facts(10, 10))
    assert [cost.nfe for cost in costs] == [10, 9, 4]


def test_draws_are_free_and_by_weight():
    [every] = searched(DTS(rollouts=40, alpha=0.5, returns="all", **SMALL))
    [drawn] = searched(DTS(rollouts=40, alpha=0.5, returns="draw", draws=4000, **SMALL))
    assert drawn.usage.nfe == every.usage.nfe
    assert len(drawn.media) == 4000
    mean = torch.softmax(every.outcome.log_w, 0) @ every.outcome.scores.total
    assert float(drawn.outcome.scores.total.mean()) == pytest.approx(float(mean), abs=0.1)


def test_the_greedy_tree_reports_the_best_leaf_and_where_descent_ends():
    options = {"rollouts": 40, **SMALL}
    [best] = searched(DTSStar(**options))
    [every] = searched(DTSStar(returns="all", **options))
    [descent] = searched(DTSStar(returns="descent", **options))
    assert torch.equal(best.outcome.scores.total[0], every.outcome.scores.total.max())
    noted = best.trace.records[-1]
    assert noted["descent_reward"] == pytest.approx(float(descent.outcome.scores.total[0]))
    assert float(descent.outcome.scores.total[0]) <= float(best.outcome.scores.total[0])


def test_greedy_descent_searches_better_than_the_base():
    prompts = [str(i) for i in range(40)]
    star = searched(DTSStar(rollouts=None, nfe=600), prompts, steps=20, name="rare")
    means = [float(r.outcome.extra["state"].columns["rare"].mean()) for r in star]
    base = searched(DTSStar(rollouts=8), prompts, steps=20, name="rare")
    unsteered = [float(r.outcome.extra["state"].columns["rare"].mean()) for r in base]
    assert statistics.mean(means) > statistics.mean(unsteered) + 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"rollouts": 0}, "rollouts must be at least 1"),
        ({"branching": ()}, "shares of the grid"),
        ({"branching": (1.2,)}, "shares of the grid"),
        ({"widening": 0}, "widening must be positive"),
        ({"alpha": 1.0}, "alpha must lie"),
        ({"transition": DDIM(0.0)}, "deterministic"),
        ({"explore": 0}, "explore must lie"),
        ({"weights": "some"}, "weights must be one of"),
        ({"returns": "some"}, "returns must be one of"),
    ],
)
def test_bad_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        DTS(**option)


def test_a_tree_of_another_prompt_grid_or_lambda_is_refused():
    [part] = searched(DTS(rollouts=4, **SMALL))
    state = part.outcome.extra["state"]
    with pytest.raises(SearchFailed, match="another prompt or seed"):
        searched(DTS(rollouts=8, state=state, **SMALL), ["b"])
    with pytest.raises(SearchFailed, match="branches at steps"):
        searched(DTS(rollouts=8, state=state))
    with pytest.raises(SearchFailed, match="grown with lambda"):
        searched(DTS(rollouts=8, state=state, **SMALL), name="quadratic")


def test_impossible_leaves_are_never_drawn():
    _, model = mixture(steps=10)
    reward = FunctionReward(lambda x, f: torch.where(x[:, 0] > 0, 0.0, -math.inf))
    search = DTS(rollouts=30, alpha=0.5, returns="draw", draws=50, **SMALL)
    [result] = run(model, reward, jobs_for(model, ["a"], search), non_finite="zero_weight")
    assert bool((result.outcome.x_0[:, 0] > 0).all())


@pytest.mark.parametrize(("virtual_loss", "branches"), [(0.0, {1}), (4.0, {1, 3})])
def test_selections_in_flight_spread_by_virtual_loss(virtual_loss, branches):
    """Two branches that may have no further child: the better one takes all, or waits its turn."""
    rewards = torch.tensor([1.0, 0.9], dtype=torch.float64)
    tree = expand(Tree.empty(1), torch.tensor([0, 0]), torch.zeros(4, dtype=torch.int64), rewards)
    search = DTSStar(
        widening=0.1, in_flight=2, c_uct=0.0, virtual_loss=virtual_loss, branching=(1.0,)
    )
    chosen = search._choose(SimpleNamespace(lam=1.0), tree, range(2, 4))
    assert set(chosen.parents.tolist()) == branches
