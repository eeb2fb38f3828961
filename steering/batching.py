"""Micro-batches: rows of many searches packed into one model call, padded, retried, timed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steering.cost import Usage


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one search that wait for a model call.

    Attributes:
        x: ``(n, *shape)``.
        usage: who pays.
        extras: sequences of n values that travel along (times, handles, features).
    """

    x: Tensor
    usage: Usage
    extras: tuple[Sequence[Any], ...] = ()

    def __len__(self) -> int:
        return self.x.shape[0]


@dataclass(frozen=True, eq=False)
class Batch:
    """One model call: rows of several searches, padded.

    Attributes:
        x: ``(B, *shape)``.
        extras: lists of B values.
        payers: each payer with its number of rows; they sum to B less the padding.
        padding: rows added to fill the bucket.
    """

    x: Tensor
    extras: list[list[Any]]
    payers: list[tuple[Usage, int]]
    padding: int


@dataclass
class Packer:
    """Runs rows in micro-batches.

    Attributes:
        cap: most rows a call; halved for a kind of call when memory runs out.
        bucket: every call is padded to this many rows, and memory must suffice; None to not pad.
        on_shrink: told ``(kind, rows before, rows after)`` when memory ran out.
    """

    cap: int
    bucket: int | None = None
    on_shrink: Callable[[str, int, int], None] = lambda kind, before, after: None
    _caps: dict[str, int] = field(default_factory=dict)

    def map(
        self, kind: str, call: Callable[[Batch], tuple[Tensor, ...]], rows: Sequence[Rows]
    ) -> list[tuple[Tensor, ...]]:
        """Apply ``call`` to all rows, packed.

        Args:
            kind: name under which the cap is remembered.
            call: takes a batch, returns tensors of B rows.
            rows: the rows of each request.

        Returns:
            For each request, the tensors of its rows.

        Raises:
            torch.OutOfMemoryError: not even one row fits, or a padded bucket does not.
        """
        x = torch.cat([r.x for r in rows]) if len(rows) > 1 else rows[0].x
        extras = [[v for r in rows for v in r.extras[i]] for i in range(len(rows[0].extras))]
        parts: list[tuple[Tensor, ...]] = []
        start = 0
        total = x.shape[0]
        while start < total:
            size = self.bucket or self._caps.get(kind, self.cap)
            stop = min(start + size, total)
            padding = self.bucket - (stop - start) if self.bucket else 0
            batch = _batch(x, extras, slice(start, stop), padding, list(_payers(rows, start, stop)))
            try:
                out = call(batch)
            except torch.OutOfMemoryError as error:
                self._shrink(kind, stop - start, error)
                continue  # the same rows again, fewer at once; what was computed is kept
            parts.append(tuple(t[: stop - start] for t in out))
            start = stop
        whole = [torch.cat(c) if len(c) > 1 else c[0] for c in zip(*parts, strict=True)]
        pieces = [torch.split(c, [len(r) for r in rows]) for c in whole]
        return list(zip(*pieces, strict=True))

    def in_pieces(
        self, kind: str, x: Tensor, call: Callable[[Tensor, int], list[Any]]
    ) -> list[Any]:
        """Apply ``call`` to rows, as many at once as fit; unpadded.

        Args:
            kind: name under which the cap is remembered.
            x: ``(n, *shape)``.
            call: takes some of the rows and the index of the first, returns a list with an entry for
                each.
        """
        out: list[Any] = []
        while len(out) < len(x):
            size = self.bucket or self._caps.get(kind, self.cap)
            rows = x[len(out) : len(out) + size]
            try:
                out += call(rows, len(out))
            except torch.OutOfMemoryError as error:
                self._shrink(kind, len(rows), error)
        return out

    def _shrink(self, kind: str, rows: int, error: torch.OutOfMemoryError) -> None:
        if self.bucket is not None:
            error.add_note(
                f"deterministic mode pads every call to {self.bucket} rows and never shrinks it by "
                "itself; lower `bucket`"
            )
            raise error
        if rows == 1:
            raise error
        self._caps[kind] = rows // 2
        self.on_shrink(kind, rows, rows // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _batch(
    x: Tensor, extras: list[list[Any]], rows: slice, padding: int, payers: list[tuple[Usage, int]]
) -> Batch:
    x, extras = x[rows], [e[rows] for e in extras]
    if padding:
        x = torch.cat([x, x[:1].expand(padding, *x.shape[1:])])
        extras = [e + e[:1] * padding for e in extras]
    return Batch(x, extras, payers, padding)


def _payers(rows: Sequence[Rows], start: int, stop: int) -> Iterator[tuple[Usage, int]]:
    """Who owns how many of the packed rows ``start`` to ``stop``."""
    begin = 0
    for r in rows:
        n = len(r)
        overlap = min(begin + n, stop) - max(begin, start)
        if overlap > 0:
            yield r.usage, overlap
        begin += n


class Stopwatch:
    """Seconds inside model calls, shared among the payers in proportion to their rows.

    On a GPU events are recorded and read later, so that timing never waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._open: list[tuple[Any, Any, str, Sequence[tuple[Usage, int]]]] = []

    @contextlib.contextmanager
    def __call__(self, kind: str, payers: Sequence[tuple[Usage, int]]) -> Iterator[None]:
        """Charge the time of a block to the payers as ``seconds_<kind>``."""
        if not self._cuda:
            start = time.perf_counter()
            yield
            charge(payers, f"seconds_{kind}", time.perf_counter() - start)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._open.append((begin, end, kind, payers))

    def settle(self, *, wait: bool = False) -> None:
        """Charge the calls that have ended; all of them with ``wait``."""
        if wait and self._cuda:
            torch.cuda.synchronize()
        while self._open and (wait or self._open[0][1].query()):
            begin, end, kind, payers = self._open.pop(0)
            charge(payers, f"seconds_{kind}", begin.elapsed_time(end) / 1000)


def charge(payers: Sequence[tuple[Usage, int]], name: str, amount: float) -> None:
    """Split an amount among the payers in proportion to their rows."""
    total = sum(n for _, n in payers) or 1
    for usage, n in payers:
        setattr(usage, name, getattr(usage, name) + amount * n / total)
