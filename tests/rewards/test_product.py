import math

import pytest
import torch

from rewards import JPEGCompressibility, Product, PythonFunction
from rewards.testing import check_reward
from steering.reward import Item

MEDIA = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
ITEMS = [Item("a"), Item("bb"), Item("ccc")]


def red(span=None, **options):
    reward = PythonFunction(lambda x, _: x[:, 0].square().mean((1, 2)), name="r", **options)
    reward.range = span
    return reward


def long():
    return PythonFunction(lambda _, prompts: [len(p) for p in prompts], name="l", needs_text=True)


def test_columns_and_total():
    reward = Product({"red": red(), "long": long()}, {"long": 2.0})
    columns = reward(MEDIA, [reward.prepare(item) for item in ITEMS])
    assert list(columns) == ["red", "long", "product"]
    torch.testing.assert_close(columns["product"], columns["red"] * columns["long"] ** 2)


def test_declared_abilities():
    both = {"a": red((0.0, 1.0), differentiable=True), "b": red((0.0, 2.0), differentiable=True)}
    reward = Product(both, {"b": 0.5})
    assert reward.range == (0.0, math.sqrt(2))
    check_reward(reward, MEDIA, ITEMS)
    check_reward(Product({"red": red(), "long": long()}), MEDIA, ITEMS)
    assert Product({"red": red(), "long": long()}).range is None


def test_power_zero_only_reports():
    reward = Product({"red": red(), "size": JPEGCompressibility()}, {"size": 0.0})
    columns = reward(MEDIA, [reward.prepare(item) for item in ITEMS])
    assert torch.equal(columns["product"], columns["red"])
    assert (columns["size"] < 0).all()


@pytest.mark.parametrize(
    ("members", "powers", "message"),
    [
        ({}, None, "at least one member"),
        ({"product": red()}, None, "named 'product' like a member"),
        ({"red": red()}, {"rde": 1.0}, "power for 'rde', but the members are red"),
        ({"red": red()}, {"red": -1.0}, "must be 0 or more, got -1.0"),
        ({"size": JPEGCompressibility()}, None, "'size' ranges from -inf"),
    ],
)
def test_nonsense_is_refused(members, powers, message):
    with pytest.raises(ValueError, match=message):
        Product(members, powers)


def test_negative_scores_are_refused():
    below = PythonFunction(lambda x, _: x.mean((1, 2, 3)) - 1, name="below")
    reward = Product({"below": below})
    with pytest.raises(ValueError, match="'below' scored -"):
        reward(MEDIA, [reward.prepare(item) for item in ITEMS])


def test_members_move_with_it():
    member = red()
    member.net = torch.nn.Linear(1, 1)
    Product({"red": member}).to("meta")
    assert member.net.weight.device.type == "meta"
