import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from steering.interpolants import Cosine, Interpolant, RectifiedFlow, VPDiscrete, VPLinear, convert
from steering.mixtures import GaussianMixture, vp_grid
from steering.prediction import Posterior, output_of, posterior_of
from steering.times import Time, TimeGrid
from steering.transitions import DDIM, Gaussian

PATHS = {"vp": VPLinear(), "cosine": Cosine(), "flow": RectifiedFlow(2.0)}
paths = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
DATA_MEAN, DATA_STD = 0.7, 0.5


def gaussian_data() -> GaussianMixture:
    return GaussianMixture(
        torch.ones(1),
        torch.full((1, 1), DATA_MEAN, dtype=torch.float64),
        torch.full((1, 1, 1), DATA_STD**2, dtype=torch.float64),
    )


def denoised(x_t: torch.Tensor, t: Time) -> Posterior:
    return Posterior(*gaussian_data().denoise(x_t, t.alpha, t.sigma))


@paths
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_given_x_0_the_marginals_are_kept(path: Interpolant, eta):
    """x_t ~ N(alpha_t x_0, sigma_t^2) must become x_s ~ N(alpha_s x_0, sigma_s^2)."""
    t, s = path.time(0.7), path.time(0.4)
    x_0 = torch.full((1, 1), 1.3, dtype=torch.float64)

    def law(eps: float) -> Gaussian:
        return DDIM(eta)(Posterior(x_0, torch.full((1, 1), eps, dtype=torch.float64)), t, s)

    middle, up = law(0.0), law(1.0)
    slope = float(up.mean - middle.mean)
    assert float(middle.mean) == pytest.approx(s.alpha * 1.3, abs=1e-12)
    assert math.hypot(slope, middle.std) == pytest.approx(s.sigma, abs=1e-12)


@paths
def test_eta_one_is_the_posterior_of_the_forward_process(path: Interpolant):
    """x_s | x_t, x_0 by Bayes' rule, x_t | x_s being Gaussian with the ratio of the alphas."""
    t, s = path.time(0.7), path.time(0.4)
    ratio = t.alpha / s.alpha
    forward = t.sigma**2 - ratio**2 * s.sigma**2
    precision = 1 / s.sigma**2 + ratio**2 / forward
    x_t, x_0 = torch.tensor([[[0.9]], [[-0.4]]], dtype=torch.float64)
    law = DDIM(1.0)(Posterior(x_0, (x_t - t.alpha * x_0) / t.sigma), t, s)
    expected = (s.alpha * x_0 / s.sigma**2 + ratio * x_t / forward) / precision
    torch.testing.assert_close(law.mean, expected, rtol=1e-10, atol=1e-10)
    assert law.std == pytest.approx(precision**-0.5, rel=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_on_gaussian_data_mean_and_std_follow_the_closed_recursion(eta):
    """A chain on Gaussian data is linear, so its output law is known: check by simulation."""
    grid = vp_grid(10)
    mean, var = 0.0, 1.0
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200_000, 1, dtype=torch.float64, generator=generator)
    for t, s in pairwise(grid):
        gain = t.alpha * DATA_STD**2 / (t.alpha**2 * DATA_STD**2 + t.sigma**2)
        std = eta * s.sigma * math.sqrt(1 - (t.alpha * s.sigma / (t.sigma * s.alpha)) ** 2)
        along = math.sqrt(s.sigma**2 - std**2)
        slope = s.alpha * gain + along * (1 - t.alpha * gain) / t.sigma
        rest = (1 - gain * t.alpha) * DATA_MEAN
        offset = s.alpha * rest - along * t.alpha * rest / t.sigma
        law = DDIM(eta)(denoised(x, t), t, s)
        torch.testing.assert_close(law.mean, slope * x + offset, rtol=1e-9, atol=1e-9)
        assert law.std == pytest.approx(std, abs=1e-12)
        x = law.sample(torch.randn(x.shape, dtype=torch.float64, generator=generator))
        mean, var = slope * mean + offset, slope**2 * var + std**2
    assert float(x.mean()) == pytest.approx(mean, abs=5 * math.sqrt(var / len(x)))
    assert float(x.var()) == pytest.approx(var, rel=5 * math.sqrt(2 / len(x)))


def test_error_of_the_ancestral_step_falls_at_first_order():
    """One step's variance against the true p(x_s | x_t) of Gaussian data, relative to the step."""
    path, t = VPLinear(), VPLinear().time(0.5)
    errors = []
    for width in (0.04, 0.02, 0.01):
        s = path.time(0.5 - width)
        ratio = t.alpha / s.alpha
        forward = t.sigma**2 - ratio**2 * s.sigma**2
        prior = s.alpha**2 * DATA_STD**2 + s.sigma**2
        true_var = 1 / (1 / prior + ratio**2 / forward)
        errors.append(abs(DDIM(1.0).std(t, s) ** 2 / true_var - 1))
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.3)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.15)


def ddim_scheduler(**options) -> DDIMScheduler:
    scheduler = DDIMScheduler(
        beta_schedule="linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1, **options
    )
    scheduler.set_timesteps(50)
    return scheduler


