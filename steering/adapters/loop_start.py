"""From which states a pipeline's loop starts: noise, or a picture with noise on it or a part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from steering.adapters.checks import Refusal, relative, tolerance
from steering.adapters.loop_facts import LoopFacts
from steering.adapters.loop_rows import LoopCalls


@dataclass(frozen=True, eq=False)
class LoopStart:
    """Where a loop starts: at ``origin + std * reached * noise``.

    Attributes:
        origin: ``(1, *shape)``; None for plain noise.
        std: standard deviation of the noise.
        reached: 1 where noise reaches the state and 0 elsewhere, ``(1, *shape)``; None: everywhere.
        latents: factor from ``latents=`` to the state; None where that argument does not decide it.
    """

    origin: Tensor | None
    std: float
    reached: Tensor | None
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

    def moved(index: int, noise: Tensor) -> Tensor:
        with _Drawn(_only(index, noise)):
            return first() - origin

    for index, size in enumerate(drawn.sizes):
        found = _spread(partial(moved, index), size, origin.numel(), facts.dtype)
        if found is not None:
            std, reached = found
            plain = float(origin.abs().max()) <= 1e-6 * std
            return LoopStart(None if plain else origin, std, reached, _factor(first, facts, std))
    raise Refusal(
        f"{type(calls.pipe).__name__} starts from something else than noise, or noise on a picture, so "
        "no other candidates can be drawn"
    )


def _only(place: int, noise: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Keeps one draw, as this noise; all others are zero."""
    return lambda index, drawn: (
        noise.reshape(drawn.shape).to(drawn) if index == place else torch.zeros_like(drawn)
    )


def _spread(
    moved: Callable[[Tensor], Tensor], size: int, wanted: int, dtype: torch.dtype
) -> tuple[float, Tensor | None] | None:
    """Standard deviation of the noise that one draw brings to the state, and where it does.

    Args:
        moved: how far the state is moved where other numbers are drawn, ``(1, *shape)``.
        size: how many numbers the draw has.
        wanted: how many the state has.
        dtype: of the state.

    Returns:
        None where the state is no multiple of what was drawn.
    """
    noise = torch.randn(size, generator=torch.Generator().manual_seed(1))
    far = moved(noise)
    std = float(far.norm() / noise.norm())
    if std == 0:
        return None
    if size == wanted and _agree(far, std * noise, dtype):
        return std, None
    return _partial_spread(moved, noise, far, 4 * tolerance(dtype))


def _partial_spread(
    moved: Callable[[Tensor], Tensor], noise: Tensor, far: Tensor, bound: float
) -> tuple[float, Tensor | None] | None:
    """As :func:`_spread`, where a part of what is drawn reaches a part of the state.

    Ones in place of noise show where it reaches; then the place that each number of the state has
    among those drawn is read bit by bit, from signs. No two may have the same.
    """
    size = noise.numel()
    reach = moved(torch.ones(size))
    std = float(reach.max())
    reached = reach.abs() > 0.5 * std
    if std <= 0 or relative(reach, std * reached) > bound:
        return None
    place = torch.zeros_like(reach, dtype=torch.long)
    for bit in range((size - 1).bit_length()):
        signs = 1.0 - 2.0 * ((torch.arange(size) >> bit) & 1)
        told = moved(signs)
        if relative(told.abs(), std * reached) > bound:
            return None
        place += (told < 0).long() << bit
    places = place[reached].cpu()
    known = bool((places < size).all()) and len(places.unique()) == len(places)
    if not known or relative(far[reached].cpu(), std * noise[places]) > bound:
        return None
    return std, None if bool(reached.all()) else reached.float()


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
