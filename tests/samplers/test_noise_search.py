"""What all searches over noise promise: costs, budgets, packing, the best of all that was seen."""

import pytest
import torch
from helpers import FunctionReward, jobs_for, mixture, run

from samplers import BestOfN, EvoSearch, NoisePaths, ReNO, ZeNO, ZeroOrder
from steering import SteeredPipeline, Strength
from steering.cost import Budget, Cost
from steering.engine import MissingAbility
from steering.glass import GLASS
from steering.search import BudgetTooSmall, Facts
from steering.transitions import DDIM

SEARCHES = [
    ZeroOrder(),
    ZeroOrder(rounds=3, neighbours=2, chains=3, in_flight=4, solver=DDIM(1.0)),
    ZeroOrder(rounds=1, neighbours=2, solver=GLASS(inner=2)),
    NoisePaths(),
    NoisePaths(3, 2, 0.3, 0.4, 0.55),
    NoisePaths(2, 2, 0.45, 0.7, 0.75, transition=DDIM(1.0)),
    NoisePaths(1, 2, 0.5, 0.1, 0.35, transition=GLASS(inner=2)),
    EvoSearch(populations=(8, 6, 5, 5, 4), elites=2),
    EvoSearch(populations=(6, 5), schedule=[0.5], solver=DDIM(0.0), in_flight=4),
    EvoSearch(populations=(6, 5, 4), schedule=[0, 0], solver="scheduler"),
    ZeNO(rounds=3),
    ZeNO(rounds=2, samples=4, chains=3, solver=DDIM(1.0), in_flight=5),
    ReNO(iterations=6),
    ReNO(iterations=4, chains=3, solver=DDIM(0.5)),
]
GRADIENT_FREE = [s for s in SEARCHES if not isinstance(s, ReNO)]
#: whose first noises are carried to the end as they are
FROM_THE_FIRST = [s for s in SEARCHES if isinstance(s, ZeroOrder | EvoSearch)]
all_of_them = pytest.mark.parametrize("search", SEARCHES, ids=str)


def counted(usage):
    return Cost(usage.nfe, usage.decodes, usage.reward_calls, usage.backwards)


@all_of_them
def test_it_costs_what_it_plans(search):
    problem, model = mixture(steps=10)
    plan = search.plan(Facts(10, 10))
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    assert plan.exact
    assert counted(result.usage) == plan.cost
    assert result.outcome.complete


@all_of_them
def test_every_budget_is_kept_or_refused(search):
    problem, model = mixture(steps=10)
    whole = search.plan(Facts(10, 10)).cost
    minimum = search.plan(Facts(10, 10)).minimum
    spent = []
    for share in (0.05, 0.2, 0.4, 0.7, 0.95):
        nfe = max(int(share * whole.nfe), int(minimum.nfe))
        budget = Budget(nfe=nfe, decodes=10**6)
        plan = search.plan(Facts(10, 10, budget=budget))
        jobs = jobs_for(model, ["a"], search, lam=problem.lam, budget=budget)
        [result] = run(model, problem.reward, jobs)
        assert counted(result.usage) == plan.cost
        spent.append(plan.cost.nfe)
    assert spent == sorted(spent)
    assert search.plan(Facts(10, 10, budget=Budget(nfe=int(minimum.nfe)))).cost == minimum
    with pytest.raises(BudgetTooSmall, match=r"one (candidate|finished path) costs"):
        search.plan(Facts(10, 10, budget=Budget(nfe=int(minimum.nfe) - 1)))


@all_of_them
def test_a_seed_gives_the_same_answer_whatever_runs_beside_it(search):
    problem, model = mixture("quadratic", steps=10)
    options = {"deterministic": True, "bucket": 8}
    [alone] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=1.0), **options)
    jobs = jobs_for(model, ["b", "a", "c"], search, lam=1.0)
    among = run(model, problem.reward, jobs, **options)[1]
    assert torch.equal(alone.outcome.x_0, among.outcome.x_0)
    assert alone.trace.first_difference(among.trace) is None


@all_of_them
def test_out_of_time_it_returns_a_finished_sample(search):
    problem, model = mixture(steps=10)
    jobs = jobs_for(model, ["a"], search, lam=1.0, budget=Budget(seconds=1e-6))
    [result] = run(model, problem.reward, jobs)
    assert not result.outcome.complete
    torch.testing.assert_close(result.outcome.scores.total, problem.reward(result.outcome.x_0))


@all_of_them
def test_the_best_over_all_rounds_is_returned(search):
    problem, model = mixture("quadratic", steps=10)
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=1.0))
    totals = result.trace.records[-1]["totals"]
    assert float(result.outcome.scores.total[result.outcome.chosen[0]]) == max(totals)
    torch.testing.assert_close(result.outcome.scores.total, problem.reward(result.outcome.x_0))


