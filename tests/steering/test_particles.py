import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from steering.particles import RESAMPLERS, UNBIASED, Weights

DRAWS = 4000
resamplers = pytest.mark.parametrize("resampler", RESAMPLERS.values(), ids=RESAMPLERS.keys())
unbiased = pytest.mark.parametrize("resampler", [RESAMPLERS[n] for n in UNBIASED], ids=UNBIASED)
bounded = pytest.mark.parametrize("name", ["systematic", "ssp"])
relaxed = settings(deadline=None, max_examples=200)


def uniforms(k: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def offspring(resampler, weights: torch.Tensor, draws: int, n: int | None = None) -> torch.Tensor:
    """Children of each particle in each of many independent draws, ``(draws, k)``."""
    k = len(weights)
    n = n or k
    u = torch.rand(
        draws, max(k, n), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    return torch.stack(
        [torch.bincount(resampler(weights, row, n), minlength=k) for row in u]
    ).double()


weight_lists = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-300, 1e300), st.floats(0.01, 100)), min_size=1, max_size=40
).filter(lambda w: sum(w) > 0)


def normalised(raw: list[float]) -> torch.Tensor:
    return torch.softmax(torch.tensor(raw, dtype=torch.float64).log(), 0)


@resamplers
@relaxed
@given(raw=weight_lists, seed=st.integers(0, 2**32))
def test_any_weights_give_k_living_ancestors(resampler, raw, seed):
    weights = normalised(raw)
    ancestors = resampler(weights, uniforms(len(raw), seed), len(raw))
    assert ancestors.shape == (len(raw),)
    assert ancestors.dtype == torch.int64
    assert bool((ancestors[1:] >= ancestors[:-1]).all())
    assert bool((weights[ancestors] > 0).all()), "a particle of zero weight was chosen"


@bounded
@relaxed
@given(raw=weight_lists, seed=st.integers(0, 2**32))
def test_children_lie_between_floor_and_ceil(name, raw, seed):
    weights = normalised(raw)
    k = len(weights)
    children = torch.bincount(RESAMPLERS[name](weights, uniforms(k, seed), k), minlength=k)
    assert bool((children >= torch.floor(k * weights - 1e-9)).all())
    assert bool((children <= torch.ceil(k * weights + 1e-9)).all())


@relaxed
@given(raw=weight_lists, seed=st.integers(0, 2**32))
def test_residual_keeps_the_sure_children(raw, seed):
    weights = normalised(raw)
    k = len(weights)
    children = torch.bincount(RESAMPLERS["residual"](weights, uniforms(k, seed), k), minlength=k)
    assert bool((children >= torch.floor(k * weights - 1e-9)).all())


@unbiased
@pytest.mark.parametrize("n", [None, 3, 11])
@pytest.mark.parametrize(
    "raw",
    [[0.1, 0.2, 0.3, 0.4], [5, 1, 1, 1, 0, 3, 0.2], [1e-3, 1, 1e-3, 1], [1] * 8],
    ids=["rising", "zero inside", "tiny", "equal"],
)
def test_resampling_is_unbiased(resampler, raw, n):
    """Mean children against n w, also for more or fewer children than particles.

    Within 4.5 standard errors: one false alarm in 150,000.
    """
    weights = normalised(raw)
    children = offspring(resampler, weights, DRAWS, n)
    assert bool((children.sum(1) == (n or len(weights))).all())
    expected = (n or len(weights)) * weights
    error = children.mean(0) - expected
    rare = torch.where(expected < 0.1, expected, 0.0)  # too few to estimate their own variance
    bound = 4.5 * torch.maximum(children.var(0), rare).sqrt() / math.sqrt(DRAWS) + 1e-9
    assert bool((error.abs() <= bound).all()), (error, bound)


def test_multinomial_children_follow_the_multinomial_law():
    weights = normalised([1, 2, 3, 4])
    children = offspring(RESAMPLERS["multinomial"], weights, DRAWS)
    counts = torch.bincount(children[:, 3].long(), minlength=5).numpy()
    expected = DRAWS * stats.binom.pmf(range(5), 4, 0.4)
    assert stats.chisquare(counts, expected).pvalue > 1e-5


def test_every_scheme_is_at_most_as_noisy_as_multinomial():
    weights = normalised([1, 2, 3, 4, 5, 6, 7])
    noise = {
        name: float(offspring(resampler, weights, 1000).var(0).sum())
        for name, resampler in RESAMPLERS.items()
        if name not in ("single", "greedy")
    }
    for name in ("systematic", "stratified", "residual", "ssp"):
        assert noise[name] < 0.8 * noise["multinomial"]


def test_ssp_children_are_negatively_associated():
    children = offspring(RESAMPLERS["ssp"], normalised([0.3, 0.5, 0.7, 0.5]), DRAWS)
    covariance = torch.cov(children.T)
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    assert float(off_diagonal.max()) < 0.02


@resamplers
def test_one_particle_is_its_own_ancestor(resampler):
    assert resampler(torch.ones(1, dtype=torch.float64), uniforms(1), 1).tolist() == [0]


@resamplers
def test_all_weight_on_one_particle(resampler):
    for winner in range(5):
        weights = torch.zeros(5, dtype=torch.float64)
        weights[winner] = 1
        assert resampler(weights, uniforms(5), 5).tolist() == [winner] * 5


