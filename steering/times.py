"""Time records and grids: what a noise level is, free of any scheduler's step index."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Time:
    """One noise level of the state ``x_t = alpha x_0 + sigma eps``.

    Attributes:
        model_t: the time as the network is told it (a scheduler's ``timestep``).
        alpha: signal coefficient, at least 0.
        sigma: noise standard deviation, at least 0; not both are 0.
    """

    model_t: float
    alpha: float
    sigma: float

    def __post_init__(self) -> None:
        if not (self.alpha >= 0 and self.sigma >= 0 and 0 < self.alpha + self.sigma < math.inf):
            raise ValueError(
                "a time needs finite alpha >= 0 and sigma >= 0, not both 0; got "
                f"alpha={self.alpha}, sigma={self.sigma}"
            )

    @property
    def log_snr(self) -> float:
        """log(alpha^2 / sigma^2); +inf without noise, -inf without signal."""
        if self.sigma == 0:
            return math.inf
        return -math.inf if self.alpha == 0 else 2.0 * math.log(self.alpha / self.sigma)


@dataclass(frozen=True)
class TimeGrid:
    """Noise levels from the noisiest to the end point, the end point included.

    ``grid[0]`` is where sampling starts, ``grid[-1]`` where it ends; ``grid.steps`` transitions lie
    between them. The end need not be noise-free (Stable Diffusion's DDIM ends at sigma 0.029).
    """

    times: tuple[Time, ...]

    def __post_init__(self) -> None:
        if len(self.times) < 2:
            raise ValueError(
                f"a grid needs at least a start and an end, got {len(self.times)} time(s)"
            )
        for early, late in zip(self.times, self.times[1:], strict=False):
            if not early.log_snr < late.log_snr:
                raise ValueError(
                    f"times must lose noise at every step; {early} is followed by {late}"
                )

    @property
    def steps(self) -> int:
        """Number of transitions."""
        return len(self.times) - 1

    def __len__(self) -> int:
        return len(self.times)

    def __iter__(self) -> Iterator[Time]:
        return iter(self.times)

    @overload
    def __getitem__(self, index: int) -> Time: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Time, ...]: ...
    def __getitem__(self, index: int | slice) -> Time | tuple[Time, ...]:
        return self.times[index]


def coefficients(
    times: Time | Sequence[Time], like: Tensor
) -> tuple[Tensor | float, Tensor | float]:
    """Alpha and sigma ready to multiply a state.

    Args:
        times: one time for all rows, or one a row.
        like: state ``(n, *shape)`` whose device, dtype and rank the result follows.

    Returns:
        ``(alpha, sigma)``: floats for a single time, else tensors ``(n, 1, ...)``, even if all times
        are equal: a row must not change by a bit because its neighbours are at other times.

    Raises:
        ValueError: when the number of times is not the number of rows.
    """
    if isinstance(times, Time):
        return times.alpha, times.sigma
    if len(times) != like.shape[0]:
        raise ValueError(
            f"{len(times)} times for {like.shape[0]} rows; give one time, or one a row"
        )
    return column([t.alpha for t in times], like), column([t.sigma for t in times], like)


def column(values: Sequence[float], like: Tensor) -> Tensor:
    """Floats as a tensor ``(n, 1, ...)`` that broadcasts over the rows of ``like``."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(
        -1, *[1] * (like.ndim - 1)
    )
