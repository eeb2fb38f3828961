import contextlib
import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from steering.interpolants import (
    Cosine,
    RectifiedFlow,
    VarianceExploding,
    VPDiscrete,
    VPLinear,
    convert,
)
from steering.times import Time


def stable_diffusion_path() -> VPDiscrete:
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return VPDiscrete(tuple(scheduler.alphas_cumprod.double().tolist()))


def zero_snr_path() -> VPDiscrete:
    return VPDiscrete(tuple(np.linspace(0.9999, 0.0, 1000).tolist()))


PATHS = {
    "vp discrete": stable_diffusion_path(),
    "vp zero snr": zero_snr_path(),
    "vp linear": VPLinear(),
    "vp constant": VPLinear(1.0, 1.0),
    "cosine": Cosine(),
    "flow": RectifiedFlow(),
    "flow shifted": RectifiedFlow(3.0),
    "ve": VarianceExploding(),
}
paths = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
INNER = [*np.linspace(0.001, 0.998, 77), 0.9991, 0.9996]


@paths
def test_log_snr_falls_strictly_and_is_that_of_alpha_and_sigma(path):
    levels = [path.log_snr(t) for t in INNER]
    assert np.all(np.diff(levels) < 0)
    for t in INNER:
        snr = 2 * math.log(path.alpha(t) / path.sigma(t))
        assert path.log_snr(t) == pytest.approx(snr, abs=1e-9)


@paths
def test_inverse_of_log_snr_round_trips(path):
    for t in INNER:
        assert path.t_of(path.log_snr(t)) == pytest.approx(t, abs=1e-10)
        assert path.at(path.log_snr(t)).model_t == pytest.approx(path.model_t(t), abs=1e-6)


@paths
def test_both_ends_round_trip(path):
    for t in (0.0, 1.0):
        time = path.time(t)
        assert path.t_of(time.log_snr) == pytest.approx(t, abs=1e-9)
        assert (time.alpha, time.sigma) == pytest.approx((path.alpha(t), path.sigma(t)))


@pytest.mark.parametrize("name", ["vp discrete", "vp linear", "vp constant", "cosine"])
def test_variance_preserving_paths_preserve_variance(name):
    path = PATHS[name]
    for t in (0.0, *INNER, 1.0):
        assert path.alpha(t) ** 2 + path.sigma(t) ** 2 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
def test_times_outside_the_unit_interval_are_refused(t):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        RectifiedFlow().time(t)


def test_known_ends():
    flow, cosine = RectifiedFlow(3.0), Cosine()
    assert (flow.alpha(0), flow.sigma(0), flow.alpha(1), flow.sigma(1)) == (1, 0, 0, 1)
    assert cosine.time(0.0).sigma == 0
    assert cosine.time(1.0).alpha == 0
    assert zero_snr_path().time(1.0).alpha == 0
    assert VPLinear().time(0.0).sigma == 0
    assert VarianceExploding().sigma(0) == pytest.approx(0.002)
    assert VarianceExploding().sigma(1) == pytest.approx(80)


def test_continuous_vp_is_the_exponential_of_the_integrated_beta():
    path, t = VPLinear(0.1, 20.0), 0.37
    integral = np.trapezoid(0.1 + 19.9 * (s := np.linspace(0, t, 100_001)), s)
    assert path.alpha(t) == pytest.approx(math.exp(-0.5 * integral), rel=1e-9)


def test_discrete_vp_equals_the_scheduler_at_training_steps():
    scheduler = DDIMScheduler()
    path = VPDiscrete(tuple(scheduler.alphas_cumprod.double().tolist()))
    for step in (0, 1, 500, 998, 999):
        time = path.time(step / 999)
        assert time.model_t == pytest.approx(step, abs=1e-9)
        assert time.alpha**2 == pytest.approx(float(scheduler.alphas_cumprod[step]), rel=1e-12)


def test_discrete_vp_between_steps_equals_the_schedulers_own_interpolation():
    scheduler = EulerDiscreteScheduler()
    path = VPDiscrete(tuple(scheduler.alphas_cumprod.double().tolist()))
    sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).double().sqrt().numpy()
    for ratio in (0.05, 0.7, 3.3, 40.0):
        expected = float(scheduler._sigma_to_t(np.array(ratio), np.log(sigmas)))
        assert path.at(-2 * math.log(ratio)).model_t == pytest.approx(expected, abs=1e-4)


@paths
def test_levels_that_a_path_does_not_reach_are_refused(path):
    for log_snr, t in ((40.0, 0.0), (-40.0, 1.0)):
        if not math.isinf(path.log_snr(t)):
            with pytest.raises(ValueError, match=r"trained range|lie in"):
                path.at(log_snr)


def test_discrete_vp_wants_falling_alphas():
    for bad in ((0.5,), (0.5, 0.6), (1.0, 0.5), (0.5, -0.1)):
        with pytest.raises(ValueError, match="fall strictly"):
            VPDiscrete(bad)


def test_shift_equals_the_schedulers():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    path = RectifiedFlow(3.0)
    ours = [path.time(t) for t in (1.0, 0.75, 0.5, 0.25)]
    np.testing.assert_allclose([t.sigma for t in ours], scheduler.sigmas[:-1], rtol=1e-6)
    np.testing.assert_allclose([t.model_t for t in ours], scheduler.timesteps, rtol=1e-6)


def test_karras_levels_equal_the_schedulers():
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(11)
    path = VarianceExploding()
    ours = [path.time(t) for t in np.linspace(1, 0, 11)]
    np.testing.assert_allclose([t.sigma for t in ours], scheduler.sigmas[:-1], rtol=1e-5)
    np.testing.assert_allclose([t.model_t for t in ours], scheduler.timesteps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [lambda: RectifiedFlow(0), lambda: VPLinear(2, 1)])
def test_impossible_paths_are_refused(bad):
    with pytest.raises(ValueError, match=r"positive|beta"):
        bad()
    with pytest.raises(ValueError, match="sigma_min"):
        VarianceExploding(1.0, 0.5)


@paths
@pytest.mark.parametrize("target", PATHS.values(), ids=PATHS.keys())
def test_conversion_keeps_the_signal_to_noise_ratio_and_goes_back(path, target):
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    for t in (0.05, 0.5, 0.95):
        time = path.time(t)
        y, there = convert(x_t, time, target)
        assert there.log_snr == pytest.approx(time.log_snr, abs=1e-10)
        assert there.model_t == time.model_t
        with contextlib.suppress(ValueError):  # the target need not reach this level
            expected = target.at(time.log_snr)
            assert (there.alpha, there.sigma) == pytest.approx((expected.alpha, expected.sigma))
        back, home = convert(y, there, path)
        torch.testing.assert_close(back, x_t, rtol=1e-12, atol=1e-12)
        assert (home.alpha, home.sigma) == pytest.approx((time.alpha, time.sigma), rel=1e-12)


def test_conversion_of_the_ends():
    x = torch.ones(1, 2)
    y, there = convert(x, Time(1000, 0.0, 1.0), Cosine())
    assert (there.alpha, there.sigma) == (0, 1)
    assert torch.equal(x, y)
    y, there = convert(x, Time(0, 0.5, 0.0), RectifiedFlow())
    assert (there.alpha, there.sigma) == (1, 0)
    assert torch.equal(2 * x, y)
    with pytest.raises(ValueError, match="pure noise"):
        convert(x, Time(1000, 0.0, 1.0), VarianceExploding())
