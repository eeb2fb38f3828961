"""What stands in for a pipeline's parts while its own call is watched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

#: A handler of network calls: name, real network, arguments; returns the output.
Handler = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], Any]


class Stand:
    """Stands where a network stood: everything but a call is the real one's."""

    def __init__(self, name: str, network: nn.Module, handler: Handler) -> None:
        self.__dict__.update(_name=name, _network=network, _handler=handler)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._network)  # pipelines check the kind of their parts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_network"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._network, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._handler(self._name, self._network, args, kwargs)


class StepOutput(tuple[Tensor, Tensor]):
    """What a replaced ``scheduler.step`` returns: a tuple and the named output at once."""

    @property
    def prev_sample(self) -> Tensor:
        """The new state."""
        return self[0]

    @property
    def pred_original_sample(self) -> Tensor:
        """The clean state, as far as a stand-in knows."""
        return self[1]


def patch(scheduler: Any, method: str, replacement: Callable[..., Any]) -> None:
    """Replace a scheduler's method, keeping the signature that pipelines read."""

    @functools.wraps(getattr(scheduler, method))
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return replacement(*args, **kwargs)

    setattr(scheduler, method, replaced)


def first_output(raw: Any) -> Any:
    """The prediction within a network's output: a tensor, or a list of row tensors."""
    return raw if torch.is_tensor(raw) else raw[0]


def resized(raw: Any, rows: int, of: int, random: torch.Generator | None) -> Any:
    """An output like ``raw`` for another number of rows: zeros, or random numbers.

    Args:
        raw: what the network returned for ``of`` rows.
        rows: rows wanted, in the same unit.
        of: rows that ``raw`` has.
        random: generator of the numbers; None for zeros.
    """

    def like(x: Any) -> Any:
        if not torch.is_tensor(x) or not x.is_floating_point():
            return x
        shape = (x.shape[0] * rows // of, *x.shape[1:]) if x.ndim else ()
        if random is None:
            return x.new_zeros(shape)
        return torch.randn(shape, generator=random).to(x)

    head = first_output(raw)
    if isinstance(head, list):  # a list of rows: its length follows the batch, not its tensors
        parts = [_row_like(head[0], random) for _ in range(len(head) * rows // of)]
        return (parts, *raw[1:])
    return pytree.tree_map(like, raw)


def _row_like(x: Tensor, random: torch.Generator | None) -> Tensor:
    """Zeros or random numbers of the shape of one row."""
    return torch.zeros_like(x) if random is None else torch.randn(x.shape, generator=random).to(x)
