import math

import pytest
import torch
from helpers import FunctionReward, Recorder, jobs_for, mixture, run

from samplers import FKSteering, Gradient
from samplers.cloud import Cloud
from samplers.potentials import Potential
from samplers.values import SoftValue, soft_value
from steering.engine import Engine
from steering.mixtures import MixtureModel, flow_grid
from steering.particles import RESAMPLERS, Weights
from steering.prediction import Posterior
from steering.search import Facts
from steering.streams import Streams
from steering.transitions import DDIM

POTENTIALS = ["difference", "max", "sum"]


def weights_of(result):
    return torch.softmax(result.outcome.log_w, 0)


# The eight errors of the reference implementation, one test each.


@pytest.mark.parametrize("temperature", ["constant", "signal", "exponential"])
@pytest.mark.parametrize("potential", POTENTIALS)
def test_1_and_3_weights_are_carried_and_the_correction_uses_the_final_reward(
    potential, temperature
):
    """Never resampled, every potential must telescope to lambda r(x_0)."""
    problem, model = mixture(steps=10)
    search = FKSteering(
        16, potential, temperature, start=0, every=2, ess_threshold=0.0, returns="all"
    )
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    expected = problem.lam * result.outcome.scores.total
    torch.testing.assert_close(result.outcome.log_w, expected, rtol=1e-9, atol=1e-9)
    mean = float(torch.logsumexp(expected, 0)) - math.log(16)
    assert result.outcome.log_z == pytest.approx(mean, abs=1e-9)


def test_2_two_particles_can_be_resampled():
    problem, model = mixture(steps=10)
    jobs = jobs_for(model, [str(i) for i in range(20)], FKSteering(2, start=0, every=1), lam=3.0)
    results = run(model, problem.reward, jobs)
    assert any(any(r.trace.column("resampled")) for r in results)


def test_4_huge_potentials_do_not_overflow():
    problem, model = mixture(steps=10)
    for potential in POTENTIALS:
        search = FKSteering(8, potential, start=0, every=1, returns="all")
        [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=1e5))
        assert torch.isfinite(weights_of(result)).all()


@pytest.mark.parametrize("potential", POTENTIALS)
def test_5_a_shifted_reward_changes_nothing(potential):
    problem, model = mixture("quadratic", steps=10)
    search = FKSteering(16, potential, start=0, every=3, returns="all")
    jobs = jobs_for(model, ["a", "b"], search, lam=problem.lam)
    plain = run(model, problem.reward, jobs)
    reward = FunctionReward(lambda x, f: problem.reward(x, f) - 64.0)
    for a, b in zip(plain, run(model, reward, jobs), strict=True):
        assert a.trace.first_difference(b.trace) is None
        torch.testing.assert_close(a.outcome.x_0, b.outcome.x_0)
        torch.testing.assert_close(weights_of(a), weights_of(b), rtol=1e-4, atol=1e-6)
        assert b.outcome.log_z == pytest.approx(a.outcome.log_z - 64 * problem.lam, abs=1e-3)


def test_6_unknown_options_are_refused():
    with pytest.raises(TypeError, match="resample_at_end"):
        FKSteering(resample_at_end=True)


def test_7_a_reward_weights_the_state_it_was_predicted_from():
    """Step by step against a plain particle filter that shares only the random numbers."""
    problem, model = mixture("quadratic", steps=10)
    k, lam, grid = 8, problem.lam, model.grid
    search = FKSteering(k, start=0, every=1, ess_threshold=1.0, returns="all")
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, seed=5, lam=lam))

    streams, weights = Streams(5, "text:0:a"), Weights.uniform(k)
    x = streams.normal("initial", range(k), 0, (2,))
    before = torch.zeros(k, dtype=torch.float64)
    for i in range(grid.steps):
        posterior = model.denoise(x, [grid[i]] * k, [None] * k)
        reward = problem.reward(posterior.x_0, [None] * k).double()
        weights = weights.times(lam * (reward - before))
        ancestors, weights = weights.resample(
            RESAMPLERS["systematic"], streams.uniform("resampling", 0, i, k)
        )
        before = reward[ancestors]
        law = DDIM(1.0)(posterior[ancestors], grid[i], grid[i + 1])
        x = law.sample(streams.normal("transition", range(k), i, (2,)))
    final = problem.reward(x, [None] * k).double()
    weights = weights.times(lam * (final - before))
    torch.testing.assert_close(result.outcome.x_0, x)
    torch.testing.assert_close(result.outcome.log_w, weights.log_w)
    assert result.outcome.log_z == pytest.approx(weights.log_z)


