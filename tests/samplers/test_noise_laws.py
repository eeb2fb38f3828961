"""Searches over noise on Gaussians and mixtures, where the answer is known in closed form."""

import math
from itertools import pairwise

import pytest
import torch
from gaussian_chain import affine, final, gaussian_model
from helpers import FunctionReward, jobs_for, mixture, run

from samplers import BestOfN, EvoSearch, NoisePaths, ReNO, ZeNO, ZeroOrder
from samplers.noise_paths import _levels, _time_at
from samplers.reno import chi_gradient
from samplers.zero_order import neighbours_of
from steering.mixtures import GaussianMixture, MixtureModel, flow_grid, vp_grid
from steering.tilted import QuadraticReward
from steering.transitions import DDIM

CONSTANT = FunctionReward(lambda x, f: 0 * x[:, 0])
WIDE = {"batch_size": 1 << 16}


def white(dim, steps=4):
    """N(0, I), which a deterministic walk only rescales: its noise and its samples are alike."""
    data = GaussianMixture([1.0], torch.zeros(1, dim), torch.eye(dim)[None])
    return MixtureModel(data, flow_grid(steps))


def slope_of(model, transition=DDIM(0.0)):
    """``(slope, offset)`` of the map from noise to sample on Gaussian data."""
    slope, offset = 1.0, 0.0
    for t, s in pairwise(model.grid):
        a, b, _ = affine(transition, t, s, model)
        slope, offset = a * slope, a * offset + b
    return slope, offset


def close(sample, mean, std, sigmas=4.0):
    """Mean and standard deviation of independent values within their sampling error."""
    n = len(sample)
    assert abs(float(sample.mean()) - mean) < sigmas * std / math.sqrt(n)
    assert abs(float(sample.std()) / std - 1) < sigmas / math.sqrt(2 * n)


# ---- zero order


def test_neighbours_lie_on_the_sphere_at_the_angle_asked_for():
    draw = torch.Generator().manual_seed(0)
    pivots, noise = torch.randn(2, 50, 4, 3, generator=draw)
    for cosine in (0.95, 0.0, -0.5):
        found = neighbours_of(pivots, noise, cosine).flatten(1)
        flat = pivots.flatten(1)
        torch.testing.assert_close(found.norm(dim=1), flat.norm(dim=1))
        angles = torch.cosine_similarity(found, flat)
        torch.testing.assert_close(angles, torch.full_like(angles, cosine), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="no neighbours of equal norm"):
        neighbours_of(torch.ones(2, 1), torch.ones(2, 1), 0.9)


def test_zero_order_search_ends_at_the_best_point_of_the_sphere():
    model, centre = white(6), torch.tensor([3.0, -2.0, 1.0, 0.0, 2.0, 1.0])
    reward = QuadraticReward.around(centre.tolist(), torch.eye(6))
    search = ZeroOrder(rounds=60, neighbours=8, cosine=0.97, chains=2)
    [result] = run(model, reward, jobs_for(model, ["a"], search))
    [start] = run(model, CONSTANT, jobs_for(model, ["a"], BestOfN(2, returns="all")))
    distance = (start.outcome.x_0.norm(dim=1) - centre.norm()).abs()  # radii never change
    best = -0.5 * float(distance.min()) ** 2
    found = float(result.outcome.scores.total)
    assert best - 0.15 < found <= best + 1e-4
    assert torch.cosine_similarity(result.outcome.x_0[0], centre, dim=0) > 0.985


def test_a_pivot_stays_where_no_neighbour_is_better():
    model = white(3)
    search = ZeroOrder(rounds=3, neighbours=2, chains=2)
    [result] = run(model, CONSTANT, jobs_for(model, ["a"], search))
    assert result.trace.column("ancestors") == [[0, 1]] * 3


