"""Intervals of means over prompts, by bootstrap."""

from __future__ import annotations

import numpy as np
from scipy import stats

RESAMPLES = 4000
_AT_ONCE = 4_000_000  # figures


def interval(
    by_prompt: np.ndarray, *, share: bool = False, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % interval of a mean over prompts, by bootstrap; the seeds of a prompt are not independent.

    Args:
        by_prompt: one figure a prompt ``(P,)``.
        share: whether the figures lie in [0, 1]; where all agree Wilson's interval is given then.
        resamples: of the bootstrap.
    """
    by_prompt = np.asarray(by_prompt)
    count = len(by_prompt)
    if share and len(np.unique(by_prompt)) == 1:
        wins = round(float(by_prompt.sum()))
        wilson = stats.binomtest(wins, count).proportion_ci(method="wilson")
        return float(wilson.low), float(wilson.high)
    random = np.random.default_rng(0)
    step = max(1, _AT_ONCE // count)  # in parts, for many prompts would fill the memory
    means = [
        by_prompt[random.integers(count, size=(min(step, resamples - done), count))].mean(1)
        for done in range(0, resamples, step)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def paired(gap: np.ndarray) -> tuple[float, float, float] | None:
    """Mean of differences ``(P,)``, one a prompt, and its 95 % interval; None for fewer than two."""
    return (float(gap.mean()), *interval(gap)) if len(gap) > 1 else None
