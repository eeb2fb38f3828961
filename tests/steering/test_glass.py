import math
from itertools import pairwise

import pytest
import torch
from gaussian_chain import DATA_MEAN, DATA_STD, affine, final, finish, gaussian_model

from steering.glass import GLASS, inner_levels
from steering.mixtures import GaussianMixture, MixtureModel, flow_grid, vp_grid
from steering.times import Time
from steering.transitions import DDIM

MODEL = gaussian_model()
GRIDS = {"flow": flow_grid(6), "vp": vp_grid(5)}
grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


def correlation(rho, t, s):
    return rho if rho != "ddpm" else t.alpha * s.sigma / (t.sigma * s.alpha)


def exact(rho, t, s):
    """``x_s`` given ``x_t``, both Gaussian, their noises correlated: slope, offset and std."""
    own = t.alpha**2 * DATA_STD**2 + t.sigma**2
    other = s.alpha**2 * DATA_STD**2 + s.sigma**2
    shared = t.alpha * s.alpha * DATA_STD**2 + correlation(rho, t, s) * t.sigma * s.sigma
    slope = shared / own
    return slope, (s.alpha - slope * t.alpha) * DATA_MEAN, math.sqrt(other - shared**2 / own)


def by_hand(rho, inner, t, s):
    """The inner Euler steps on Gaussian data, its posterior taken from both looks by Bayes' rule."""
    r = correlation(rho, t, s)
    goal = (s.alpha - r * s.sigma * t.alpha / t.sigma, s.sigma * math.sqrt(max(1 - r * r, 0)))
    known = 1 / DATA_STD**2 + t.alpha**2 / t.sigma**2

    def walk(x, z):
        y = z
        for (a, b), (a_next, b_next) in pairwise(inner_levels(t, goal, inner)):
            about = DATA_MEAN / DATA_STD**2 + t.alpha * x / t.sigma**2 + a * y / b**2
            x_0 = about / (known + a * a / (b * b))
            y = a_next * x_0 + b_next * (y - a * x_0) / b
        return r * s.sigma / t.sigma * x + y

    none = walk(0.0, 0.0)
    return walk(1.0, 0.0) - none, none, walk(0.0, 1.0) - none


@grids
@pytest.mark.parametrize("rho", ["ddpm", 0.0, 0.4, 0.95, 1.0])
@pytest.mark.parametrize("inner", [1, 2, 5])
def test_mean_and_std_follow_the_closed_recursion(grid, rho, inner):
    for t, s in pairwise(grid):
        found = affine(GLASS(rho, inner), t, s, MODEL)
        assert found == pytest.approx(by_hand(rho, inner, t, s), abs=1e-5)


@grids
@pytest.mark.parametrize("rho", ["ddpm", 0.4])
def test_it_converges_to_the_exact_conditional_at_first_order(grid, rho):
    """Every step of the grid: from pure noise, and onto no noise, too."""
    for t, s in pairwise(grid):
        wanted = exact(rho, t, s)
        errors = []
        for inner in (64, 128, 256):
            found = affine(GLASS(rho, inner), t, s, MODEL)
            errors.append(max(abs(a - b) for a, b in zip(found, wanted, strict=True)))
        assert errors[2] < 5e-3
        assert errors[0] / errors[2] > 3.4  # 4 is first order; the start at pure noise slows it


def test_the_final_law_is_the_datas_as_inner_steps_grow():
    shares = [
        final(GLASS("ddpm", inner), flow_grid(10), MODEL)[1] / DATA_STD for inner in (1, 2, 4, 64)
    ]
    assert shares == pytest.approx([0.773, 0.864, 0.920, 0.992], abs=1e-3)
    mean, _ = final(GLASS("ddpm", 4), flow_grid(10), MODEL)
    assert mean == pytest.approx(DATA_MEAN, abs=1e-4)


@grids
def test_one_inner_step_is_ddim(grid):
    """eta 1 for the Markov correlation, the ODE for correlation 1."""
    for t, s in pairwise(grid):
        for glass, ddim in ((GLASS("ddpm", 1), DDIM(1.0)), (GLASS(1.0, 1), DDIM(0.0))):
            assert affine(glass, t, s, MODEL) == pytest.approx(affine(ddim, t, s, MODEL), abs=1e-5)
    assert not GLASS(1.0, 1).stochastic
    assert GLASS("ddpm", 1).stochastic
    assert GLASS(1.0, 2).stochastic


def test_correlation_one_tends_to_the_ode_as_outer_steps_become_small():
    ends = []
    for count in (10, 40, 160):
        glass, ode = (final(tr, flow_grid(count), MODEL)[1] for tr in (GLASS(1.0, 4), DDIM(0.0)))
        ends.append(abs(glass - ode))
    assert ends[0] > 3 * ends[1] > 9 * ends[2]


def test_on_a_mixture_the_transition_has_both_modes():
    """A DDIM step from a state between two modes ends between them; the true transition does not."""
    model = MixtureModel(
        GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.0]], 0.04 * torch.eye(2).expand(2, 2, 2)),
        flow_grid(2),
    )
    t, s = Time(900, 0.1, 0.9), Time(0, 1.0, 0.0)
    x_t = torch.zeros(4000, 2)
    noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(0))
    posterior = model.denoise(x_t, [t] * 4000, [None] * 4000)
    step = GLASS("ddpm", 16).solve(model.at, x_t, posterior, t, s, lambda: noise)
    x_0, rows = finish(step, model)
    assert rows == 15 * 4000
    near = torch.minimum((x_0[:, 0] - 2).abs(), (x_0[:, 0] + 2).abs()) < 0.6
    assert float(near.float().mean()) > 0.9
    assert float((x_0[:, 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.04)
    assert float(DDIM(1.0)(posterior, t, s).mean[:, 0].abs().max()) < 0.1


@grids
def test_calls_are_what_it_says(grid):
    for inner in (1, 3):
        transition, x_t = GLASS("ddpm", inner), torch.randn(5, 1)
        for t, s in pairwise(grid):
            posterior = MODEL.denoise(x_t, [t] * 5, [None] * 5)
            step = transition.solve(MODEL.at, x_t, posterior, t, s, lambda: torch.randn(5, 1))
            x_s, rows = finish(step, MODEL)
            assert rows == 5 * transition.inner_calls
            assert x_s.shape == x_t.shape


def test_graphs_go_through_the_inner_steps():
    t, s = flow_grid(10)[4:6]
    x_t = torch.randn(3, 1, requires_grad=True)
    noise = torch.randn(3, 1)
    for kept in (True, False):
        posterior = MODEL.denoise(x_t, [t] * 3, [None] * 3)
        step = GLASS("ddpm", 3).solve(
            MODEL.at, x_t, posterior, t, s, lambda: noise, keep_graph=kept
        )
        x_s, _ = finish(step, MODEL)
        assert x_s.requires_grad is kept


def test_bad_options_are_refused():
    for rho in (-0.1, 1.1, math.nan, "markov"):
        with pytest.raises(ValueError, match="rho must lie in"):
            GLASS(rho)
    with pytest.raises(ValueError, match="inner must be at least 1"):
        GLASS(inner=0)
    step = GLASS().solve(MODEL.at, None, None, *flow_grid(5)[3:1:-1], None)
    with pytest.raises(ValueError, match="less noise"):
        next(step)
