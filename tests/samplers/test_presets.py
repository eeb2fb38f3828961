"""Every particle method: exact in small, counted as planned, refused with the reason."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import FunctionReward, jobs_for, mixture, run

import samplers
from rewards import PythonFunction as Function
from rewards import WeightedSum
from samplers import (
    BFS,
    DAS,
    SMC,
    SVDD,
    TDS,
    Adaptive,
    Auto,
    AutoSMC,
    BootstrapSMC,
    CoDe,
    EntropicPF,
    FKSteering,
    FunnelSMC,
    Gradient,
    IslandSMC,
    Resampled,
    Signal,
    Successor,
    TemperedSMC,
    TopB,
)
from samplers.anneal import power
from samplers.cloud import Cloud
from samplers.funnel import sizes
from samplers.potentials import Potential
from samplers.smc import choose
from samplers.temperature import Constant, Exponential, Look, temperature_of
from steering.chain_law import saved_laws
from steering.cost import Budget
from steering.engine import Engine, MissingAbility
from steering.mixtures import MixtureModel, flow_grid
from steering.particles import Weights
from steering.prediction import Posterior
from steering.search import BudgetTooSmall, Facts
from steering.tilted import HalfRingReward
from steering.transitions import Gaussian

PRESETS = [
    AutoSMC,
    BootstrapSMC,
    TemperedSMC,
    SVDD,
    CoDe,
    BFS,
    EntropicPF,
    FunnelSMC,
    IslandSMC,
    TDS,
    DAS,
]
VARIANTS = {
    "fk": FKSteering(),
    "fk-max": FKSteering(potential="max"),
    "bootstrap": BootstrapSMC(),
    "auto": AutoSMC(),
    "tempered": TemperedSMC(),
    "exponential": TemperedSMC(temperature="exponential"),
    "svdd": SVDD(),
    "svdd-lineages": SVDD(islands=4),
    "code": CoDe(),
    "bfs": BFS(),
    "entropic": EntropicPF(),
    "entropic-look-ahead": EntropicPF(value=Successor()),
    "funnel": FunnelSMC(),
    "islands": IslandSMC(),
    "tds": TDS(),
    "das": DAS(),
    "resampled-noises": BootstrapSMC(initial=Resampled(24)),
}
each = pytest.mark.parametrize("name", list(VARIANTS))
STILL = torch.ones(4, requires_grad=True)
POINTS = Posterior(torch.linspace(-2, 2, 32).reshape(16, 2), torch.zeros(16, 2))


def variant(name, **changes):
    return replace(VARIANTS[name], **{"particles": 8, "returns": "all", **changes})


@each
def test_cost_is_as_planned(name):
    """NFE, decodes, reward calls and backwards, alone and under a budget that shrinks the cloud."""
    problem, model = mixture("quadratic", steps=10)
    search = variant(name)
    whole = search.plan(Facts(10, 10)).cost
    for budget in (Budget(), Budget(nfe=int(0.7 * whole.nfe))):
        plan = search.plan(Facts(10, 10, budget=budget))
        jobs = jobs_for(model, ["a"], search, lam=problem.lam, budget=budget)
        [result] = run(model, problem.reward, jobs)
        spent = result.usage.cost
        for part in ("nfe", "decodes", "reward_calls", "backwards"):
            assert getattr(spent, part) == getattr(plan.cost, part), part
        assert plan.exact
        assert spent.nfe <= (budget.nfe or math.inf)


@each
def test_never_resampled_every_weight_is_the_tilt_times_the_proposal(name):
    """Weights telescope to lambda r(x_0) for any schedule; only gradient proposals add p / q."""
    problem, model = mixture("quadratic", steps=10)
    search = variant(
        name, ess_threshold=0.0, islands=1, funnel=1.0, initial="prior", resampler="systematic"
    )
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=0.0 + problem.lam))
    tilt = problem.lam * result.outcome.scores.total
    if search.gradient is None:
        torch.testing.assert_close(result.outcome.log_w, tilt, rtol=1e-9, atol=1e-9)
    else:
        assert not torch.allclose(result.outcome.log_w, tilt)


@each
def test_the_normalising_constant_is_unbiased(name):
    """Mean of Z-hat over the chain's own Z, whatever the schedule, islands, funnel or gradients."""
    problem, model = mixture("linear", steps=50)
    weak = replace(problem, lam=0.3)  # so weak a tilt that no single run decides the mean
    search = variant(name)
    jobs = jobs_for(model, [str(i) for i in range(60)], search, lam=weak.lam)
    log_z = torch.tensor(
        [r.outcome.log_z for r in run(model, weak.reward, jobs, batch_size=2048)],
        dtype=torch.float64,
    )
    ratio = (log_z - weak.log_z).exp()
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert abs(float(ratio.mean()) - 1) < 4 * error + 0.01  # a chain of 50 steps is .01 off


