"""Stages that choose initial noises: their law against quadrature, their costs, their errors."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import Custom, FunctionReward, jobs_for, mixture, run

from samplers import PCNL, BestOfN, Prior, Resampled, TopB
from samplers.initial import predicted, together
from steering.cost import Budget, Cost
from steering.engine import Engine, MissingAbility
from steering.live import SearchFailed
from steering.mixtures import MixtureModel
from steering.requests import Score
from steering.search import BudgetTooSmall, Facts, Needs, Outcome
from steering.transitions import DDIM

STAGES = [
    Prior(),
    TopB(12),
    TopB(5, per_particle=True),
    Resampled(12),
    PCNL(burn_in=2),
    PCNL(chains=2, burn_in=3, thin=2, candidates=6),
    PCNL(chains=3, burn_in=0, thin=1, gradients=False),
]


def begin(stage, k):
    """A search that only starts."""

    def body(problem):
        started = yield from stage(problem, k)
        usage = problem.usage.to_dict()
        scores = yield Score(started.x_t)
        extra = {"started": started, "usage": usage, "mean": float(scores.total.mean())}
        return Outcome(started.x_t, scores, started.log_w, [], extra=extra)

    return Custom(body, stage.needs)


def started(stage, k, *, model, reward, runs=1, **job):
    jobs = jobs_for(model, [str(i) for i in range(runs)], begin(stage, k), **job)
    return [r.outcome.extra["started"] for r in run(model, reward, jobs, batch_size=4096)]


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_a_stage_costs_what_it_says_and_hands_over_what_belongs_together(stage):
    problem, model = mixture(steps=10)
    jobs = jobs_for(model, ["a"], begin(stage, 5), lam=problem.lam)
    [result] = run(model, problem.reward, jobs)
    found, usage = result.outcome.extra["started"], result.outcome.extra["usage"]
    cost = stage.cost(Facts(10, 10), 5)
    assert {n: usage[n] for n in ("nfe", "decodes", "reward_calls", "backwards")} == {
        n: getattr(cost, n) for n in ("nfe", "decodes", "reward_calls", "backwards")
    }
    assert found.x_t.shape == (5, 2)
    assert len(set(found.draws)) == 5
    assert found.log_w.shape == found.applied.shape == (5,)
    assert (found.posterior is not None) == stage.predicts
    if stage.predicts:
        again = model.denoise(found.x_t, [model.grid[0]] * 5, [None] * 5)
        torch.testing.assert_close(found.posterior.x_0, again.x_0)
        torch.testing.assert_close(found.reward, problem.reward(again.x_0))
        assert not found.x_t.requires_grad
        assert not found.posterior.x_0.requires_grad
    if stage.needs.density:
        torch.testing.assert_close(found.applied, problem.lam * found.reward)


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_the_same_seed_gives_the_same_start(stage):
    problem, model = mixture(steps=10)
    options = {"model": model, "reward": problem.reward, "lam": problem.lam}
    [one], [same], [other] = (started(stage, 4, **options, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.x_t, same.x_t)
    assert not torch.equal(one.x_t, other.x_t)


def test_the_prior_is_where_the_pipeline_starts():
    problem, model = mixture(steps=10)
    [found] = started(Prior(), 3, model=model, reward=problem.reward)
    [best] = run(model, problem.reward, jobs_for(model, ["0"], BestOfN(3, returns="all")))
    [same] = run(
        model, problem.reward, jobs_for(model, ["0"], BestOfN(3, start=Prior(), returns="all"))
    )
    assert torch.equal(best.outcome.x_0, same.outcome.x_0)
    assert found.draws == [0, 1, 2]


def test_the_best_noises_are_kept():
    problem, model = mixture(steps=10)
    options = {"model": model, "reward": problem.reward}
    [every] = started(TopB(12), 12, **options)
    [few] = started(TopB(12), 3, **options)
    assert torch.equal(few.x_t, every.x_t[:3])
    assert few.reward.tolist() == sorted(few.reward.tolist(), reverse=True)
    [own] = started(TopB(4, per_particle=True), 3, **options)
    by_draw = dict(zip(every.draws, every.reward.tolist(), strict=True))
    groups = [range(4 * i, 4 * i + 4) for i in range(3)]
    assert own.draws == [max(g, key=by_draw.__getitem__) for g in groups]


# ---- exactness: the law of the first noise, against quadrature in the plane


def tilted_noise(problem, model, points=301, reach=6.0):
    """Log Z and moments of p(x_1) exp(lambda r(x_0 predicted from x_1)) by quadrature."""
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    x_t = (model.initial_std * z).float()
    reward = problem.reward(model.denoise(x_t, [model.grid[0]] * len(x_t), [None] * len(x_t)).x_0)
    log_p = -0.5 * z.square().sum(1) - math.log(2 * math.pi)
    log_mass = log_p + problem.lam * reward + 2 * math.log(2 * reach / (points - 1))
    mass = torch.softmax(log_mass, 0)
    return float(torch.logsumexp(log_mass, 0)), mass @ _moments(z, reward)


def _moments(z, reward):
    return torch.cat([z, z.square(), reward[:, None]], 1)


EXACT = [
    (Resampled(16), 8),
    (PCNL(chains=2, burn_in=1, thin=2, candidates=4, epsilon=2.0), 5),
    pytest.param(PCNL(burn_in=0), 4, marks=pytest.mark.slow),
    pytest.param(PCNL(burn_in=4), 4, marks=pytest.mark.slow),
    pytest.param(PCNL(burn_in=3, gradients=False), 4, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("stage", "k"), EXACT, ids=str)
def test_starts_are_properly_weighted(stage, k):
    """Mean of W f over runs is Z E[f], for every number of moves: unbiased, evidence included."""
    problem, inner = mixture("quadratic", steps=10)
    problem = replace(problem, lam=1.0)
    model = MixtureModel(inner.mixture, inner.grid, initial_std=0.7)  # units must not matter
    log_z, moments = tilted_noise(problem, model)
    found = started(stage, k, model=model, reward=problem.reward, runs=500, lam=problem.lam)
    values = torch.stack(
        [
            (s.log_w.exp()[:, None] * _with_one(s.x_t.double() / 0.7, s.reward)).mean(0)
            for s in found
        ]
    )
    exact = math.exp(log_z) * torch.cat([torch.ones(1, dtype=torch.float64), moments])
    error = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - exact).abs() < 4 * error).all()
    assert (error < 0.1 * exact.abs().max()).all()


def _with_one(z, reward):
    return torch.cat([torch.ones(len(z), 1, dtype=torch.float64), _moments(z, reward)], 1)


@pytest.mark.parametrize(
    "stage",
    [
        PCNL(),
        pytest.param(PCNL(epsilon=2.0), marks=pytest.mark.slow),
        pytest.param(PCNL(gradients=False), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_moves_alone_take_the_prior_to_the_tilted_noise(stage):
    problem, model = mixture("linear", steps=10)
    problem = replace(problem, lam=4.0)  # one step back from pure noise, little of the reward shows
    _, moments = tilted_noise(problem, model)

    def body(asked):
        chains = asked.initial(range(1000))
        point = yield from predicted(asked, chains, gradient=stage.gradients)
        first = _moments(point.x_t.double(), point.reward)
        for move in range(40):
            point = yield from stage._move(asked, point, move)
        last = _moments(point.x_t.double(), point.reward)
        scores = yield Score(point.x_t[:1])
        return Outcome(point.x_t[:1], scores, torch.zeros(1), [], extra={"of": (first, last)})

    [result] = run(model, problem.reward, jobs_for(model, ["a"], Custom(body), lam=problem.lam))
    far = [
        ((v.mean(0) - moments).abs() / (v.std(0) / math.sqrt(len(v)))).max()
        for v in result.outcome.extra["of"]
    ]
    assert far[0] > 15
    assert far[1] < 4


def test_the_drift_pays_in_many_dimensions():
    """Accepted at d = 256 with moves of order one, and uphill faster than without gradients."""
    from steering.mixtures import GaussianMixture, vp_grid
    from steering.tilted import QuadraticReward

    d = 256
    base = GaussianMixture(torch.ones(1), torch.zeros(1, d), torch.eye(d)[None])
    model = MixtureModel(base, vp_grid(10))
    reward = QuadraticReward.linear([1.0] * d)
    last = {}
    for gradients in (True, False):
        stage = PCNL(chains=4, burn_in=15, gradients=gradients)
        jobs = jobs_for(model, ["a"], begin(stage, 4), lam=20.0)
        [result] = run(model, reward, jobs)
        rates = result.trace.column("acceptance")
        assert len(rates) == 15
        last[gradients] = float(result.outcome.extra["started"].reward.mean())
        if gradients:
            assert sum(rates) / 15 > 0.3
    assert last[True] > last[False]


def test_a_shifted_reward_and_lambda_zero_change_nothing():
    problem, model = mixture("quadratic", steps=10)
    shifted = FunctionReward(lambda x, f: problem.reward(x, f) - 64.0)
    for stage in (Resampled(12), PCNL(burn_in=5)):
        [plain] = started(stage, 4, model=model, reward=problem.reward, lam=problem.lam)
        [same] = started(stage, 4, model=model, reward=shifted, lam=problem.lam)
        torch.testing.assert_close(plain.x_t, same.x_t)
        torch.testing.assert_close(plain.log_w - 64 * problem.lam, same.log_w)
    stage = begin(PCNL(burn_in=5), 4)
    [result] = run(model, problem.reward, jobs_for(model, ["a"], stage, lam=0.0))
    assert result.trace.column("acceptance") == [1.0] * 5


def test_impossible_noises_are_never_chosen():
    _, model = mixture(steps=10)
    reward = FunctionReward(lambda x, f: torch.where(x[:, 0] > -0.5, x[:, 1], -torch.inf))
    for stage in (TopB(16), Resampled(16), PCNL(burn_in=3, candidates=16)):
        jobs = jobs_for(model, ["a"], begin(stage, 3), lam=1.0)
        [result] = run(model, reward, jobs, non_finite="zero_weight")
        assert torch.isfinite(result.outcome.extra["started"].reward).all()
    nothing = FunctionReward(lambda x, f: torch.full((len(x),), -torch.inf))
    jobs = jobs_for(model, ["a"], begin(Resampled(4), 3), lam=1.0)
    with pytest.raises(SearchFailed, match="all weights are zero"):
        run(model, nothing, jobs, non_finite="zero_weight")


def test_a_gradient_that_is_no_number_is_refused():
    _, model = mixture(steps=10)
    reward = FunctionReward(lambda x, f: (x[:, 0] * 0).abs().sqrt() + x[:, 1])
    jobs = jobs_for(model, ["a"], begin(PCNL(burn_in=2), 2), lam=1.0)
    with pytest.raises(SearchFailed, match=r"gradient of the reward is not finite.*do without"):
        run(model, reward, jobs)


def test_gradients_are_asked_of_rewards_that_have_them():
    problem, model = mixture("indicator", steps=10)
    engine = Engine(model, problem.reward)
    with pytest.raises(MissingAbility, match=r"differentiable reward.*'indicator'"):
        next(engine.run(jobs_for(model, ["a"], BestOfN(2, start=PCNL()))))
    search = BestOfN(2, start=PCNL(gradients=False))
    assert run(model, problem.reward, jobs_for(model, ["a"], search))


# ---- as the start of a search


@pytest.mark.parametrize("stage", STAGES, ids=str)
@pytest.mark.parametrize("solver", ["scheduler", DDIM(1.0)], ids=["scheduler", "ddim"])
def test_best_of_n_starts_with_any_of_them(stage, solver):
    problem, model = mixture(steps=10)
    search = BestOfN(5, solver=solver, start=stage, in_flight=2)
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    planned, usage = search.plan(Facts(10, 10)).cost, result.usage
    assert (usage.nfe, usage.decodes, usage.reward_calls, usage.backwards) == (
        planned.nfe,
        planned.decodes,
        planned.reward_calls,
        planned.backwards,
    )


def test_best_of_n_fits_its_budget_start_included():
    facts = Facts(10, 10, budget=Budget(nfe=47))
    plan = BestOfN(5, start=TopB(25)).plan(facts)
    assert plan.settings == {"n": 2}
    assert plan.cost == Cost(nfe=45, decodes=27, reward_calls=27)
    with pytest.raises(BudgetTooSmall, match="nfe=35"):
        BestOfN(5, start=TopB(25)).plan(Facts(10, 10, budget=Budget(nfe=34)))


def test_a_start_pays():
    problem, model = mixture(steps=10)
    means = []
    for start in (None, TopB(16)):
        search = BestOfN(1, start=start)
        jobs = jobs_for(model, [str(i) for i in range(60)], search)
        results = run(model, problem.reward, jobs, batch_size=1024)
        means.append(sum(float(r.outcome.scores.total.max()) for r in results) / 60)
    assert means[1] > means[0] + 1


def test_needs_are_those_of_both():
    both = together(Needs(stochastic=True), PCNL())
    assert (both.stochastic, both.gradients, both.density, both.any_order) == (
        True,
        True,
        True,
        False,
    )
    assert together(Needs(), None) == Needs()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopB(0), "candidates must be at least 1, got 0"),
        (lambda: Resampled(-1), "candidates"),
        (lambda: PCNL(thin=0), "thin"),
        (lambda: PCNL(chains=0), "chains"),
        (lambda: PCNL(burn_in=-1), "burn_in must not be negative"),
        (lambda: PCNL(epsilon=0.0), r"epsilon must lie in \(0, 4\]"),
        (lambda: PCNL(epsilon=5.0), "epsilon"),
        (lambda: TopB(3).cost(Facts(10, 10), 4), "keeps 4 of candidates=3.*per_particle"),
        (lambda: BestOfN(8, start=TopB(3)).plan(Facts(10, 10)), "keeps 8 of candidates=3"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
