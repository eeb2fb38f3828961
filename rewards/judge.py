"""Weights of several rewards, fitted so that their sum agrees with a judge."""

from __future__ import annotations

import itertools
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from rewards.base import RewardModel
from rewards.ensemble import WeightedSum

Method = Literal["nnls", "grid"]
Array = NDArray[np.float64]
#: what a metric may weigh in the published calibration
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_ON_GRID = 8


@dataclass(frozen=True)
class JudgeFit:
    """Weights that make a sum of standardised rewards agree with a judge.

    Attributes:
        names: of the rewards.
        weights: not negative, summing to 1, of ``(r - mean) / std``.
        means: of each reward over the candidates.
        stds: their standard deviations, within groups where there were any.
        correlation: Pearson's, of the sum with the judge over the candidates that were fitted.
        validated: the same on candidates that were left out of the fit, averaged over folds; None
            where there were too few.
        alone: Pearson's correlation of each reward alone with the judge.
        method: how it was fitted.
        samples: candidates.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    correlation: float
    validated: float | None
    alone: tuple[float, ...]
    method: str
    samples: int

    def save(self, path: str | Path) -> None:
        """Write to a JSON file."""
        Path(path).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: str | Path) -> JudgeFit:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        record = json.loads(Path(path).read_text())
        if not isinstance(record, dict) or set(record) != {f.name for f in fields(cls)}:
            raise ValueError(f"{path} holds no fit to a judge; write it with JudgeFit.save")
        for name in ("names", "weights", "means", "stds", "alone"):
            record[name] = tuple(record[name])
        return cls(**record)


def fit_to_judge(
    scores: Mapping[str, Sequence[float] | Tensor],
    judge: Sequence[float] | Tensor,
    *,
    method: Method = "nnls",
    groups: Sequence[Hashable] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> JudgeFit:
    """Non-negative weights of named rewards that maximise Pearson's correlation with a judge.

    The reward calibration of diffusion latent beam search (Oshima et al. 2025, 2501.19252) tries every
    combination of weights 0, 1/4, .., 1: ``"grid"``, here of standardised rewards. ``"nnls"`` finds the
    optimum itself: over a cone of weights, the residual of least squares on standardised columns is
    smallest where the correlation is greatest.

    Args:
        scores: of the same candidates by each reward, ``(n,)`` each.
        judge: what they ought to be, ``(n,)``.
        method: ``"nnls"`` or ``"grid"``.
        groups: prompt of each candidate; then only differences within a prompt count, which are all
            that a search compares, and prompts are left out whole in the validation.
        folds: of the cross-validation.
        seed: of the division into folds.

    Raises:
        ValueError: lengths differ, a score is not finite, there are not more candidates than rewards, a
            reward or the judge is constant, or none agrees with the judge.
    """
    names = tuple(scores)
    columns, target = _table(names, scores, judge)
    known = None if groups is None else _labels(groups, len(target))
    means = columns.mean(0)
    columns, target = _centred(columns, known), _centred(target[:, None], known)[:, 0]
    free = len(target) - (1 if known is None else len(np.unique(known)))
    _check(names, columns, target, means, free)
    if method not in ("nnls", "grid"):
        raise ValueError(f"method must be 'nnls' or 'grid', got {method!r}")
    if method == "grid" and len(names) > MOST_ON_GRID:
        raise ValueError(
            f"the grid has {len(LEVELS)}^{len(names)} points; use method='nnls' for more than "
            f"{MOST_ON_GRID} rewards"
        )
    stds = np.sqrt((columns**2).sum(0) / free)
    alone = tuple(_correlation(c, target) for c in columns.T)
    weights = _weights(method, columns / stds, target)
    if weights is None:
        told = ", ".join(f"{n} {a:.2f}" for n, a in zip(names, alone, strict=True))
        raise ValueError(f"no reward agrees with the judge: correlations are {told}")
    return JudgeFit(
        names,
        tuple(float(w) for w in weights),
        tuple(float(m) for m in means),
        tuple(float(s) for s in stds),
        _correlation(columns / stds @ weights, target),
        _validated(method, columns, target, known, folds, seed),
        alone,
        method,
        len(target),
    )


class CalibratedSum(WeightedSum):
    """Sum of standardised rewards with the weights of a fit to a judge.

    Scores are named columns: every member's as it is, and the total under the ensemble's name.

    Args:
        members: rewards by the names of the fit; others are only reported.
        fit: from :func:`fit_to_judge`, or the file in which it was saved.
        name: of the total.

    Raises:
        ValueError: the fit has a weight for a reward that is no member.
    """

    def __init__(
        self,
        members: dict[str, RewardModel],
        fit: JudgeFit | str | Path,
        *,
        name: str = "calibrated-sum",
    ) -> None:
        self.fit = fit if isinstance(fit, JudgeFit) else JudgeFit.load(fit)
        per_name = zip(self.fit.names, self.fit.weights, self.fit.stds, strict=True)
        weights = {n: w / s for n, w, s in per_name if w or n in members}
        missing = [n for n in weights if n not in members]
        if missing:
            raise ValueError(
                f"the fit weighs {', '.join(missing)}, but the members are {', '.join(members)}"
            )
        super().__init__(members, {m: weights.get(m, 0.0) for m in members}, name=name)
        means = dict(zip(self.fit.names, self.fit.means, strict=True))
        self.offset = sum(w * means[n] for n, w in weights.items())
        if self.range is not None:
            self.range = self.range[0] - self.offset, self.range[1] - self.offset

    def __repr__(self) -> str:
        return f"CalibratedSum({self.members!r}, {self.fit!r}, name={self.name!r})"

    def score(self, media: Tensor, features: Sequence[tuple[Any, ...]]) -> Mapping[str, Tensor]:
        """Named columns ``(B,)`` and their standardised, weighted total."""
        columns = dict(super().score(media, features))
        columns[self.name] = columns[self.name] - self.offset
        return columns


def _table(names: tuple[str, ...], scores: Mapping[str, Any], judge: Any) -> tuple[Array, Array]:
    """Scores ``(n, rewards)`` and the judge's ``(n,)``."""
    target = _numbers("the judge", judge)
    if not names:
        raise ValueError("a fit needs at least one reward, got none")
    columns = [_numbers(repr(name), scores[name]) for name in names]
    for name, column in zip(names, columns, strict=True):
        if len(column) != len(target):
            raise ValueError(f"{name!r} has {len(column)} scores, the judge {len(target)}")
    if len(target) <= max(len(names), 2):
        raise ValueError(
            f"{len(target)} candidates cannot tell the weights of {len(names)} reward(s) apart; give at "
            f"least {max(len(names), 2) + 1}, better ten for each reward"
        )
    return np.stack(columns, 1), target