def test_8_many_samples_are_averaged_as_exponentials():
    rewards = torch.tensor([[0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    expected = math.log((1 + math.exp(6)) / 2) / 3
    torch.testing.assert_close(soft_value(rewards, 3.0)[0].item(), expected)
    assert soft_value(rewards, 3.0)[1] == pytest.approx(1.0)
    assert soft_value(rewards, 0.0).tolist() == [1.0, 1.0]
    assert torch.isfinite(soft_value(1e4 * rewards, 3.0)).all()


def test_lookahead_costs_what_it_plans():
    problem, model = mixture(steps=10)
    search = FKSteering(3, start=0, every=4, value=SoftValue(2, 3), returns="all")
    engine = Engine(model, problem.reward)
    [result] = engine.run(jobs_for(model, ["a"], search, lam=problem.lam))
    plan = search.plan(Facts(10, 10))
    assert result.error is None
    assert (result.usage.nfe, result.usage.decodes) == (plan.cost.nfe, plan.cost.decodes)
    assert result.usage.nfe == 3 * 10 + 3 * 2 * (2 + 2 + 1)


# What every particle search must do.


def test_one_particle_is_the_base_sampler():
    problem, model = mixture(steps=10)
    weak = run(model, problem.reward, jobs_for(model, ["a"], FKSteering(1), lam=0.0))
    strong = run(model, problem.reward, jobs_for(model, ["a"], FKSteering(1), lam=50.0))
    assert torch.equal(weak[0].outcome.x_0, strong[0].outcome.x_0)


def test_lambda_zero_weights_nothing():
    problem, model = mixture(steps=10)
    search = FKSteering(8, start=0, returns="all")
    with pytest.warns(UserWarning, match="lambda is 0.*nothing is steered"):
        [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=0.0))
    assert result.outcome.log_z == pytest.approx(0.0)
    assert not any(result.trace.column("resampled"))


def test_everything_is_reindexed_together():
    """States, posteriors, gradients and potentials of copies stay those of their ancestor."""
    rows = torch.arange(4.0)[:, None]
    start = Potential.start("max", torch.zeros(4, dtype=torch.float64))
    _, potential = start.step(rows[:, 0].double(), 2.0)
    cloud = Cloud(
        rows,
        Weights.uniform(4),
        potential,
        torch.arange(4),
        (10, 11, 12, 13),
        Posterior(rows, rows),
        rows,
    ).looked(rows[:, 0], 0)
    picked = cloud.select(torch.tensor([3, 3, 0, 1]), Weights.uniform(4))
    wanted = [3.0, 3.0, 0.0, 1.0]
    assert picked.x_t[:, 0].tolist() == picked.slope[:, 0].tolist() == wanted
    assert picked.known.x_0[:, 0].tolist() == picked.known.eps[:, 0].tolist() == wanted
    assert picked.potential.statistic.tolist() == picked.roots.tolist() == wanted
    assert picked.potential.applied.tolist() == [2 * w for w in wanted]
    assert picked.past[:, 0].tolist() == wanted
    assert picked.slots == (10, 11, 12, 13)  # a place keeps its random numbers, not its particle


@pytest.mark.parametrize("name", list(RESAMPLERS))
def test_every_resampler_runs(name):
    problem, model = mixture(steps=10)
    search = FKSteering(8, start=0, every=1, resampler=name, ess_threshold=1.0, returns="all")
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    assert all(result.trace.column("resampled"))
    assert result.trace.column("ess")[0] > 1


def test_the_trace_says_what_happened_at_each_look():
    problem, model = mixture(steps=10)
    search = FKSteering(16, start=0, every=1, returns="all")
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    looks = [r for r in result.trace.records if "ancestors" in r]
    assert [r["step"] for r in looks] == list(range(10))
    distinct = [r["distinct"] for r in looks]
    assert distinct == sorted(distinct, reverse=True)
    assert all(1 <= r["ess"] <= 16 + 1e-9 for r in looks)
    late = [r["correlation"] for r in looks if r["correlation"] is not None]
    assert late[-1] > 0.99
    assert len(looks[0]["reward"]) == 16


@pytest.mark.parametrize(("returns", "count"), [("all", 8), ("draw", 1), ("best", 1)])
def test_what_is_returned(returns, count):
    problem, model = mixture(steps=10)
    search = FKSteering(8, returns=returns)
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    chosen, total = result.outcome.chosen, result.outcome.scores.total
    assert len(chosen) == len(result.media) == count
    if returns != "draw":
        assert chosen[0] == int(total.argmax())


def test_draws_follow_the_weights():
    problem, model = mixture(steps=10)
    search = FKSteering(4, steps=[], returns="draw")
    jobs = jobs_for(model, [str(i) for i in range(400)], search, lam=problem.lam)
    picked, expected = 0.0, 0.0
    for result in run(model, problem.reward, jobs, batch_size=512):
        w, total = weights_of(result), result.outcome.scores.total
        expected += float(w @ total)
        picked += float(total[result.outcome.chosen[0]])
    base_spread = 3.0
    assert abs(picked - expected) / 400 < 4 * base_spread / math.sqrt(400)


def test_it_works_on_a_flow_model():
    problem, _ = mixture()
    model = MixtureModel(problem.mixture, flow_grid(20))
    search = FKSteering(16, start=5, every=1, returns="all")
    jobs = jobs_for(model, [str(i) for i in range(60)], search, lam=problem.lam)
    results = run(model, problem.reward, jobs, batch_size=1024)
    mean = sum(float(weights_of(r) @ r.outcome.scores.total) for r in results) / 60
    assert mean == pytest.approx(problem.reward_mean, abs=0.25)


def test_only_scored_steps_are_decoded():
    problem, inner = mixture(steps=10)
    model = Recorder(inner)
    run(model, problem.reward, jobs_for(model, ["a"], FKSteering(4, steps=[3, 7])))
    assert model.decoded == [4, 4, 4]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"particles": 0}, "particles must be at least 1, got 0"),
        ({"particles": -3}, "particles"),
        ({"potential": "maximum"}, "difference.*got 'maximum'"),
        ({"resampler": "none"}, "resampler"),
        ({"temperature": "hot"}, "temperature"),
        ({"returns": "some"}, "returns"),
        ({"ess_threshold": 1.5}, "ess_threshold"),
        ({"transition": DDIM(0.0)}, "deterministic DDIM.eta=0.0.*without noise"),
        ({"every": 0}, "every"),
        ({"start": -1}, "start"),
        ({"every": 1.5}, "every.*share of the grid"),
        ({"islands": 5}, "4 particles cannot make 5 islands"),
        ({"funnel": 0.5}, "funnel"),
        ({"anneal": "slowly"}, "anneal"),
        ({"gradient": Gradient(), "value": SoftValue()}, "differentiates the predicted x_0"),
    ],
)
def test_bad_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        FKSteering(**option)


def test_looks_outside_the_grid_are_refused():
    with pytest.raises(ValueError, match=r"\[12\] lie outside the grid of 10"):
        FKSteering(steps=[3, 12]).plan(Facts(10, 10))


def test_a_grid_too_short_to_look_is_warned_of():
    problem, model = mixture(steps=4)
    with pytest.warns(UserWarning, match="nothing is resampled"):
        run(model, problem.reward, jobs_for(model, ["a"], FKSteering(4)))


def test_impossible_candidates_stay_impossible_at_lambda_zero():
    reward = torch.tensor([1.0, -torch.inf], dtype=torch.float64)
    for potential in POTENTIALS:
        zero = torch.zeros(2, dtype=torch.float64)
        log_g, after = Potential.start(potential, zero).step(reward, 0.0)
        assert log_g.tolist() == [0.0, -torch.inf]
        assert after.last(reward, 0.0).tolist() == [0.0, 0.0]
