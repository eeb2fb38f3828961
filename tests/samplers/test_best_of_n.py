import pytest
import torch
from helpers import jobs_for, mixture, run

from samplers import BestOfN, BestOfNState
from steering.live import SearchFailed
from steering.search import Facts
from steering.transitions import DDIM


def test_the_best_of_all_candidates_is_kept():
    problem, model = mixture(steps=10)
    [best] = run(model, problem.reward, jobs_for(model, ["a"], BestOfN(20, in_flight=6)))
    [every] = run(model, problem.reward, jobs_for(model, ["a"], BestOfN(20, returns="all")))
    totals = every.outcome.scores.total
    torch.testing.assert_close(best.outcome.scores.total.max(), totals.max())
    assert best.trace.records[-1]["totals"] == pytest.approx(totals.tolist(), abs=1e-4)
    assert every.outcome.chosen == torch.argsort(totals, descending=True, stable=True).tolist()


def test_more_candidates_extend_the_same_draws():
    problem, model = mixture(steps=10)
    [few] = run(model, problem.reward, jobs_for(model, ["a"], BestOfN(4, returns="all")))
    [many] = run(model, problem.reward, jobs_for(model, ["a"], BestOfN(9, returns="all")))
    torch.testing.assert_close(many.outcome.x_0[:4], few.outcome.x_0)


def test_a_saved_search_goes_on_where_it_stopped(tmp_path):
    problem, model = mixture(steps=10)
    options = {"deterministic": True, "bucket": 4}
    [whole] = run(model, problem.reward, jobs_for(model, ["a"], BestOfN(12)), **options)
    [half] = run(model, problem.reward, jobs_for(model, ["a"], BestOfN(7)), **options)
    half.outcome.extra["state"].save(tmp_path / "state.safetensors")
    state = BestOfNState.load(tmp_path / "state.safetensors")
    [rest] = run(model, problem.reward, jobs_for(model, ["a"], BestOfN(12, state=state)), **options)
    assert rest.usage.nfe == 5 * 10
    assert rest.outcome.scores.columns.keys() == whole.outcome.scores.columns.keys()
    assert torch.equal(rest.outcome.scores.total.max(), whole.outcome.scores.total.max())
    assert torch.equal(
        rest.outcome.x_0[rest.outcome.chosen], whole.outcome.x_0[whole.outcome.chosen]
    )
    [none] = run(model, problem.reward, jobs_for(model, ["a"], BestOfN(7, state=state)), **options)
    assert none.usage.nfe == 0


def test_a_stochastic_solver_draws_apart():
    problem, model = mixture(steps=10)
    search = BestOfN(4, solver=DDIM(1.0), returns="all")
    [result] = run(model, problem.reward, jobs_for(model, ["a"], search))
    assert len(torch.unique(result.outcome.x_0[:, 0])) == 4
    assert search.plan(Facts(10, 11)).cost.nfe == 40


@pytest.mark.parametrize("option", [{"n": 0}, {"n": -1}, {"in_flight": 0}, {"returns": "worst"}])
def test_bad_options_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        BestOfN(**option)


def test_a_state_of_another_prompt_is_refused():
    problem, model = mixture(steps=10)
    [first] = run(model, problem.reward, jobs_for(model, ["a"], BestOfN(2)))
    search = BestOfN(4, state=first.outcome.extra["state"])
    with pytest.raises(SearchFailed, match="another prompt or seed"):
        run(model, problem.reward, jobs_for(model, ["b"], search))