def grid_of(scheduler: DDIMScheduler) -> TimeGrid:
    """Our grid from the scheduler's own table, which is rounded to float32."""
    return vp_grid(50, VPDiscrete(tuple(scheduler.alphas_cumprod.double().tolist())))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_equals_diffusers_ddim_at_every_step(eta, prediction):
    scheduler = ddim_scheduler(prediction_type=prediction)
    grid = grid_of(scheduler)
    generator = torch.Generator().manual_seed(4)
    for i, timestep in enumerate(scheduler.timesteps):
        t, s = grid[i], grid[i + 1]
        assert t.model_t == int(timestep)
        x_0, eps, noise = torch.randn(3, 2, 4, 8, 8, generator=generator)
        x_t = t.alpha * x_0 + t.sigma * eps
        output = output_of(prediction, Posterior(x_0, eps), t)
        ours = DDIM(eta)(posterior_of(prediction, output, x_t, t), t, s).sample(noise)
        theirs = scheduler.step(output, timestep, x_t, eta=eta, variance_noise=noise).prev_sample
        assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.std())


def test_a_chain_equals_diffusers_ddim_on_a_real_denoiser():
    scheduler, data = ddim_scheduler(), gaussian_data()
    grid = grid_of(scheduler)
    generator = torch.Generator().manual_seed(5)
    ours = theirs = torch.randn(64, 1, generator=generator)
    for i, timestep in enumerate(scheduler.timesteps):
        t, s = grid[i], grid[i + 1]
        noise = torch.randn(64, 1, generator=generator)
        ours = DDIM(1.0)(denoised(ours, t), t, s).sample(noise).float()
        eps = data.denoise(theirs, t.alpha, t.sigma)[1].float()
        theirs = scheduler.step(eps, timestep, theirs, eta=1.0, variance_noise=noise).prev_sample
    assert float((ours - theirs).abs().max()) < 1e-5


def test_eta_zero_on_a_flow_is_diffusers_euler_step():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(28)
    generator = torch.Generator().manual_seed(6)
    levels = scheduler.sigmas.double().tolist()
    grid = [Time(1000 * s, 1 - s, s) for s in levels]
    for i, timestep in enumerate(scheduler.timesteps):
        x_t, velocity = torch.randn(2, 2, 16, 8, 8, generator=generator)
        posterior = posterior_of("flow_prediction", velocity, x_t, grid[i])
        ours = DDIM(0.0)(posterior, grid[i], grid[i + 1])
        theirs = scheduler.step(velocity, timestep, x_t).prev_sample
        assert float((ours.mean - theirs).abs().max()) < 1e-5


@paths
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_rescaling_the_state_changes_nothing_but_the_unit(path: Interpolant, eta):
    flow = RectifiedFlow(1.7)
    posterior = Posterior(*torch.randn(2, 5, 3, dtype=torch.float64))
    for early, late in ((0.95, 0.9), (0.6, 0.3), (0.1, 0.02)):
        t, s = path.time(early), path.time(late)
        zero = torch.zeros(1, 1)
        there_t, there_s = convert(zero, t, flow)[1], convert(zero, s, flow)[1]
        law, other = DDIM(eta)(posterior, t, s), DDIM(eta)(posterior, there_t, there_s)
        scale = flow.scale_from(s)
        torch.testing.assert_close(other.mean, scale * law.mean, rtol=1e-12, atol=1e-12)
        assert other.std == pytest.approx(scale * law.std, rel=1e-12, abs=1e-14)


def test_full_noise_at_a_start_without_signal():
    t, s = Time(1000, 0.0, 1.0), Time(900, 0.1, 0.9)
    law = DDIM(1.0)(Posterior(torch.ones(1, 2), torch.full((1, 2), 9.0)), t, s)
    assert law.std == s.sigma
    torch.testing.assert_close(law.mean, torch.full((1, 2), 0.1))


def test_log_prob_equals_torch_distributions():
    generator = torch.Generator().manual_seed(7)
    mean, x = torch.randn(2, 4, 3, 5, generator=generator)
    expected = torch.distributions.Normal(mean.double(), 0.3).log_prob(x.double()).sum((1, 2))
    found = Gaussian(mean, 0.3).log_prob(x)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-10)


def test_samples_are_mean_and_std_of_the_noise():
    mean, noise = torch.randn(2, 4, 3)
    torch.testing.assert_close(Gaussian(mean, 0.5).sample(noise), mean + 0.5 * noise)
    assert torch.equal(Gaussian(mean, 0.0).sample(noise), mean)


def test_a_deterministic_transition_has_no_density():
    with pytest.raises(ValueError, match="no density"):
        Gaussian(torch.zeros(1, 2), 0.0).log_prob(torch.zeros(1, 2))
    assert not DDIM(0.0).stochastic
    assert DDIM(0.1).stochastic


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_outside_its_range_is_refused(eta):
    with pytest.raises(ValueError, match="eta"):
        DDIM(eta)


def test_a_transition_goes_to_less_noise():
    with pytest.raises(ValueError, match="less noise"):
        DDIM().std(Time(0, 0.8, 0.2), Time(1, 0.5, 0.5))


def test_the_last_step_onto_no_noise_is_deterministic():
    law = DDIM(1.0)(Posterior(torch.ones(1, 2), torch.ones(1, 2)), Time(1, 0.9, 0.1), Time(0, 1, 0))
    assert law.std == 0
    assert torch.equal(law.mean, torch.ones(1, 2))
