"""Metropolis-Hastings on finished samples: the law it reaches, and what it costs."""

from dataclasses import replace

import pytest
import torch
from helpers import Custom, FunctionReward, jobs_for, mixture, run

from samplers import PCNL, Metropolis, TopB
from samplers.walks import Walk, regenerated, renoised, walked
from steering.chain_law import estimate
from steering.cost import Budget, Cost
from steering.flow_sde import FlowSDE
from steering.glass import GLASS
from steering.mixtures import MixtureModel, flow_grid, vp_grid
from steering.paths import SamplingPath
from steering.requests import Score
from steering.search import BudgetTooSmall, Facts, Outcome
from steering.tilted import total_variation
from steering.transitions import DDIM


def figures(search, problem, model, chains):
    """Mode masses and mean reward ``(J + 1,)``, a row a chain: the mean of its states that count."""
    search = replace(search, chains=chains, returns="all")
    jobs = jobs_for(model, ["a"], search, lam=problem.lam)
    [result] = run(model, problem.reward, jobs, batch_size=8192)
    x_0, total = result.outcome.x_0, result.outcome.scores.total
    modes = torch.nn.functional.one_hot(problem.mixture.mode_of(x_0), len(problem.masses))
    return (
        torch.cat([modes, total[:, None]], 1).reshape(-1, chains, len(problem.masses) + 1).mean(0)
    )


LAWS = [
    ("linear", vp_grid(10), Metropolis(levels=(0.3, 0.6, 1.0))),
    ("linear", flow_grid(10), Metropolis(levels=(0.6, 1.0), keep=0.5)),
    ("linear", flow_grid(10), Metropolis(levels=[1.0], keep=0.7, transition=DDIM(0.0))),
    ("quadratic", vp_grid(10), Metropolis(levels=(0.5, 1.0), order="random")),
    ("linear", flow_grid(10), Metropolis(levels=(0.6, 1.0), transition=FlowSDE())),
]
NAMES = ["cycle", "keep", "ode", "random", "sde"]
LAWS = [
    pytest.param(*law, id=name, marks=pytest.mark.slow if name in NAMES[2:] else ())
    for name, law in zip(NAMES, LAWS, strict=True)
]


@pytest.mark.parametrize(("name", "grid", "search"), LAWS)
def test_redone_suffixes_reach_the_tilted_law_of_the_chain_itself(name, grid, search):
    """Of a coarse chain, whose law is far from the continuous one."""
    problem, _ = mixture(name)
    model = MixtureModel(problem.mixture, grid)
    law = estimate(problem, model, search._transition, samples=200_000, seed=1)
    exact = torch.tensor([*law.masses, law.reward_mean])
    law_se = torch.tensor([*law.masses_se, law.reward_mean_se])
    found = figures(replace(search, steps=36, burn_in=24, thin=3), problem, model, 800)
    error = (found.std(0).square() / len(found) + law_se.square()).sqrt()
    assert ((found.mean(0) - exact).abs() < 4 * error + 1e-3).all()
    assert float(error[:-1].max()) < 0.02  # the test can tell


def test_the_tilted_law_is_left_alone_from_the_first_step():
    """Started in the tilted law, one move keeps it: no burn-in can hide a wrong ratio."""
    problem, model = mixture("linear", steps=10)
    grid, lam, n = model.grid, 1.0, 40_000

    def body(asked):
        transition = DDIM(1.0)
        noise = lambda i: asked.noise("transition", range(n), i)  # noqa: E731
        walk = yield from walked(
            asked, transition, 0, asked.initial(range(n)), noise, stored=[4], keep_noise=True
        )
        new = yield from regenerated(asked, transition, walk, 4, range(n, 2 * n), 0.6)
        again = yield from walked(asked, transition, 4, new.states[4], new.noise.__getitem__)
        assert torch.equal(again.x_0, new.x_0)
        assert torch.equal(new.states[4], walk.states[4])
        assert all(torch.equal(new.noise[j], walk.noise[j]) for j in range(4))
        scores = yield Score(torch.cat([walk.x_0, new.x_0]))
        extra = {"rewards": scores.total.reshape(2, n)}
        return Outcome(walk.x_0, scores, torch.zeros(n), [], extra=extra)

    [result] = run(model, problem.reward, jobs_for(model, ["a"], Custom(body)), batch_size=8192)
    old, new = result.outcome.extra["rewards"]
    weights = torch.softmax(lam * old, 0)
    accept = (lam * (new - old)).clamp(max=0).exp()
    moved = float(weights @ (accept * (new - old)))  # mean change of the reward, 0 in the law
    spread = float((weights * accept * (new - old)).norm())
    assert abs(moved) < 4 * spread
    assert spread < 0.02
    assert grid.steps == 10


