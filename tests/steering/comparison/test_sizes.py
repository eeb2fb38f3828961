"""A search grows until its budget is full, and never beyond."""

import pytest

from samplers import RBF, SMC, BestOfN, FKSteering, IslandSMC, Metropolis, ParticleGibbs
from steering.command.contestants import budgets, cells, contestant, contestants
from steering.command.options import UsageError, names
from steering.comparison.plots import Axis
from steering.comparison.sizes import grown, size_of
from steering.cost import Budget, Cost
from steering.search import BudgetTooSmall, Facts


def facts(**budget):
    return Facts(25, 25, 1, Budget(**budget))


@pytest.mark.parametrize("name", names("sampler"))
@pytest.mark.parametrize("limit", [{"nfe": 520}, {"reward_calls": 560}])
def test_every_configuration_fills_its_budget(name, limit):
    given = facts(**limit)
    search = grown(contestant(name).search, given)
    cost = search.plan(given).cost
    (part, most), size = next(iter(limit.items())), size_of(search)
    assert getattr(cost, part) <= most
    if (
        name == "evo"
    ):  # its populations are many numbers: they shrink with the budget, but do not grow
        assert size is None
        return
    assert size is not None
    larger = type(search)(**{**vars(search), size: getattr(search, size) + 1})
    more = getattr(larger.plan(facts()).cost, part)
    assert more > most or more == getattr(cost, part)


@pytest.mark.parametrize(
    ("search", "limit", "size"),
    [
        (BestOfN(), {"nfe": 100}, 4),
        (BestOfN(), {"reward_calls": 7}, 7),
        (BestOfN(100), {"nfe": 100}, 4),
        (FKSteering(), {"nfe": 210}, 8),
        (SMC(), {"reward_calls": 260}, 10),
        (IslandSMC(), {"nfe": 500}, 20),
        (RBF(chains=1), {"nfe": 300}, 300),
        (ParticleGibbs(particles=4), {"nfe": 260}, 3),
        (Metropolis(chains=2, levels=(1.0,)), {"nfe": 600}, 11),
    ],
)
def test_sizes_are_those_that_the_budget_pays_for(search, limit, size):
    found = grown(search, facts(**limit))
    assert getattr(found, str(size_of(found))) == size


def test_seconds_are_priced():
    def price(cost):
        return Cost(cost.nfe, cost.decodes, cost.reward_calls, cost.backwards, 0.01 * cost.nfe)

    assert grown(BestOfN(), facts(seconds=1.6), price=price).n == 6
    with pytest.raises(BudgetTooSmall):
        grown(BestOfN(), facts(seconds=0.1), price=price)


def test_a_size_that_was_given_stays():
    (cell,) = cells([contestant("fk:particles=2")], [Budget(nfe=500)], facts())
    assert cell.search.particles == 2
    assert cell.label == "fk:particles=2"
    assert cell.name == "fk_particles_2--nfe-500"


def test_options_labels_and_the_base_model():
    named = contestant("wide=smc:steps=[5,10],potential=max,initial=TopB,initial.candidates=30")
    assert named.label == "wide"
    assert (named.search.steps, named.search.potential) == ([5, 10], "max")
    assert named.search.initial.candidates == 30
    found = cells(contestants(["base", "fk"]), budgets([100, 200], [], []), facts())
    assert [c.name for c in found] == ["base", "fk--nfe-100", "fk--nfe-200"]
    assert found[0].search == BestOfN(1)


@pytest.mark.parametrize(
    ("specs", "limits", "message"),
    [
        (["fkk"], [100], "did you mean 'fk'"),
        ([], [100], "no samplers"),
        (["fk"], [], "no budget"),
        (["fk"], [-1], "positive"),
        (["fk"], [10], "'fk' with the budget nfe=10"),
        (["fk", "fk"], [100], "label="),
        (["fk:particles"], [100], "option=value"),
    ],
)
def test_mistakes_are_named(specs, limits, message):
    with pytest.raises(UsageError, match=message):
        cells(contestants(specs), budgets(limits, [], []), facts())


def test_axes_hold_their_values():
    axis = Axis([100, 200, 1000], (10, 90), log=True)
    assert 10 < axis(100) < axis(200) < axis(1000) < 90
    assert axis(400) - axis(200) == pytest.approx(axis(200) - axis(100), abs=0.2)
    assert {100, 200, 500, 1000} <= set(axis.ticks)
    flat = Axis([3.0, 3.0], (90, 10))
    assert 10 < flat(3.0) < 90
