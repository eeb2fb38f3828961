"""Sampling paths: the interpolant that is sampled in, apart from the one a model was trained in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

from steering.interpolants import Interpolant, VPLinear
from steering.times import Time, TimeGrid

Warp = Literal["uniform", "rbf"]


@dataclass(frozen=True)
class SamplingPath:
    """Noise levels spaced evenly along another interpolant than the model's own.

    A variance-preserving path stays noisy for longer than the straight line of a rectified flow, so
    that children drawn from one state differ more: the interpolant conversion of rollover budget
    forcing (Kim et al. 2025, 2503.19385). The network stays the same: a state is denoised at the time
    of equal signal-to-noise ratio, after rescaling.

    Attributes:
        interpolant: the path sampled in.
        warp: how its time is spaced: ``"uniform"``, or ``"rbf"``, the spacing
            ``t -> sqrt(1 - (1 - t)^2)`` of that paper, which takes smaller steps where noise is high.
    """

    interpolant: Interpolant = field(default_factory=VPLinear)
    warp: Warp = "uniform"

    def __post_init__(self) -> None:
        if not isinstance(self.interpolant, Interpolant):
            raise TypeError(
                f"interpolant must be a steering.interpolants.Interpolant, such as VPLinear(), got "
                f"{self.interpolant!r}"
            )
        if self.warp not in get_args(Warp):
            raise ValueError(f"warp must be one of {get_args(Warp)}, got {self.warp!r}")

    def lay(self, grid: TimeGrid, at: Callable[[float], Time]) -> TimeGrid:
        """A grid of as many steps along this path.

        Args:
            grid: the model's own; its first and last records are kept, so that initial noise and
                finished state keep their meaning and unit.
            at: record of a noise level as the network is told it, :meth:`steering.model.Model.at`.

        Returns:
            Inner times spaced by the warp between the ends, with alpha and sigma in the path's scale.
            Where the path does not reach as far as the grid (pure noise, say), they are spaced from
            the path's own end.

        Raises:
            ValueError: the path lies outside the grid's noise levels, or float arithmetic cannot tell
                so many levels apart.
        """
        start, end = (self.interpolant.nearest_t(grid[i].log_snr) for i in (0, -1))
        shares = [self._warped(1 - i / grid.steps) for i in range(1, grid.steps)]
        inner = [self._record(end + (start - end) * share, at) for share in shares]
        times = (grid[0], *inner, grid[-1])
        if any(not t.log_snr < s.log_snr for t, s in pairwise(times)):
            raise ValueError(
                f"{self.interpolant} cannot be laid between log-SNR {grid[0].log_snr} and "
                f"{grid[-1].log_snr} in {grid.steps} steps; choose a path that covers these levels"
            )
        return TimeGrid(times)

    def _record(self, t: float, at: Callable[[float], Time]) -> Time:
        time = self.interpolant.time(t)
        return Time(at(time.log_snr).model_t, time.alpha, time.sigma)

    def _warped(self, share: float) -> float:
        return share if self.warp == "uniform" else math.sqrt(1 - (1 - share) ** 2)