def drift(steps, count=2000):
    """Total variation of mode masses to the untilted law, before and after 20 renoised proposals."""
    problem, model = mixture("linear", steps)
    search = Metropolis("renoise", count, 20, 0, 20, (0.5, 0.75), returns="all")
    jobs = jobs_for(model, ["a"], search, lam=0.0)
    with pytest.warns(UserWarning, match="lambda is 0"):
        [result] = run(model, problem.reward, jobs, batch_size=8192)
    base = problem.mixture.weights
    parts = result.outcome.x_0.split(count)
    return [total_variation(problem.masses_of(x), base) for x in parts]


@pytest.mark.slow
def test_renoising_drifts_less_on_finer_grids():
    coarse, fine = drift(10), drift(50)
    assert coarse[1] - coarse[0] < 0.06
    assert fine[1] < 0.035
    assert fine[1] < coarse[1]


def test_renoised_samples_come_near_the_tilted_law_on_a_fine_grid():
    problem, model = mixture("linear", steps=50)
    search = Metropolis("renoise", steps=12, burn_in=8, levels=(0.5, 0.9))
    found = figures(search, problem, model, 400).mean(0)
    assert total_variation(found[:-1], problem.masses) < 0.1
    assert float(found[-1]) == pytest.approx(problem.reward_mean, abs=0.25)


def test_renoising_gives_a_state_the_signal_and_noise_of_its_level():
    """From a grid's end that is not free of noise, too."""
    problem, model = mixture("linear", steps=10)
    n, i = 20_000, 6
    t, end = model.grid[i], model.grid[-1]
    assert end.sigma > 0
    x_0 = problem.mixture.sample(n, torch.Generator().manual_seed(0))
    noisy = end.alpha * x_0 + end.sigma * torch.randn_like(x_0)
    seen = {}

    def body(asked):
        walk = Walk(noisy.float(), {}, {})
        inner = renoised(asked, DDIM(1.0), walk, i, range(n))
        seen["x_t"] = next(inner).x_t
        scores = yield Score(noisy[:1].float())
        return Outcome(noisy[:1], scores, torch.zeros(1), [])

    run(model, problem.reward, jobs_for(model, ["a"], Custom(body)))
    rest = seen["x_t"] - t.alpha * x_0
    assert float(rest.std()) == pytest.approx(t.sigma, rel=0.02)
    assert float(rest.mean()) == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("kind", ["suffix", "renoise"])
def test_lambda_zero_accepts_always(kind):
    problem, model = mixture(steps=10)
    search = Metropolis(kind, steps=6)
    with pytest.warns(UserWarning, match="lambda is 0.*nothing is steered"):
        [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=0.0))
    assert result.trace.column("acceptance") == [1.0] * 6


@pytest.mark.parametrize("kind", ["suffix", "renoise"])
def test_a_shifted_reward_changes_nothing(kind):
    problem, model = mixture("quadratic", steps=10)
    shifted = FunctionReward(lambda x, f: problem.reward(x, f) - 64.0)
    search = Metropolis(kind, steps=8, returns="all")
    jobs = jobs_for(model, ["a"], search, lam=problem.lam)
    [plain], [same] = run(model, problem.reward, jobs), run(model, shifted, jobs)
    assert plain.trace.first_difference(same.trace) is None
    assert torch.equal(plain.outcome.x_0, same.outcome.x_0)
    assert 0 < sum(plain.trace.column("acceptance")) / 8 < 1


@pytest.mark.parametrize(
    "search",
    [
        Metropolis(),
        Metropolis("renoise", levels=(0.25, 0.5)),
        Metropolis(order="random", levels=[0.5], steps=5),
        Metropolis(chains=3, steps=2, burn_in=0, start=TopB(7)),
        Metropolis(chains=2, steps=3, burn_in=0, start=PCNL(burn_in=2), keep=0.5),
        Metropolis(chains=2, steps=3, burn_in=0, transition=GLASS(), keep=0.5),
        Metropolis(chains=2, steps=3, burn_in=0, path=SamplingPath()),
    ],
    ids=str,
)
def test_it_costs_what_it_plans(search):
    problem, model = mixture(steps=10)
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    plan, usage = search.plan(Facts(10, 10)), result.usage
    assert plan.exact
    spent = Cost(usage.nfe, usage.decodes, usage.reward_calls, usage.backwards)
    assert spent == plan.cost


