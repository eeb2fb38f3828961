"""The exactness problems: their figures, and that a plain particle filter reproduces known levels."""

import math
from itertools import pairwise

import pytest
import torch

from steering.chain_law import estimate, run_chain, saved_laws, to_json
from steering.mixtures import GaussianMixture, MixtureModel, flow_grid, vp_grid
from steering.reward import Item, Reward
from steering.tilted import (
    PROBLEMS,
    HalfRingReward,
    QuadraticReward,
    TiltedProblem,
    corners,
    ring,
    total_variation,
)
from steering.transitions import DDIM

every_problem = pytest.mark.parametrize("name", PROBLEMS)
problems = pytest.mark.parametrize(
    "name", ["linear", "quadratic", "indicator", "rare"]
)  # in the plane

# E[r], log Z, KL and mode masses, computed apart from this code on a dense square grid, which is off
# by 1e-3 where a region or the reward ends abruptly
TABLE = {
    "linear": (3.170, 1.134, 0.77, [0.112, 0.529, 0.286, 0.024, 0.010, 0.003, 0.012, 0.024]),
    "quadratic": (-3.317, -2.113, 1.28, [0.231, 0.467, 0.110, 0.004, 0, 0, 0.009, 0.178]),
    "indicator": (0.768, 1.309, 1.00, [0.066, 0.245, 0.244, 0.163, 0.188, 0.027, 0.041, 0.027]),
    "rare": (-0.894, -4.500, 3.43, [0.733, 0.165, 0, 0, 0, 0, 0, 0.102]),
}
# mode total variation of the base model, and of the filter below at k = 16
BASE_TV = {"linear": 0.526, "quadratic": 0.67, "indicator": 0.291, "rare": 0.750}
FILTER_TV = {"linear": 0.028, "quadratic": 0.022, "indicator": 0.061, "rare": 0.080}


@problems
def test_figures_are_those_of_the_definition(name):
    problem, (reward_mean, log_z, kl, masses) = PROBLEMS[name](), TABLE[name]
    assert problem.reward_mean == pytest.approx(reward_mean, abs=5e-4)
    assert problem.log_z == pytest.approx(log_z, abs=1.2e-3 if name == "indicator" else 5e-4)
    assert problem.kl == pytest.approx(kl, abs=5e-3)
    torch.testing.assert_close(
        problem.masses, torch.tensor(masses, dtype=torch.float64), rtol=0, atol=1.1e-3
    )


@pytest.mark.parametrize("name", ["linear", "quadratic", "rare"])
def test_closed_form_and_quadrature_agree(name):
    problem = PROBLEMS[name]()
    log_z, reward_mean, masses = problem._integrals
    assert problem.log_z == pytest.approx(log_z, abs=1e-9)
    assert problem.reward_mean == pytest.approx(reward_mean, abs=1e-9)
    tilted, _ = problem.reward.tilt(problem.mixture, problem.lam)
    torch.testing.assert_close(tilted.weights, masses, rtol=0, atol=7e-4)


def test_the_tilted_mixture_has_the_density_it_should():
    problem = PROBLEMS["quadratic"]()
    tilted, log_z = problem.reward.tilt(problem.mixture, problem.lam)
    x = 4 * torch.randn(100, 2, dtype=torch.float64)
    expected = problem.mixture.log_prob(x) + problem.lam * problem.reward(x) - log_z
    torch.testing.assert_close(tilted.log_prob(x), expected, rtol=1e-9, atol=1e-9)