@resamplers
@pytest.mark.parametrize("u", [0.0, math.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("k", [3, 7, 49, 1000])
def test_uniforms_at_the_edges_of_their_range(resampler, u, k):
    weights = normalised([1.0] * (k - 1) + [0.0])
    ancestors = resampler(weights, torch.full((k,), u, dtype=torch.float64), k)
    assert len(ancestors) == k
    assert int(ancestors.max()) < k - 1
    assert int(ancestors.min()) >= 0


@bounded
@pytest.mark.parametrize("k", [2, 10, 16, 997])
def test_equal_weights_leave_every_particle_in_place(name, k):
    weights = Weights.uniform(k).normalised
    for seed in range(20):
        assert RESAMPLERS[name](weights, uniforms(k, seed), k).tolist() == list(range(k))


def test_evidence_is_carried_through_resampling():
    first = torch.tensor([0.1, -0.4, 0.7], dtype=torch.float64)
    second = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    kept = Weights.uniform(3).times(first)
    assert kept.log_z == pytest.approx(math.log(float(first.exp().mean())))
    ancestors, after = kept.resample(RESAMPLERS["systematic"], uniforms(3))
    assert after.log_z == pytest.approx(kept.log_z)
    assert torch.equal(after.log_w, torch.zeros(3, dtype=torch.float64))
    expected = kept.log_z + math.log(float(second[ancestors].exp().mean()))
    assert after.times(second[ancestors]).log_z == pytest.approx(expected)


@pytest.mark.parametrize("power", [1.0, 0.4])
@pytest.mark.parametrize("n", [4, 2, 7])
def test_the_evidence_estimate_is_unbiased(power, n):
    """Mean of Z-hat over many runs of two multiplications with resampling between them."""
    generator = torch.Generator().manual_seed(2)
    estimates = []
    for _ in range(4000):
        x = torch.randn(4, dtype=torch.float64, generator=generator)
        ancestors, weights = (
            Weights.uniform(4)
            .times(0.7 * x)
            .resample(
                RESAMPLERS["systematic"],
                torch.rand(max(4, n), dtype=torch.float64, generator=generator),
                n,
                power,
            )
        )
        estimates.append(math.exp(weights.times(0.3 * x[ancestors]).log_z))
    z = torch.tensor(estimates)
    assert float(z.mean()) == pytest.approx(math.exp(0.5), abs=4 * float(z.std()) / math.sqrt(4000))


def test_effective_sample_size():
    assert Weights.uniform(7).ess == pytest.approx(7)
    two = torch.tensor([0.0, 0.0, -math.inf, -math.inf], dtype=torch.float64)
    assert Weights.uniform(4).times(two).ess == pytest.approx(2)


def test_huge_log_weights_neither_overflow_nor_vanish():
    weights = Weights.uniform(3).times(torch.tensor([1e5, 1e5 - 1, -1e5], dtype=torch.float64))
    assert weights.normalised[0] == pytest.approx(1 / (1 + math.exp(-1)))
    assert weights.log_z == pytest.approx(1e5 + math.log((1 + math.exp(-1)) / 3))
    _, after = weights.resample(RESAMPLERS["systematic"], uniforms(3))
    assert after.log_z == pytest.approx(weights.log_z)


def test_a_common_factor_changes_the_evidence_only():
    factor = torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64)
    plain, shifted = Weights.uniform(3).times(factor), Weights.uniform(3).times(factor + 1000)
    torch.testing.assert_close(shifted.normalised, plain.normalised, rtol=1e-10, atol=0)
    assert shifted.log_z == pytest.approx(plain.log_z + 1000)


def test_float32_factors_are_accumulated_in_float64():
    weights = Weights.uniform(2).times(torch.tensor([1.0, 2.0], dtype=torch.float32))
    assert weights.log_w.dtype == torch.float64


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinite_weights_name_the_particle(bad):
    with pytest.raises(ValueError, match="particle 1"):
        Weights.uniform(3).times(torch.tensor([0.0, bad, 0.0], dtype=torch.float64))


def test_all_weights_zero_is_an_error_that_says_what_to_do():
    dead = torch.full((3,), -math.inf, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"all weights are zero.*lower lambda"):
        Weights.uniform(3).times(dead)
    one = torch.tensor([-math.inf, 0.0, -math.inf], dtype=torch.float64)
    ancestors, _ = Weights.uniform(3).times(one).resample(RESAMPLERS["ssp"], uniforms(3))
    assert ancestors.tolist() == [1, 1, 1]


def test_the_part_of_a_weight_that_was_not_applied_is_carried():
    weights = Weights.uniform(4).times(torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64))
    ancestors, after = weights.resample(RESAMPLERS["systematic"], uniforms(4), power=0.25)
    torch.testing.assert_close(after.log_w, 0.75 * weights.log_w[ancestors])


@pytest.mark.parametrize("name", ["single", "greedy"])
def test_one_lineage_survives(name):
    ancestors = RESAMPLERS[name](normalised([1, 5, 2]), uniforms(3), 3)
    assert len(set(ancestors.tolist())) == 1
    assert name != "greedy" or ancestors[0] == 1
