"""What the engine needs of a reward model; the package ``rewards`` holds them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Item:
    """What a reward may know of a prompt beside the media.

    Attributes:
        prompt: the text.
        metadata: anything else a reward asks for (counts, a class, reference pictures).
    """

    prompt: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Reward(Protocol):
    """Scores media, one number a row, higher is better.

    Declared abilities are class attributes, proved by one shared test.
    """

    name: str
    differentiable: bool
    calls_per_row: int  #: models that look at each row: what a row counts in reward calls

    def prepare(self, item: Item) -> Any:
        """Features of one prompt, computed once and handed back with every row of it."""

    def __call__(self, media: Tensor, features: Sequence[Any]) -> Tensor | Mapping[str, Tensor]:
        """Scores of ``media (B, 3, H, W)`` in [0, 1], with the features of each row.

        Returns:
            ``(B,)`` on the media's device; or named columns of that shape, of which the one named
            like the reward is the total that is searched.
        """

    # A reward whose attribute ``embeds`` is True has ``embed(media)``, too: features ``(B, d)`` of
    # what it sees, called within the scoring call, so that a shared encoder has run already.


class Memo:
    """What was computed of some media during one scoring call, by which tensor it was computed of.

    Rewards that share an encoder find each other's embeddings here, so its forward runs once.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[Tensor, Any]] = {}

    def get(self, what: Hashable, media: Tensor, make: Callable[[], Any]) -> Any:
        """The value known as ``what`` of these media; made if there is none yet.

        The same memory counts as the same media (a view of all rows is no copy). What was made
        without a graph does not serve those that need one.
        """
        place = (media.data_ptr(), media.shape, media.stride(), media.dtype, media.device)
        graph = torch.is_grad_enabled() and media.requires_grad
        # A tensor made under inference_mode keeps no version; it cannot be changed outside either.
        version = 0 if media.is_inference() else media._version
        key = (what, place, version, graph)
        if key not in self._known:
            self._known[key] = (
                media,
                make(),
            )  # the media are held, so that their memory stays theirs
        return self._known[key][1]


_MEMO: ContextVar[Memo | None] = ContextVar("scoring_memo", default=None)


@contextlib.contextmanager
def scoring_call() -> Iterator[Memo]:
    """One scoring call: whatever is scored inside shares a memo, which ends with the outermost."""
    outer = _MEMO.get()
    if outer is not None:
        yield outer
        return
    token = _MEMO.set(Memo())
    try:
        yield _MEMO.get()  # type: ignore[misc]
    finally:
        _MEMO.reset(token)
