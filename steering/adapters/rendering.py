"""Final media row by row, and the pipeline's own output type from any of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steering.adapters.decode import media_of, together


class Renderer:
    """Renders states by the pipeline's tail, in the user's ``output_type``.

    Args:
        tail: the tail.
    """

    def __init__(self, tail: Callable[[Tensor], Any]) -> None:
        self._tail = tail
        self._output_type: type | None = None
        self._beside: dict[int, dict[str, Any]] = {}

    @torch.no_grad()
    def __call__(self, x_0: Tensor, tail: Callable[[Tensor], Any] | None = None) -> list[Any]:
        """Media of each state ``(n, *shape)``, by this tail where one is given.

        Raises:
            RuntimeError: the tail does not make one entry of one row.
        """
        tail = tail or self._tail
        output = together(tail, x_0, tail)
        if output is None:
            return [self(row, tail)[0] for row in x_0.split(1)]
        media = list(media_of(output)[1])
        if len(media) != len(x_0):
            raise RuntimeError(f"{type(output).__name__} holds {len(media)} media of one row")
        self._output_type = type(output)
        for index, entry in enumerate(media):
            self._remember(entry, output, index, len(media))
        return media

    def _remember(self, entry: Any, output: Any, index: int, rows: int) -> None:
        """Keep what the pipeline says of a row beside its media (safety flags), while it lives."""
        said = {}
        for field in fields(output)[1:]:
            value = getattr(output, field.name)
            if isinstance(value, list | np.ndarray | Tensor) and len(value) == rows:
                said[field.name] = value[index]
        if said:
            self._beside[id(entry)] = said
            weakref.finalize(entry, self._beside.pop, id(entry), None)

    def merge(self, rows: Sequence[Any]) -> Any:
        """The pipeline's own output type from rendered entries, of one call or several.

        Raises:
            ValueError: nothing was rendered yet.
        """
        if self._output_type is None or not rows:
            raise ValueError("merge_output needs entries that render() returned")
        media: Any = list(rows)
        if isinstance(rows[0], np.ndarray):
            media = np.stack(media)
        elif torch.is_tensor(rows[0]):
            media = torch.stack(media)
        first, *others = (field.name for field in fields(self._output_type))
        known = [self._beside.get(id(entry), {}) for entry in rows]
        beside = {
            name: [said[name] for said in known] if all(name in said for said in known) else None
            for name in others
        }
        return self._output_type(**{first: media, **beside})
