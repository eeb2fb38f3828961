"""Intervals of means over prompts, by bootstrap."""

from __future__ import annotations

import numpy as np
from scipy import stats

RESAMPLES = 4000


def interval(by_prompt: np.ndarray, *, share: bool = False) -> tuple[float, float]:
    """95 % interval of a mean over prompts, by bootstrap; the seeds of a prompt are not independent.

    Args:
        by_prompt: one figure a prompt ``(P,)``.
        share: whether the figures lie in [0, 1]; where all agree Wilson's interval is given then.
    """
    count = len(by_prompt)
    if share and len(np.unique(by_prompt)) == 1:
        wins = round(float(by_prompt.sum()))
        wilson = stats.binomtest(wins, count).proportion_ci(method="wilson")
        return float(wilson.low), float(wilson.high)
    picks = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    low, high = np.quantile(np.asarray(by_prompt)[picks].mean(1), [0.025, 0.975])
    return float(low), float(high)


def paired(gap: np.ndarray) -> tuple[float, float, float] | None:
    """Mean of differences ``(P,)``, one a prompt, and its 95 % interval; None for fewer than two."""
    return (float(gap.mean()), *interval(gap)) if len(gap) > 1 else None
