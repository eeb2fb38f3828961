"""Processes of a benchmark and the CUDA devices that they are dealt."""

from __future__ import annotations

import os
from multiprocessing import get_context
from queue import SimpleQueue
from typing import Any

import torch


def cards(options: Any) -> Any:
    """A queue with a CUDA device for each process, dealt in turn; None where it need not choose.

    Args:
        options: of a command, with ``processes`` and ``device``.
    """
    many = options.processes > 1
    queue = get_context("spawn").Manager().Queue() if many else SimpleQueue()
    cuda = torch.cuda.device_count() if many and options.device in ("auto", "cuda") else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(cuda)]
    for i in range(options.processes):
        queue.put(names[i % cuda] if cuda else None)
    return queue


def take_card(options: Any, queue: Any) -> None:
    """Prepare this process: it takes the next CUDA device of the queue, and the wanted precision.

    Args:
        options: of a command, with ``processes`` and ``tf32``.
        queue: of :func:`cards`.
    """
    card = queue.get()
    if card is not None:  # before CUDA starts here, so that its current device is the right one
        os.environ["CUDA_VISIBLE_DEVICES"] = card
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    if options.processes > 1:
        torch.set_num_threads(1)
