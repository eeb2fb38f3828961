"""Arguments of a network call taken apart: what follows the batch, and how rows are put together.

In a call of ``blocks x rows`` entries (two blocks under classifier-free guidance) the blocks come one
after the other, the rows within a block, and ``per`` entries of a row (frames, say) within the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from steering.adapters.checks import Refusal, relative, tolerance

#: A row's share of one argument: a tensor ``(blocks, per, *rest)``, or a list of one entry a block;
#: None where the pipeline leaves the argument out (masks of prompts that need no padding).
Piece = Tensor | list[Any] | None


@dataclass(frozen=True, eq=False)
class Arguments:
    """One call's arguments, flattened: containers apart, lists kept whole.

    Attributes:
        spec: the containers.
        names: how each value is addressed, for messages.
        values: the values, in the order of ``spec``.
    """

    spec: pytree.TreeSpec
    names: tuple[str, ...]
    values: list[Any]


def flatten(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Take a call's arguments apart; containers are copied, tensors are not."""
    found, spec = pytree.tree_flatten_with_path((args, kwargs), is_leaf=_whole)
    names = tuple(pytree.keystr(path[1:]) for path, _ in found)
    return Arguments(spec, names, [_fresh(value) for _, value in found])


def rebuild(spec: pytree.TreeSpec, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments from their values; every container is new, since some networks empty theirs."""
    args, kwargs = pytree.tree_unflatten([_fresh(value) for value in values], spec)
    return args, kwargs


def _whole(value: Any) -> bool:
    numbers = isinstance(value, tuple) and all(isinstance(x, int | float) for x in value)
    return isinstance(value, list) or (numbers and len(value) > 0)


def _fresh(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def snapshot(value: Any) -> Any:
    """A copy that later in-place work cannot reach."""
    return pytree.tree_map(lambda x: x.detach().clone() if torch.is_tensor(x) else x, value)


def same(a: Any, b: Any) -> bool:
    """Whether two argument values are equal, tensors bit for bit."""
    if torch.is_tensor(a) and torch.is_tensor(b):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if type(a) is not type(b):
        return False
    try:
        return bool(a == b)
    except (ValueError, RuntimeError, TypeError):  # arrays and the like do not compare to one bool
        return a is b


@dataclass(frozen=True)
class RowLeaf:
    """An argument with entries for each row.

    Attributes:
        index: its place among the call's values.
        blocks: how often the batch is repeated in the call.
        dim: the tensor's dimension that follows the batch; None for a Python list of entries.
        parts: for a list of fixed length (one entry an image prompt, say) whose entries follow the
            batch themselves: how each does, None for one that does not.
    """

    index: int
    blocks: int
    dim: int | None = 0
    parts: tuple[RowLeaf | None, ...] | None = None

    def split(self, value: Any, rows: int) -> list[Piece]:
        """Each row's piece of the argument.

        Raises:
            Refusal: the argument does not hold entries for these rows.
        """
        if value is None:
            return [None] * rows
        if self.parts is not None:
            return self._split_parts(value, rows)
        size = len(value) if self.dim is None else value.shape[self.dim]
        if size == 0 or size % (self.blocks * rows):
            raise Refusal(f"an argument of the network holds {size} entries for {rows} prompts")
        if self.dim is None:
            return [[value[b * rows + i] for b in range(self.blocks)] for i in range(rows)]
        x = value.movedim(self.dim, 0)
        per = x.shape[0] // (self.blocks * rows)
        return list(x.reshape(self.blocks, rows, per, *x.shape[1:]).unbind(1))

    def join(self, pieces: Sequence[Any]) -> Any:
        """The argument for rows with these pieces; inverse of :meth:`split`."""
        if pieces[0] is None:
            return None
        if self.parts is not None:
            columns = zip(self.parts, zip(*pieces, strict=True), strict=True)
            return [part.join(column) if part else column[0] for part, column in columns]
        if self.dim is None:
            return [piece[b] for b in range(self.blocks) for piece in pieces]
        return torch.stack(list(pieces), 1).flatten(0, 2).movedim(0, self.dim)

    def _split_parts(self, value: Sequence[Any], rows: int) -> list[Piece]:
        assert self.parts is not None
        if len(value) != len(self.parts):
            raise Refusal(
                f"a list argument of the network holds {len(value)} entries, not {len(self.parts)} "
                "as it was learned"
            )
        columns = [
            part.split(entry, rows) if part else [entry] * rows
            for part, entry in zip(self.parts, value, strict=True)
        ]
        return [list(row) for row in zip(*columns, strict=True)]


def row_leaf(
    index: int, name: str, small: Any, large: Any, blocks: int, rows: int
) -> RowLeaf | None:
    """Tell from a call with ``rows`` and one with ``2 rows`` whether an argument follows the batch.

    Returns:
        How it does, or None for a constant.

    Raises:
        Refusal: it changes with the batch in no known way.
    """
    if torch.is_tensor(small) and torch.is_tensor(large) and small.ndim == large.ndim:
        grown = [d for d in range(small.ndim) if small.shape[d] != large.shape[d]]
        size = small.shape[grown[0]] if len(grown) == 1 else 0
        if size and size % (blocks * rows) == 0 and large.shape[grown[0]] == 2 * size:
            return RowLeaf(index, blocks, grown[0])
    lists = isinstance(small, list) and isinstance(large, list)
    if lists and len(small) == blocks * rows and len(large) == 2 * len(small):
        return RowLeaf(index, blocks, None)
    if same(small, large):
        return None
    if lists and len(small) == len(large):
        pairs = zip(small, large, strict=True)
        return RowLeaf(
            index, blocks, parts=tuple(row_leaf(index, name, a, b, blocks, rows) for a, b in pairs)
        )
    raise Refusal(
        f"the network's argument {name} changes with the number of prompts, but not as one entry a "
        "prompt; this pipeline cannot be replayed"
    )


@dataclass(frozen=True)
class LatentsLeaf:
    """The argument that carries the state.

    Attributes:
        index: its place among the call's values.
        blocks: how often the batch is repeated in it.
        scaled: whether the state is brought to the training interpolant first.
        dtype: the network's dtype.
        row_shape: shape of one row's state in it.
        tail_dim: dimension along which something constant follows the state (reference tokens,
            masks), or None.
        as_list: whether it is a Python list of rows.
    """

    index: int
    blocks: int
    scaled: bool
    dtype: torch.dtype
    row_shape: tuple[int, ...]
    tail_dim: int | None
    as_list: bool

    @property
    def tail(self) -> RowLeaf | None:
        """How the constant tail follows the rows."""
        return None if self.tail_dim is None else RowLeaf(self.index, self.blocks)

    def tail_of(self, value: Any) -> Tensor:
        """The tail of a recorded argument, ``(blocks x rows, ...)``."""
        assert self.tail_dim is not None
        x = _stacked(value)
        start = self.row_shape[self.tail_dim - 1]
        return x.narrow(self.tail_dim, start, x.shape[self.tail_dim] - start)

    def build(self, state: Tensor, tail: Tensor | None) -> Any:
        """The argument from the state ``(n, *shape)``, scaled already where that is needed."""
        x = state.to(self.dtype).reshape(len(state), *self.row_shape)
        if self.blocks > 1:
            x = torch.cat([x] * self.blocks)
        if tail is not None and self.tail_dim is not None:
            x = torch.cat([x, tail], self.tail_dim)
        return list(x.unbind(0)) if self.as_list else x


def latents_leaf(index: int, value: Any, state: Tensor, scale: float) -> LatentsLeaf | None:
    """Recognise the state in an argument: repeated, reshaped, scaled, or with a constant tail.

    Args:
        index: place of the argument.
        value: what was passed.
        state: state before the call ``(rows, *shape)``.
        scale: factor that carries it to the training interpolant.

    Returns:
        How the state lies in it, or None where it does not.
    """
    as_list = isinstance(value, list)
    if as_list and not all(torch.is_tensor(v) and v.shape == value[0].shape for v in value):
        return None
    x = _stacked(value) if as_list and value else value
    if not torch.is_tensor(x) or x.ndim < 2 or not x.is_floating_point():
        return None
    rows = len(state)
    if x.shape[0] == 0 or x.shape[0] % rows:
        return None
    shape = _state_shape(x, state)
    if shape is None:
        return None
    row_shape, tail_dim = shape
    blocks = x.shape[0] // rows
    head = x if tail_dim is None else x.narrow(tail_dim, 0, row_shape[tail_dim - 1])
    for scaled in (False, True):
        wanted = (state.float() * scale).to(x.dtype) if scaled else state.to(x.dtype)
        wanted = torch.cat([wanted.reshape(rows, *row_shape)] * blocks)
        exact = torch.equal(head, wanted)
        if exact or (scaled and relative(head, wanted) <= 0.1 * tolerance(x.dtype)):
            return LatentsLeaf(index, blocks, scaled, x.dtype, row_shape, tail_dim, as_list)
    return None


def _state_shape(x: Tensor, state: Tensor) -> tuple[tuple[int, ...], int | None] | None:
    """Shape of a row's state within ``x``, and the dimension along which a tail follows it."""
    if x[0].numel() == state[0].numel():
        return tuple(x.shape[1:]), None
    if x.ndim != state.ndim:
        return None
    longer = [d for d in range(1, x.ndim) if x.shape[d] != state.shape[d]]
    if len(longer) != 1 or x.shape[longer[0]] < state.shape[longer[0]]:
        return None
    return tuple(state.shape[1:]), longer[0]


def _stacked(value: Any) -> Tensor:
    return torch.stack(value) if isinstance(value, list) else value
