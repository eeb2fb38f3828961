"""How a network is told the time: learned from the scheduler's time and what the network was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steering.adapters.checks import Refusal, relative

#: A map of the scheduler's time into the argument's dtype.
TimeMap = Callable[[Tensor, torch.dtype], Tensor]


@dataclass(frozen=True)
class TimeLeaf:
    """The argument that carries the time.

    Attributes:
        index: its place among the call's values.
        name: the map from the scheduler's time, for messages.
        convert: the map itself, of a row vector and the argument's dtype.
        dtype: dtype in which the network gets it.
        rest: further dimensions over which it is spread (tokens).
    """

    index: int
    name: str
    convert: TimeMap
    dtype: torch.dtype
    rest: tuple[int, ...] = ()

    def build(self, t: Tensor, blocks: int) -> Tensor:
        """The argument from times ``(n,)``: always a row vector, ``(blocks x n, *rest)``."""
        value = self.convert(t, self.dtype).repeat(blocks)
        if not self.rest:
            return value
        return value.reshape(-1, *[1] * len(self.rest)).expand(-1, *self.rest)


def find_time(
    index: int,
    name: str,
    values: Sequence[Any],
    timesteps: Sequence[Tensor],
    scales: dict[str, float],
) -> TimeLeaf:
    """The map from the scheduler's time to an argument, exact on every step.

    Args:
        index: the argument's place.
        name: its name, for messages.
        values: what was passed at each step.
        timesteps: the scheduler's time at each step.
        scales: numbers by which time may be divided or multiplied, by name.

    Raises:
        Refusal: no known map explains all steps.
    """
    if not all(torch.is_tensor(v) for v in values):
        raise Refusal(f"the network's argument {name} changes between steps but is no tensor")
    # float rows serve integer times too: between grid points there is no integer
    dtype = values[0].dtype if values[0].is_floating_point() else torch.float32
    for label, convert in _maps(scales):
        wanted = [
            convert(t.to(v.device, torch.float32).reshape(-1)[:1], dtype)
            for t, v in zip(timesteps, values, strict=True)
        ]
        if all(_near(v.to(dtype), w) for v, w in zip(values, wanted, strict=True)):
            return TimeLeaf(index, label, convert, dtype, tuple(values[0].shape[1:]))
    raise Refusal(f"the network's argument {name} is no known function of the scheduler's time")


def _near(value: Tensor, wanted: Tensor) -> bool:
    bound = 1e-6 if value.dtype in (torch.float32, torch.float64) else 0.0
    spread = wanted.to(value.dtype).reshape([1] * value.ndim).expand(value.shape)
    return relative(value, spread) <= bound


def _maps(scales: dict[str, float]) -> Iterator[tuple[str, TimeMap]]:
    """Known conventions; in half precision the cast may come before or after the arithmetic."""
    yield "t", lambda t, d: t.to(d)
    for name, n in scales.items():
        yield f"t / {name}", lambda t, d, n=n: t.to(d) / n  # type: ignore[misc]
        yield f"t / {name}", lambda t, d, n=n: (t / n).to(d)  # type: ignore[misc]
        yield f"1 - t / {name}", lambda t, d, n=n: ((n - t) / n).to(d)  # type: ignore[misc]
        yield f"1 - t / {name}", lambda t, d, n=n: (n - t.to(d)) / n  # type: ignore[misc]
        yield f"t {name}", lambda t, d, n=n: t.to(d) * n  # type: ignore[misc]
        yield f"t {name}", lambda t, d, n=n: (t * n).to(d)  # type: ignore[misc]
