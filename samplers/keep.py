"""Which candidates go on: the best, or a set that is good and not all of one kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.nn import functional

from steering.requests import Request, Score, Scores

#: Features of predicted clean states: ``(n, *shape)`` to ``(n, d)``.
Features = Callable[[Tensor], Tensor]


class Keep(ABC):
    """Chooses which of some candidates go on. Thin: options are its fields."""

    @property
    def fills(self) -> bool:
        """Whether it always keeps as many as it may, so that what follows has a known cost."""
        return True

    @property
    def embeds(self) -> bool:
        """Whether it goes by the reward's features, which are then given in place of states."""
        return False

    @abstractmethod
    def __call__(self, reward: Tensor, x_0: Tensor, n: int) -> Tensor:
        """Rows that are kept, best first.

        Args:
            reward: of each candidate, float64 ``(k,)``; minus infinity where it is impossible.
            x_0: their predicted clean states, ``(k, *shape)``; where :attr:`embeds`, the reward's
                features of what was scored, ``(k, d)``.
            n: most that may be kept.

        Returns:
            Indices on the CPU, ``(min(n, k),)``, or fewer where :attr:`fills` is False.
        """


@dataclass(frozen=True)
class Best(Keep):
    """Those of the highest reward; of equals the first."""

    def __call__(self, reward: Tensor, x_0: Tensor, n: int) -> Tensor:
        return torch.argsort(reward, descending=True, stable=True)[:n]


@dataclass(frozen=True)
class Diverse(Keep):
    """The set of the greatest total reward, with a bonus for every kind of candidate in it.

    Maximises ``sum (r_i - min r) / std r + bonus (clusters met) - price (number kept)`` over the sets
    that may be kept, as the pruning of ETS does for language models (Hooper et al. 2025, 2502.13575,
    by a linear programme). Clusters do not overlap, so the optimum is exact and cheap: the best of
    every cluster gains the bonus, and the highest of the sums are taken. Standardising the reward makes
    the two numbers carry over from one reward to another, and to other noise levels.

    Attributes:
        bonus: what a further cluster is worth, in standard deviations of the reward over candidates.
        price: what a kept candidate costs, in the same unit: those worth less than it are dropped
            even where there is room, all but the best. 0 fills every place.
        distance: average cosine distance between features, in [0, 2], at which clusters are apart.
        features: ``"reward"``: those of the reward's own encoder, which has run already; a function of
            predicted clean states ``(k, *shape)``, one row each; None averages the state over cells
            of a coarse grid, for rewards that embed nothing.
    """

    bonus: float = 1.0
    price: float = 0.0
    distance: float = 0.3
    features: Features | Literal["reward"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.features, str) and self.features != "reward":
            raise ValueError(f"features must be 'reward' or a function, got {self.features!r}")
        for name in ("bonus", "price"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.distance <= 2:
            raise ValueError(
                f"distance is a cosine distance and must lie in [0, 2], got {self.distance}"
            )

    @property
    def fills(self) -> bool:
        """Whether nothing is dropped for its price."""
        return self.price == 0

    @property
    def embeds(self) -> bool:
        """Whether features are the reward's."""
        return self.features == "reward"

    def __call__(self, reward: Tensor, x_0: Tensor, n: int) -> Tensor:
        features = self._features(x_0)
        if features.ndim != 2 or len(features) != len(reward):
            raise ValueError(
                f"features must return one row for each of {len(reward)} candidates, got "
                f"{tuple(features.shape)}"
            )
        worth = standardised(reward) + self.bonus * leads(reward, clusters(features, self.distance))
        order = torch.argsort(worth, descending=True, stable=True)[:n]
        pays = worth[order] >= self.price
        pays[0] = True
        return order[pays]

    def _features(self, x_0: Tensor) -> Tensor:
        if isinstance(self.features, str):  # given in the place of states
            return x_0
        return pooled(x_0) if self.features is None else self.features(x_0)


def kept(
    rule: Keep, value: Generator[Request, Any, Tensor], x_0: Tensor, n: int
) -> Generator[Request, Any, tuple[Tensor, Tensor]]:
    """Values of candidates and the rows of them that go on.

    Args:
        rule: which.
        value: a running estimate of what candidates are worth; where the rule goes by the reward's
            features, whatever the estimate has scored is embedded, too (the mean over several
            continuations of a candidate).
        x_0: predicted clean states ``(k, *shape)``.
        n: most that go on.
    """
    if not rule.embeds:
        reward = yield from value
        return reward, rule(reward, x_0, n)
    seen: Tensor | None = None
    try:
        request = next(value)
        while True:
            if isinstance(request, Score):
                request = replace(request, embed=True)
            answer = yield request
            if isinstance(answer, Scores):
                seen = answer.embedding
            request = value.send(answer)
    except StopIteration as stop:
        reward = stop.value
    assert seen is not None
    features = seen.unflatten(0, (len(x_0), -1)).mean(1)
    return reward, rule(reward, features, n)


def keeper(keep: Keep | Literal["best"]) -> Keep:
    """The rule, which may go by a name."""
    return Best() if isinstance(keep, str) else keep


def standardised(reward: Tensor) -> Tensor:
    """``(r - min r) / std r`` over the possible candidates, ``(k,)``; 0 if all are equal."""
    finite = torch.isfinite(reward)
    known = reward[finite]
    if len(known) < 2 or not float(known.std()) > 0:
        return torch.where(finite, 0.0, reward)
    return (reward - known.min()) / known.std()


def leads(reward: Tensor, labels: Tensor) -> Tensor:
    """1 for the best possible candidate of every cluster, else 0, float64 ``(k,)``."""
    found = torch.zeros(len(reward), dtype=torch.float64)
    for label in torch.unique(labels):
        members = torch.nonzero(labels == label)[:, 0]
        best = members[reward[members].argmax()]
        found[best] = float(torch.isfinite(reward[best]))
    return found


def clusters(features: Tensor, distance: float) -> Tensor:
    """Label of each row ``(n, d)``, by agglomeration on the average cosine distance: ``(n,)``.

    Raises:
        ValueError: a feature is not finite.
    """
    rows = features.detach().flatten(1).double().cpu()
    if not torch.isfinite(rows).all():
        bad = int(torch.nonzero(~torch.isfinite(rows).all(1))[0])
        raise ValueError(f"features of candidate {bad} are not finite")
    if len(rows) < 2:
        return torch.zeros(len(rows), dtype=torch.long)
    unit = functional.normalize(rows, dim=1).numpy()
    apart = np.clip(1 - unit @ unit.T, 0, 2)
    np.fill_diagonal(apart, 0)
    tree = linkage(squareform(apart, checks=False), method="average")
    return torch.from_numpy(fcluster(tree, t=distance, criterion="distance").astype(np.int64))


def pooled(x_0: Tensor, cells: int = 4) -> Tensor:
    """Averages over a coarse grid of ``cells`` along each axis but the channels, ``(n, d)``.

    States are ``(n, C, H, W)``, ``(n, C, F, H, W)`` for a video, ``(n, tokens, C)`` where they are
    packed (whose tokens are averaged in ``cells^2`` runs), or ``(n, d)``, which is left alone.
    """
    if x_0.ndim == 3:
        length = min(cells**2, x_0.shape[1])
        return functional.adaptive_avg_pool1d(x_0.mT, length).flatten(1)
    size = tuple(min(cells, s) for s in x_0.shape[2:])
    if len(size) == 2:
        return functional.adaptive_avg_pool2d(x_0, size).flatten(1)
    if len(size) == 3:
        return functional.adaptive_avg_pool3d(x_0, size).flatten(1)
    return x_0.flatten(1)