@pytest.mark.parametrize("kind", [ZeroOrder, NoisePaths, EvoSearch, ZeNO, ReNO])
def test_all_that_was_seen_can_be_had(kind):
    problem, model = mixture("quadratic", steps=10)
    search = kind(returns="all")
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=1.0))
    [best] = run(model, problem.reward, jobs_for(model, ["a"], kind(), lam=1.0))
    outcome = result.outcome
    assert outcome.scores.total.tolist() == result.trace.records[-1]["totals"]
    order = torch.argsort(outcome.scores.total, descending=True, stable=True)
    assert outcome.chosen == order.tolist()
    torch.testing.assert_close(outcome.scores.total, problem.reward(outcome.x_0))
    torch.testing.assert_close(outcome.x_0[outcome.chosen[:1]], best.outcome.x_0)


@pytest.mark.parametrize("search", FROM_THE_FIRST, ids=str)
def test_more_of_it_is_never_worse_than_its_first_sample(search):
    """The first candidate of a search is that of best of one; nothing better is ever lost."""
    problem, model = mixture("quadratic", steps=10)
    solver = search.solver if not isinstance(search, EvoSearch) else search._solver
    jobs = jobs_for(model, ["a"], search)
    [first] = run(model, problem.reward, jobs_for(model, ["a"], BestOfN(1, solver=solver)))
    [result] = run(model, problem.reward, jobs)
    assert float(result.outcome.scores.total) >= float(first.outcome.scores.total) - 1e-5


@pytest.mark.parametrize("search", GRADIENT_FREE, ids=str)
def test_impossible_candidates_lose_to_possible_ones(search):
    problem, model = mixture(steps=10)
    reward = FunctionReward(lambda x, f: torch.where(x[:, 0] > 0, problem.reward(x), -torch.inf))
    jobs = jobs_for(model, [str(i) for i in range(4)], search, lam=1.0)
    results = run(model, reward, jobs, non_finite="zero_weight")
    for result in results:
        totals = torch.tensor(result.trace.records[-1]["totals"])
        if torch.isfinite(totals).any():
            assert torch.isfinite(result.outcome.scores.total[result.outcome.chosen[0]])


@pytest.mark.parametrize(
    "search",
    [
        ZeroOrder(rounds=1, neighbours=3),
        NoisePaths(1, 2, 0.3, 0.4, 0.6),
        EvoSearch(schedule=(0.0, 0.5), populations=(2, 2, 3), elites=1),
        ZeNO(rounds=1, samples=2),
        ReNO(iterations=2, weight=0.01),
    ],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("pipe", ["shapes_sd", pytest.param("shapes_flux", marks=pytest.mark.slow)])
def test_on_the_embedded_pipelines(search, pipe, request, shapes_clip):
    steered = SteeredPipeline(
        request.getfixturevalue(pipe),
        sampler=search,
        reward=shapes_clip,
        strength=Strength(1.0, "raw"),
        seed=0,
    )
    call = {"num_inference_steps": 4, "guidance_scale": 2.0}
    out = steered("a red ring left of a blue cross", **call)
    plan, usage = steered.plan(["a red ring left of a blue cross"], **call), out.steering.usage
    assert len(out.images) == 1
    for part in ("nfe", "decodes", "reward_calls", "backwards"):
        assert plan[part] == getattr(usage, part)
    totals = out.steering.results[0].trace.records[-1]["totals"]
    assert out.steering.scores[0]["shapes-clip"] == max(totals)


def test_gradients_are_asked_of_the_reward_by_name():
    _, model = mixture(steps=10)
    reward = FunctionReward(differentiable=False, name="blind")
    with pytest.raises(MissingAbility, match=r"ReNO needs a differentiable reward.*'blind'"):
        run(model, reward, jobs_for(model, ["a"], ReNO()))


@pytest.mark.parametrize(
    ("kind", "option", "message"),
    [
        (ZeroOrder, {"rounds": 0}, "rounds must be at least 1, got 0"),
        (ZeroOrder, {"cosine": 1.0}, r"cosine must lie in \[-1, 1\), got 1.0"),
        (ZeroOrder, {"returns": "some"}, "returns must be 'best' or 'all', got 'some'"),
        (NoisePaths, {"noises": 0}, "noises must be at least 1"),
        (NoisePaths, {"start": 1.0}, r"start must lie in \(0, 1\)"),
        (NoisePaths, {"backward": 0.5}, "forward < backward.*forward=0.78, backward=0.5"),
        (EvoSearch, {"schedule": (0.5, 0.2, 0.6, 0.8)}, "schedule must be rising"),
        (EvoSearch, {"populations": (3, 3)}, "one for each of the 4 times"),
        (EvoSearch, {"elites": -1}, "elites"),
        (EvoSearch, {"tournament": 0}, "tournament"),
        (EvoSearch, {"beta": 1.5}, "beta"),
        (EvoSearch, {"spread": 0}, "spread"),
        (EvoSearch, {"solver": "scheduler"}, "starts at the grid's start only"),
        (ZeNO, {"samples": 3}, "samples must be even"),
        (ZeNO, {"step": 1.0}, r"step must lie in \(0, 1\)"),
        (ZeNO, {"returns": "some"}, "returns"),
        (ReNO, {"rate": 0}, "rate"),
        (ReNO, {"momentum": 1.0}, "momentum"),
        (ReNO, {"regularisation": -1.0}, "regularisation"),
    ],
)
def test_bad_options_are_refused(kind, option, message):
    with pytest.raises(ValueError, match=message):
        kind(**option)
