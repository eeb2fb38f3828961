"""Cells of a benchmark measured by several processes at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

Cell = TypeVar("Cell")
Row = TypeVar("Row")


def pooled(
    measure: Callable[[Cell], Row],
    cells: Sequence[Cell],
    processes: int,
    may_begin: Callable[[Cell], bool] = lambda cell: True,
    initializer: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator[Row]:
    """Rows of cells as they are done.

    Args:
        measure: makes the row of a cell; importable, since processes are spawned.
        cells: what to measure, in the order of beginning.
        processes: at once; 1 measures here.
        may_begin: asked before each cell; the first refusal ends beginning.
        initializer: called once in each process.
        arguments: of the initializer.

    Raises:
        ExceptionGroup: cells failed, after all others were measured.
    """
    left = itertools.takewhile(may_begin, cells)
    failed: list[Exception] = []
    if processes == 1:
        if initializer is not None:
            initializer(*arguments)
        for cell in left:
            yield from _result(lambda: measure(cell), cell, failed)  # noqa: B023 - called at once
    else:
        context = get_context("spawn")
        with ProcessPoolExecutor(processes, context, initializer, arguments) as pool:
            running = {pool.submit(measure, cell): cell for cell in _some(left, processes)}
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                ended = [(future, running.pop(future)) for future in done]
                running |= {pool.submit(measure, cell): cell for cell in _some(left, len(done))}
                for future, cell in ended:
                    yield from _result(future.result, cell, failed)
    if failed:
        raise ExceptionGroup(f"{len(failed)} cells failed", failed)


_some = itertools.islice


def _result(get: Callable[[], Row], cell: Cell, failed: list[Exception]) -> Iterator[Row]:
    """The row of a cell, if it has one; errors are kept for the end."""
    try:
        row = get()
    except BrokenProcessPool:
        raise
    except Exception as error:  # noqa: BLE001 - the other cells go on
        error.add_note(f"in {cell}")
        failed.append(error)
    else:
        yield row
