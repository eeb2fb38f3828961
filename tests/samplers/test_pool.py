"""Candidates by total or by mean rank: what a growing pool calls its best."""

import pytest
import torch
from helpers import FunctionReward, jobs_for, mixture, run

from rewards import MeanRank, PythonFunction, WeightedSum
from samplers import RBF, AutoSMC, BestOfN, EvoSearch, FKSteering, NoisePaths, TopB, ZeNO, ZeroOrder
from samplers.pool import Pool, values
from steering.engine import Engine, MissingAbility
from steering.live import SearchFailed
from steering.requests import Scores
from steering.reward import Item


def table_of(count, levels, seed):
    """Three columns with many ties."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(levels, (count, 3), generator=draw).double()


def scores_of(table, ranked=True):
    columns = {name: table[:, i] for i, name in enumerate("abc")} | {"all": table[:, 0] * 0}
    return Scores(columns["all"], columns, ranked=("a", "b", "c") if ranked else None)


def plain_ranks(table):
    n = len(table)
    wins = [[(row > other).double() + 0.5 * (row == other) for other in table] for row in table]
    return torch.stack([(sum(w) - 0.5).mean() / max(n - 1, 1) for w in wins])


def two_rewards(scale=1000.0):
    """First coordinate, and the second on another scale."""

    def columns(x, features):
        return {"a": x[:, 0], "b": scale * x[:, 1], "function": 0 * x[:, 0]}

    reward = FunctionReward(columns, differentiable=False)
    reward.ranked = ("a", "b")
    return reward


@pytest.mark.parametrize("count", [1, 2, 9])
def test_values_are_mean_ranks_with_ties_shared(count):
    table = table_of(count, 4, seed=count)
    torch.testing.assert_close(values(scores_of(table)), plain_ranks(table))
    assert values(scores_of(table, ranked=False)).tolist() == [0.0] * count


@pytest.mark.parametrize("seed", range(12))
def test_a_pool_loses_no_candidate_that_may_still_be_the_best(seed):
    """Piece by piece, though states are thrown away, its best is the best of all."""
    table, pool = table_of(40, 6, seed), Pool()
    states = torch.arange(40.0)[:, None]
    for first in range(0, 40, 7):
        rows = slice(first, first + 7)
        pool.add(states[rows], scores_of(table[rows]))
        ranks = plain_ranks(table[: first + 7])
        outcome = pool.outcome(complete=True)
        assert pool.best == int(ranks.argmax()) == int(outcome.x_0)
        torch.testing.assert_close(outcome.scores.total, ranks.max()[None])
        torch.testing.assert_close(outcome.scores.columns["all"], ranks.max()[None])
        assert float(outcome.scores.columns["a"]) == float(table[pool.best, 0])
    assert len(pool._states) < 40


def test_by_total_only_the_best_state_is_kept():
    pool, totals = Pool(), torch.tensor([1.0, 3.0, 3.0, 2.0]).double()
    for i in range(4):
        pool.add(torch.full((1, 2), float(i)), Scores(totals[i : i + 1], {"r": totals[i : i + 1]}))
    assert list(pool._states) == [1]


def test_impossible_candidates_rank_last():
    table = table_of(5, 9, seed=0)
    scores = scores_of(table)
    scores.total[int(table.sum(1).argmax())] = -torch.inf
    pool = Pool()
    pool.add(torch.arange(5.0)[:, None], scores)
    assert torch.isfinite(pool.values[pool.best])
    assert torch.isneginf(pool.values).sum() == 1


SEARCHES = [
    BestOfN(9, in_flight=2),
    ZeroOrder(rounds=3),
    NoisePaths(2, 2, 0.3, 0.4, 0.55),
    EvoSearch(populations=(6, 5), schedule=[0.5]),
]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_searches_rank_their_own_candidates_alone(search):
    """Neither units nor other prompts of a fused batch matter."""
    _, model = mixture("quadratic", steps=10)
    options = {"deterministic": True, "bucket": 8}
    [alone] = run(model, two_rewards(), jobs_for(model, ["a"], search), **options)
    among = run(model, two_rewards(1e-3), jobs_for(model, ["b", "a", "c"], search), **options)[1]
    assert torch.equal(alone.outcome.x_0, among.outcome.x_0)
    scores = alone.outcome.scores
    assert set(scores.columns) == {"a", "b", "function"}
    top = alone.outcome.chosen[0]
    torch.testing.assert_close(scores.columns["a"], alone.outcome.x_0[:, 0].double())
    assert 0 <= float(scores.total[top]) <= 1
    assert float(scores.total[top]) == max(alone.trace.records[-1]["totals"])
    assert "state" not in alone.outcome.extra


def test_ranks_of_one_reward_choose_as_the_reward_does():
    problem, model = mixture("quadratic", steps=10)

    def columns(x, features):
        return {"r": problem.reward(x), "function": 0 * x[:, 0]}

    ranked = FunctionReward(columns)
    ranked.ranked = ("r",)
    for search in SEARCHES:
        jobs = jobs_for(model, ["a"], search)
        [by_rank], [by_reward] = run(model, ranked, jobs), run(model, problem.reward, jobs)
        torch.testing.assert_close(by_rank.outcome.x_0, by_reward.outcome.x_0)
        assert float(by_rank.outcome.scores.total) == 1.0


@pytest.mark.parametrize(
    "search", [FKSteering(), AutoSMC(), ZeNO()], ids=lambda s: type(s).__name__
)
def test_a_fixed_target_is_refused_ranks(search):
    _, model = mixture(steps=10)
    with pytest.raises(MissingAbility, match=r"needs a fixed target.*'function'.*ranks candidates"):
        run(model, two_rewards(), jobs_for(model, ["a"], search))


@pytest.mark.parametrize(
    "search", [RBF(), BestOfN(4, start=TopB())], ids=lambda s: type(s).__name__
)
def test_searches_that_compare_scores_one_by_one_are_refused_ranks(search):
    _, model = mixture(steps=10)
    with pytest.raises(MissingAbility, match="a score of each candidate alone"):
        run(model, two_rewards(), jobs_for(model, ["a"], search))


def test_a_state_holds_no_ranks():
    problem, model = mixture(steps=10)
    [first] = run(model, problem.reward, jobs_for(model, ["a"], BestOfN(2)))
    search = BestOfN(4, state=first.outcome.extra["state"])
    with pytest.raises(SearchFailed, match="cannot go on from a state"):
        run(model, two_rewards(), jobs_for(model, ["a"], search))


def red(name="r"):
    return PythonFunction(lambda x, _: x[:, 0].mean((1, 2)), name=name, differentiable=True)


def test_mean_rank_of_members():
    reward = MeanRank({"one": red(), "two": red()})
    assert (reward.ranked, reward.calls_per_row, reward.differentiable) == (
        ("one", "two"),
        2,
        False,
    )
    columns = reward(torch.rand(3, 3, 8, 8), [reward.prepare(Item("a"))] * 3)
    assert list(columns) == ["one", "two", "mean-rank"]
    assert columns["mean-rank"].tolist() == [0.0] * 3
    with pytest.raises(ValueError, match=r"'inner' ranks candidates.*name its members"):
        WeightedSum({"inner": reward})
    _, model = mixture(steps=10)
    with pytest.raises(ValueError, match="held-out reward 'judge' ranks candidates"):
        Engine(model, red(), held_out={"judge": reward})


def test_mean_rank_on_the_embedded_pipeline(shapes_sd, shapes_clip):
    from steering import SteeredPipeline

    reward = MeanRank({"clip": shapes_clip, "red": red()})
    search = ZeroOrder(rounds=2, neighbours=2)
    steered = SteeredPipeline(shapes_sd, sampler=search, reward=reward, seed=0)
    out = steered("a red ring", num_inference_steps=4)
    assert set(out.steering.scores[0]) == {"clip", "red", "mean-rank"}
    assert 0.5 <= out.steering.scores[0]["mean-rank"] <= 1
    assert out.steering.usage.reward_calls == 2 * 5
