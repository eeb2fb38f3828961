"""The metrics: what each needs, which way is better, and how it comes out of cached columns.

A further metric is one function of `Evidence` and one entry of `METRICS`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance, poly_kernel

from evaluation import distances
from evaluation.inputs import Run
from evaluation.models import Extractor
from evaluation.reference import Statistics
from evaluation.workers import Columns

NEIGHBOURS = 3  # of precision and recall
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID, torchmetrics' own


@dataclass(frozen=True)
class Options:
    """What the metrics leave open.

    Attributes:
        resamples: of the bootstrap.
        fid_resamples: of FID's, each of which takes the eigenvalues of a large matrix.
    """

    resamples: int
    fid_resamples: int


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was gathered about a run.

    Attributes:
        run: its files, prompts and kinds.
        columns: what the models said, by name, in the order of the files.
        model: name of the model that the metric is computed with.
        extractor: that model, where it gives features.
        reference: its statistics of the real pictures, if there are any.
        options: of all metrics.
    """

    run: Run
    columns: Columns
    model: str
    extractor: Extractor | None
    reference: Statistics | None
    options: Options

    @property
    def features(self) -> Tensor:
        """Of the run's pictures, ``(n, D)``."""
        return self.columns[f"features:{self.model}"]

    @property
    def real(self) -> Tensor:
        """Of the reference, ``(m, D)``."""
        return self.reference.need_features()


@dataclass(frozen=True, eq=False)
class Items:
    """A metric that is a mean.

    Attributes:
        values: one an item ``(n,)``.
        keys: what items belong to; the bootstrap draws keys, and runs are compared by key.
        unit: what a key is: "prompt", "picture", "reference picture".
        label: name in the tables, or None for the metric's.
        floor: least value that the mean may take.
    """

    values: Tensor
    keys: list[str]
    unit: str
    label: str | None = None
    floor: float = -float("inf")


@dataclass(frozen=True, eq=False)
class OfSet:
    """A metric of all pictures together: its value, and those of resamples ``(R,)``."""

    value: float
    replicates: np.ndarray
    note: str | None = None


Measured = Items | OfSet
Model = Literal["features", "clip", "inception", "lpips", "reward", "none"]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        measure: computes it.
        model: what it is computed with: one row for each that was chosen.
        needs: "prompts", "reference" (pictures or statistics), "copies" (several of a prompt).
        better: "higher" or "lower".
        least: fewest pictures, on both sides if there is a reference.
        source: where it is from.
    """

    measure: Callable[[Evidence], list[Measured]]
    model: Model
    needs: frozenset[str]
    better: Literal["higher", "lower"]
    source: str
    least: int = 1


def clip_score(evidence: Evidence) -> list[Measured]:
    """100 times the cosine of picture and prompt; a negative mean counts as 0, as in torchmetrics."""
    prompts = evidence.run.prompts
    distinct = list(dict.fromkeys(prompts))
    texts = torch.cat(
        [evidence.extractor.pair.embed(distinct[i : i + 32]) for i in range(0, len(distinct), 32)]
    )
    place = {prompt: i for i, prompt in enumerate(distinct)}
    own = texts.cpu()[[place[prompt] for prompt in prompts]]
    values = 100 * torch.cosine_similarity(evidence.features.double(), own.double())
    return [Items(values, prompts, "prompt", floor=0.0)]


def fid(evidence: Evidence) -> list[Measured]:
    """Torchmetrics' value, from the features and the reference's mean and covariance."""
    features, real = evidence.features, evidence.reference
    metric = FrechetInceptionDistance(_as_given(features))
    metric.update(features, real=False)
    metric.orig_dtype = torch.float64
    n = real.count
    metric.real_features_num_samples.fill_(n)
    metric.real_features_sum.copy_(real.mean * n)
    metric.real_features_cov_sum.copy_(
        real.covariance * (n - 1) + n * torch.outer(real.mean, real.mean)
    )
    value = float(metric.compute())
    draws = distances.counts(len(features), evidence.options.fid_resamples)
    replicates = distances.frechet(features, real.mean, real.covariance, draws)
    note, fewest, size = None, min(len(features), n), features.shape[1]
    if fewest <= size:
        note = (
            f"{fewest} pictures for {size} features: their covariance is singular and FID is biased "
            "upwards; compare only with figures from as many pictures, or use more of them"
        )
    return [OfSet(value, replicates.numpy(), note)]


def kid(evidence: Evidence) -> list[Measured]:
    """Torchmetrics' value: the mean over random subsets."""
    features, real = evidence.features, evidence.real
    size = min(len(features), len(real), SUBSET_SIZE)
    metric = _quiet(
        KernelInceptionDistance, _as_given(features), subsets=SUBSETS, subset_size=size
    ).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(features.double(), real=False)
    value = float(_seeded(metric.compute)[0])
    draws = distances.counts(len(features), evidence.options.resamples)
    return [OfSet(value, distances.mmd(features, real, poly_kernel, draws).numpy())]