def test_the_normalising_constant_of_summed_rewards_is_unbiased():
    """A weak tilt: nine looks apply 45 times lambda r, under which runs that matter become rare."""
    problem, model = mixture("linear", steps=50)
    weak = replace(problem, lam=0.01)
    search = FKSteering(8, potential="sum", returns="all")
    jobs = jobs_for(model, [str(i) for i in range(60)], search, lam=weak.lam)
    results = run(model, problem.reward, jobs, batch_size=2048)
    ratio = torch.tensor([math.exp(r.outcome.log_z - weak.log_z) for r in results])
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert error < 0.002
    assert abs(float(ratio.mean()) - 1) < 4 * error + 0.001


def test_adaptive_searches_say_so_and_greedy_ones_claim_nothing():
    problem, model = mixture("linear", steps=10)
    greedy = SVDD(particles=4, resampler="greedy")
    start = BootstrapSMC(particles=4, initial=TopB(8))
    for search in (greedy, start):
        [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
        assert result.outcome.log_z is None
    assert not Adaptive().fixed
    assert all(t.fixed for t in (Constant(), Signal(), Exponential()))


# Gradient proposals


def test_the_gradient_proposal_draws_from_what_it_says():
    """log p - log q of the drawn state, from the two densities themselves."""
    law = Gaussian(torch.randn(5, 3), 0.7)
    gradient, noise = torch.randn(5, 3), torch.randn(5, 3)
    x, correction = Gradient(scale=0.5).propose(law, gradient, 1.3, noise)
    shifted = Gaussian(law.mean + 0.5 * 1.3 * 0.7**2 * gradient, 0.7)
    torch.testing.assert_close(x, shifted.mean + 0.7 * noise)
    expected = law.log_prob(x) - shifted.log_prob(x)
    torch.testing.assert_close(correction, expected, rtol=1e-4, atol=1e-4)


def test_a_long_gradient_is_cut_to_the_noise():
    law = Gaussian(torch.zeros(2, 100), 0.5)
    x, _ = Gradient(largest=0.2).propose(law, 1e3 * torch.randn(2, 100), 1.0, torch.zeros(2, 100))
    torch.testing.assert_close(x.norm(dim=1), torch.full((2,), 0.5 * 0.2 * 10))


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_gradients_are_those_of_the_reward_by_the_state(threshold):
    """TDS by hand: d r(x_0 predicted) / d x_t of the very states that move, resampled or not."""
    problem, model = mixture("quadratic", steps=10)
    seen = []

    class Watched(TDS):
        def _moved(self, problem, clouds, i):
            seen.append((i, clouds[0].x_t.clone(), clouds[0].gradient, clouds[0].pull))
            return (yield from super()._moved(problem, clouds, i))

    search = Watched(particles=4, ess_threshold=threshold)
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=0.5))
    orders = result.trace.column("ancestors")
    assert (threshold == 1) == any(list(order) != [0, 1, 2, 3] for order in orders)
    for i, x_t, gradient, pull in seen:
        x = x_t.double().requires_grad_()
        time = model.grid[i]
        x_0, _ = model.mixture.denoise(x, time.alpha, time.sigma)
        [expected] = torch.autograd.grad(problem.reward(x_0).sum(), x)
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-4)
        assert pull == 0.5