def test_more_rounds_go_on_from_the_same_search():
    problem, model = mixture("quadratic", steps=5)
    found = []
    for rounds in (1, 2, 4, 8):
        jobs = jobs_for(model, ["a", "b"], ZeroOrder(rounds=rounds))
        found.append([float(r.outcome.scores.total) for r in run(model, problem.reward, jobs)])
    assert found == [list(map(max, zip(*found[: i + 1], strict=True))) for i in range(4)]
    assert found[-1] > found[0]


# ---- paths


def path_law(search, grid, model):
    """Mean and standard deviation of what a search over paths returns under a constant reward."""
    problem = type("Place", (), {"grid": grid, "at": staticmethod(model.at)})
    mean, var, level = 0.0, 1.0, 1.0
    walks = [(1.0, search.start), *search.rounds()]
    for n, (top, below) in enumerate(walks):
        if n:
            t, s = _time_at(problem, level), _time_at(problem, top)
            ratio = s.alpha / t.alpha
            mean, var = ratio * mean, ratio**2 * var + s.sigma**2 - (ratio * t.sigma) ** 2
        stops = [_time_at(problem, a) for a in _levels(grid.steps, top, below)]
        for t, s in pairwise(stops):
            slope, offset, std = affine(search._transition, t, s, model)
            mean, var = slope * mean + offset, slope**2 * var + std**2
        level = below
    return mean, math.sqrt(var)


@pytest.mark.parametrize("transition", [DDIM(0.0), DDIM(1.0)], ids=str)
@pytest.mark.parametrize("grid", [flow_grid(10), vp_grid(20)], ids=["flow", "vp"])
def test_paths_have_the_law_of_their_steps(grid, transition):
    """Levels between the steps of the grid included."""
    model = gaussian_model(grid)
    search = NoisePaths(2500, 1, 0.33, 0.4, 0.58, transition=transition, returns="all")
    [result] = run(model, CONSTANT, jobs_for(model, ["a"], search), **WIDE)
    close(result.outcome.x_0[:, 0], *path_law(search, grid, model))


@pytest.mark.parametrize("grid", [flow_grid(200), vp_grid(200)], ids=["flow", "vp"])
def test_with_small_steps_paths_keep_the_law_of_the_data(grid):
    model = gaussian_model(grid)
    for search in (NoisePaths(), NoisePaths(start=0.5, forward=0.3, backward=0.4)):
        mean, std = path_law(search, grid, model)
        assert (mean, std) == pytest.approx((0.7, 0.5), abs=0.02)


def test_levels_off_the_grid_lie_between_its_times():
    model = gaussian_model(vp_grid(10))
    problem = type("Place", (), {"grid": model.grid, "at": staticmethod(model.at)})
    places = [_time_at(problem, a) for a in _levels(10, 0.93, 0.18)]
    assert [t.model_t for t in places[1:-1]] == [t.model_t for t in model.grid[1:9]]
    ratios = [t.log_snr for t in places]
    assert ratios == sorted(ratios)
    assert model.grid[0].log_snr < ratios[0] < model.grid[1].log_snr


# ---- evolution


def test_mutants_of_initial_noise_keep_its_law():
    model = gaussian_model(flow_grid(4))
    search = EvoSearch((0,), (2, 2), beta=0.6, solver=DDIM(0.0), returns="all")
    jobs = jobs_for(model, [str(i) for i in range(700)], search)
    results = run(model, CONSTANT, jobs, **WIDE)
    last = torch.stack([r.outcome.x_0[-1, 0] for r in results])
    first = torch.stack([r.outcome.x_0[0, 0] for r in results])
    close(last, *final(DDIM(0.0), model.grid, model))
    parents = [r.trace.column("ancestors")[1][-1] for r in results]
    same = torch.tensor(parents) == 0
    correlation = torch.corrcoef(torch.stack([first[same], last[same]]))[0, 1]
    assert float(correlation) == pytest.approx(math.sqrt(1 - 0.6**2), abs=0.09)


