"""What is kept: the exact optimum of reward and coverage, and clusters that are there."""

import itertools

import pytest
import torch
from helpers import FunctionReward, jobs_for, mixture, run

from samplers import DLBS, Best, Diverse, Halving, LookAhead, SoftValue
from samplers.keep import clusters, keeper, leads, pooled, standardised
from steering.engine import MissingAbility


def drawn(k, seed):
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(k, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (k,), generator=generator)
    return reward, torch.eye(4)[labels], labels


@pytest.mark.parametrize("bonus", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("price", [0.0, 0.8, 2.5])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_is_the_optimum_over_all_sets(bonus, price, seed):
    reward, features, labels = drawn(8, seed)
    rows = Diverse(bonus=bonus, price=price, features=lambda x: x)(reward, features, 4)
    z = standardised(reward)

    def value(rows):
        rows = list(rows)
        return float(z[rows].sum()) + bonus * len(set(labels[rows].tolist())) - price * len(rows)

    sizes = [4] if price == 0 else range(1, 5)
    sets = (s for n in sizes for s in itertools.combinations(range(8), n))
    assert value(rows.tolist()) == pytest.approx(max(map(value, sets)))
    assert len(set(rows.tolist())) == len(rows) <= 4


def test_without_a_bonus_it_is_the_best():
    reward, features, _ = drawn(9, 0)
    rows = Diverse(bonus=0.0)(reward, features, 3)
    assert rows.tolist() == Best()(reward, features, 3).tolist()
    assert rows.tolist() == torch.topk(reward, 3).indices.tolist()


def test_a_large_bonus_meets_every_kind():
    reward = torch.tensor([5.0, 4.9, 4.8, 1.0, 0.0], dtype=torch.float64)
    kinds = torch.tensor([[1.0, 0.0], [1.0, 0.05], [1.0, -0.05], [0.0, 1.0], [0.05, 1.0]])
    assert Diverse(bonus=10.0)(reward, kinds, 2).tolist() == [0, 3]
    assert Diverse(bonus=0.1)(reward, kinds, 2).tolist() == [0, 1]


def test_scale_and_shift_of_the_reward_change_nothing():
    reward, features, _ = drawn(8, 3)
    keep = Diverse(bonus=0.7)
    assert keep(reward, features, 3).tolist() == keep(50 * reward - 7, features, 3).tolist()


def test_clusters_are_those_of_the_angle():
    rows = torch.tensor([[1.0, 0.0], [9.0, 0.1], [0.0, 2.0], [0.1, 1.0], [-1.0, 0.0]])
    labels = clusters(rows, 0.3).tolist()
    assert labels[0] == labels[1] != labels[2] == labels[3] != labels[4] != labels[0]
    assert len(set(clusters(rows, 2.0).tolist())) == 1
    assert len(set(clusters(rows, 0.0).tolist())) == 5
    assert len(clusters(rows[:1], 0.3)) == len(clusters(rows[:0], 0.3)) + 1 == 1
    assert len(set(clusters(torch.zeros(2, 3), 0.3).tolist())) == 2  # no angle: each is its own


def test_impossible_candidates_are_kept_last_and_lead_nothing():
    reward = torch.tensor([-torch.inf, 1.0, 1.0, -torch.inf], dtype=torch.float64)
    features = torch.eye(4)
    assert Diverse(bonus=3.0)(reward, features, 3).tolist()[:2] == [1, 2]
    assert leads(reward, torch.arange(4)).tolist() == [0, 1, 1, 0]
    nothing = torch.full((3,), -torch.inf, dtype=torch.float64)
    assert len(Diverse(price=1.0)(nothing, torch.eye(3), 2)) == 1


def test_equal_rewards_leave_the_choice_to_coverage():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert Diverse(bonus=1.0)(torch.ones(3).double(), rows, 2).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((5, 2), 2),
        ((5, 4, 16, 16), 64),
        ((5, 3, 2, 16, 16), 96),
        ((5, 256, 8), 128),
        ((5, 4, 2, 2), 16),
    ],
)
def test_states_of_any_form_are_pooled(shape, size):
    x_0 = torch.randn(shape)
    assert pooled(x_0).shape == (5, size)
    torch.testing.assert_close(pooled(torch.ones(shape)), torch.ones(5, size))  # averages, not sums


def test_names_and_bad_options():
    assert keeper("best") == Best()
    assert keeper(Diverse()) == Diverse()
    for option in ({"bonus": -1.0}, {"price": -0.1}, {"distance": 3.0}):
        with pytest.raises(ValueError, match=next(iter(option))):
            Diverse(**option)
    with pytest.raises(ValueError, match="one row for each of 3 candidates"):
        Diverse(features=lambda x: x[:2])(torch.ones(3), torch.eye(3), 2)
    with pytest.raises(ValueError, match="features of candidate 1 are not finite"):
        clusters(torch.tensor([[1.0], [torch.nan]]), 0.3)


class Seen(FunctionReward):
    """Embeds points as they are and counts the calls."""

    embeds = True

    def embed(self, media):
        self.batches.append(-len(media))
        return media.double()


def rows_of(result):
    return [r["ancestors"] for r in result.trace.records if "ancestors" in r]


@pytest.mark.parametrize(
    "make",
    [
        lambda keep: DLBS(3, 3, lookahead=2, keep=keep),
        lambda keep: Halving(8, steps=(2, 4), keep=keep),
        lambda keep: Halving(8, steps=(4,), keep=keep, value=LookAhead(3)),
    ],
)
def test_the_rewards_own_features_are_those_of_what_it_scored(make):
    """Where what is scored is the prediction itself, a function of it gives the same."""
    _, model = mixture(steps=10)
    found = {}
    for features in ("reward", lambda x_0: x_0):
        search, reward = make(Diverse(bonus=3.0, features=features)), Seen()
        [result] = run(model, reward, jobs_for(model, ["a"], search, lam=1.0))
        found[isinstance(features, str)] = result
        embedded = -sum(b for b in reward.batches if b < 0)
        assert embedded == (
            0 if callable(features) else result.usage.decodes - len(result.outcome.x_0)
        )
    assert found[True].usage.nfe == found[False].usage.nfe
    assert found[True].usage.reward_calls == found[False].usage.reward_calls
    if "LookAhead" not in str(search) and "lookahead" not in str(search):
        assert rows_of(found[True]) == rows_of(found[False])
        assert torch.equal(found[True].outcome.x_0, found[False].outcome.x_0)


def test_several_continuations_count_with_their_mean():
    _, model = mixture(steps=10)
    search = Halving(6, steps=(4,), keep=Diverse(features="reward"), value=SoftValue(3, 2))
    [result] = run(model, Seen(), jobs_for(model, ["a"], search, lam=1.0))
    assert len(result.outcome.x_0) == 3


def test_a_reward_that_embeds_nothing_is_refused():
    _, model = mixture(steps=10)
    search = DLBS(2, 2, keep=Diverse(features="reward"))
    with pytest.raises(MissingAbility, match=r"DLBS needs a reward that embeds.*'function'"):
        run(model, FunctionReward(), jobs_for(model, ["a"], search))
    with pytest.raises(ValueError, match="features must be 'reward' or a function"):
        Diverse(features="clip")