@pytest.mark.parametrize("preset", [TDS, DAS])
def test_a_reward_without_gradient_is_refused_by_name(preset):
    _, model = mixture("indicator", steps=10)
    jobs = jobs_for(model, ["a"], preset())
    with pytest.raises(MissingAbility, match=r"differentiable reward.*'indicator'"):
        list(Engine(model, HalfRingReward(4.25)).run(jobs))


def test_without_noise_nothing_is_shifted():
    """The last step of a flow model has no noise: its weights stay as they are."""
    problem, _ = mixture("linear")
    model = MixtureModel(problem.mixture, flow_grid(10))
    search = TDS(particles=8, start=9, returns="all")
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    tilt = problem.lam * result.outcome.scores.total
    torch.testing.assert_close(result.outcome.log_w, tilt, rtol=1e-9, atol=1e-9)
    assert not any(result.trace.column("resampled"))  # copies would never differ again


def test_gradients_find_more_than_chance():
    problem, model = mixture("linear", steps=50)
    prompts = [str(i) for i in range(30)]

    def mean(search):
        results = run(
            model, problem.reward, jobs_for(model, prompts, search, lam=0.6), batch_size=512
        )
        return sum(float(r.outcome.scores.total.mean()) for r in results) / len(results)

    one = {"particles": 1, "returns": "all"}
    assert mean(TDS(**one)) > mean(BootstrapSMC(**one)) + 1


@pytest.mark.parametrize("detached", [lambda x, f: x[:, 0].detach(), lambda x, f: STILL + 0 * f[0]])
def test_a_reward_that_has_no_gradient_after_all_is_named(detached):
    _, model = mixture("linear", steps=10)
    reward = FunctionReward(detached, name="sealed")
    reward.prepare = lambda item: torch.zeros(4)
    [result] = list(Engine(model, reward).run(jobs_for(model, ["a"], TDS())))
    assert "reward 'sealed' says that it is differentiable, but" in str(result.error)


def test_of_a_sum_the_members_without_gradient_are_named():
    _, model = mixture("indicator", steps=10)
    parts = {
        label: Function(lambda images, _: images[:, 0], name=label, differentiable=label == "slope")
        for label in ("slope", "step")
    }
    reward = WeightedSum(parts)
    with pytest.raises(MissingAbility, match=r"'weighted-sum', for want of 'step', does not"):
        list(Engine(model, reward).run(jobs_for(model, ["a"], TDS())))


# Temperatures


def look(temperature, step=5, lam=2.0, spread=3.0, steps=10):
    _, model = mixture(steps=steps)
    reward = spread * torch.linspace(-1, 1, 16, dtype=torch.float64)
    zero = torch.zeros(16, dtype=torch.float64)
    cloud = Cloud(
        torch.zeros(16, 2),
        Weights.uniform(16),
        Potential.start("difference", zero),
        torch.arange(16),
        tuple(range(16)),
    )
    return temperature(Look(model.grid, step, lam, cloud, reward)), cloud, reward


@pytest.mark.parametrize("name", ["signal", "exponential"])
def test_temperatures_rise_from_nothing_to_lambda(name):
    values = [look(temperature_of(name), i, 3.0, steps=50)[0] for i in range(51)]
    assert values == sorted(values)
    assert values[0] < 1e-3
    assert 3.0 * 0.98 < values[-1] <= 3.0
    assert look(temperature_of("constant"))[0] == 2.0
    assert look(Signal(2.0))[0] < look(Signal())[0]


def test_the_adaptive_temperature_keeps_the_effective_sample_size():
    lam, cloud, reward = look(Adaptive(0.9))
    assert 0 < lam < 2.0
    assert cloud.weights.times(lam * reward).ess == pytest.approx(0.9 * 16, rel=1e-6)
    assert look(Adaptive(0.9), spread=1e-3)[0] == 2.0
    assert look(Adaptive(0.9), lam=0.0)[0] == 0.0


