"""Beam search: what it spends, what it equals in special cases, a plain loop beside it."""

from itertools import pairwise

import pytest
import torch
from helpers import FunctionReward, Recorder, jobs_for, mixture, run

from samplers import DLBS, BestOfN, BootstrapSMC, Diverse, LookAhead, Resampled, TopB
from steering.cost import Budget, Cost
from steering.flow_sde import FlowSDE
from steering.glass import GLASS
from steering.interpolants import VPLinear
from steering.mixtures import MixtureModel, flow_grid
from steering.paths import SamplingPath
from steering.search import BudgetTooSmall, Facts
from steering.streams import Streams
from steering.transitions import DDIM

FACTS = Facts(10, 10)


def counted(usage):
    return Cost(usage.nfe, usage.decodes, usage.reward_calls, usage.backwards)


SEARCHES = [
    DLBS(),
    DLBS(3, 4, lookahead=1),
    DLBS(2, 3, lookahead=3),
    DLBS(2, 2, lookahead=6),
    DLBS(2, 2, lookahead=99),
    DLBS(1, 5),
    DLBS(5, 1),
    DLBS(2, 2, start=0.3, stop=0.8),
    DLBS(2, 3, start=4, lookahead=2, initial=TopB(6)),
    DLBS(2, 2, initial=Resampled(4), path=SamplingPath(VPLinear())),
    DLBS(2, 2, lookahead=2, transition=GLASS(inner=3)),
    DLBS(2, 2, transition=FlowSDE(), keep=Diverse()),
    DLBS(2, 2, start=10),
]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_it_spends_what_it_plans_and_less_than_the_paper(search):
    problem, _ = mixture()
    model = MixtureModel(problem.mixture, flow_grid(10))
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    plan = search.plan(FACTS)
    assert plan.exact
    assert counted(result.usage) == plan.cost
    inner, start = search._transition.inner_calls, search._initial.cost(FACTS, search.beams).nfe
    b, k, ahead = search.beams, search.candidates, max(search.lookahead, 1)
    assert plan.cost.nfe - start <= 10 * (b + b * k * (ahead + inner))


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_one_candidate_a_beam_is_best_of_n_to_the_bit(steps):
    problem, model = mixture(steps=steps)
    options = {"deterministic": True, "bucket": 8}
    beams = DLBS(6, 1, returns="all")
    best = BestOfN(6, solver=DDIM(1.0), returns="all")
    [a] = run(model, problem.reward, jobs_for(model, ["a"], beams), **options)
    [b] = run(model, problem.reward, jobs_for(model, ["a"], best), **options)
    assert torch.equal(a.outcome.x_0, b.outcome.x_0)
    assert a.outcome.chosen == b.outcome.chosen
    assert counted(a.usage) == counted(b.usage)


@pytest.mark.parametrize("ahead", [0, 3])
def test_it_is_the_loop_of_the_paper(ahead):
    """Beside a plain loop that predicts anew at every turn and shares only the random numbers."""
    problem, model = mixture("quadratic", steps=10)
    search = DLBS(2, 3, lookahead=ahead, returns="all")
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, seed=3))

    streams, grid = Streams(3, "text:0:a"), model.grid

    def denoise(x, t):
        return model.denoise(x, [t] * len(x), [None] * len(x))

    def foreseen(x, i):
        points = [i]
        if ahead > 1:
            n = min(ahead, 10 - i)
            points = [i + round(j * (10 - i) / n) for j in range(n)]
        for here, there in pairwise(points):
            x = DDIM(0.0)(denoise(x, grid[here]), grid[here], grid[there]).mean
        return problem.reward(denoise(x, grid[points[-1]]).x_0)

    x = streams.normal("initial", range(2), 0, (2,))
    for i in range(9):
        parents = torch.cat([x[:1]] * 3 + [x[1:]] * 3)
        law = DDIM(1.0)(denoise(parents, grid[i]), grid[i], grid[i + 1])
        children = law.sample(streams.normal("transition", range(6), i, (2,)))
        x = children[torch.argsort(foreseen(children, i + 1), descending=True)[:2]]
    law = DDIM(1.0)(denoise(x, grid[9]), grid[9], grid[10])
    x_0 = law.sample(streams.normal("transition", range(2), 9, (2,)))
    torch.testing.assert_close(result.outcome.x_0, x_0)
    torch.testing.assert_close(result.outcome.scores.total, problem.reward(x_0))


