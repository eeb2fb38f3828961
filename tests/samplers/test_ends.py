"""Searches whose ways before and after all branching are the scheduler's own."""

import math

import pytest
import torch
from helpers import jobs_for, mixture, run

from samplers import BestOfN, FKSteering
from samplers.ends import Branching
from steering.paths import SamplingPath
from steering.search import Facts

SEARCH = {"start": 10, "every": 2, "stop": 30, "ends": "scheduler", "returns": "all"}


def test_where_a_search_branches():
    assert Branching.of("transition", [3, 5], 10).inside == range(10)
    assert Branching.of("scheduler", [3, 5], 10).inside == range(3, 6)
    assert Branching.of("scheduler", [9], 10).inside == range(9, 10)
    assert Branching.of("scheduler", [], 10).inside == range(10, 10)


def test_before_the_first_look_and_after_the_last_the_scheduler_moves():
    """The mixture's own scheduler is DDIM(0): without looks all states follow it."""
    problem, model = mixture(steps=20)
    search = FKSteering(3, start=99, ends="scheduler", returns="all")
    with pytest.warns(UserWarning, match="nothing is resampled"):
        [result] = run(model, problem.reward, jobs_for(model, ["a"], search, lam=1.0))
    [own] = run(model, problem.reward, jobs_for(model, ["a"], BestOfN(3, returns="all"), lam=1.0))
    assert result.usage.nfe == own.usage.nfe == 60
    torch.testing.assert_close(*(r.outcome.x_0.sort(0).values for r in (result, own)))
    branching = FKSteering(3, start=5, every=1, stop=6, ends="scheduler", returns="all")
    [branched] = run(model, problem.reward, jobs_for(model, ["a"], branching, lam=1.0))
    assert branched.usage.nfe == 60
    assert not torch.equal(result.outcome.x_0, branched.outcome.x_0)


@pytest.mark.parametrize("name", ["linear", "quadratic"])
def test_the_tilted_law_is_reached(name):
    """Masses of the modes within three standard errors, as with noise on the whole way."""
    problem, model = mixture(name, steps=50)
    jobs = jobs_for(model, [str(i) for i in range(200)], FKSteering(16, **SEARCH), lam=problem.lam)
    results = run(model, problem.reward, jobs, batch_size=4096)
    masses = torch.stack(
        [problem.masses_of(r.outcome.x_0, torch.softmax(r.outcome.log_w, 0)) for r in results]
    ).double()
    wrong = (masses.mean(0) - problem.masses.double()).abs()
    assert bool((wrong < 3 * masses.std(0) / math.sqrt(200) + 0.03).all()), (wrong, masses.mean(0))


def test_what_it_costs_is_planned():
    facts = Facts(20, 20)
    search = FKSteering(4, start=5, every=5, ends="scheduler")
    assert search.plan(facts).cost.nfe == 80
    with pytest.raises(ValueError, match="39 times in 20 steps"):
        search.plan(Facts(20, 39))
    with pytest.raises(ValueError, match="ends must be one of"):
        FKSteering(4, ends="both")
    with pytest.raises(ValueError, match="leave the path out"):
        FKSteering(4, ends="scheduler", path=SamplingPath())
