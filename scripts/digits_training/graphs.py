"""CUDA graphs of a function of batches, for a few fixed numbers of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SIZES = (16, 64, 128, 256, 512, 1024)


class Graphed:
    """Replays a captured call instead of launching its kernels one by one.

    Batches are filled up to the next captured size by copies of their first row; larger ones run in
    parts. Without gradients only.

    Args:
        function: of tensors with one row a sample; returns one such tensor.
        sizes: numbers of rows to capture, ascending; each on its first use.
    """

    def __init__(self, function: Callable[..., Tensor], sizes: tuple[int, ...] = SIZES) -> None:
        self.function, self.sizes = function, sizes
        self._captured: dict[int, tuple[Any, list[Tensor], Tensor]] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function of ``inputs``, each ``(B, ...)``."""
        parts = [self._part(*rows) for rows in zip(*self._split(inputs), strict=True)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _split(self, inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        return [tensor.split(self.sizes[-1]) for tensor in inputs]

    def _part(self, *inputs: Tensor) -> Tensor:
        rows = len(inputs[0])
        size = next(s for s in self.sizes if s >= rows)
        if size not in self._captured:
            self._captured[size] = self._capture([filled(tensor, size) for tensor in inputs])
        graph, static, output = self._captured[size]
        for tensor, place in zip(inputs, static, strict=True):
            place[:rows].copy_(tensor)
        graph.replay()
        return output[:rows].clone()

    def _capture(self, static: list[Tensor]) -> tuple[Any, list[Tensor], Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(3):  # kernels are chosen and memory is allocated before the capture
                self.function(*static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            output = self.function(*static)
        return graph, static, output


def filled(tensor: Tensor, size: int) -> Tensor:
    """A copy of ``(B, ...)`` with its first row repeated up to ``size`` rows."""
    missing = size - len(tensor)
    return torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])]).contiguous()
