"""Particle Gibbs: the retained path stays, costs nothing twice, and the chain is exact."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import Custom, jobs_for, mixture, outcome, run

from samplers import ParticleGibbs, RetainedPath, Signal
from samplers.temperature import Adaptive
from steering.chain_law import saved_laws
from steering.cost import Budget
from steering.mixtures import MixtureModel, flow_grid
from steering.requests import Rollout, Score
from steering.search import BudgetTooSmall, Facts
from steering.transitions import DDIM


def test_cost_is_as_planned_and_the_retained_path_is_paid_once():
    problem, model = mixture("quadratic", steps=10)
    search = ParticleGibbs(particles=4, sweeps=3, every=2, returns="all")
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    assert result.usage.nfe == 10 * (4 + 3 + 3)
    assert result.usage.decodes == 6 * (4 + 3 + 3)
    assert result.usage.cost.nfe == search.plan(Facts(10, 10)).cost.nfe
    assert len(result.outcome.x_0) == 12


def test_the_retained_path_is_never_overwritten():
    """Its finished sample is among the next sweep's, with the reward that it was scored with."""
    problem, model = mixture("quadratic", steps=10)
    search = ParticleGibbs(particles=4, sweeps=5, ess_threshold=1.0, returns="all")
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    x_0, total = result.outcome.x_0.reshape(5, 4, 2), result.outcome.scores.total.reshape(5, 4)
    retained = result.trace.column("retained")
    for sweep in range(4):
        assert torch.equal(x_0[sweep + 1, 0], x_0[sweep, retained[sweep]])
        assert total[sweep + 1, 0] == total[sweep, retained[sweep]]
    looks = [r for r in result.trace.records if "ancestors" in r and r["sweep"] > 0]
    assert all(r["ancestors"][0] == 0 for r in looks)


def test_the_retained_path_is_a_path_of_the_sampler():
    """Each stored posterior is the denoiser's of the stored state."""
    problem, model = mixture("quadratic", steps=10)
    search = ParticleGibbs(particles=5, sweeps=3, ess_threshold=1.0)
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    path = result.outcome.extra["state"]
    for i in range(10):
        told = model.denoise(path.x_t[i : i + 1], [model.grid[i]], [None])
        torch.testing.assert_close(path.x_0[i : i + 1], told.x_0)
        torch.testing.assert_close(path.eps[i : i + 1], told.eps)
        expected = problem.reward(told.x_0)
        torch.testing.assert_close(path.rewards[i : i + 1], expected, rtol=1e-6, atol=1e-6)
    final = problem.reward(path.x_t[-1:])
    torch.testing.assert_close(path.columns[path.total], final, rtol=1e-6, atol=1e-6)


def thin(state):
    """The path as a search with fewer looks would have left it."""
    rewards = state.rewards.clone()
    rewards[[1, 3]] = math.nan
    return replace(state, rewards=rewards)


def test_lambda_zero_is_warned_of():
    problem, model = mixture("quadratic", steps=10)
    with pytest.warns(UserWarning, match="lambda is 0.*nothing is steered"):
        run(model, problem.reward, jobs_for(model, ["a"], ParticleGibbs(sweeps=1), lam=0.0))


def test_it_goes_on_where_it_was_left(tmp_path):
    problem, model = mixture("quadratic", steps=10)
    whole = ParticleGibbs(particles=4, sweeps=4, returns="all")
    [once] = run(model, problem.reward, jobs_for(model, ["a"], whole, lam=problem.lam))
    half = ParticleGibbs(particles=4, sweeps=2, returns="all")
    [first] = run(model, problem.reward, jobs_for(model, ["a"], half, lam=problem.lam))
    first.outcome.extra["state"].save(tmp_path / "path.safetensors")
    state = RetainedPath.load(tmp_path / "path.safetensors")
    rest = ParticleGibbs(particles=4, sweeps=2, returns="all", state=state)
    [second] = run(model, problem.reward, jobs_for(model, ["a"], rest, lam=problem.lam))
    both = torch.cat([first.outcome.x_0, second.outcome.x_0])
    torch.testing.assert_close(both, once.outcome.x_0)
    assert second.outcome.extra["state"].sweeps == 4
    [other] = jobs_for(model, ["b"], rest)
    with pytest.raises(Exception, match="another prompt or seed"):
        run(model, problem.reward, [other])
    _, longer = mixture("quadratic", steps=20)
    often = ParticleGibbs(particles=4, start=0, every=1, state=thin(state))
    with pytest.raises(Exception, match=r"no rewards at steps \[1, 3\]; use the start and every"):
        run(model, problem.reward, jobs_for(model, ["a"], often))
    with pytest.raises(Exception, match="has 10 steps, the grid 20"):
        run(longer, problem.reward, jobs_for(longer, ["a"], rest))


