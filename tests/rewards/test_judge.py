"""Weights fitted to a judge: the optimum, its validation, what is refused, the reward it makes."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from rewards import CalibratedSum, JudgeFit, PythonFunction, fit_to_judge
from rewards.testing import check_reward
from steering.reward import Item

RANDOM = np.random.default_rng(0)
METRICS = {
    name: RANDOM.normal(size=300) * s + m
    for name, s, m in [("a", 1, 0), ("b", 50, 7), ("c", 0.1, -3)]
}
JUDGE = METRICS["a"] + 0.02 * METRICS["b"] * 0.5 - 2 * METRICS["c"] + 0.3 * RANDOM.normal(size=300)


def pearson(weights, names="abc", judge=JUDGE):
    z = [(METRICS[n] - METRICS[n].mean()) / METRICS[n].std() for n in names]
    return np.corrcoef(np.array(weights) @ np.array(z), judge)[0, 1]


def test_nnls_is_the_best_of_all_weights():
    fit = fit_to_judge(METRICS, JUDGE)
    assert fit.weights[2] == 0  # it agrees the other way round
    assert sum(fit.weights) == pytest.approx(1)
    assert fit.correlation == pytest.approx(pearson(fit.weights))
    others = RANDOM.dirichlet(np.ones(3), size=3000)
    assert fit.correlation >= max(pearson(w) for w in others) - 1e-12
    assert fit.alone == pytest.approx([pearson([1.0], n) for n in "abc"])


def test_the_grid_is_the_best_of_the_published_weights():
    fit = fit_to_judge(METRICS, JUDGE, method="grid")
    choices = list(itertools.product((0, 0.25, 0.5, 0.75, 1), repeat=3))[1:]
    assert fit.correlation == pytest.approx(max(pearson(w) for w in choices))
    assert fit.correlation <= fit_to_judge(METRICS, JUDGE).correlation
    assert sum(fit.weights) == pytest.approx(1)


@pytest.mark.parametrize("method", ["nnls", "grid"])
def test_weights_that_made_the_judge_are_found(method):
    z = {n: (v - v.mean()) / v.std(ddof=1) for n, v in METRICS.items()}
    judge = 3 * (0.25 * z["a"] + 0.5 * z["b"] + 0.25 * z["c"]) + 9
    fit = fit_to_judge(METRICS, judge, method=method)
    assert fit.weights == pytest.approx((0.25, 0.5, 0.25), abs=1e-6)
    assert fit.correlation == pytest.approx(1)
    assert fit.validated == pytest.approx(1, abs=1e-3)  # folds have deviations of their own


def test_units_of_a_metric_change_nothing():
    a = fit_to_judge(METRICS, JUDGE)
    b = fit_to_judge({n: 1000 * v - 5 for n, v in METRICS.items()}, 3 * JUDGE)
    assert a.weights == pytest.approx(b.weights)
    assert a.validated == pytest.approx(b.validated)


def test_validation_shows_what_was_fitted_to_noise():
    random = np.random.default_rng(1)
    fits = [
        fit_to_judge({str(i): random.normal(size=30) for i in range(12)}, random.normal(size=30))
        for _ in range(20)
    ]
    assert np.mean([fit.correlation for fit in fits]) > 0.4
    assert abs(np.mean([fit.validated for fit in fits])) < 0.15
    honest = fit_to_judge(METRICS, JUDGE)
    assert abs(honest.validated - honest.correlation) < 0.05
    assert fit_to_judge({"a": [1.0, 2, 3, 5]}, [1.0, 2, 4, 4]).validated is None


def test_only_differences_within_a_prompt_count():
    """A metric that follows the difficulty of prompts and tells nothing within one gets no weight."""
    prompt = np.repeat(np.arange(30), 10)
    hard = RANDOM.normal(size=30)[prompt] * 10
    useful = RANDOM.normal(size=300)
    scores = {"useful": useful, "difficulty": hard + RANDOM.normal(size=300) * 0.01}
    judge = hard + useful + 0.1 * RANDOM.normal(size=300)
    pooled = fit_to_judge(scores, judge)
    within = fit_to_judge(scores, judge, groups=prompt.tolist())
    assert pooled.weights[1] > 0.8
    assert within.weights[0] > 0.9
    assert within.validated == pytest.approx(within.correlation, abs=0.05)
    assert within.stds[1] == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize(
    ("scores", "judge", "options", "message"),
    [
        ({}, [1.0, 2, 3], {}, "at least one reward"),
        (
            {"a": [1.0, 2, 3], "b": [1.0, 3, 2], "c": [0.0, 1, 1]},
            [1.0, 2, 3],
            {},
            "3 candidates cannot",
        ),
        ({"a": [1.0, 2]}, [1.0, 2], {}, "at least 3"),
        ({"a": [1.0, 2, 3], "b": [4.0] * 3}, [1.0, 2, 3], {}, "constant over the candidates: b"),
        ({"a": [1.0, 2, 3]}, [1.0] * 3, {}, "judge's scores are constant"),
        ({"a": [1.0, 2, 3]}, [1.0, 2], {}, "'a' has 3 scores, the judge 2"),
        ({"a": [1.0, 2, float("nan")]}, [1.0, 2, 3], {}, "scores of 'a' must be a list of finite"),
        ({"a": [1.0, 2, 3]}, [[1.0], [2], [3]], {}, "scores of the judge"),
        ({"a": [1.0, 2, 3]}, [3.0, 2, 1], {}, "no reward agrees with the judge: .*a -1.00"),
        ({"a": [1.0, 2, 3]}, [3.0, 2, 1], {"method": "grid"}, "no reward agrees"),
        ({"a": [1.0, 2, 3]}, [1.0, 2, 3], {"method": "lasso"}, "method must be"),
        ({"a": [1.0, 2, 3]}, [1.0, 2, 3], {"groups": ["p"]}, "1 groups for 3 candidates"),
        ({"a": [1.0, 2, 3]}, [1.0, 2, 3], {"groups": "xyz"}, "differences within groups"),
        (
            {str(i): RANDOM.normal(size=20) for i in range(9)},
            RANDOM.normal(size=20),
            {"method": "grid"},
            r"5\^9 points; use method='nnls'",
        ),
    ],
)
def test_what_tells_nothing_is_refused(scores, judge, options, message):
    with pytest.raises(ValueError, match=message):
        fit_to_judge(scores, judge, **options)


def test_it_is_saved_and_read(tmp_path):
    fit = fit_to_judge(METRICS, torch.tensor(JUDGE))
    fit.save(tmp_path / "fit.json")
    assert JudgeFit.load(tmp_path / "fit.json") == fit
    (tmp_path / "fit.json").write_text(json.dumps({"weights": [1]}))
    with pytest.raises(ValueError, match="holds no fit to a judge"):
        JudgeFit.load(tmp_path / "fit.json")


# ---- the reward


MEDIA = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
ITEMS = [Item(p) for p in "abcdef"]


def red(**options):
    return PythonFunction(lambda x, _: x[:, 0].square().mean((1, 2)), name="r", **options)


def green(**options):
    return PythonFunction(lambda x, _: 40 * x[:, 1].mean((1, 2)) + 3, name="g", **options)


def fitted(a, b):
    columns = {"red": a(MEDIA, [""] * 6).double(), "green": b(MEDIA, [""] * 6).double()}
    judge = sum(
        (c - c.mean()) / c.std() * w for c, w in zip(columns.values(), (0.7, 0.3), strict=True)
    )
    return columns, fit_to_judge(columns, judge)


def test_the_reward_is_the_standardised_sum(tmp_path):
    columns, fit = fitted(red(), green())
    fit.save(tmp_path / "fit.json")
    for given in (fit, tmp_path / "fit.json", str(tmp_path / "fit.json")):
        reward = CalibratedSum({"red": red(), "green": green()}, given)
        found = reward(MEDIA, [reward.prepare(item) for item in ITEMS])
        expected = sum(
            w * (c - c.mean()) / c.std() for w, c in zip((0.7, 0.3), columns.values(), strict=True)
        )
        torch.testing.assert_close(found["calibrated-sum"].double(), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found["green"].double(), columns["green"])


def test_its_abilities_and_its_key():
    _, fit = fitted(red(), green())
    members = {"red": red(differentiable=True), "green": green(differentiable=True)}
    check_reward(CalibratedSum(members, fit), MEDIA, ITEMS)
    other = JudgeFit(**{**fit.__dict__, "weights": (0.5, 0.5)})
    assert CalibratedSum(members, fit).key != CalibratedSum(members, other).key
    bounded = red()
    bounded.range = (0.0, 1.0)
    alone = JudgeFit(("red",), (1.0,), (0.5,), (0.25,), 1.0, None, (1.0,), "nnls", 9)
    assert CalibratedSum({"red": bounded}, alone).range == (-2.0, 2.0)


def test_a_weighed_reward_that_is_missing_is_named():
    _, fit = fitted(red(), green())
    with pytest.raises(ValueError, match="the fit weighs green, but the members are red"):
        CalibratedSum({"red": red()}, fit)
    silent = JudgeFit(**{**fit.__dict__, "weights": (1.0, 0.0)})
    assert CalibratedSum({"red": red()}, silent).weights.keys() == {"red"}


def test_the_example_of_its_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "judge.md"
    [code] = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    found = {}
    exec(compile(code, str(page), "exec"), found)
    assert found["fit"].weights[0] > 0.5
    reward = found["reward"]
    assert reward(MEDIA, [reward.prepare(item) for item in ITEMS])["calibrated-sum"].shape == (6,)
