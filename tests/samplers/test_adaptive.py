"""When to stop: expected gains against Monte Carlo, and the search that follows them."""

import math

import pytest
import torch
from helpers import FunctionReward, jobs_for, mixture, run

from samplers import AdaptiveBestOfN, BestOfN, ExpectedGain
from samplers.stopping import normal_gain, student_gain, tail_gain
from steering.cost import Budget
from steering.mixtures import GaussianMixture, MixtureModel, vp_grid
from steering.search import Facts

REWARDS = torch.tensor([0.3, -1.1, 0.7, 1.6, -0.2, 0.1, 0.9], dtype=torch.float64)
X = FunctionReward(lambda x, f: x[:, 0])


def simulated(law, best, draws=2_000_000):
    gain = (law(draws) - best).clamp(min=0)
    return float(gain.mean()), float(gain.std()) / math.sqrt(draws)


@pytest.mark.parametrize("n", [3, 5, 7])
def test_gains_are_those_of_monte_carlo(n):
    seen = REWARDS[:n]
    torch.manual_seed(n)
    mean, std, best = float(seen.mean()), float(seen.std()), float(seen.max())
    expected, error = simulated(lambda m: mean + std * torch.randn(m).double(), best)
    assert normal_gain(seen) == pytest.approx(expected, abs=4 * error)

    def predictive(m):
        """Variance from its posterior, then the mean, then the next reward."""
        chi2 = 2 * torch.distributions.Gamma((n - 1) / 2, 1.0).sample((m,)).double()
        scale = std * ((n - 1) / chi2).sqrt()
        centre = mean + scale / math.sqrt(n) * torch.randn(m).double()
        return centre + scale * torch.randn(m).double()

    expected, error = simulated(predictive, best)
    assert student_gain(seen) == pytest.approx(expected, abs=4 * error)
    assert student_gain(seen) > normal_gain(seen)


def test_with_many_samples_the_estimates_meet():
    torch.manual_seed(0)
    seen = torch.randn(4000, dtype=torch.float64)
    assert student_gain(seen) == pytest.approx(normal_gain(seen), rel=0.1)
    fresh, error = simulated(lambda m: torch.randn(m).double(), 2.0)
    below = torch.cat([seen[seen < 2.0], torch.tensor([2.0]).double()])
    assert tail_gain(below) < 2 * fresh + 4 * error


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.2])
def test_the_tail_is_that_of_a_generalised_pareto_law(shape):
    """Beyond its best, a large sample of the law gains what the law says."""
    generator = torch.Generator().manual_seed(1)
    found, exact = [], []
    for _ in range(200):
        u = torch.rand(400, generator=generator, dtype=torch.float64)
        x = -torch.log(u) if shape == 0 else (u**-shape - 1) / shape
        best = float(x.max())
        inside = max(1 + shape * best, 0.0)
        power = 1 - 1 / shape if shape else 0
        exact.append(math.exp(-best) if shape == 0 else inside**power / (1 - shape))
        found.append(tail_gain(x))
    assert sum(found) == pytest.approx(sum(exact), rel=0.35)


def test_few_excesses_leave_it_to_the_student():
    assert tail_gain(REWARDS) == student_gain(REWARDS)


def test_units_and_edges():
    nfe, spread = 25, float(REWARDS.std())
    raw = ExpectedGain(unit="reward").gain(REWARDS, nfe)
    assert raw == student_gain(REWARDS)
    assert ExpectedGain().gain(REWARDS, nfe) == pytest.approx(raw / spread)
    assert ExpectedGain(unit="per_nfe").gain(REWARDS, nfe) == pytest.approx(raw / 25)
    assert ExpectedGain().gain(7 * REWARDS - 3, nfe) == pytest.approx(raw / spread)
    assert ExpectedGain().gain(torch.ones(9), nfe) == 0
    assert ExpectedGain().gain(REWARDS[:2], nfe) == math.inf
    half = torch.cat([REWARDS, torch.full((7,), -torch.inf, dtype=torch.float64)])
    assert ExpectedGain().gain(half, nfe) == pytest.approx(raw / spread / 2)
    assert not ExpectedGain(1e9, least=8)(REWARDS, nfe)
    assert ExpectedGain(1e9, least=7)(REWARDS, nfe)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"threshold": -1.0}, "threshold must not be negative"),
        ({"least": 2}, "least must be at least 3"),
        ({"unit": "nats"}, "unit must be one of"),
        ({"estimate": "guess"}, "estimate must be one of"),
    ],
)
def test_bad_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        ExpectedGain(**option)


# ---- the search


def gaussian():
    """Rewards of its samples are standard normal."""
    law = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    return MixtureModel(law, vp_grid(10))