def test_closed_forms_hold_in_sixteen_dimensions():
    """log Z and E[r] against importance sampling from the base mixture."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 16, dtype=torch.float64, generator=generator)
    factor = 0.3 * torch.randn(3, 16, 16, dtype=torch.float64, generator=generator)
    mixture = GaussianMixture(
        torch.tensor([0.2, 0.5, 0.3]), means, factor @ factor.mT + 0.2 * torch.eye(16)
    )
    reward = QuadraticReward.around([0.5] * 16, 0.3 * torch.eye(16))
    problem = TiltedProblem("high", mixture, reward, 0.4)
    x = mixture.sample(100_000, generator)
    log_w = problem.lam * reward(x)
    weights = torch.softmax(log_w, 0)
    error = float(weights.norm())
    log_z = float(torch.logsumexp(log_w, 0)) - math.log(len(x))
    assert problem.log_z == pytest.approx(log_z, abs=5 * error)
    r = reward(x)
    assert problem.reward_mean == pytest.approx(float(weights @ r), abs=5 * error * float(r.std()))
    assert problem.mode_tv(x, weights) < 0.05, "weights of components stand for their regions"
    with pytest.raises(NotImplementedError, match="16 dimensions"):
        TiltedProblem("no", mixture, HalfRingReward(1.0), 1.0).log_z  # noqa: B018


@problems
def test_base_model_is_as_far_as_said(name):
    problem = PROBLEMS[name]()
    x = problem.mixture.sample(200_000, torch.Generator().manual_seed(4))
    assert problem.mode_tv(x) == pytest.approx(BASE_TV[name], abs=0.005)


@every_problem
def test_importance_weights_reach_the_target(name):
    problem = PROBLEMS[name]()
    x = problem.mixture.sample(500_000, torch.Generator().manual_seed(5))
    log_w = problem.lam * problem.reward(x)
    weights = torch.softmax(log_w, 0)
    assert problem.mode_tv(x, weights) < 0.016
    log_z = float(torch.logsumexp(log_w, 0)) - math.log(len(x))
    assert log_z == pytest.approx(problem.log_z, abs=0.04)
    assert float(weights @ problem.reward(x)) == pytest.approx(problem.reward_mean, abs=0.03)


@every_problem
def test_rewards_keep_the_protocol(name):
    reward = PROBLEMS[name]().reward
    assert isinstance(reward, Reward)
    assert reward.prepare(Item("anything")) is None
    dim = PROBLEMS[name]().mixture.dim
    x = torch.randn(5, dim)
    assert reward(x, [None] * 5).shape == (5,)
    if reward.differentiable:
        point = torch.randn(3, dim, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda p: reward(p), (point,))


def test_a_tilt_without_finite_integral_is_refused():
    with pytest.raises(ValueError, match="no finite mean"):
        QuadraticReward.around([0, 0], torch.eye(2)).tilt(ring([1.0]), -50.0)


def test_total_variation_by_hand():
    a, b = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.25])
    assert total_variation(a, b) == pytest.approx(0.25)


@every_problem
def test_saved_chain_law_agrees_with_a_small_run(name):
    problem, law = PROBLEMS[name](), saved_laws()[name]
    model = MixtureModel(problem.mixture, vp_grid())
    found = estimate(problem, model, DDIM(1.0), samples=20_000, seed=1)
    assert found.log_z == pytest.approx(law.log_z, abs=4 * (found.log_z_se + law.log_z_se))
    bound = 4 * (found.reward_mean_se + law.reward_mean_se)
    assert found.reward_mean == pytest.approx(law.reward_mean, abs=bound)
    for mine, error, theirs in zip(found.masses, found.masses_se, law.masses, strict=True):
        assert mine == pytest.approx(theirs, abs=5 * error + 1e-3)
    assert law.log_z_se < 0.006
    assert f'"{name}"' in to_json([law], 0)


def test_the_chain_reaches_the_mixture_on_the_flow_grid_too():
    problem = PROBLEMS["linear"]()
    model = MixtureModel(problem.mixture, flow_grid())
    x = run_chain(model, DDIM(1.0), 20_000, torch.Generator().manual_seed(6))
    base = problem.masses_of(x)
    assert total_variation(base, problem.mixture.weights) < 0.03


def particle_filter(problem: TiltedProblem, runs: int, k: int, seed: int):
    """Textbook sequential Monte Carlo, all runs at once: difference potential on r(E[x_0 | x_t]).

    Log-weights are kept, resampling is systematic where the ESS is below half, and the last weight
    is that of r(x_0) itself. Returns points (runs k, 2), weights (runs k,) and log Z-hats (runs,).
    """
    generator = torch.Generator().manual_seed(seed)
    model = MixtureModel(problem.mixture, vp_grid())
    x = torch.randn(runs * k, 2, generator=generator)
    log_w, before = torch.zeros(2, runs, k, dtype=torch.float64)
    log_norm = torch.zeros(runs, 1, dtype=torch.float64)
    stay, first = torch.arange(k), torch.arange(runs)[:, None] * k
    for t, s in pairwise(model.grid):
        posterior = model.denoise(x, [t] * len(x), [None] * len(x))
        value = problem.lam * problem.reward(posterior.x_0).reshape(runs, k)
        log_w, before = log_w + value - before, value
        w = torch.softmax(log_w, 1)
        resampled = w.square().sum(1, keepdim=True) > 2 / k
        points = (stay + torch.rand(runs, 1, dtype=torch.float64, generator=generator)) / k
        ancestors = torch.searchsorted(w.cumsum(1), points).clamp(max=k - 1)
        ancestors = torch.where(resampled, ancestors, stay)
        mean_w = torch.logsumexp(log_w, 1, keepdim=True) - math.log(k)
        log_norm = torch.where(resampled, log_norm + mean_w, log_norm)
        log_w = torch.where(resampled, 0.0, log_w)
        before = before.gather(1, ancestors)
        law = DDIM(1.0)(posterior[(first + ancestors).flatten()], t, s)
        x = law.sample(torch.randn(x.shape, generator=generator))
    log_w = log_w + problem.lam * problem.reward(x).reshape(runs, k) - before
    log_z = log_norm[:, 0] + torch.logsumexp(log_w, 1) - math.log(k)
    return x, torch.softmax(log_w, 1).flatten(), log_z


@problems
def test_a_textbook_particle_filter_reproduces_the_known_level(name):
    problem, law, runs = PROBLEMS[name](), saved_laws()[name], 1000
    x, weights, log_z = particle_filter(problem, runs, 16, seed=7)
    assert problem.mode_tv(x, weights) == pytest.approx(FILTER_TV[name], abs=0.02)
    if name != "rare":  # there one Z-hat in a thousand is hundreds of times the mean
        z = (log_z - law.log_z).exp()
        assert float(z.mean()) == pytest.approx(1, abs=4 * float(z.std()) / math.sqrt(runs))


def test_modes_at_the_corners_are_far_apart():
    """In 16 dimensions no point belongs to two modes, so that mode masses are the tilted weights."""
    for name in ("linear-16d", "rare-16d"):
        problem = PROBLEMS[name]()
        assert problem.mixture.dim == 16
        x = problem.mixture.sample(50_000, torch.Generator().manual_seed(6))
        shares = torch.softmax(problem.mixture.log_joint(x), -1).max(-1).values
        assert float((1 - shares).mean()) < 1e-6
        assert 0.5 < problem.kl < 2.5
    with pytest.raises(ValueError, match="9 modes need as many dimensions"):
        corners([1 / 9] * 9, dim=8)
