"""From which states a pipeline's loop starts: plain noise, or a picture with noise on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from steering.adapters.checks import Refusal, relative, tolerance
from steering.adapters.loop_facts import LoopFacts
from steering.adapters.loop_rows import LoopCalls


@dataclass(frozen=True, eq=False)
class LoopStart:
    """Where a loop starts: at ``origin + std * noise``.

    Attributes:
        origin: ``(1, *shape)``; None for plain noise.
        std: standard deviation of the noise.
        latents: factor from ``latents=`` to the state; None where that argument does not decide it.
    """

    origin: Tensor | None
    std: float
    latents: float | None


class _Drawn(TorchFunctionMode):
    """Puts other numbers in the place of what ``torch.randn`` draws."""

    def __init__(self, replace: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__()
        self._replace = replace
        self.sizes: list[int] = []

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is not torch.randn:
            return out
        self.sizes.append(out.numel())
        return self._replace(len(self.sizes) - 1, out)


def learn_loop_start(calls: LoopCalls, facts: LoopFacts) -> LoopStart:
    """Learn the start from calls whose draws are replaced; no network of the loop works in them.

    Raises:
        Refusal: the state at the start is no sum of a fixed part and one drawn noise.
    """

    def first(**changed: Any) -> Tensor:
        loop, _ = calls.begin(facts.asked, 1, "prompts", dry=True, **changed)
        with loop:
            return facts.taken(loop.first.sample).float()

    with _Drawn(lambda _, drawn: torch.zeros_like(drawn)) as drawn:
        origin = first()
    for index, size in enumerate(drawn.sizes):
        if size != origin.numel():
            continue
        noise = torch.randn(size, generator=torch.Generator().manual_seed(1))
        with _Drawn(_only(index, noise)):
            moved = first() - origin
        std = float(moved.norm() / noise.norm())
        if std > 0 and _agree(moved, std * noise, facts.dtype):
            plain = float(origin.abs().max()) <= 1e-6 * std
            return LoopStart(None if plain else origin, std, _factor(first, facts, std))
    raise Refusal(
        f"{type(calls.pipe).__name__} starts from something else than noise, or noise on a picture, so "
        "no other candidates can be drawn"
    )


def _only(place: int, noise: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Keeps one draw, as this noise; all others are zero."""
    return lambda index, drawn: (
        noise.reshape(drawn.shape).to(drawn) if index == place else torch.zeros_like(drawn)
    )


def _agree(moved: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    """In any order of their numbers, since some pipelines pack what they drew."""
    ordered = [x.flatten().cpu().sort().values for x in (moved, wanted)]
    return relative(*ordered) <= 4 * tolerance(dtype)


def _factor(first: Callable[..., Tensor], facts: LoopFacts, std: float) -> float | None:
    """By what the pipeline multiplies ``latents=``."""
    noise = torch.randn((1, *facts.shape), generator=torch.Generator().manual_seed(2))
    try:
        found = first(latents=noise.to(facts.steps[0].sample))
    except Exception:  # noqa: BLE001 - of another shape, say
        return None
    for factor in (std, 1.0):
        if relative(found.cpu(), factor * noise) <= 4 * tolerance(facts.dtype):
            return factor
    return None
