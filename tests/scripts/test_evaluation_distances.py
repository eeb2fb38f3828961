"""Distances between sets of features, against closed forms, brute force and the libraries' own."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import poly_kernel, poly_mmd

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield


@pytest.fixture(scope="module")
def distances():
    return importlib.import_module("evaluation.distances")


@pytest.fixture(scope="module")
def intervals():
    return importlib.import_module("evaluation.intervals")


def normal(n, d, *, seed, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double() + shift


def gaussian(a, b, width=2.0):
    return torch.exp(-torch.cdist(a, b).square() / (2 * width**2))


def test_mmd_is_torchmetrics_for_sets_of_one_size(distances):
    x, y = normal(40, 6, seed=0), normal(40, 6, seed=1, shift=0.3)
    assert float(distances.mmd(x, y, poly_kernel)) == pytest.approx(float(poly_mmd(y, x)))


def test_mmd_is_unbiased_for_sets_of_different_sizes(distances):
    """Of N(0, 1) and N(s, 1) under a Gaussian kernel it is known in closed form."""
    width, shift = 2.0, 1.0
    norm = math.sqrt(width**2 / (width**2 + 2))
    exact = 2 * norm * (1 - math.exp(-(shift**2) / (2 * (width**2 + 2))))
    values = [
        float(
            distances.mmd(normal(8, 1, seed=i), normal(5, 1, seed=9000 + i, shift=shift), gaussian)
        )
        for i in range(2000)
    ]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - exact) < 3 * error
    assert error < 0.1 * exact


def test_mmd_of_resamples_is_that_of_the_pictures_drawn(distances, monkeypatch):
    x, y = normal(9, 3, seed=0), normal(7, 3, seed=1)
    counts = distances.counts(9, 5)
    assert counts.sum(1).tolist() == [9] * 5
    drawn = [x.repeat_interleave(row.long(), dim=0) for row in counts]
    whole = torch.cat([distances.mmd(rows, y, gaussian) for rows in drawn])
    assert torch.allclose(distances.mmd(x, y, gaussian, counts), whole)
    monkeypatch.setattr(distances, "_BLOCK", 2)
    assert torch.allclose(distances.mmd(x, y, gaussian, counts), whole)


def test_cmmd_of_two_points_on_the_sphere(distances):
    """All embeddings of a side equal and at right angles: 1000 * 2 * (1 - exp(-1 / 100))."""
    x, y = torch.tensor([[3.0, 0.0]] * 4), torch.tensor([[0.0, 0.5]] * 6)
    assert float(distances.cmmd(x, y)) == pytest.approx(2000 * (1 - math.exp(-0.01)))
    assert float(distances.cmmd(x, x)) == pytest.approx(0, abs=1e-9)


def test_covered_is_brute_force(distances, monkeypatch):
    monkeypatch.setattr(distances, "_BLOCK", 7)
    points, centres = normal(30, 2, seed=0, shift=1.0), normal(20, 2, seed=1)
    found = distances.covered(points, centres, neighbours=3)
    for point, inside in zip(points, found, strict=True):
        want = False
        for i, centre in enumerate(centres):
            others = sorted(float((centre - c).norm()) for j, c in enumerate(centres) if j != i)
            want |= float((point - centre).norm()) <= others[2]
        assert bool(inside) == want
    assert 0 < int(found.sum()) < 30
    assert distances.covered(centres, centres).all()


def test_precision_and_recall_are_torch_fidelitys(distances):
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    made, real = normal(60, 4, seed=2, shift=0.7), normal(50, 4, seed=3)
    precision, recall = prc.calculate_precision_recall_full(made, real, neighborhood=3)
    assert float(distances.covered(made, real).double().mean()) == pytest.approx(precision)
    assert float(distances.covered(real, made).double().mean()) == pytest.approx(recall)


@pytest.mark.parametrize("n", [5, 40])
def test_frechet_of_resamples_is_torchmetrics(distances, n):
    x, y = normal(n, 8, seed=0, shift=0.5), normal(30, 8, seed=1)
    counts = distances.counts(n, 4)
    found = distances.frechet(x, y.mean(0), y.T.cov(), counts)
    for row, value in zip(counts, found, strict=True):
        same = torch.nn.Identity()
        same.num_features = 8
        metric = FrechetInceptionDistance(same)
        metric.update(y, real=True)
        metric.update(x.repeat_interleave(row.long(), dim=0), real=False)
        assert float(value) == pytest.approx(float(metric.compute()), abs=1e-5)


def test_frechet_of_two_gaussians_on_a_line(distances):
    """(m1 - m2)^2 + (s1 - s2)^2."""
    x = torch.tensor([[0.0], [2.0], [4.0]])  # mean 2, deviation 2
    value = distances.frechet(
        x, torch.tensor([5.0]).double(), torch.eye(1).double(), torch.ones(1, 3).double()
    )
    assert float(value) == pytest.approx(9 + 1)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torchmetrics' about one split
def test_inception_score_of_resamples_is_torchmetrics(distances):
    logits = normal(12, 5, seed=0)
    counts = distances.counts(12, 3)
    for row, value in zip(counts, distances.inception_scores(logits, counts), strict=True):
        same = torch.nn.Identity()
        metric = InceptionScore(same, splits=1)
        metric.update(logits.repeat_interleave(row.long(), dim=0))
        assert float(value) == pytest.approx(float(metric.compute()[0]))
    sure = 50 * torch.eye(4)  # as many classes as pictures, and no doubt
    assert float(distances.inception_scores(sure, torch.ones(1, 4).double())) == pytest.approx(4)


@pytest.mark.slow
def test_intervals_of_a_distance_hold_what_they_promise(distances, intervals):
    """Over many sets of pictures, the interval covers the distance's own mean about 95 % of times."""
    y = normal(400, 2, seed=-1)
    mean, covariance = y.mean(0), y.T.cov()
    values, ends = [], []
    for seed in range(200):
        x = normal(100, 2, seed=seed, shift=0.4)
        values.append(float(distances.frechet(x, mean, covariance, torch.ones(1, 100).double())))
        draws = distances.frechet(x, mean, covariance, distances.counts(100, 200)).numpy()
        ends.append(intervals.centred(values[-1], draws))
    low, high = np.array(ends).T
    middle = np.mean(values)
    assert 0.88 < np.mean((low <= middle) & (middle <= high)) < 0.99
