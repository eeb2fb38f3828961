import pytest
import torch
from helpers import Custom, FunctionReward, jobs_for, mixture, outcome, run

from steering.adapters import adapt
from steering.cost import Usage
from steering.flow_sde import FlowSDE
from steering.glass import GLASS
from steering.moves import made, move
from steering.paths import SamplingPath
from steering.prediction import Posterior
from steering.requests import Move, Rollout, Score
from steering.rollout import rollout
from steering.search import Facts, Problem
from steering.streams import Streams
from steering.times import Time
from steering.trace import Trace
from steering.transitions import DDIM, Renoise


def problem(model, **more) -> Problem:
    return Problem(
        "p", model.shape, model.device, model.grid, 1.0, Streams(0, "k"), Facts(10, 10), Trace(),
        Usage(), **more,
    )  # fmt: skip


def finish(step, model) -> tuple[torch.Tensor, int]:
    """Run a generator of requests to denoise and to move; its result and the number of rows denoised."""
    calls, answer = 0, None
    while True:
        try:
            request = step.send(answer)
        except StopIteration as stop:
            return stop.value, calls
        if isinstance(request, Move):
            [answer] = made([request])
            continue
        n = len(request.x_t)
        calls, answer = calls + n, model.denoise(request.x_t, [request.time] * n, [None] * n)


def test_gaussian_transitions_denoise_nothing():
    _, model = mixture()
    t, s = model.grid[3], model.grid[4]
    x_0, eps, z = torch.randn(3, 5, 2)
    for transition in (DDIM(1.0), DDIM(0.3), Renoise()):
        step = move(problem(model), transition, x_0, Posterior(x_0, eps), t, s, lambda: z)
        x_s, calls = finish(step, model)
        assert calls == transition.inner_calls == 0
        assert torch.equal(x_s, transition(Posterior(x_0, eps), t, s).sample(z))


def test_noise_is_not_drawn_where_none_is_used():
    _, model = mixture()
    x_0, eps = torch.randn(2, 5, 2)

    def never():
        raise AssertionError("noise was drawn")

    for transition, s in ((DDIM(0.0), model.grid[4]), (Renoise(), Time(0, 1, 0))):
        step = move(problem(model), transition, x_0, Posterior(x_0, eps), model.grid[3], s, never)
        finish(step, model)


def test_rollouts_step_by_the_same_moves():
    _, model = mixture()
    x = torch.randn(4, 2)
    request = Rollout(x, solver=DDIM(1.0), draws=[0, 1, 2, 3])
    found, calls = finish(rollout(request, problem(model), model, None), model)
    assert calls == 4 * model.grid.steps
    for i in range(model.grid.steps):
        t, s = model.grid[i], model.grid[i + 1]
        law = DDIM(1.0)(model.denoise(x, [t] * 4, [None] * 4), t, s)
        x = law.sample(problem(model).noise("transition", [0, 1, 2, 3], i))
    assert torch.equal(found, x)


def test_graphs_are_kept_if_asked():
    _, model = mixture()
    x_t = torch.randn(3, 2, requires_grad=True)
    t, s = model.grid[3], model.grid[4]
    for kept in (True, False):
        posterior = model.denoise(x_t, [t] * 3, [None] * 3)
        step = move(problem(model), DDIM(0.0), x_t, posterior, t, s, torch.zeros, keep_graph=kept)
        assert finish(step, model)[0].requires_grad is kept


def test_a_problem_without_a_model_knows_no_other_levels():
    _, model = mixture()
    with pytest.raises(ValueError, match="at=model"):
        problem(model).at(0.0)
    assert problem(model, at=model.at).at(0.0).log_snr == pytest.approx(0.0)


def walker(transition, rows):
    def body(problem):
        draws = list(range(rows))
        x_0 = yield Rollout(problem.initial(draws), solver=transition, draws=draws)
        scores = yield Score(x_0)
        return outcome(x_0, scores)

    return body


class Bent(Custom):
    """A search of its own path."""

    path = SamplingPath(warp="rbf")


@pytest.mark.parametrize("kind", [Custom, Bent])
@pytest.mark.parametrize("transition", [FlowSDE(), GLASS("ddpm", 3), GLASS(0.4, 2), Renoise()])
def test_every_transition_walks_through_the_engine_and_every_call_counts(kind, transition):
    _, model = mixture()
    [result] = run(model, FunctionReward(), jobs_for(model, ["a"], kind(walker(transition, 4))))
    assert result.usage.nfe == 4 * model.grid.steps * (1 + transition.inner_calls)
    assert bool(result.outcome.x_0.isfinite().all())


@pytest.mark.parametrize("kind", [Custom, Bent])
def test_inner_calls_reach_a_pipeline_at_times_that_it_knows(shapes_flux, shapes_clip, kind):
    call = {"num_inference_steps": 4, "true_cfg_scale": 2.0, "height": 64, "width": 64}
    model = adapt(shapes_flux, call=call)
    jobs = jobs_for(model, ["a red ring"], kind(walker(GLASS("ddpm", 2), 1)))
    [result] = run(model, shapes_clip, jobs)
    assert result.usage.nfe == 8
    assert float(result.outcome.x_0.abs().max()) < 20


def test_a_transition_goes_to_less_noise():
    _, model = mixture()
    x_0, eps = torch.randn(2, 5, 2)
    for transition in (DDIM(), Renoise(), FlowSDE(), GLASS()):
        step = move(
            problem(model, at=model.at), transition, x_0, Posterior(x_0, eps),
            model.grid[4], model.grid[3], lambda: eps,
        )  # fmt: skip
        with pytest.raises(ValueError, match="less noise"):
            finish(step, model)