def test_no_look_ahead_is_a_look_ahead_of_one():
    problem, model = mixture(steps=10)
    found = [
        run(model, problem.reward, jobs_for(model, ["a"], DLBS(lookahead=ahead)))[0]
        for ahead in (0, 1)
    ]
    assert torch.equal(found[0].outcome.x_0, found[1].outcome.x_0)
    assert counted(found[0].usage) == counted(found[1].usage)


def mean_reward(search, name, runs, steps=20):
    problem, model = mixture(name, steps=steps)
    jobs = jobs_for(model, [str(i) for i in range(runs)], search)
    results = run(model, problem.reward, jobs, batch_size=4096)
    best = torch.stack([r.outcome.scores.total.max() for r in results])
    return float(best.mean()), float(best.std()) / runs**0.5


def test_looking_ahead_finds_more_reward_with_equal_beams():
    """The reward of the mean says nothing here: between modes it is 0, wherever they lie."""
    near, near_error = mean_reward(DLBS(2, 2), "indicator", 120)
    far, far_error = mean_reward(DLBS(2, 2, lookahead=6), "indicator", 120)
    assert far - near > 3 * (near_error**2 + far_error**2) ** 0.5


def test_with_a_linear_reward_looking_ahead_buys_nothing():
    """The reward of the mean is the mean of the reward: the best value there is."""
    near, near_error = mean_reward(DLBS(2, 2), "linear", 60)
    far, far_error = mean_reward(DLBS(2, 2, lookahead=6), "linear", 60)
    assert abs(far - near) < 3 * (near_error**2 + far_error**2) ** 0.5


def test_beams_find_more_reward_than_best_of_n_at_equal_nfe():
    search = DLBS(2, 3)
    nfe = search.plan(Facts(20, 20)).cost.nfe
    beams, error = mean_reward(search, "quadratic", 100)
    best, other = mean_reward(BestOfN(round(nfe / 20), solver=DDIM(1.0)), "quadratic", 100)
    assert beams - best > 3 * (error**2 + other**2) ** 0.5


def test_a_whole_look_ahead_is_the_ode():
    """From pure noise over every point of the grid, the prediction is the sample of the ODE."""
    problem, _ = mixture("quadratic")
    model = MixtureModel(problem.mixture, flow_grid(10))
    smc = BootstrapSMC(particles=5, value=LookAhead(10), steps=[0])
    [looked] = run(model, problem.reward, jobs_for(model, ["a"], smc, lam=problem.lam))
    [ode] = run(model, problem.reward, jobs_for(model, ["a"], BestOfN(5, returns="all")))
    seen = torch.tensor(looked.trace.column("reward")[0], dtype=torch.float64)
    torch.testing.assert_close(seen, ode.outcome.scores.total, atol=1e-4, rtol=1e-4)
    assert smc.plan(FACTS).cost.nfe == looked.usage.nfe == 5 * (10 + 9)


def test_a_seed_gives_the_same_answer_whatever_runs_beside_it():
    problem, model = mixture(steps=10)
    options = {"deterministic": True, "bucket": 8}
    search = DLBS(2, 3, lookahead=2, keep=Diverse())
    [alone] = run(model, problem.reward, jobs_for(model, ["a"], search), **options)
    among = run(model, problem.reward, jobs_for(model, ["b", "a", "c"], search), **options)[1]
    assert torch.equal(alone.outcome.x_0, among.outcome.x_0)
    assert alone.trace.first_difference(among.trace) is None


def test_candidates_fill_calls():
    problem, inner = mixture(steps=10)
    model = Recorder(inner)
    run(model, problem.reward, jobs_for(model, ["a"], DLBS(4, 4)), batch_size=64)
    assert model.denoised == [4] + [16] * 9