def test_the_auto_temperature_is_the_formula_it_says():
    """By hand, for a measured spread: S = 6 and 16 particles."""
    t, cloud, reward = [], *look(Auto())[1:]
    _, model = mixture(steps=10)
    for step in (0, 5, 10):
        seen = Look(model.grid, step, 2.0, cloud, reward, spread=3.0)
        a = 0.65 * (6 / 1.4) ** 0.5 - 1
        signal = model.grid[step].alpha ** 2
        expected = 2.0 / (1 + a * (1 - 2 * signal / (1 + signal)))
        assert Auto()(seen) == pytest.approx(expected)
        t.append(Auto()(seen))
    assert t == sorted(t)
    weak = Look(model.grid, 0, 0.01, cloud, reward, spread=3.0)
    assert Auto()(weak) == pytest.approx(
        0.01 / 0.65, rel=1e-3
    )  # more than in full, where noise is high
    assert Auto(floor=0.0)(weak) == pytest.approx(0.01)


def test_the_strength_is_found_in_the_run_where_it_was_not_measured():
    """Within a factor two of lambda x spread, from the early looks of a run alone."""
    problem, model = mixture("quadratic", steps=50)
    x = problem.mixture.sample(20_000, torch.Generator().manual_seed(0))
    exact = problem.lam * float(problem.reward(x).std())
    found = []

    class Watched(Auto):
        def __call__(self, look):
            found.append(self.strength(look))
            return super().__call__(look)

    search = AutoSMC(particles=64, temperature=Watched(), returns="all")
    run(model, problem.reward, jobs_for(model, ["a", "b"], search, lam=problem.lam))
    assert exact / 2 < found[-1] < 2 * exact


def test_impossible_candidates_say_nothing_of_the_strength():
    _, cloud, reward = look(Auto())
    some = reward.clone()
    some[[0, 15]] = -math.inf
    _, model = mixture(steps=10)
    seen = Look(model.grid, 5, 2.0, replace(cloud, posterior=POINTS), some)
    total, count = Auto().remember(seen)
    assert count == 1
    assert 0 < total < Auto().remember(replace(seen, reward=reward))[0]
    nothing = replace(seen, reward=torch.full_like(reward, -math.inf))
    assert Auto().remember(nothing) == (0.0, 0)


def test_a_smooth_potential_averages_along_the_lineage_and_telescopes():
    zero = torch.zeros(2, dtype=torch.float64)
    potential, total = Potential.start("smooth", zero), zero
    for reward in ([4.0, 0.0], [0.0, 2.0], [1.0, 1.0]):
        log_g, potential = potential.step(torch.tensor(reward, dtype=torch.float64), 3.0, keep=0.5)
        total = total + log_g
        potential, total = potential[torch.tensor([1, 0])], total[torch.tensor([1, 0])]
    first, other = (4 / 2 + 2 / 2) / 2 + 1 / 2, (0 / 2 + 0 / 2) / 2 + 1 / 2
    assert sorted(potential.statistic.tolist()) == sorted([first, other])
    torch.testing.assert_close(total, 3.0 * potential.statistic)
    last = torch.tensor([5.0, 6.0], dtype=torch.float64)
    torch.testing.assert_close(total + potential.last(last, 3.0), 3.0 * last)


# Annealed resampling, funnels and islands


def test_annealing_flattens_early_and_where_few_particles_hold_the_weight():
    heavy = Weights.uniform(8).times(torch.arange(8.0, dtype=torch.float64))
    for name in ("ess", "entropy", "linear"):
        early, late = power(name, heavy, 0.05), power(name, heavy, 0.6)
        assert early < 0.9
        assert late == 1.0
    assert power("ess", Weights.uniform(8), 0.3) == 1.0
    assert power("entropy", Weights.uniform(8), 0.3) == pytest.approx(1.0)
    assert power("none", heavy, 0.0) == 1.0


