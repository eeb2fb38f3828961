"""What prompts hand to the denoiser, captured from the pipeline's own call without a denoiser row."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steering.adapters.capture import (
    Enough,
    NetworkCall,
    Stand,
    arguments,
    first_output,
    patch,
    private_copy,
    quiet_generator,
    resized,
)
from steering.adapters.checks import Refusal
from steering.adapters.leaves import Piece, flatten, snapshot
from steering.adapters.replay import Pieces, Plan


@dataclass(eq=False)
class Handle:
    """One prompt, encoded: what the engine holds and hands back.

    Attributes:
        prompt: the text.
        plan: the plan that its pieces belong to.
        pieces: its share of each network call's arguments.
        signature: equal for rows that may share a call.
        initial: state ``(1, *shape)`` that the pipeline would start from, or None.
        noise_state: state of the user's generator after that draw, where it serves this row alone.
        noise_seed: seed of a stochastic scheduler's noise beyond that.
    """

    prompt: str
    plan: Plan
    pieces: Pieces
    signature: Hashable
    initial: Tensor | None = None
    noise_state: tuple[torch.device, Tensor] | None = None
    noise_seed: int = 0


@dataclass(eq=False)
class FirstStep:
    """What reaches the first ``scheduler.step``.

    Attributes:
        calls: the network's calls of that step.
        sample: the state that the pipeline starts from.
    """

    calls: list[NetworkCall]
    sample: Tensor


def first_step(
    pipe: Any,
    kwargs: Mapping[str, Any],
    network: str,
    outputs: Sequence[Any],
    rows: tuple[int, int],
) -> FirstStep:
    """Run the pipeline's own call up to its first step; its network answers with zeros.

    Args:
        pipe: the pipeline; left as it was.
        kwargs: arguments of the call.
        network: name of the denoiser.
        outputs: the pattern of its output at each call of a step.
        rows: states of this call, and states in ``outputs``.

    Raises:
        Refusal: the step is built otherwise than the learned one.
    """
    calls: list[NetworkCall] = []
    samples: list[Tensor] = []

    def on_call(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raw = resized(outputs[min(len(calls), len(outputs) - 1)], *rows, random=None)
        given = flatten(args, kwargs)
        given.values[:] = [snapshot(value) for value in given.values]
        calls.append(NetworkCall(name, given, first_output(raw), None))
        return raw

    scheduler = copy.deepcopy(pipe.scheduler)
    signature = inspect.signature(scheduler.step)

    def on_step(*args: Any, **kwargs: Any) -> Any:
        samples.append(snapshot(signature.bind(*args, **kwargs).arguments["sample"]))
        raise Enough

    patch(scheduler, "step", on_step)
    stand = Stand(network, pipe.__dict__[network], on_call)
    parts = {network: stand}
    with private_copy(pipe, scheduler, parts) as twin, contextlib.suppress(Enough):
        twin(**kwargs)
    if not samples or len(calls) != len(outputs):
        raise Refusal(
            f"with these prompts the pipeline calls its network {len(calls)} times in the first "
            f"step, not {len(outputs)} as it was learned"
        )
    return FirstStep(calls, samples[0])


def signature_for(pieces: Pieces, owner: int) -> Hashable:
    """Shapes of a row's pieces, with the plan that they belong to."""
    return (owner, *((key, _shape(piece)) for call in pieces for key, piece in call.items()))


def _shape(piece: Piece) -> Hashable:
    if torch.is_tensor(piece):
        return tuple(piece.shape)
    return tuple(tuple(x.shape) if torch.is_tensor(x) else type(x).__name__ for x in piece)


#: A prompt and its negative prompt, if any.
Pair = tuple[str, str | None]
_KEPT = 128  # prompts whose pieces are kept


@dataclass(eq=False)
class Initial:
    """States that the pipeline starts from, and its generators after it drew them."""

    states: Tensor
    noise: list[tuple[torch.device, Tensor] | None]


class Encoder:
    """Captures the pieces of prompts, and the states that the pipeline starts from.

    Args:
        pipe: the pipeline; left as it was.
        call: its arguments shared by all prompts.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        self._pipe = pipe
        self._call = call
        self._known: OrderedDict[tuple[int, Pair], Pieces] = OrderedDict()

    def pieces(self, plan: Plan, pairs: Sequence[Pair]) -> list[Pieces]:
        """Pieces of each prompt; those of known prompts are not captured again.

        Raises:
            Refusal: these prompts need another plan.
        """
        found = {(id(plan), p): self._known.get((id(plan), p)) for p in pairs}
        missing = [pair for (_, pair), pieces in found.items() if pieces is None]
        if missing:
            # two rows at least: with one, some pipelines drop masks or crop
            asked = missing if len(missing) > 1 else missing * 2
            step = self._first_step(plan, asked, quiet_generator())
            for pair, pieces in zip(asked, plan.split(step.calls, len(asked)), strict=True):
                found[id(plan), pair] = self._known[id(plan), pair] = pieces
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return [found[id(plan), p] for p in pairs]  # type: ignore[misc]

    def initial(
        self,
        plan: Plan,
        pairs: Sequence[Pair],
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
        images: int,
    ) -> Initial:
        """States that the pipeline itself would start from, ``(prompts x images, *shape)``."""
        rows = len(pairs) * images
        step = self._first_step(plan, pairs, generator or quiet_generator(), latents, images)
        noise: list[tuple[torch.device, Tensor] | None] = [None] * rows
        if isinstance(generator, list):
            noise = [(g.device, g.get_state()) for g in generator]
        elif generator is not None and rows == 1:
            noise = [(generator.device, generator.get_state())]
        return Initial(step.sample.float(), noise)

    def handles(
        self,
        plan: Plan,
        pairs: Sequence[Pair],
        pieces: Sequence[Pieces],
        initial: Initial | None,
        images: int,
    ) -> list[Handle]:
        """One handle for each prompt and image."""
        made = []
        for row in range(len(pairs) * images):
            share = pieces[row // images]
            made.append(
                Handle(
                    prompt=pairs[row // images][0],
                    plan=plan,
                    pieces=share,
                    signature=signature_for(share, id(plan)),
                    initial=None if initial is None else initial.states[row : row + 1],
                    noise_state=None if initial is None else initial.noise[row],
                )
            )
        return made

    def _first_step(
        self,
        plan: Plan,
        pairs: Sequence[Pair],
        generator: torch.Generator | list[torch.Generator],
        latents: Tensor | None = None,
        images: int = 1,
    ) -> FirstStep:
        several = None if images == 1 else images
        negatives = None if pairs[0][1] is None else [negative for _, negative in pairs]
        kwargs = arguments(
            self._pipe,
            self._call,
            prompt=[prompt for prompt, _ in pairs],
            negative_prompt=negatives,
            generator=generator,
            latents=latents,
            num_images_per_prompt=several,
            num_videos_per_prompt=several,
            output_type="latent",
        )
        rows = len(pairs) * images
        step = first_step(self._pipe, kwargs, plan.network, plan.outputs, (rows, plan.rows))
        if len(step.sample) != rows:
            raise Refusal(f"{rows} prompts and images became {len(step.sample)} states")
        return step
