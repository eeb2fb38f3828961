"""From finished states to media by the tail of a pipeline's own loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steering.adapters.checks import signature_of
from steering.adapters.loop_facts import LoopFacts
from steering.adapters.loop_rows import Asked, LoopCalls


class LoopTail:
    """The pipeline's own tail for rows of one prompt: its loop ends at once, its networks left dry.

    Args:
        calls: begins loops of the pipeline.
        facts: how they can be used.
        asked: what each row asks for; it decides the pictures that the pipeline blends in.
    """

    def __init__(self, calls: LoopCalls, facts: LoopFacts, asked: Asked) -> None:
        self._calls, self._facts, self._asked = calls, facts, asked
        self.alone = False

    @property
    def unpacking(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Further arguments of the pipeline's own unpacking of latents, once it was seen."""
        return self._calls.unpacking

    @torch.no_grad()
    def __call__(self, x_0: Tensor, *, output_type: str | None = None, checked: bool = True) -> Any:
        """The pipeline's own output object for these states ``(n, *shape)``.

        Args:
            x_0: finished states; one, where the pipeline makes rows one by one.
            output_type: the pipeline's argument of that name; None leaves the user's.
            checked: whether a safety checker looks at the pictures.
        """
        parts: dict[str, Any] = {}
        if not checked and "safety_checker" in self._calls.pipe.__dict__:
            parts["safety_checker"] = None
        changed = {} if output_type is None else {"output_type": output_type}
        if "output_type" not in signature_of(self._calls.pipe):
            changed = {}
        loop, _ = self._calls.begin(
            self._asked, len(x_0), self._facts.way or "prompts", dry=True, parts=parts, **changed
        )
        with loop:
            return loop.finish(self._facts.given(x_0.to(self._facts.dtype)))
