"""Prompts as a pipeline's own call takes them, and where it starts from with the user's generator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steering.adapters.asking import Pair, ask
from steering.adapters.capture import arguments, quiet_generator
from steering.adapters.checks import Refusal
from steering.adapters.loop_facts import LoopFacts
from steering.adapters.loop_rows import Asked, LoopCalls


@dataclass(eq=False)
class LoopHandle:
    """One prompt, as the pipeline's own call takes it.

    Attributes:
        asked: what its rows ask for.
        signature: equal for rows that may be handed over together.
        initial: state ``(1, *shape)`` that the pipeline would start from, or None.
        noise_state: state of the user's generator after that draw, where it serves this row alone.
        first: the pipeline's own prediction of that state, once it was asked for.
    """

    asked: Asked
    signature: int
    initial: Tensor | None = None
    noise_state: tuple[torch.device, Tensor] | None = None
    first: Tensor | None = None


def started(
    calls: LoopCalls,
    facts: LoopFacts,
    call: Mapping[str, Any],
    pairs: list[Pair],
    images: int,
    generator: torch.Generator | list[torch.Generator] | None,
    latents: Tensor | None,
) -> list[LoopHandle]:
    """Handles that know where the pipeline itself starts, from its one own call for all.

    Args:
        calls: begins loops of the pipeline.
        facts: how they can be used.
        call: arguments shared by all prompts.
        pairs: prompts with their negative prompts.
        images: handles of each, side by side.
        generator: the pipeline's argument; it is left where the pipeline leaves it at its first step.
        latents: the pipeline's argument.

    Raises:
        Refusal: other numbers of states than of prompts and images.
    """
    generators = generator if isinstance(generator, list) else [generator] if generator else []
    stood = [g.get_state() for g in generators]
    rows = [pair for pair in pairs for _ in range(images)]
    kwargs = arguments(
        calls.pipe,
        call,
        generator=generator or quiet_generator(),
        latents=latents,
        return_dict=True,
        **ask(calls.pipe, pairs, images),
    )
    loop, _ = calls.start(kwargs, len(rows), (tuple(pairs), images), dry=True)
    with loop:
        states = facts.taken(loop.first.sample).float()
    if len(states) != len(rows):
        raise Refusal(f"{len(rows)} prompts and images became {len(states)} states")
    handles = []
    for i, pair in enumerate(rows):
        handle = LoopHandle(Asked(pair), id(calls), states[i : i + 1])
        if len(generators) == len(rows):  # one shared generator serves all rows at once
            handle.asked = Asked(pair, (generators[i].device, stood[i]))
            handle.noise_state = generators[i].device, generators[i].get_state()
        handles.append(handle)
    return handles
