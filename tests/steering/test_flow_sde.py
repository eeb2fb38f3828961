import math
from itertools import pairwise

import pytest
import torch
from gaussian_chain import DATA_MEAN, DATA_STD, affine, final, gaussian_model
from scipy.integrate import quad

from steering.flow_sde import FlowSDE
from steering.interpolants import Cosine, RectifiedFlow, VarianceExploding, VPLinear
from steering.mixtures import flow_grid, vp_grid
from steering.paths import SamplingPath
from steering.prediction import Posterior
from steering.times import Time
from steering.transitions import DDIM, Renoise

MODEL = gaussian_model()
SHAPES = ["square", "linear", "constant", "zero", "ancestral", "largest"]
SCALES = {"square": 3, "linear": 2, "constant": 1, "zero": 0, "ancestral": 1, "largest": 1}
shapes = pytest.mark.parametrize("g", SHAPES)
forms = pytest.mark.parametrize("form", ["exact", "euler"])
steps = pytest.mark.parametrize("count", [10, 20, 50])


def grid_on(path: str, count: int):
    grid = flow_grid(count)
    return grid if path == "flow" else SamplingPath(VPLinear()).lay(grid, MODEL.at)


class Flow:
    """The rectified flow by hand: alpha, sigma and their derivatives."""

    def __call__(self, t):
        return 1 - t, t, -1.0, 1.0

    def t(self, time):
        return time.sigma


class VP:
    """The linear-beta path by hand."""

    def __call__(self, t):
        integral = 0.1 * t + 0.5 * t * t * 19.9
        beta = 0.1 + 19.9 * t
        alpha, sigma = math.exp(-integral / 2), math.sqrt(-math.expm1(-integral))
        return alpha, sigma, -0.5 * beta * alpha, 0.5 * beta * alpha**2 / sigma

    def t(self, time):
        if time.alpha == 0:
            return 1.0
        integral = -2 * math.log(time.alpha)
        return (-0.1 + math.sqrt(0.01 + 2 * 19.9 * integral)) / 19.9


def diffusion(g, path, t):
    """g(t)^2 as written down in the documentation."""
    alpha, sigma, d_alpha, d_sigma = path(t)
    if g in ("ancestral", "largest"):
        return 2 * sigma**2 * (d_sigma / sigma - d_alpha / alpha)
    return (SCALES[g] * t ** {"square": 2, "linear": 1, "constant": 0, "zero": 0}[g]) ** 2


def by_hand(g, form, path, t, s):
    """Slope, offset and std of a step on Gaussian data, from the formulas alone."""
    gain = t.alpha * DATA_STD**2 / (t.alpha**2 * DATA_STD**2 + t.sigma**2)
    rest = (1 - gain * t.alpha) * DATA_MEAN
    early, late = path.t(t), path.t(s)
    if s.sigma == 0:
        return s.alpha * gain, s.alpha * rest, 0.0
    if form == "exact":
        if g in ("ancestral", "largest") and t.alpha == 0:
            rho = 0.0
        else:
            spent = quad(lambda u: diffusion(g, path, u) / path(u)[1] ** 2, late, early)[0]
            rho = math.exp(-0.5 * spent)
        clean, noise, std = s.alpha, rho * s.sigma, s.sigma * math.sqrt(1 - rho**2)
    else:
        alpha, sigma, d_alpha, d_sigma = path(early)
        width = early - late
        limit = 2 * sigma * (sigma - d_sigma * width)
        endless = g == "largest" or (g == "ancestral" and alpha == 0)
        variance = limit if endless else min(diffusion(g, path, early) * width, limit)
        clean = alpha - d_alpha * width
        noise = sigma - d_sigma * width - 0.5 * variance / sigma
        std = math.sqrt(variance)
    slope = clean * gain + noise * (1 - t.alpha * gain) / t.sigma
    return slope, clean * rest - noise * t.alpha * rest / t.sigma, std


