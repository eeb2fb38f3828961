"""Work divided among the processes of ``accelerate launch``, with results that do not show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

Columns = dict[str, Tensor]


def in_order(
    state: PartialState,
    items: Sequence[Any],
    batch: int,
    compute: Callable[[Sequence[Any]], Columns],
    what: str,
) -> Columns:
    """Columns over all items, in their order, on every process.

    Whole batches are divided, and cut the same way for any number of processes: a row may depend, to
    rounding, on its batch.

    Args:
        state: the processes.
        items: what is looked at.
        batch: items a call.
        compute: columns ``(B, ...)`` of a batch.
        what: label of the progress bar.
    """
    mine = range(state.process_index * batch, len(items), state.num_processes * batch)
    parts = []
    hidden = not state.is_local_main_process
    for start in tqdm(mine, desc=what, unit="batch", disable=hidden or not items):
        found = compute(items[start : start + batch])
        parts.append((start, {name: column.cpu() for name, column in found.items()}))
    if state.num_processes > 1:
        parts = gather_object(parts)
    parts.sort(key=lambda part: part[0])
    if not parts:
        return {}
    return {name: torch.cat([columns[name] for _, columns in parts]) for name in parts[0][1]}
