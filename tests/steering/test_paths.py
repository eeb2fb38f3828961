import math
from itertools import pairwise

import pytest
import torch
from helpers import Custom, jobs_for

from steering.adapters import adapt
from steering.interpolants import Cosine, RectifiedFlow, VarianceExploding, VPLinear
from steering.live import new_problem
from steering.mixtures import MixtureModel, flow_grid, vp_grid
from steering.paths import SamplingPath
from steering.tilted import PROBLEMS
from steering.transitions import DDIM

CALLS = {
    "shapes_sd": {"num_inference_steps": 8, "guidance_scale": 2.0},
    "shapes_flux": {"num_inference_steps": 8, "true_cfg_scale": 2.0, "height": 64, "width": 64},
}
TARGETS = {
    "vp": VPLinear(),
    "cosine": Cosine(),
    "flow": RectifiedFlow(),
    "shifted": RectifiedFlow(3.0),
    "ve": VarianceExploding(),
}
targets = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
grids = pytest.mark.parametrize("grid", [flow_grid(10), vp_grid(10)], ids=["flow grid", "vp grid"])


def ours(grid=None) -> MixtureModel:
    return MixtureModel(PROBLEMS["linear"]().mixture, grid or flow_grid(10))


@targets
@grids
@pytest.mark.parametrize("warp", ["uniform", "rbf"])
def test_a_laid_grid_keeps_its_ends_and_its_steps(target, grid, warp):
    laid = SamplingPath(target, warp).lay(grid, ours().at)
    assert (laid[0], laid[-1], laid.steps) == (grid[0], grid[-1], grid.steps)
    for time in laid[1:-1]:
        there = target.time(target.t_of(time.log_snr))
        assert (time.alpha, time.sigma) == pytest.approx((there.alpha, there.sigma), rel=1e-9)
        assert time.model_t == pytest.approx(ours().at(time.log_snr).model_t)


def test_inner_times_are_uniform_in_the_targets_time():
    path = VPLinear()
    laid = SamplingPath(path).lay(flow_grid(10), ours().at)
    inner = [path.t_of(time.log_snr) for time in laid[1:-1]]
    assert inner == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    start, end = (path.t_of(vp_grid(5)[i].log_snr) for i in (0, -1))
    inner = [path.t_of(time.log_snr) for time in SamplingPath(path).lay(vp_grid(5), ours().at)]
    assert inner == pytest.approx([start + (end - start) * i / 5 for i in range(6)])


def test_warped_times_are_those_of_rollover_budget_forcing():
    """Its last of ten levels: VP time 0.436, linear time 0.71."""
    laid = SamplingPath(VPLinear(), "rbf").lay(flow_grid(10), ours().at)
    assert VPLinear().t_of(laid[-2].log_snr) == pytest.approx(math.sqrt(1 - 0.9**2))
    assert laid[-2].model_t == pytest.approx(710, abs=5)


def test_a_path_onto_itself_is_the_grid():
    laid = SamplingPath(RectifiedFlow()).lay(flow_grid(7), ours().at)
    for a, b in zip(laid, flow_grid(7), strict=True):
        assert (a.alpha, a.sigma, a.model_t) == pytest.approx((b.alpha, b.sigma, b.model_t))


@targets
def test_ddim_does_not_notice_the_rescaling(target):
    """The same noise levels in another unit: the same final state."""
    laid = SamplingPath(target).lay(flow_grid(10), ours().at)
    flow = RectifiedFlow()
    plain = [flow.at(time.log_snr) for time in laid]
    model, x = ours(), torch.randn(50, 2, dtype=torch.float64)
    ends = []
    for times in (list(laid), plain):
        generator, x_t = torch.Generator().manual_seed(1), x
        for t, s in pairwise(times):
            law = DDIM(1.0)(model.denoise(x_t, [t] * 50, [None] * 50), t, s)
            x_t = law.sample(torch.randn(50, 2, dtype=torch.float64, generator=generator))
        ends.append(x_t)
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def test_bad_paths_are_refused():
    with pytest.raises(ValueError, match="warp must be one of"):
        SamplingPath(warp="cosine")
    with pytest.raises(TypeError, match="interpolant must be"):
        SamplingPath("vp")
    with pytest.raises(ValueError, match="covers these levels"):
        SamplingPath(VarianceExploding(1e-3, 2e-3)).lay(vp_grid(5), ours().at)


def test_a_search_is_given_the_grid_along_its_path():
    class Bent(Custom):
        path = SamplingPath()

    model = ours()
    assert new_problem(jobs_for(model, ["a"], Custom(None))[0], model, 1).grid is model.grid
    problem = new_problem(jobs_for(model, ["a"], Bent(None))[0], model, 1)
    assert problem.grid == SamplingPath().lay(model.grid, model.at)
    assert problem.at(0.0) == model.at(0.0)


@pytest.fixture(scope="module", params=list(CALLS))
def model(request):
    return adapt(request.getfixturevalue(request.param), call=CALLS[request.param])


def test_records_of_a_pipeline_follow_its_own_grid(model):
    for time in model.grid[:-1]:
        found = model.at(time.log_snr)
        assert found.model_t == pytest.approx(time.model_t, abs=1e-3)
        assert (found.alpha, found.sigma) == pytest.approx((time.alpha, time.sigma), abs=1e-6)


def test_beyond_the_trained_range_the_nearest_time_is_told(model):
    for log_snr in (-60.0, 60.0, math.inf):
        found = model.at(log_snr)
        assert 0 <= found.model_t <= 1000
        assert found.log_snr == pytest.approx(log_snr)


@targets
def test_a_rescaled_state_has_the_same_posterior(model, target):
    """Also half way between two times of the grid, where the network was told no time yet."""
    handles = model.encode(["a red ring", "two blue squares"])
    x_t = torch.randn((2, *model.shape), generator=torch.Generator().manual_seed(0))
    middle = model.at(0.5 * (model.grid[3].log_snr + model.grid[4].log_snr))
    for time in (model.grid[1], model.grid[5], middle):
        scale = target.scale_from(time)
        there = target.at(time.log_snr)
        there = type(time)(model.at(time.log_snr).model_t, there.alpha, there.sigma)
        with torch.no_grad():
            here = model.denoise(x_t, [time] * 2, handles)
            converted = model.denoise(scale * x_t, [there] * 2, handles)
        for a, b in ((here.x_0, converted.x_0), (here.eps, converted.eps)):
            assert float((a - b).abs().max()) < 1e-4 * float(a.abs().max())