@shapes
@forms
@steps
@pytest.mark.parametrize("name", ["flow", "vp"])
def test_mean_and_std_follow_the_closed_recursion(g, form, count, name):
    """Along the whole grid, step by step and in the final law."""
    path, target = (Flow(), RectifiedFlow()) if name == "flow" else (VP(), VPLinear())
    sde, grid = FlowSDE(g, interpolant=target, discretisation=form), grid_on(name, count)
    mean, var = 0.0, 1.0
    for t, s in pairwise(grid):
        expected = by_hand(g, form, path, t, s)
        assert affine(sde, t, s, MODEL) == pytest.approx(expected, abs=1e-5)
        mean, var = expected[0] * mean + expected[1], expected[0] ** 2 * var + expected[2] ** 2
    assert final(sde, grid, MODEL) == pytest.approx((mean, math.sqrt(var)), abs=1e-5)


ORDERS = {("constant", "exact"): 0.5, ("largest", "euler"): 0.6}


@shapes
@forms
@pytest.mark.parametrize("name", ["flow", "vp"])
def test_the_distance_to_the_true_law_falls_at_the_declared_order(g, form, name):
    """Measured from 100 to 400 steps: four times the steps leave 4^-order of the error."""
    target = RectifiedFlow() if name == "flow" else VPLinear()
    sde = FlowSDE(g, interpolant=target, discretisation=form)
    errors = [
        abs(final(sde, grid_on(name, count), MODEL)[1] / DATA_STD - 1) for count in (100, 200, 400)
    ]
    order = math.log2(errors[0] / errors[2]) / 2
    assert errors[0] > errors[1] > errors[2]
    assert order > ORDERS.get((g, form), 1.0) - 0.12


def test_the_final_std_at_10_20_and_50_steps():
    """What docs/flows.md reports: shares of the data's std."""
    expected = {
        ("zero", "exact"): (0.862, 0.928, 0.971),
        ("square", "exact"): (0.850, 0.922, 0.968),
        ("square", "euler"): (0.983, 0.987, 0.994),
        ("linear", "exact"): (0.825, 0.906, 0.961),
        ("constant", "exact"): (0.744, 0.821, 0.888),
        ("constant", "euler"): (0.984, 0.993, 0.998),
        ("ancestral", "exact"): (0.773, 0.866, 0.939),
        ("ancestral", "euler"): (1.015, 1.003, 1.000),
        ("largest", "euler"): (1.056, 1.045, 1.028),
    }
    for (g, form), shares in expected.items():
        sde = FlowSDE(g, discretisation=form)
        found = [final(sde, flow_grid(n), MODEL)[1] / DATA_STD for n in (10, 20, 50)]
        assert found == pytest.approx(shares, abs=1e-3)


