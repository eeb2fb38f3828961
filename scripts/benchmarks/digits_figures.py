"""Figures of samples of digits: the Frechet distance in a judge's features, and what goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from digits_training.data import CLASSES, Digits
from digits_training.networks import Classifier
from torch import Tensor

from steering.cost import Usage

_BATCH = 2048
COSTS = ("nfe", "decodes", "reward_calls", "backwards")


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean ``(d,)`` and covariance ``(d, d)`` of weighted points, float64 on the CPU."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, points: Tensor, weights: Tensor | None = None) -> Moments:
        """Of points ``(n, d)`` with weights ``(n,)`` that sum to 1; None counts them alike.

        Weighted moments are those of infinitely many draws with replacement: drawing adds no noise.
        """
        points = points.double()
        if weights is None:
            weights = torch.full((len(points),), 1 / len(points), dtype=torch.float64)
        mean = weights @ points
        centred = points - mean
        return cls(mean, (weights[:, None] * centred).T @ centred)

    @classmethod
    def pooled(cls, parts: Sequence[Moments]) -> Moments:
        """Of the equal mixture of some laws."""
        mean = torch.stack([p.mean for p in parts]).mean(0)
        square = torch.stack([p.covariance + torch.outer(p.mean, p.mean) for p in parts]).mean(0)
        return cls(mean, square - torch.outer(mean, mean))


def frechet(a: Moments, b: Moments) -> float:
    """Squared Frechet distance of the Gaussians with these moments.

    ``|m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a^.5 C_b C_a^.5)^.5)`` (Dowson and Landau 1982), as in
    Heusel et al. 2017 (1706.08500). torchmetrics has it for unweighted pictures only, in single
    precision; the test compares with it. Few points make it too large: n points of the very same law
    are about ``tr(C) / n (1 + (d + 1) / 4)`` away where all d directions vary alike, the second part for
    their covariance.
    """
    root = _root(a.covariance)
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    traces = a.covariance.trace() + b.covariance.trace()
    return float((a.mean - b.mean).square().sum() + traces - 2 * cross)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@dataclass(frozen=True, eq=False)
class Judged:
    """What the judge sees of pictures.

    Attributes:
        features: of its last layer but one, float64 on the CPU ``(n, d)``.
        named: which digit it calls each, ``(n,)``.
    """

    features: Tensor
    named: Tensor


class Judge:
    """A classifier that judges, its features in units in which real digits have a variance of 1 in all.

    Args:
        classifier: never searched on.
        real: all real digits, on its device.
    """

    def __init__(self, classifier: Classifier, real: Digits) -> None:
        self.classifier, self.unit = classifier, 1.0
        features = self(real.images.float() / 255).features
        self.unit = float(features.var(0, correction=0).sum().sqrt())

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Judged:
        """What it sees of ``(n, 1, 28, 28)`` in [0, 1]."""
        features, named = [], []
        for part in pictures.split(_BATCH):
            seen = self.classifier.features(part)
            features.append(seen.double().cpu() / self.unit)
            named.append(self.classifier.head(seen).argmax(-1).cpu())
        return Judged(torch.cat(features), torch.cat(named))


@dataclass(frozen=True, eq=False)
class Reference:
    """What the samples of one target are compared with.

    Attributes:
        classes: the digits that are wanted.
        real: moments of the real ones.
        model: moments of the model's own tilted law, from many unsteered samples; None where there
            are none.
    """

    classes: tuple[int, ...]
    real: Moments
    model: Moments | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """Figures of one search.

    Attributes:
        moments: of its weighted samples.
        shares: weight of what the judge calls each digit, ``(10,)``.
        reward: weighted mean; None where it was not asked.
        ess: effective number of samples by weight.
        usage: what it spent; None where samples came from elsewhere.
    """

    moments: Moments
    shares: Tensor
    reward: float | None
    ess: float
    usage: Usage | None = None


def measure(
    seen: Judged, weights: Tensor, rewards: Tensor | None = None, usage: Usage | None = None
) -> Run:
    """Figures of weighted samples; ``weights`` and ``rewards`` are float64 ``(n,)``."""
    shares = torch.zeros(CLASSES, dtype=torch.float64).index_add_(0, seen.named, weights)
    moments, ess = Moments.of(seen.features, weights), float(1 / weights.square().sum())
    reward = None
    if rewards is not None:
        counted = weights > 0  # a reward of minus infinity may weigh nothing
        reward = float(weights[counted] @ rewards[counted])
    return Run(moments, shares, reward, ess, usage)


def summarise(runs: Sequence[Run], reference: Reference) -> dict[str, Any]:
    """Means over runs.

    ``fd`` is the mean of each run's own distance to the real digits, ``fd_pooled`` that of all runs'
    samples together, for which every budget pays alike: the first tells what one run gives, the second
    how far the law is off. ``fd_model`` is ``fd_pooled`` to the model's own tilted law, which an
    exact sampler reaches. ``right`` is the share that the judge names as asked; ``classes_tv`` half the
    summed difference between its shares of the ten digits and those wanted; ``diversity`` the trace of
    the covariance in shares of the real digits'.
    """
    distances = np.array([frechet(run.moments, reference.real) for run in runs])
    shares = torch.stack([run.shares for run in runs])
    wanted = torch.zeros(CLASSES, dtype=torch.float64)
    wanted[list(reference.classes)] = 1 / len(reference.classes)
    spread = float(reference.real.covariance.trace())
    pooled = Moments.pooled([run.moments for run in runs])
    right = shares[:, list(reference.classes)].sum(1)
    figures: dict[str, Any] = {
        "fd": float(distances.mean()),
        "fd_se": _error(distances),
        "fd_pooled": frechet(pooled, reference.real),
        "fd_model": None if reference.model is None else frechet(pooled, reference.model),
        "right": float(right.mean()),
        "right_se": _error(right.numpy()),
        "classes_tv": float(0.5 * (shares.mean(0) - wanted).abs().sum()),
        "diversity": float(np.mean([float(r.moments.covariance.trace()) for r in runs])) / spread,
        "diversity_pooled": float(pooled.covariance.trace()) / spread,
        "reward": _mean([run.reward for run in runs]),
        "ess": float(np.mean([run.ess for run in runs])),
    }
    for name in COSTS:
        figures[name] = _mean([getattr(run.usage, name, None) for run in runs])
    return figures


def references(
    real: Digits, judge: Judge, targets: dict[str, tuple[int, ...]]
) -> dict[str, Reference]:
    """The real digits of each target, all that there are."""
    seen = judge(real.images.float() / 255)
    labels = real.labels.cpu()
    return {
        name: Reference(
            classes, Moments.of(seen.features[torch.isin(labels, torch.tensor(classes))])
        )
        for name, classes in targets.items()
    }


def halves(
    real: Digits, judge: Judge, classes: tuple[int, ...], seed: int = 0
) -> tuple[Run, Reference]:
    """Half of a target's real digits as if it were samples, and the other half to compare it with."""
    runs = []
    for half in real.of(classes).split(0.5, seed):
        weights = torch.full((len(half),), 1 / len(half), dtype=torch.float64)
        seen = judge(half.images.float() / 255)
        runs.append(measure(seen, weights))
    return runs[0], Reference(classes, runs[1].moments)


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of numbers; None where one is missing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _error(values: np.ndarray) -> float | None:
    """Standard error of a mean; None of a single number."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
