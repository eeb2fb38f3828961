import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering.cost import Budget, Cost, Usage

counts = st.integers(0, 10_000)
costs = st.builds(Cost, counts, counts, counts, counts, st.floats(0, 1e4))


def test_costs_add_and_scale_part_by_part():
    a, b = Cost(1, 2, 3, 4, 0.5), Cost(10, 20, 30, 40, 1.5)
    assert a + b == Cost(11, 22, 33, 44, 2.0)
    assert 3 * a == a * 3 == a + a + a
    assert Cost() + a == a


@given(unit=costs, limit=st.integers(1, 100_000))
def test_a_budget_affords_exactly_as_often_as_it_says(unit, limit):
    budget = Budget(nfe=limit, reward_calls=limit)
    times = budget.times(unit)
    if math.isinf(times):
        assert unit.nfe == unit.reward_calls == 0
        return
    assert budget.exceeded_by(unit * times) is None
    assert budget.exceeded_by(unit * (times + 1)) is not None


def test_what_is_spent_counts_against_a_budget():
    budget = Budget(nfe=100, decodes=9)
    one = Cost(nfe=10, decodes=1)
    assert budget.times(one) == 9
    assert budget.times(one, spent=Cost(nfe=75)) == 2
    assert budget.times(one, spent=Cost(nfe=1000)) == 0
    assert budget.times(Cost(reward_calls=3)) == math.inf
    assert Budget().times(one) == math.inf


def test_the_first_part_over_its_limit_is_named():
    budget = Budget(nfe=10, seconds=1.5)
    assert budget.exceeded_by(Cost(nfe=10, seconds=1.5, decodes=10**9)) is None
    assert budget.exceeded_by(Cost(nfe=11, seconds=9)) == "nfe"
    assert budget.exceeded_by(Cost(seconds=1.6)) == "seconds"


@pytest.mark.parametrize("part", ["nfe", "decodes", "reward_calls", "backwards", "seconds"])
@pytest.mark.parametrize("limit", [0, -1, math.nan])
def test_limits_must_be_positive(part, limit):
    with pytest.raises(ValueError, match=rf"budget\.{part} must be positive or None"):
        Budget(**{part: limit})


def test_usage_adds_up_and_becomes_a_cost():
    usage = Usage(nfe=3, decodes=2, reward_calls=1, seconds=0.5, seconds_denoise=0.25)
    usage.add(Usage(nfe=1, padding=5, seconds_reward=0.125))
    assert usage.cost == Cost(4, 2, 1, 0, 0.5)
    assert usage.padding == 5
    assert usage.seconds_in_models == 0.375
    assert usage.to_dict()["nfe"] == 4