def test_every_beam_is_finished_and_the_best_is_returned():
    problem, _ = mixture()
    model = MixtureModel(problem.mixture, flow_grid(10))
    [every] = run(model, problem.reward, jobs_for(model, ["a"], DLBS(3, 2, returns="all")))
    total = every.outcome.scores.total
    torch.testing.assert_close(total, problem.reward(every.outcome.x_0))
    assert every.outcome.chosen == torch.argsort(total, descending=True).tolist()
    assert float(problem.mixture.log_prob(every.outcome.x_0).min()) > -12  # no blurred prediction
    [one] = run(model, problem.reward, jobs_for(model, ["a"], DLBS(3, 2)))
    assert one.outcome.chosen == every.outcome.chosen[:1]


def test_budgets():
    def sizes(**budget):
        return DLBS(4, 3).plan(Facts(10, 10, budget=Budget(**budget))).settings

    assert sizes() == {"beams": 4, "candidates": 3}
    assert sizes(nfe=111) == {"beams": 3, "candidates": 3}
    assert sizes(nfe=28) == {"beams": 1, "candidates": 3}
    assert sizes(nfe=27) == {"beams": 1, "candidates": 2}
    assert sizes(nfe=10) == sizes(decodes=1) == {"beams": 1, "candidates": 1}
    with pytest.raises(BudgetTooSmall, match=r"one trajectory costs .*nfe=10"):
        sizes(nfe=9)
    problem, model = mixture(steps=10)
    jobs = jobs_for(model, ["a"], DLBS(4, 3, lookahead=4), budget=Budget(nfe=150, decodes=60))
    [result] = run(model, problem.reward, jobs)
    assert result.usage.nfe <= 150
    assert result.usage.decodes <= 60


def test_a_price_drops_beams_and_spends_less_than_planned():
    problem, model = mixture(steps=10)
    search = DLBS(6, 2, keep=Diverse(bonus=0.0, price=1.5), returns="all")
    plan = search.plan(FACTS)
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search))
    assert not plan.exact
    assert result.usage.nfe < plan.cost.nfe
    assert 1 <= len(result.outcome.x_0) < 6


def test_out_of_time_it_finishes_the_best_beam():
    problem, model = mixture(steps=10)
    jobs = jobs_for(model, ["a"], DLBS(), budget=Budget(seconds=1e-6))
    [result] = run(model, problem.reward, jobs)
    assert not result.outcome.complete
    assert len(result.outcome.x_0) == 1
    assert result.usage.nfe == 4 + 9


def test_impossible_candidates_lose_to_possible_ones():
    problem, model = mixture(steps=10)
    reward = FunctionReward(lambda x, f: torch.where(x[:, 0] > 0, problem.reward(x), -torch.inf))
    for keep in ("best", Diverse()):
        jobs = jobs_for(model, ["a"], DLBS(keep=keep))
        [result] = run(model, reward, jobs, non_finite="zero_weight")
        assert torch.isfinite(result.outcome.scores.total[result.outcome.chosen]).all()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"beams": 0}, "beams must be at least 1, got 0"),
        ({"candidates": 0}, "candidates"),
        ({"lookahead": -1}, "lookahead must not be negative, got -1"),
        ({"start": 1.5}, "start"),
        ({"keep": "worst"}, "keep must be one of"),
        ({"returns": "some"}, "returns"),
        ({"transition": DDIM(0.0)}, r"DDIM\(eta=0.0\) is deterministic.*DDIM\(eta=1.0\)"),
    ],
)
def test_bad_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        DLBS(**option)
    with pytest.raises(ValueError, match="steps must not be negative"):
        LookAhead(-1)


def test_on_the_embedded_model(shapes_sd, shapes_clip):
    from steering import SteeredPipeline

    search = DLBS(2, 2, lookahead=2, keep=Diverse())
    steered = SteeredPipeline(shapes_sd, sampler=search, reward=shapes_clip, seed=0)
    out = steered("a red ring left of a blue cross", num_inference_steps=4, guidance_scale=2.0)
    assert out.steering.usage.nfe == search.plan(Facts(4, 4)).cost.nfe
    assert out.images[0].size == (64, 64)


def test_any_number_of_beams_is_cut_to_the_budget():
    settings = DLBS(10**9).plan(Facts(10, 10, budget=Budget(nfe=400))).settings
    one = DLBS(1).plan(FACTS).cost.nfe
    assert settings == {"beams": 400 // one, "candidates": 2}