def drawn(search, runs=60, **job):
    model = gaussian()
    jobs = jobs_for(model, [str(i) for i in range(runs)], search, **job)
    results = run(model, X, jobs, batch_size=4096)
    count = [r.usage.decodes for r in results]
    best = [float(r.outcome.scores.total.max()) for r in results]
    return sum(count) / runs, sum(best) / runs


def test_a_larger_threshold_stops_earlier():
    counts, bests = zip(
        *(drawn(AdaptiveBestOfN(stop=ExpectedGain(t))) for t in (0.01, 0.05, 0.2)), strict=True
    )
    assert counts[0] > 1.5 * counts[1] > 1.5**2 * counts[2]
    assert bests[0] > bests[1] > bests[2]


def test_it_stops_where_the_gain_falls_below_the_threshold():
    model = gaussian()
    [result] = run(model, X, jobs_for(model, ["a"], AdaptiveBestOfN(n=500)))
    totals = torch.tensor(result.trace.column("totals")[0], dtype=torch.float64)
    assert len(totals) % 4 == 0
    assert ExpectedGain()(totals, 10)
    assert not any(ExpectedGain()(totals[:n], 10) for n in range(4, len(totals), 4))
    [event] = [r for r in result.trace.records if r.get("event") == "enough"]
    assert event["candidates"] == len(totals)
    assert event["gain"] < 0.05
    assert result.outcome.complete


@pytest.mark.parametrize("nfe", [10, 35, 200])
def test_it_keeps_within_budget_and_maximum(nfe):
    model, budget = gaussian(), Budget(nfe=nfe)
    search = AdaptiveBestOfN(n=15, stop=ExpectedGain(0.0))
    plan = search.plan(Facts(10, 10, budget=budget))
    [result] = run(model, X, jobs_for(model, ["a"], search, budget=budget))
    assert not plan.exact
    assert result.usage.nfe == plan.cost.nfe == min(nfe // 10, 15) * 10


def test_constant_rewards_stop_at_once_and_least_is_kept():
    model = gaussian()
    flat = FunctionReward(lambda x, f: x[:, 0] * 0)
    for least, count in ((4, 4), (5, 8), (9, 12)):
        search = AdaptiveBestOfN(stop=ExpectedGain(least=least))
        [result] = run(model, flat, jobs_for(model, ["a"], search))
        assert result.usage.decodes == count


def test_its_candidates_are_those_of_best_of_n():
    problem, model = mixture(steps=10)
    options = {"deterministic": True, "bucket": 8}
    [a] = run(model, problem.reward, jobs_for(model, ["a"], AdaptiveBestOfN()), **options)
    search = BestOfN(a.usage.decodes)
    [b] = run(model, problem.reward, jobs_for(model, ["a"], search), **options)
    assert torch.equal(a.outcome.x_0[a.outcome.chosen], b.outcome.x_0[b.outcome.chosen])


def test_a_finished_search_goes_on_with_a_smaller_threshold():
    model = gaussian()
    options = {"deterministic": True, "bucket": 8}
    first = AdaptiveBestOfN(stop=ExpectedGain(0.2))
    [a] = run(model, X, jobs_for(model, ["a"], first), **options)
    state = a.outcome.extra["state"]
    [same] = run(
        model, X, jobs_for(model, ["a"], AdaptiveBestOfN(state=state, stop=first.stop)), **options
    )
    assert same.usage.nfe == 0
    [b] = run(model, X, jobs_for(model, ["a"], AdaptiveBestOfN(state=state)), **options)
    [whole] = run(model, X, jobs_for(model, ["a"], AdaptiveBestOfN()), **options)
    assert a.usage.nfe + b.usage.nfe == whole.usage.nfe
    assert torch.equal(b.outcome.scores.total.max(), whole.outcome.scores.total.max())


def test_a_seed_gives_the_same_answer_whatever_runs_beside_it():
    problem, model = mixture(steps=10)
    options = {"deterministic": True, "bucket": 8}
    search = AdaptiveBestOfN()
    [alone] = run(model, problem.reward, jobs_for(model, ["a"], search), **options)
    among = run(model, problem.reward, jobs_for(model, ["b", "a", "c"], search), **options)[1]
    assert torch.equal(alone.outcome.x_0, among.outcome.x_0)
    assert alone.trace.first_difference(among.trace) is None


def test_on_the_embedded_model(shapes_sd, shapes_clip):
    from steering import SteeredPipeline

    search = AdaptiveBestOfN(n=8, stop=ExpectedGain(0.3))
    steered = SteeredPipeline(shapes_sd, sampler=search, reward=shapes_clip, seed=0)
    out = steered("a red ring left of a blue cross", num_inference_steps=3, guidance_scale=2.0)
    assert 4 <= out.steering.usage.decodes <= 8
    assert out.images[0].size == (64, 64)
