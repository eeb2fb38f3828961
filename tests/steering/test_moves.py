import pytest
import torch
from helpers import mixture

from steering.cost import Usage
from steering.moves import move
from steering.prediction import Posterior
from steering.requests import Rollout
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
    """Run a generator of Denoise requests; its result and the number of rows denoised."""
    calls, answer = 0, None
    while True:
        try:
            request = step.send(answer)
        except StopIteration as stop:
            return stop.value, calls
        n = len(request.x_t)
        calls, answer = calls + n, model.denoise(request.x_t, [request.time] * n, [None] * n)


def test_gaussian_transitions_ask_for_nothing():
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