def test_random_levels_stay_within_the_plan():
    problem, model = mixture(steps=10)
    search = Metropolis(order="random")
    plan = search.plan(Facts(10, 10))
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
    assert not plan.exact
    assert result.usage.nfe < plan.cost.nfe
    assert len(set(result.trace.column("index"))) == 3


def test_budgets_cost_steps_first_and_chains_then():
    search = Metropolis(levels=(0.5, 1.0))
    settings = [
        search.plan(Facts(10, 10, budget=Budget(nfe=nfe))).settings for nfe in (165, 79, 39, 10)
    ]
    assert settings == [
        {"chains": 4, "steps": 4},
        {"chains": 4, "steps": 1},
        {"chains": 3, "steps": 0},
        {"chains": 1, "steps": 0},
    ]
    with pytest.raises(BudgetTooSmall, match="first sample of a chain costs"):
        search.plan(Facts(10, 10, budget=Budget(nfe=9)))
    problem, model = mixture(steps=10)
    [result] = run(
        model, problem.reward, jobs_for(model, ["a"], search, budget=Budget(nfe=79), lam=1.0)
    )
    assert result.usage.nfe == 60
    assert not result.outcome.complete  # no state passed the burn-in: it claims no law


def test_out_of_time_it_returns_what_it_has():
    problem, model = mixture(steps=10)
    jobs = jobs_for(model, ["a"], Metropolis(), lam=1.0, budget=Budget(seconds=1e-6))
    [result] = run(model, problem.reward, jobs)
    assert not result.outcome.complete
    assert result.usage.nfe == 40


def test_what_is_returned():
    problem, model = mixture(steps=10)
    totals = {}
    for returns, count in (("all", 4 * 5), ("draw", 1), ("best", 1)):
        search = Metropolis(steps=12, burn_in=4, thin=2, returns=returns)
        [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=problem.lam))
        assert result.outcome.complete
        assert len(result.outcome.chosen) == len(result.media) == count
        torch.testing.assert_close(result.outcome.scores.total, problem.reward(result.outcome.x_0))
        totals[returns] = result.outcome.scores.total
        if returns == "all":
            seen = torch.tensor(result.trace.column("proposed")).max()
    assert float(totals["best"]) == pytest.approx(max(float(totals["all"].max()), float(seen)))


def test_a_seed_gives_the_same_answer_whatever_runs_beside_it():
    problem, model = mixture(steps=10)
    options = {"deterministic": True, "bucket": 8}
    search = Metropolis(steps=5, order="random", keep=0.3)
    [alone] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=1.0), **options)
    jobs = jobs_for(model, ["b", "a", "c"], search, lam=1.0)
    among = run(model, problem.reward, jobs, **options)[1]
    assert torch.equal(alone.outcome.x_0, among.outcome.x_0)
    assert alone.trace.first_difference(among.trace) is None


def test_an_impossible_start_is_left():
    problem, model = mixture(steps=10)
    reward = FunctionReward(lambda x, f: torch.where(x[:, 0] > 0, problem.reward(x), -torch.inf))
    jobs = jobs_for(model, ["a"], Metropolis(chains=8, returns="all"), lam=1.0)
    [result] = run(model, reward, jobs, non_finite="zero_weight")
    first = torch.tensor(result.trace.records[0]["reward"])
    assert torch.isneginf(first).any()
    assert torch.isfinite(result.outcome.scores.total[-8:]).all()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"kind": "prefix"}, "kind must be one of.*got 'prefix'"),
        ({"chains": 0}, "chains must be at least 1"),
        ({"steps": 0}, "steps"),
        ({"thin": 0}, "thin"),
        ({"burn_in": 17}, r"burn_in must lie in \[0, steps=16\], got 17"),
        ({"order": "up"}, "order"),
        ({"returns": "some"}, "returns"),
        ({"levels": ()}, "levels"),
        ({"levels": (0.5, 1.2)}, r"levels must be shares of the grid in \(0, 1\]"),
        ({"keep": 1.0}, "keep must lie in"),
        ({"keep": 0.5, "kind": "renoise"}, "keep"),
        ({"transition": DDIM(0.0)}, r"DDIM\(eta=0.0\) is deterministic.*levels=\[1.0\]"),
        ({"transition": DDIM(0.0), "levels": [1.0], "kind": "renoise"}, "deterministic"),
    ],
)
def test_bad_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        Metropolis(**option)