def _numbers(who: str, values: Any) -> Array:
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"scores of {who} must be a list of finite numbers, one a candidate")
    return array


def _check(names: tuple[str, ...], columns: Array, target: Array, means: Array, free: int) -> None:
    """Refuse what tells nothing."""
    if free < len(names):
        raise ValueError(
            f"{free} differences within groups cannot tell the weights of {len(names)} reward(s) apart; "
            "give more candidates of each prompt"
        )
    scale = np.abs(means) + np.abs(columns).max(0)
    flat = [n for n, c, s in zip(names, columns.T, scale, strict=True) if _flat(c, s)]
    if flat:
        raise ValueError(f"constant over the candidates: {', '.join(flat)}; leave out what is")
    if _flat(target, float(np.abs(target).max())):
        raise ValueError("the judge's scores are constant over the candidates")


def _flat(centred: Array, scale: float) -> bool:
    return bool(np.abs(centred).max() <= 1e-12 * scale)


def _labels(groups: Sequence[Hashable], count: int) -> NDArray[np.int64]:
    if len(groups) != count:
        raise ValueError(f"{len(groups)} groups for {count} candidates; give one each")
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(g, len(number)) for g in groups], dtype=np.int64)


def _centred(columns: Array, groups: NDArray[np.int64] | None) -> Array:
    """Columns ``(n, m)`` less their mean, or that of their group."""
    if groups is None:
        return columns - columns.mean(0)
    sums = np.zeros((groups.max() + 1, columns.shape[1]))
    np.add.at(sums, groups, columns)
    return columns - (sums / np.bincount(groups)[:, None])[groups]


def _weights(method: str, columns: Array, target: Array) -> Array | None:
    """Weights summing to 1 of centred columns; None where none agrees with the target."""
    if method == "nnls":
        weights = nnls(columns, target)[0]
    else:
        choices = np.array(list(itertools.product(LEVELS, repeat=columns.shape[1])))[1:]
        spread = np.sqrt(np.einsum("cm,mn,cn->c", choices, columns.T @ columns, choices))
        agreement = choices @ (columns.T @ target) / np.maximum(spread, 1e-300)
        best = int(np.argmax(np.round(agreement / np.linalg.norm(target), 12)))
        weights = choices[best] if agreement[best] > 0 else np.zeros(columns.shape[1])
    total = weights.sum()
    return weights / total if total > 0 else None


def _validated(
    method: str,
    columns: Array,
    target: Array,
    groups: NDArray[np.int64] | None,
    folds: int,
    seed: int,
) -> float | None:
    """Mean correlation on folds that were left out; None where there are too few candidates."""
    units = np.arange(len(target)) if groups is None else groups
    count = int(units.max()) + 1
    folds = min(folds, count if groups is not None else len(target) // 3)
    if folds < 2:
        return None
    place = np.random.default_rng(seed).permutation(count) % folds
    found, sizes = [], []
    for fold in range(folds):
        out = place[units] == fold
        seen, held, told = columns[~out], columns[out], target[~out]
        seen, told = seen - seen.mean(0), told - told.mean()
        stds = np.sqrt((seen**2).mean(0))
        if not (stds > 0).all() or not np.abs(told).max() > 0:
            continue
        weights = _weights(method, seen / stds, told)
        if weights is None:
            weights = np.zeros(columns.shape[1])
        found.append(_correlation(held / stds @ weights, target[out]))
        sizes.append(int(out.sum()))
    return float(np.average(found, weights=sizes)) if found else None


def _correlation(a: Array, b: Array) -> float:
    """Pearson's; 0 where either is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 0 else 0.0