@pytest.mark.parametrize("transition", [DDIM(0.0), DDIM(1.0)], ids=str)
def test_mutants_on_the_way_have_the_noise_that_is_said(transition):
    model = gaussian_model(flow_grid(4))
    search = EvoSearch((0.5,), (1, 2), elites=0, spread=1.5, solver=transition, returns="all")
    jobs = jobs_for(model, [str(i) for i in range(700)], search)
    last = torch.stack([r.outcome.x_0[-1, 0] for r in run(model, CONSTANT, jobs, **WIDE)])
    mean, var = 0.0, 1.0
    for i, (t, s) in enumerate(pairwise(model.grid)):
        if i == 2:
            var += (1.5 * DDIM(1.0).std(model.grid[1], model.grid[2])) ** 2
        slope, offset, std = affine(transition, t, s, model)
        mean, var = slope * mean + offset, slope**2 * var + std**2
    close(last, mean, math.sqrt(var))


def test_a_state_re_enters_at_the_step_before_which_it_was_kept():
    """An all but unchanged state, walked on without noise, ends where its parent did."""
    problem, model = mixture("quadratic", steps=10)
    search = EvoSearch((0.3, 0.6), (4, 3, 3), spread=1e-6, solver=DDIM(0.0), returns="all")
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search))
    x_0 = result.outcome.x_0
    ancestors = [p for generation in result.trace.column("ancestors")[1:] for p in generation]
    torch.testing.assert_close(x_0[4:], x_0[ancestors], atol=1e-4, rtol=0)


def test_the_best_of_those_that_meet_becomes_the_parent():
    problem, model = mixture("quadratic", steps=10)
    search = EvoSearch((0.5,), (10, 8), elites=2, tournament=1.0)
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search))
    first, ancestors = result.trace.column("reward")[0], result.trace.column("ancestors")[1]
    order = torch.tensor(first).argsort(descending=True).tolist()
    assert ancestors == [order[0], order[1]] + [order[0]] * 6


