import math

import pytest
import torch

from steering.mixtures import GaussianMixture, MixtureModel, Unconditional, flow_grid, vp_grid
from steering.model import Stage
from steering.prediction import Posterior
from steering.times import Time
from steering.transitions import DDIM


def random_mixture(modes: int = 4, dim: int = 3, seed: int = 0) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(modes, dim, dim, dtype=torch.float64, generator=generator)
    covariances = factor @ factor.mT + 0.1 * torch.eye(dim, dtype=torch.float64)
    weights = torch.rand(modes, dtype=torch.float64, generator=generator) + 0.1
    means = 2 * torch.randn(modes, dim, dtype=torch.float64, generator=generator)
    return GaussianMixture(weights / weights.sum(), means, covariances)


def noised(mixture: GaussianMixture, time: Time) -> GaussianMixture:
    """Marginal law of x_t, again a mixture."""
    noise = time.sigma**2 * torch.eye(mixture.dim, dtype=torch.float64)
    return GaussianMixture(
        mixture.weights, time.alpha * mixture.means, time.alpha**2 * mixture.covariances + noise
    )


LEVELS = [Time(0, 1.0, 0.03), Time(1, 0.8, 0.6), Time(2, 0.3, 0.7), Time(3, 0.007, 1.0)]


def test_density_equals_torch_distributions():
    mixture = random_mixture()
    reference = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(mixture.weights),
        torch.distributions.MultivariateNormal(mixture.means, mixture.covariances),
    )
    x = torch.randn(50, 3, dtype=torch.float64)
    torch.testing.assert_close(mixture.log_prob(x), reference.log_prob(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("time", LEVELS)
def test_denoiser_is_tweedies_formula(time):
    """E[x_0 | x_t] = (x_t + sigma^2 grad log p(x_t)) / alpha, E[eps | x_t] = -sigma grad log p."""
    mixture = random_mixture()
    x_t = torch.randn(40, 3, dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(noised(mixture, time).log_prob(x_t).sum(), x_t)
    x_0, eps = mixture.denoise(x_t, time.alpha, time.sigma)
    torch.testing.assert_close(eps, -time.sigma * score, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(time.alpha * x_0 + time.sigma * eps, x_t, rtol=1e-9, atol=1e-9)


def test_denoiser_is_the_mean_of_the_posterior_by_simulation():
    mixture, time = random_mixture(dim=1), Time(0, 0.6, 0.8)
    generator = torch.Generator().manual_seed(1)
    x_0 = mixture.sample(2_000_000, generator)
    x_t = time.alpha * x_0 + time.sigma * torch.randn(x_0.shape, generator=generator).double()
    for low in (-1.0, 0.0, 1.0):
        near = ((x_t - low).abs() < 0.02).squeeze()
        expected = mixture.denoise(torch.full((1, 1), low), time.alpha, time.sigma)[0]
        error = float(x_0[near].std()) / math.sqrt(int(near.sum()))
        assert float(x_0[near].mean()) == pytest.approx(float(expected), abs=5 * error + 0.01)


def test_both_ends_of_the_noise_scale():
    mixture = random_mixture()
    x_t = torch.randn(5, 3, dtype=torch.float64)
    x_0, eps = mixture.denoise(x_t, 0.0, 1.0)
    torch.testing.assert_close(x_0, (mixture.weights @ mixture.means).expand(5, 3))
    torch.testing.assert_close(eps, x_t)
    x_0, eps = mixture.denoise(x_t, 0.5, 0.0)
    torch.testing.assert_close(x_0, 2 * x_t)
    torch.testing.assert_close(eps, torch.zeros(5, 3, dtype=torch.float64))


def test_far_away_points_stay_finite():
    x_0, eps = random_mixture().denoise(torch.full((1, 3), 1e6), 1.0, 0.01)
    assert torch.isfinite(x_0).all()
    assert torch.isfinite(eps).all()


def test_a_single_gaussian_has_the_linear_denoiser():
    mean, std = torch.tensor([[0.3, -1.0]]), 0.5
    mixture = GaussianMixture(torch.ones(1), mean, std**2 * torch.eye(2)[None])
    x_t, alpha, sigma = torch.randn(6, 2, dtype=torch.float64), 0.8, 0.6
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    torch.testing.assert_close(
        mixture.denoise(x_t, alpha, sigma)[0], mean + gain * (x_t - alpha * mean)
    )


def test_samples_follow_the_mixture():
    mixture = random_mixture(modes=3, dim=2)
    x = mixture.sample(200_000, torch.Generator().manual_seed(2))
    torch.testing.assert_close(x.mean(0), mixture.weights @ mixture.means, rtol=0, atol=0.03)
    responsibilities = torch.softmax(mixture.log_joint(x), -1).mean(0)
    torch.testing.assert_close(responsibilities, mixture.weights, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "message"),
    [
        ([0.5, 0.4], torch.zeros(2, 2), torch.eye(2).repeat(2, 1, 1), "sum to 1"),
        ([1.5, -0.5], torch.zeros(2, 2), torch.eye(2).repeat(2, 1, 1), "negative"),
        ([0.5, 0.5], torch.zeros(2, 2), torch.eye(2), "shapes"),
        ([1.0], torch.zeros(1, 2), -torch.eye(2)[None], "positive definite"),
    ],
)
def test_impossible_mixtures_are_refused(weights, means, covariances, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(torch.tensor(weights), means, covariances)


def model() -> MixtureModel:
    return MixtureModel(random_mixture(dim=2), vp_grid())


def test_a_row_depends_neither_on_its_neighbours_nor_on_their_times():
    m, handle = model(), Unconditional()
    generator = torch.Generator().manual_seed(3)
    x_t = torch.randn(300, 2, generator=generator)
    times = [m.grid[i % 50] for i in range(300)]
    whole = m.denoise(x_t, times, [handle] * 300)
    assert whole.x_0.dtype == whole.eps.dtype == torch.float32
    for i in (0, 7, 151, 299):
        alone = m.denoise(x_t[i : i + 1], [times[i]], [handle])
        torch.testing.assert_close(alone.x_0[0], whole.x_0[i], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(alone.eps[0], whole.eps[i], rtol=1e-6, atol=1e-6)


def test_gradients_pass_through_the_denoiser():
    m = MixtureModel(random_mixture(dim=2), flow_grid())
    x_t = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: m.denoise(x, [m.grid[20]] * 4, [Unconditional()] * 4).x_0, (x_t,), atol=1e-4
    )


def test_media_are_the_states():
    m, x = model(), torch.randn(3, 2)
    handles = m.encode(["a", "b", "c"])
    assert len({h.signature for h in handles}) == 1
    assert handles[0].initial is None
    assert torch.equal(m.decode(x, handles, Stage.FINAL), x)
    assert torch.equal(torch.stack(m.render(x, handles)), x)
    assert m.shape == (2,)
    assert m.passes == 1


def test_the_vp_grid_is_that_of_the_problem_statement():
    grid = vp_grid()
    assert grid.steps == 50
    assert [t.model_t for t in grid[:2]] == [981, 961]
    assert [t.model_t for t in grid[-2:]] == [1, 0]
    assert grid[-1].alpha ** 2 == pytest.approx(1 - 1e-4)
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    assert grid[0].alpha ** 2 == pytest.approx(float(torch.prod(1 - betas[:982])))
    with pytest.raises(ValueError, match="do not divide"):
        vp_grid(33)


def test_the_flow_grid_goes_from_noise_to_data():
    grid = flow_grid()
    assert grid.steps == 50
    assert (grid[0].alpha, grid[0].sigma) == (0, 1)
    assert (grid[-1].alpha, grid[-1].sigma) == (1, 0)
    assert grid[10].sigma == pytest.approx(0.8)


def test_its_own_scheduler_is_the_ode():
    m = MixtureModel(random_mixture(dim=2), flow_grid(20))
    run = m.scheduler_run(Unconditional(), [0], [0])
    assert list(run.times) == list(m.grid[:-1])
    assert m.scheduler_calls() == 20
    x_t, posterior = torch.randn(1, 2), Posterior(torch.randn(1, 2), torch.randn(1, 2))
    expected = DDIM(0.0)(posterior, m.grid[3], m.grid[4]).mean
    assert torch.equal(run.step(3, posterior, x_t), expected)
