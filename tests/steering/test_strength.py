import math

import pytest
import torch
from helpers import jobs_for, mixture, run

from steering.engine import Engine
from steering.pilot import BaseSamples, calibrate
from steering.reward import Item
from steering.strength import Calibration, Strength, pilot_prompts


def normal_calibration(spread=2.0, count=20_000):
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    rewards = spread * math.sqrt(2) * torch.erfinv(2 * grid - 1)
    return Calibration.of("m", "r", [rewards])


def test_units_on_a_normal_reward():
    """Tilting N(0, s^2) by lambda: KL = (lambda s)^2 / 2; ESS share = exp(-(lambda s)^2)."""
    known = normal_calibration()
    assert known.spread == pytest.approx(2.0, rel=1e-3)
    assert Strength(4.0).lam(lambda: known) == pytest.approx(2.0, rel=1e-3)
    assert Strength(0.5, "kl").lam(lambda: known) == pytest.approx(0.5, rel=1e-2)
    assert Strength(math.exp(-0.25), "ess").lam(lambda: known) == pytest.approx(0.25, rel=1e-2)


def test_raw_and_zero_need_no_calibration():
    def never():
        raise AssertionError("no calibration is needed")

    assert Strength(3.0, "raw").lam(never) == 3.0
    assert Strength(0.0).lam(never) == 0.0


def test_a_shift_of_the_reward_changes_nothing():
    rewards = [torch.randn(8, dtype=torch.float64) for _ in range(3)]
    a = Calibration.of("m", "r", rewards)
    b = Calibration.of("m", "r", [r + 100 * i for i, r in enumerate(rewards)])
    for strength in (Strength(2.0), Strength(0.3, "kl"), Strength(0.5, "ess")):
        assert strength.lam(lambda: a) == pytest.approx(strength.lam(lambda: b), rel=1e-6)


def test_what_cannot_be_solved_is_an_error():
    flat = Calibration.of("m", "flat", [torch.ones(8)])
    with pytest.raises(ValueError, match="'flat' does not vary"):
        Strength(2.0).lam(lambda: flat)
    few = Calibration.of("m", "r", [torch.tensor([0.0, 1.0])])
    with pytest.raises(ValueError, match="lower it"):
        Strength(50.0, "kl").lam(lambda: few)


@pytest.mark.parametrize(
    "options", [{"value": -1.0}, {"value": math.nan}, {"unit": "x"}, {"value": 2.0, "unit": "ess"}]
)
def test_bad_strengths_are_refused(options):
    with pytest.raises(ValueError, match="got"):
        Strength(**options)


def test_saved_and_found_again(tmp_path):
    known = Calibration.of("a/b", "r:1", [torch.tensor([0.0, 1.0, 4.0])])
    assert Calibration.find("a/b", "r:1", [tmp_path]) is None
    known.save(tmp_path)
    assert Calibration.find("a/b", "r:1", [tmp_path / "none", tmp_path]) == known


def test_the_pilot_takes_the_same_prompts_in_any_order():
    keys = [f"text:0:{i}" for i in range(20)]
    chosen = {keys[i] for i in pilot_prompts(keys)}
    turned = keys[::-1]
    assert {turned[i] for i in pilot_prompts(turned)} == chosen
    assert len(chosen) == 4


def test_a_pilot_measures_the_base_and_counts():
    problem, model = mixture(steps=10)
    engine = Engine(model, problem.reward)
    some = [(Item(str(i)), str(i), h) for i, h in enumerate(model.encode(["a", "b", "c"]))]
    known = calibrate(engine, some, seed=0, samples=200)
    base = problem.reward(problem.mixture.sample(20_000)).double()
    assert known.spread == pytest.approx(float(base.std()), rel=0.1)
    assert engine.usage.nfe == 3 * 200 * 10
    assert engine.usage.renders == 0


def test_a_pilot_shares_no_random_numbers_with_the_search():
    problem, model = mixture(steps=10)
    jobs = jobs_for(model, ["a"], BaseSamples(2), seed=0)
    [first] = run(model, problem.reward, jobs)
    engine = Engine(model, problem.reward)
    apart = calibrate(engine, [(Item("a"), jobs[0].key, None)], seed=0, samples=2)
    totals = first.outcome.scores.total
    centred = torch.tensor(apart.centred, dtype=torch.float64)
    assert not torch.allclose(centred, totals - totals.mean())