@pytest.mark.parametrize(
    "search",
    [
        EvoSearch((0.0, 0.4, 0.6), (10, 8, 8, 7), solver=DDIM(0.0)),
        ZeroOrder(rounds=6, neighbours=4, cosine=0.8),
        ZeNO(rounds=16, samples=4),
    ],
    ids=lambda s: type(s).__name__,
)
def test_local_search_finds_more_than_random_search_at_equal_nfe(search):
    """Where the reward is smooth in the noise; the mean over prompts of the best that was found."""
    model, reward = white(16), QuadraticReward.linear([1.0] * 16)
    jobs = jobs_for(model, [str(i) for i in range(60)], search, lam=5.0)
    results = run(model, reward, jobs, **WIDE)
    n = -(-results[0].usage.nfe // 4)
    others = run(model, reward, jobs_for(model, [r.job.item.prompt for r in results], BestOfN(n)))
    found, random = (
        sum(float(r.outcome.scores.total.max()) for r in group) / 60 for group in (results, others)
    )
    assert found > random + 0.5


# ---- ZeNO


def test_zeno_leaves_the_prior_alone_under_a_constant_reward():
    model = gaussian_model(flow_grid(4))
    search = ZeNO(rounds=5, samples=2, step=0.3, chains=2500, in_flight=1 << 16, returns="draw")
    [result] = run(model, CONSTANT, jobs_for(model, ["a"], search), **WIDE)
    last = result.outcome.x_0[result.outcome.extra["last"], 0]
    close(last, *final(DDIM(0.0), model.grid, model))


def zeno_law(reward, lam, **options):
    model = gaussian_model(flow_grid(4), mean=0.0, std=1.0)
    search = ZeNO(in_flight=1 << 16, returns="draw", **options)
    [result] = run(model, reward, jobs_for(model, ["a"], search, lam=lam), **WIDE)
    slope, _ = slope_of(model)
    return result.outcome.x_0[result.outcome.extra["last"], 0], slope


def test_zeno_rests_at_the_tilted_law_of_a_linear_reward():
    """exp(lambda s z) tilts N(0, 1) to N(lambda s, 1), s being the slope from noise to sample."""
    rounds, step = 14, 0.5
    last, slope = zeno_law(
        FunctionReward(lambda x, f: x[:, 0]), 0.8, rounds=rounds, samples=16, step=step, chains=800
    )
    away = (1 - step) ** (rounds / 2)
    mean, std = 0.8 * slope**2 * (1 - away), slope
    assert abs(float(last.mean()) - mean) < 4 * std / math.sqrt(800) + 0.02 * mean
    assert abs(float(last.std()) / std - 1) < 4 / math.sqrt(1600) + 0.02


@pytest.mark.slow
def test_zeno_rests_at_the_tilted_law_of_a_quadratic_reward():
    """In the limit of small steps; the precision of the noise becomes 1 + lambda s^2."""
    reward = FunctionReward(lambda x, f: -0.5 * (x[:, 0] - 1.5).square())
    last, slope = zeno_law(reward, 2.0, rounds=40, samples=16, step=0.1, chains=400)
    precision = 1 + 2.0 * slope**2
    mean, std = slope * 2.0 * slope * 1.5 / precision, slope / math.sqrt(precision)
    assert float(last.mean()) == pytest.approx(mean, abs=4 * std / 20 + 0.03)
    assert float(last.std()) == pytest.approx(std, rel=0.15)


# ---- ReNO


def test_the_regulariser_is_least_on_the_shell():
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(3, 2, 5, generator=draw).requires_grad_()
    norm = z.flatten(1).norm(dim=1)
    loss = (0.5 * norm**2 - 9 * norm.log()).sum()
    torch.testing.assert_close(chi_gradient(z.detach()), torch.autograd.grad(loss, z)[0])
    on_shell = z.detach() / norm.reshape(-1, 1, 1) * 3
    assert chi_gradient(on_shell).abs().max() < 1e-6


def test_regularised_noise_stays_on_the_shell():
    model, reward = white(64), QuadraticReward.linear([1.0] + [0.0] * 63)
    norms, found = {}, {}
    for regularisation in (0.0, 1.0):
        search = ReNO(60, rate=0.2, clip=10.0, regularisation=regularisation)
        [result] = run(model, reward, jobs_for(model, ["a"], search))
        norms[regularisation] = [n for [n] in result.trace.column("norm")]
        found[regularisation] = result.trace.column("best")
    # weight g against the shell: |z| - (d - 1) / |z| is at most g where all of z points along g
    assert max(norms[1.0]) < 0.5 * (1 + math.sqrt(1 + 4 * 63)) + 0.5
    assert abs(norms[1.0][-1] - math.sqrt(63)) < 1.0
    assert norms[0.0][-1] > 40
    assert found[1.0][-1] > found[1.0][0] + 3


def test_steps_are_those_of_torch():
    """Nesterov's method with clipped gradients, beside the optimiser of the published code."""
    model, centre = white(5), torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    reward = QuadraticReward.around(centre.tolist(), torch.eye(5))
    search = ReNO(7, rate=0.1, clip=1.3, regularisation=0.2, returns="all")
    [result] = run(model, reward, jobs_for(model, ["a"], search))
    slope, _ = slope_of(white(1))
    z = torch.nn.Parameter(result.outcome.x_0[0] / slope)
    optimiser, expected = torch.optim.SGD([z], lr=0.1, momentum=0.9, nesterov=True), []
    for _ in range(7):
        expected.append(slope * z.detach().clone())
        norm = z.norm()
        shell = 0.5 * norm**2 - 4 * norm.log()
        loss = 0.2 * shell + 0.5 * (slope * z - centre).square().sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([z], 1.3)
        optimiser.step()
    torch.testing.assert_close(result.outcome.x_0, torch.stack(expected), atol=1e-4, rtol=1e-4)
