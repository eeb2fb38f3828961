"""Packing, order and micro-batch size change nothing, on the embedded models."""

import itertools

import pytest
import torch
from helpers import Custom, jobs_for, outcome, run

from samplers import BestOfN, FKSteering
from steering.adapters import adapt
from steering.prediction import Posterior
from steering.requests import Denoise, Score

PROMPTS = ["a red ring", "two blue squares", "a ring left of a cross"]
CALLS = {
    "shapes_sd": {"num_inference_steps": 4, "guidance_scale": 2.0},
    "shapes_flux": {"num_inference_steps": 4, "true_cfg_scale": 2.0, "height": 64, "width": 64},
}


@pytest.fixture(scope="module", params=list(CALLS))
def model(request):
    return adapt(request.getfixturevalue(request.param), call=CALLS[request.param])


@pytest.mark.parametrize(
    "search",
    [FKSteering(3, start=1, every=1, ess_threshold=1.0, returns="all"), BestOfN(2, returns="all")],
    ids=["fk", "best-of-n"],
)
def test_deterministic_mode_is_bit_identical_for_any_packing(model, shapes_clip, search):
    reference = None
    for cap, order, together in itertools.product((1, 16), (1, -1), (True, False)):
        if together is False and (cap, order) != (1, 1):
            continue
        jobs = jobs_for(model, PROMPTS[::order], search, lam=1.0, seed=1)
        options = {"batch_size": cap, "deterministic": True, "bucket": 4}
        groups = [jobs] if together else [[job] for job in jobs]
        results = [r for g in groups for r in run(model, shapes_clip, g, **options)][::order]
        reference = reference or results
        for a, b in zip(reference, results, strict=True):
            assert torch.equal(a.outcome.x_0, b.outcome.x_0)
            assert torch.equal(a.outcome.scores.total, b.outcome.scores.total)
            assert a.trace.records == b.trace.records


def test_default_mode_agrees_to_rounding_a_call(model):
    handles = model.encode(PROMPTS)
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn((6, *model.shape), generator=generator)
    times = [model.grid[i % 4] for i in range(6)]
    owners = [handles[i % 3] for i in range(6)]
    with torch.no_grad():
        fused = model.denoise(x_t, times, owners)
        alone = [
            model.denoise(x[None], [t], [h]) for x, t, h in zip(x_t, times, owners, strict=True)
        ]
    alone = Posterior(torch.cat([p.x_0 for p in alone]), torch.cat([p.eps for p in alone]))
    for a, b in ((fused.x_0, alone.x_0), (fused.eps, alone.eps)):
        assert float((a - b).abs().max() / b.abs().max()) < 1e-5


def test_gradients_of_reward_through_decoder_and_denoiser_equal_finite_differences(
    model, shapes_clip
):
    """Central differences along the gradient itself, in float32."""
    found = {}

    def body(problem):
        t = problem.grid[2]
        x_t = problem.initial(range(2))
        posterior = yield Denoise(x_t, t, keep_graph=True)
        scores = yield Score(posterior.x_0, grad_to=x_t)
        grad = scores.grad
        step = 5e-3 * grad / grad.flatten(1).norm(dim=1).reshape(-1, 1, *[1] * (grad.ndim - 2))
        ends = []
        for sign in (1, -1):
            moved = yield Denoise((x_t + sign * step).detach(), t)
            ends.append((yield Score(moved.x_0)).total)
        found["slope"] = (grad * step).flatten(1).sum(1).double()
        found["difference"] = (ends[0] - ends[1]) / 2
        return outcome(posterior.x_0.detach(), scores)

    [result] = run(model, shapes_clip, jobs_for(model, PROMPTS[:1], Custom(body)))
    torch.testing.assert_close(found["slope"], found["difference"], rtol=3e-2, atol=1e-4)
    assert result.usage.backwards == 2
