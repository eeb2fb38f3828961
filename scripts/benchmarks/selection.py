"""What one pool of candidates tells of searches by selection: best of any N, best of the majority."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage


def winning_chances(pool: int, n: int) -> np.ndarray:
    """Chance of each rank, worst first, to be the best of ``n`` drawn without replacement ``(pool,)``.

    Rank i of K wins if the other ``n - 1`` are among the i - 1 below: C(i - 1, n - 1) / C(K, n).

    Raises:
        ValueError: ``n`` is not from 1 to ``pool``.
    """
    if not 1 <= n <= pool:
        raise ValueError(f"n must be from 1 to the pool's {pool} candidates, got {n}")
    every = math.comb(pool, n)
    return np.array([math.comb(below, n - 1) / every for below in range(pool)])


def expected_winner(searched: np.ndarray, judged: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Mean score of the best of N over all subsets of a pool, for each N: no subset is drawn.

    Unbiased for best of N with fresh candidates. Of those that tie for the best, each wins as often.

    Args:
        searched: reward by which the best is chosen ``(K,)``.
        judged: score that is asked for, ``(K,)``; ``searched`` itself or one that was held out.
        sizes: the N, each from 1 to K.

    Returns:
        A mean for each size ``(len(sizes),)``.

    Raises:
        ValueError: a size that is not from 1 to K, or scores of different lengths.
    """
    searched, judged = np.asarray(searched, float), np.asarray(judged, float)
    if searched.ndim != 1 or searched.shape != judged.shape:
        raise ValueError(
            f"both scores must be of one shape (K,), got {searched.shape} and {judged.shape}"
        )
    _, group, counts = np.unique(searched, return_inverse=True, return_counts=True)
    tied = (np.bincount(group, judged) / counts)[group]
    ascending = tied[np.argsort(searched, kind="stable")]
    return np.array([winning_chances(len(searched), n) @ ascending for n in sizes])


def best_of_majority(
    rewards: np.ndarray, features: np.ndarray, *, radius: float = 0.1, share: float = 0.1
) -> int:
    """Index of the best by reward among candidates that are not alone in what they show.

    Best-of-Majority (2510.03199) keeps frequent answers, then takes the best by reward; pictures are
    the same answer here if average linkage joins their features. If no cluster is frequent, the
    largest are kept.

    Args:
        rewards: of the candidates ``(K,)``.
        features: their features ``(K, D)``, none of them nought.
        radius: mean cosine distance up to which clusters are joined.
        share: of the candidates that a cluster must hold.

    Raises:
        ValueError: no candidates, or not as many features as rewards.
    """
    if not len(rewards) or len(rewards) != len(features):
        raise ValueError(
            f"one row of features a reward is needed, got {len(features)} for {len(rewards)} rewards"
        )
    if len(rewards) == 1:
        return 0
    cluster = fcluster(linkage(features, "average", "cosine"), radius, "distance")
    size = np.bincount(cluster)[cluster]
    frequent = size >= min(share * len(rewards), size.max())
    return int(np.where(frequent, rewards, -np.inf).argmax())