def test_a_funnel_spends_no_more_than_a_constant_number():
    for base in (1, 2, 5, 16, 64):
        for ratio in (1.0, 2.0, 8.0):
            found = sizes(base, 50, range(0, 50, 5), ratio)
            assert len(found) == 50
            assert found == sorted(found, reverse=True)
            assert base * 50 * 0.9 - 50 < sum(found) <= base * 50
            assert min(found) >= 1
    wide = sizes(64, 50, range(0, 50, 1), 4.0)
    assert wide[0] / wide[-1] == pytest.approx(4, rel=0.1)


def test_a_funnel_changes_its_size_at_looks_only():
    problem, model = mixture(steps=10)
    search = FunnelSMC(particles=8, start=2, every=4, returns="all")
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    rows = [len(r["reward"]) for r in result.trace.records if "ancestors" in r]
    assert rows[0] > rows[-1] > len(result.outcome.x_0)
    assert result.usage.nfe <= 80


def test_islands_never_exchange_particles():
    problem, model = mixture(steps=10)
    search = IslandSMC(particles=8, islands=4, ess_threshold=1.0, returns="all")
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    looks = [r for r in result.trace.records if "ancestors" in r]
    assert {r["island"] for r in looks} == {0, 1, 2, 3}
    assert all(max(r["ancestors"]) < 2 for r in looks)
    assert result.trace.records[-1]["distinct"] >= 4


def test_one_island_is_the_search_without():
    problem, model = mixture(steps=10)
    plain, island = BootstrapSMC(particles=6, returns="all"), IslandSMC(6, islands=1, returns="all")
    [a] = run(model, problem.reward, jobs_for(model, ["a"], plain, lam=problem.lam))
    [b] = run(model, problem.reward, jobs_for(model, ["a"], island, lam=problem.lam))
    assert torch.equal(a.outcome.x_0, b.outcome.x_0)
    assert a.outcome.log_z == b.outcome.log_z


def test_independent_islands_join_by_evidence():
    problem, model = mixture(steps=10)
    search = IslandSMC(particles=8, islands=2, returns="all")
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    mean = torch.logsumexp(result.outcome.log_w, 0) - math.log(8)
    assert result.outcome.log_z == pytest.approx(float(mean))


def test_an_island_without_a_possible_particle_counts_as_nothing():
    """Its evidence is zero and the others go on; only where all islands are so it is an error."""
    problem, model = mixture("linear", steps=10)
    reward = FunctionReward(lambda x, f: torch.where(x[:, 0] > 0, problem.reward(x), -math.inf))
    search = IslandSMC(particles=8, islands=8, start=9, returns="all")  # a particle an island
    jobs = jobs_for(model, [str(i) for i in range(6)], search, lam=0.6)
    for result in run(model, reward, jobs, non_finite="zero_weight", batch_size=64):
        out = result.outcome
        dead = torch.isneginf(out.log_w)
        assert torch.equal(dead, torch.isneginf(out.scores.total))
        expected = torch.logsumexp(0.6 * out.scores.total[~dead], 0) - math.log(8)
        assert out.log_z == pytest.approx(float(expected))
        assert 0 < int(dead.sum()) < 8
        assert torch.isfinite(out.scores.total[out.chosen[0]])
    nothing = FunctionReward(lambda x, f: torch.full((len(x),), -math.inf))
    [result] = list(Engine(model, nothing, non_finite="zero_weight").run(jobs[:1]))
    assert "all weights are zero" in str(result.error)


def test_a_search_that_draws_follows_the_weights_to_the_last_bit():
    """The largest uniform below 1 picks the last particle that has weight, never one beyond."""

    class Streams:
        def uniform(self, *_):
            return torch.tensor([1 - 2.0**-53], dtype=torch.float64)

    problem = SimpleNamespace(streams=Streams())
    weights = Weights(torch.tensor([0.0] * 7 + [-math.inf], dtype=torch.float64))
    assert choose(problem, weights, None, "draw") == [6]


# SVDD and CoDe