@pytest.mark.parametrize(("returns", "count"), [("all", 12), ("draw", 1), ("best", 1)])
def test_what_is_returned(returns, count):
    problem, model = mixture("quadratic", steps=10)
    search = ParticleGibbs(particles=4, sweeps=4, burn_in=1, returns=returns)
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    assert len(result.outcome.chosen) == len(result.media) == count
    assert len(result.outcome.x_0) == 12
    weights = result.outcome.log_w.exp().reshape(3, 4).sum(1)
    torch.testing.assert_close(weights, torch.ones(3, dtype=torch.float64))
    if returns == "draw":
        path = result.outcome.extra["state"]
        assert torch.equal(result.outcome.x_0[result.outcome.chosen[0]], path.x_t[-1])


def test_a_budget_buys_fewer_sweeps():
    search = ParticleGibbs(particles=4, sweeps=10)
    plan = search.plan(Facts(10, 10, budget=Budget(nfe=40 + 3 * 30 + 5)))
    assert plan.settings["sweeps"] == 4
    with pytest.raises(BudgetTooSmall, match="one sweep costs"):
        search.plan(Facts(10, 10, budget=Budget(nfe=39)))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"particles": 1}, "particles must be at least 2"),
        ({"burn_in": 4}, "leaves none of 4 sweeps"),
        ({"temperature": Adaptive()}, "fixed beforehand"),
        ({"transition": DDIM(0.0)}, "deterministic DDIM"),
        ({"returns": "some"}, "returns"),
    ],
)
def test_bad_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        ParticleGibbs(**option)


def test_it_runs_on_a_flow_model():
    problem, _ = mixture()
    model = MixtureModel(problem.mixture, flow_grid(10))
    search = ParticleGibbs(particles=4, sweeps=3, temperature=Signal())
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    assert len(result.outcome.chosen) == 1


def test_a_chain_started_in_the_target_stays_there():
    """Exact invariance: draw the first path from the tilted law of the chain, sweep, compare means.

    Paths are drawn by rejection from unsteered ones; six particles and eight sweeps would drift if the
    kernel were not exact.
    """
    problem, model = mixture("linear", steps=10)
    lam, runs = 0.3, 150
    bound = math.exp(lam * 6.5)

    def rejected(problem_):
        u = problem_.streams.uniform("selection", 10**6, 0, 200)
        for attempt in range(200):
            x = yield Rollout(problem_.initial([attempt]), 0, DDIM(1.0), [attempt])
            scores = yield Score(x)
            if float(u[attempt]) < math.exp(lam * float(scores.total[0])) / bound:
                return outcome(x, scores)
        raise AssertionError("no path was accepted")

    prompts = [str(i) for i in range(runs)]
    exact = run(
        model, problem.reward, jobs_for(model, prompts, Custom(rejected), lam=lam), batch_size=512
    )
    direct = torch.tensor([float(r.outcome.scores.total[0]) for r in exact])
    search = ParticleGibbs(particles=6, sweeps=8, burn_in=3, returns="all")
    found = run(model, problem.reward, jobs_for(model, prompts, search, lam=lam), batch_size=2048)
    means = torch.tensor(
        [float(torch.softmax(r.outcome.log_w, 0) @ r.outcome.scores.total) for r in found]
    )
    error = math.hypot(float(direct.std()), float(means.std())) / math.sqrt(runs)
    assert abs(float(means.mean() - direct.mean())) < 3.5 * error


@pytest.mark.slow
def test_it_converges_to_the_chains_tilted_law():
    problem, model = mixture("quadratic", steps=50)
    search = ParticleGibbs(particles=8, sweeps=16, burn_in=6, returns="all")
    jobs = jobs_for(model, [str(i) for i in range(80)], search, lam=problem.lam)
    results = run(model, problem.reward, jobs, batch_size=2048)
    means = torch.tensor(
        [float(torch.softmax(r.outcome.log_w, 0) @ r.outcome.scores.total) for r in results]
    )
    chain = saved_laws()["quadratic"]
    error = math.hypot(float(means.std()) / math.sqrt(len(means)), chain.reward_mean_se)
    assert abs(float(means.mean()) - chain.reward_mean) < 3.5 * error
