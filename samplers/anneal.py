"""By which power of the weights to resample: less than all of them while rewards are uncertain.

Entropic particle filtering (2510.05825) resamples by ``w ** (1 / tau)`` with a temperature ``tau``
that is high early and where few particles hold the weight, in the first half of the way. Its code
drops the rest of the weight; here it is carried, so that the search stays exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch

from steering.particles import Weights

AnnealingName = Literal["none", "ess", "entropy", "linear"]


def _ess(weights: Weights, progress: float) -> float:
    return max(1.0, len(weights) / weights.ess * (1 - progress))


def _entropy(weights: Weights, progress: float) -> float:
    if len(weights) == 1:
        return 1.0
    w = weights.normalised
    entropy = float(torch.special.entr(w).sum()) / math.log(len(weights))
    return max(1.0, 1 / max(entropy + (1 - entropy) * progress, 1e-12))


def _linear(weights: Weights, progress: float) -> float:
    return max(1.0, 2 - progress)


#: Temperature tau of the weights, from the weights and the progress in [0, 1].
ANNEALING: dict[str, Callable[[Weights, float], float]] = {
    "none": lambda weights, progress: 1.0,
    "ess": _ess,
    "entropy": _entropy,
    "linear": _linear,
}


def power(name: AnnealingName, weights: Weights, progress: float, until: float = 0.5) -> float:
    """Power of the weights to resample by, in (0, 1].

    Args:
        name: ``"none"``; ``"ess"``: tau = (k / ESS)(1 - p); ``"entropy"``: 1 / (H + (1 - H) p), H the
            normalised entropy of the weights; ``"linear"``: 2 - p. All at least 1.
        weights: of the particles.
        progress: share p of the way that is done.
        until: share of the way after which weights count in full.
    """
    return 1.0 if progress >= until else 1 / ANNEALING[name](weights, progress)