@forms
def test_without_diffusion_it_is_the_ode(form):
    for sde in (FlowSDE("zero", discretisation=form), FlowSDE("square", 0.0, discretisation=form)):
        assert not sde.stochastic
        for t, s in pairwise(flow_grid(10)):
            posterior = Posterior(*torch.randn(2, 5, 3, dtype=torch.float64))
            law, ode = sde(posterior, t, s), DDIM(0.0)(posterior, t, s)
            assert law.std == 0
            torch.testing.assert_close(law.mean, ode.mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", [VPLinear(), Cosine(), VarianceExploding()])
def test_the_exact_form_without_diffusion_is_the_ode_on_any_path(path):
    for t, s in pairwise(vp_grid(10)):
        posterior = Posterior(*torch.randn(2, 5, 3, dtype=torch.float64))
        law = FlowSDE("zero", interpolant=path)(posterior, t, s)
        torch.testing.assert_close(law.mean, DDIM(0.0)(posterior, t, s).mean, rtol=0, atol=1e-9)


@pytest.mark.parametrize("grid", [flow_grid(10), vp_grid(10)], ids=["flow", "vp"])
@pytest.mark.parametrize("g", ["ancestral", "largest"])
def test_the_exact_ancestral_step_is_ddim_of_eta_one(grid, g):
    posterior = Posterior(*torch.randn(2, 5, 3, dtype=torch.float64))
    for t, s in pairwise(grid):
        law, ddim = FlowSDE(g)(posterior, t, s), DDIM(1.0)(posterior, t, s)
        assert law.std == pytest.approx(ddim.std, abs=1e-9)
        torch.testing.assert_close(law.mean, ddim.mean, rtol=0, atol=1e-9)


def test_ever_more_noise_is_full_renoising():
    t, s = flow_grid(10)[4:6]
    posterior = Posterior(*torch.randn(2, 5, 3, dtype=torch.float64))
    law, full = FlowSDE("constant", 1e3)(posterior, t, s), Renoise()(posterior, t, s)
    assert law.std == full.std == s.sigma
    torch.testing.assert_close(law.mean, full.mean, rtol=0, atol=1e-12)


@shapes
@forms
def test_rescaling_the_state_changes_nothing_but_the_unit(g, form):
    """Records of the same levels on another interpolant: g keeps to its own path."""
    sde = FlowSDE(g, discretisation=form)
    posterior = Posterior(*torch.randn(2, 5, 3, dtype=torch.float64))
    for t, s in pairwise(flow_grid(8)):
        there = [
            Time(0, *VPLinear().normalise(x.sigma / x.alpha if x.alpha else math.inf))
            for x in (t, s)
        ]
        law, other = sde(posterior, t, s), sde(posterior, *there)
        scale = VPLinear().scale_from(s)
        torch.testing.assert_close(other.mean, scale * law.mean, rtol=0, atol=1e-9)
        assert other.std == pytest.approx(scale * law.std, abs=1e-9)


@shapes
def test_given_x_0_the_exact_form_keeps_the_marginals(g):
    """x_t ~ N(alpha_t x_0, sigma_t^2) becomes x_s ~ N(alpha_s x_0, sigma_s^2)."""
    t, s = flow_grid(10)[3:5]
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    law = FlowSDE(g)(Posterior(zero, one), t, s)
    assert math.hypot(float(law.mean), law.std) == pytest.approx(s.sigma, abs=1e-12)
    assert float(FlowSDE(g)(Posterior(one, zero), t, s).mean) == pytest.approx(s.alpha)


@forms
def test_the_end_of_the_grid_takes_the_mean(form):
    law = FlowSDE("constant", discretisation=form)(
        Posterior(torch.full((1, 1), 2.0), torch.ones(1, 1)), *flow_grid(10)[-2:]
    )
    assert law.std == 0
    assert float(law.mean) == 2.0


@forms
@shapes
def test_a_start_at_pure_noise_is_finite_on_every_path(form, g):
    for path in (RectifiedFlow(), RectifiedFlow(3.0), VPLinear(), Cosine(), VarianceExploding()):
        sde = FlowSDE(g, interpolant=path, discretisation=form)
        posterior = Posterior(torch.ones(1, 1), torch.ones(1, 1))
        for t, s in pairwise(flow_grid(5)):
            law = sde(posterior, t, s)
            assert math.isfinite(float(law.mean))
            assert 0 <= law.std < 10


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="g must be one of"):
        FlowSDE("cubic")
    with pytest.raises(ValueError, match="discretisation must be one of"):
        FlowSDE(discretisation="heun")
    for scale in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="must not be negative"):
            FlowSDE(scale=scale)
    with pytest.raises(ValueError, match="less noise"):
        FlowSDE()(Posterior(torch.ones(1, 1), torch.ones(1, 1)), *flow_grid(5)[3:1:-1])
    with pytest.raises(ValueError, match="depends on the step"):
        FlowSDE("largest", discretisation="euler").g_squared(0.5)
