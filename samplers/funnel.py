"""Numbers of particles over time: many early, few late, at equal denoiser calls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def sizes(base: int, steps: int, looks: Sequence[int], ratio: float) -> list[int]:
    """Particles at each step of a funnel; they change only where rewards are looked at.

    The number falls linearly from the start to the end, their ratio being ``ratio`` and their mean
    ``base``; it is rounded down, so that the calls never exceed ``base * steps``. The schedule of
    2508.12361 (many particles early, few late) in its simplest form: their formula is not known to us.

    Args:
        base: particles of the equally expensive search without a funnel.
        steps: transitions of the grid.
        looks: steps at which rewards are looked at; the number after a look holds until the next.
        ratio: particles at the start per particle at the end, at least 1.

    Returns:
        One number for each step, at least 1.
    """
    if ratio == 1 or base == 1:
        return [base] * steps
    first, last = 2 * ratio / (1 + ratio), 2 / (1 + ratio)
    edges = [0, *[i + 1 for i in looks if 0 < i + 1 < steps], steps]
    found: list[int] = []
    for begin, end in pairwise(edges):
        share = 0.5 * (begin + end) / steps
        found += [max(1, int(base * (first + (last - first) * share)))] * (end - begin)
    return found