def cmmd(evidence: Evidence) -> list[Measured]:
    """See `distances.cmmd`."""
    features, real = evidence.features, evidence.real
    draws = distances.counts(len(features), evidence.options.resamples)
    value = float(distances.cmmd(features, real))
    return [OfSet(value, distances.cmmd(features, real, draws).numpy())]


def inception_score(evidence: Evidence) -> list[Measured]:
    """Torchmetrics' value, in one split."""
    logits = evidence.columns[f"logits:{evidence.model}"].double()
    metric = _quiet(InceptionScore, _as_given(logits), splits=1)
    metric.update(logits)
    value = float(_seeded(lambda: _quiet(metric.compute))[0])
    draws = distances.counts(len(logits), evidence.options.resamples)
    return [OfSet(value, distances.inception_scores(logits, draws).numpy())]


def precision(evidence: Evidence) -> list[Measured]:
    """Share of pictures on the reference's manifold."""
    inside = distances.covered(evidence.features, evidence.real, neighbours=NEIGHBOURS)
    return [Items(inside.double(), evidence.run.names, "picture")]


def recall(evidence: Evidence) -> list[Measured]:
    """Share of the reference on the pictures' manifold."""
    inside = distances.covered(evidence.real, evidence.features, neighbours=NEIGHBOURS)
    return [Items(inside.double(), [str(i) for i in range(len(inside))], "reference picture")]


def diversity(evidence: Evidence) -> list[Measured]:
    """One minus the cosine of any two pictures of a prompt."""
    pairs = torch.tensor(evidence.run.pairs)
    first, second = evidence.features.double()[pairs.T]
    values = 1 - torch.cosine_similarity(first, second)
    return [Items(values, _pair_prompts(evidence), "prompt")]


def lpips(evidence: Evidence) -> list[Measured]:
    """LPIPS of any two pictures of a prompt."""
    return [Items(evidence.columns["lpips"], _pair_prompts(evidence), "prompt")]


def reward(evidence: Evidence) -> list[Measured]:
    """Each column of a reward."""
    head = f"reward:{evidence.model}:"
    return [
        Items(values, evidence.run.prompts, "prompt", name.removeprefix(head))
        for name, values in evidence.columns.items()
        if name.startswith(head)
    ]


def accuracy(evidence: Evidence) -> list[Measured]:
    """Share of pictures that show exactly their prompt."""
    return [Items(evidence.columns["accuracy"], evidence.run.prompts, "prompt")]


def _need(*what: str) -> frozenset[str]:
    return frozenset(what)


METRICS: Mapping[str, Metric] = {
    "clip-score": Metric(
        clip_score, "clip", _need("prompts"), "higher", "Hessel et al. 2021, 2104.08718"
    ),
    "fid": Metric(
        fid, "features", _need("reference"), "lower", "Heusel et al. 2017, 1706.08500", 2
    ),
    "kid": Metric(
        kid, "features", _need("reference"), "lower", "Bińkowski et al. 2018, 1801.01401", 2
    ),
    "cmmd": Metric(
        cmmd, "clip", _need("reference"), "lower", "Jayasumana et al. 2024, 2401.09603", 2
    ),
    "is": Metric(
        inception_score, "inception", _need(), "higher", "Salimans et al. 2016, 1606.03498", 2
    ),
    "precision": Metric(
        precision,
        "features",
        _need("reference"),
        "higher",
        "Kynkäänniemi et al. 2019, 1904.06991",
        NEIGHBOURS + 1,
    ),
    "recall": Metric(
        recall,
        "features",
        _need("reference"),
        "higher",
        "Kynkäänniemi et al. 2019, 1904.06991",
        NEIGHBOURS + 1,
    ),
    "diversity": Metric(
        diversity, "features", _need("prompts", "copies"), "higher", "cosine distance of features"
    ),
    "lpips": Metric(
        lpips, "lpips", _need("prompts", "copies"), "higher", "Zhang et al. 2018, 1801.03924"
    ),
    "reward": Metric(reward, "reward", _need("prompts"), "higher", "the reward's own page"),
    "accuracy": Metric(
        accuracy, "none", _need("prompts", "shapes"), "higher", "Ghosh et al. 2023, 2310.11513"
    ),
}


def _pair_prompts(evidence: Evidence) -> list[str]:
    return [evidence.run.prompts[a] for a, _ in evidence.run.pairs]


def _as_given(features: Tensor) -> nn.Module:
    """For torchmetrics: an extractor of features that are there already."""
    same = nn.Identity()
    same.num_features = features.shape[1]
    return same


def _quiet(make: Callable, *args, **kwargs):
    """Without torchmetrics' warnings that features are kept, and that one split has no spread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return make(*args, **kwargs)


def _seeded(compute: Callable):
    """Torchmetrics permutes by the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return compute()
