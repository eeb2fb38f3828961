import math

import pytest
import torch

from rewards import JPEGCompressibility, PythonFunction, WeightedSum
from rewards.testing import check_reward
from steering.reward import Item

MEDIA = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
ITEMS = [Item("a"), Item("bb"), Item("ccc")]


def red(**options):
    return PythonFunction(lambda x, _: x[:, 0].square().mean((1, 2)), name="r", **options)


def long(**options):
    return PythonFunction(lambda _, prompts: [len(p) for p in prompts], name="l", **options)


def test_columns_and_total():
    reward = WeightedSum({"red": red(), "long": long()}, {"red": 2.0, "long": -0.5})
    columns = reward(MEDIA, [reward.prepare(item) for item in ITEMS])
    assert list(columns) == ["red", "long", "weighted-sum"]
    assert columns["long"].tolist() == [1, 2, 3]
    torch.testing.assert_close(columns["weighted-sum"], 2 * columns["red"] - 0.5 * columns["long"])


def test_declared_abilities():
    check_reward(
        WeightedSum({"a": red(differentiable=True), "b": red(differentiable=True)}), MEDIA, ITEMS
    )
    check_reward(WeightedSum({"red": red(), "long": long(needs_text=True)}), MEDIA, ITEMS)


def test_abilities_are_those_of_the_members():
    mixed = WeightedSum({"red": red(differentiable=True), "long": long(calls_per_row=3)})
    assert not mixed.differentiable
    assert mixed.calls_per_row == 4
    assert not mixed.needs_text
    assert WeightedSum({"red": red(), "long": long(needs_text=True)}).needs_text


def test_a_member_of_weight_zero_is_only_reported():
    infinite = PythonFunction(lambda x, _: [math.inf] * len(x), name="inf")
    reward = WeightedSum({"red": red(differentiable=True), "held out": infinite}, {"held out": 0.0})
    assert reward.differentiable
    columns = reward(MEDIA.clone().requires_grad_(True), [reward.prepare(item) for item in ITEMS])
    assert torch.equal(columns["weighted-sum"], columns["red"])
    assert columns["weighted-sum"].requires_grad
    assert columns["held out"].isinf().all()


def test_range_is_the_sum_of_ranges():
    jpeg, bounded = JPEGCompressibility(), red()
    bounded.range = (-1.0, 2.0)
    assert WeightedSum({"a": bounded, "b": jpeg}, {"a": 3.0, "b": -1.0}).range == (-3.0, math.inf)
    assert WeightedSum({"a": bounded}, {"a": -1.0}).range == (-2.0, 1.0)
    assert WeightedSum({"a": bounded, "b": red()}).range is None


def test_ensembles_nest():
    inner = WeightedSum({"red": red(), "long": long()}, name="inner")
    outer = WeightedSum({"inner": inner, "red": red()}, {"red": 0.5})
    columns = outer(MEDIA, [outer.prepare(item) for item in ITEMS])
    assert list(columns) == ["inner/red", "inner/long", "inner", "red", "weighted-sum"]
    torch.testing.assert_close(columns["weighted-sum"], columns["inner"] + 0.5 * columns["red"])


@pytest.mark.parametrize(
    ("members", "weights", "message"),
    [
        ({}, None, "at least one member"),
        ({"weighted-sum": red()}, None, "named 'weighted-sum' like a member"),
        ({"red": red()}, {"rde": 1.0}, "weight for 'rde', but the members are red"),
        ({"red": red()}, {"red": math.nan}, "must be finite, got nan"),
    ],
)
def test_nonsense_is_refused(members, weights, message):
    with pytest.raises(ValueError, match=message):
        WeightedSum(members, weights)


def test_members_move_with_it():
    member = red()
    member.net = torch.nn.Linear(1, 1)
    WeightedSum({"red": member}).to("meta")
    assert member.net.weight.device.type == "meta"