def test_svdd_keeps_one_lineage_an_island_at_every_step():
    problem, model = mixture(steps=10)
    [result] = run(
        model,
        problem.reward,
        jobs_for(model, ["a"], SVDD(particles=6, islands=2, returns="all"), lam=1.0),
    )
    looks = [r for r in result.trace.records if "ancestors" in r]
    assert len(looks) == 20
    assert all(len(set(r["ancestors"])) == 1 for r in looks)


def test_greedy_svdd_follows_the_best_child():
    problem, model = mixture(steps=10)
    search = SVDD(particles=6, resampler="greedy", returns="all")
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=1.0))
    for r in result.trace.records:
        if "ancestors" in r:
            assert r["ancestors"][0] == max(range(6), key=lambda i: r["reward"][i])


def test_a_block_of_the_whole_grid_is_best_of_n():
    problem, model = mixture(steps=10)
    block = CoDe(particles=4, steps=())
    [result] = run(model, problem.reward, jobs_for(model, ["a"], block, lam=1.0))
    assert result.usage.decodes == 4
    assert result.outcome.chosen == [int(result.outcome.scores.total.argmax())]


# Shares of the grid, budgets, errors


def test_looks_may_be_shares_of_the_grid():
    assert BFS().looks(100) == [25, 50, 75]
    assert BFS().looks(10) == [2, 4, 6, 8]
    assert SMC(start=0.5, every=2).looks(10) == [5, 7, 9]
    assert SMC(every=0.2, stop=0.7).looks(10) == [0, 2, 4, 6]


@each
def test_a_budget_smaller_than_one_particle_is_refused(name):
    with pytest.raises(BudgetTooSmall, match=r"costs .* more than the budget"):
        variant(name).plan(Facts(50, 50, budget=Budget(nfe=7)))


def test_a_budget_for_one_particle_is_warned_of():
    problem, model = mixture(steps=10)
    jobs = jobs_for(model, ["a"], BootstrapSMC(8), lam=problem.lam, budget=Budget(nfe=19))
    with pytest.warns(UserWarning, match=r"nfe=19.* allows 1 of 8 particles.*raise it"):
        [result] = run(model, problem.reward, jobs)
    assert len(result.outcome.x_0) == 1


def test_an_overflowing_potential_names_lambda_and_reward():
    _, model = mixture(steps=10)
    reward = FunctionReward(lambda x, f: 1e300 * x[:, 0].double())
    [result] = list(Engine(model, reward).run(jobs_for(model, ["a"], BootstrapSMC(), lam=1e20)))
    assert "potential overflows: lambda 1e+20 times a reward of" in str(result.error)


def test_all_weights_zero_says_what_to_do():
    _, model = mixture(steps=10)
    reward = FunctionReward(lambda x, f: torch.full((len(x),), -math.inf))
    engine = Engine(model, reward, non_finite="zero_weight")
    [result] = list(engine.run(jobs_for(model, ["a"], BootstrapSMC(), lam=1.0)))
    assert "all weights are zero" in str(result.error)
    assert "lower lambda" in str(result.error)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_public_and_say_where_they_come_from(preset):
    assert preset.__name__ in samplers.__all__
    assert preset.__doc__
    assert any(c.isdigit() for c in preset.__doc__)  # a year or an arXiv number
    assert issubclass(preset, SMC)


@pytest.mark.slow
@each
def test_the_evidence_of_the_chain_is_reached(name):
    problem, model = mixture("linear", steps=50)
    search = variant(name, particles=16)
    runs = 3000 if name == "fk-max" else 600  # a maximum is paid back late: its tail is the longest
    jobs = jobs_for(model, [str(i) for i in range(runs)], search, lam=problem.lam)
    results = run(model, problem.reward, jobs, batch_size=4096)
    chain = saved_laws()["linear"]
    ratio = torch.tensor([r.outcome.log_z for r in results], dtype=torch.float64) - chain.log_z
    ratio = ratio.exp()
    error = math.hypot(float(ratio.std()) / math.sqrt(len(ratio)), chain.log_z_se)
    assert abs(float(ratio.mean()) - 1) <= 3.5 * error
