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

from steering.adapters.asking import Pair, ask
from steering.adapters.capture import Enough, NetworkCall, arguments, private_copy, quiet_generator
from steering.adapters.checks import Refusal, relative, tolerance
from steering.adapters.leaves import flatten, snapshot
from steering.adapters.replay import Pieces, Plan
from steering.adapters.stand import Stand, first_output, patch, resized


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
    """

    prompt: str
    plan: Plan
    pieces: Pieces
    signature: Hashable
    initial: Tensor | None = None
    noise_state: tuple[torch.device, Tensor] | None = None


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
    """Shapes of a row's pieces, with the plan that they belong to; lists may hold any shapes."""
    shapes = [
        (key, tuple(piece.shape) if torch.is_tensor(piece) else type(piece).__name__)
        for call in pieces
        for key, piece in call.items()
    ]
    return (owner, *shapes)


_KEPT = 128  # prompts whose pieces are kept


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

    def fresh(self, plan: Plan, pairs: Sequence[Pair], images: int) -> list[Handle]:
        """Handles of prompts whose states the search draws; known prompts are not captured again.

        Raises:
            Refusal: these prompts need another plan.
        """
        pieces = self._pieces(plan, pairs)
        return [
            _handle(plan, pair, share)
            for pair, share in zip(pairs, pieces, strict=True)
            for _ in range(images)
        ]

    def started(
        self,
        plan: Plan,
        pairs: Sequence[Pair],
        images: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
    ) -> list[Handle]:
        """Handles that know the state from which the pipeline itself starts, from its one own call.

        Raises:
            Refusal: these prompts need another plan; the generators then stand as they stood.
        """
        generators = generator if isinstance(generator, list) else [generator] if generator else []
        stood = [g.get_state() for g in generators]
        try:
            step = self._first_step(plan, pairs, generator or quiet_generator(), latents, images)
        except Refusal:
            for g, state in zip(generators, stood, strict=True):
                g.set_state(state)
            raise
        rows = [pair for pair in pairs for _ in range(images)]
        pieces = self._drawn_pieces(plan, rows, step)
        handles = [_handle(plan, pair, share) for pair, share in zip(rows, pieces, strict=True)]
        alone = len(generators) == len(rows)  # one shared generator serves all rows at once
        for i, handle in enumerate(handles):
            handle.initial = step.sample[i : i + 1].float()
            if alone:
                handle.noise_state = (generators[i].device, generators[i].get_state())
        return handles

    def _pieces(self, plan: Plan, pairs: Sequence[Pair]) -> list[Pieces]:
        """Pieces of each prompt, from the cache where they are known.

        Each prompt is encoded by itself, so that its bits depend on no other; twice in one call,
        since with a single row some pipelines drop masks or crop.
        """
        found = []
        for pair in pairs:
            pieces = self._known.pop((id(plan), pair), None)
            if pieces is None:
                step = self._first_step(plan, [pair] * 2, quiet_generator())
                pieces = plan.split(step.calls, 2)[0]
            self._known[id(plan), pair] = pieces
            found.append(pieces)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found

    def _drawn_pieces(self, plan: Plan, rows: Sequence[Pair], step: FirstStep) -> list[Pieces]:
        """Pieces of rows that began with the user's generator.

        They are those of the prompt alone, unless the generator decided some of them too (noise of
        an encoded picture).
        """
        return drawn_pieces(plan, step, self._pieces(plan, rows))

    def _first_step(
        self,
        plan: Plan,
        pairs: Sequence[Pair],
        generator: torch.Generator | list[torch.Generator],
        latents: Tensor | None = None,
        images: int = 1,
    ) -> FirstStep:
        kwargs = arguments(
            self._pipe,
            self._call,
            generator=generator,
            latents=latents,
            output_type="latent",
            **ask(self._pipe, pairs, images),
        )
        rows = len(pairs) * images
        step = first_step(self._pipe, kwargs, plan.network, plan.outputs, (rows, plan.rows))
        if len(step.sample) != rows:
            raise Refusal(f"{rows} prompts and images became {len(step.sample)} states")
        return step


def _handle(plan: Plan, pair: Pair, pieces: Pieces) -> Handle:
    return Handle(pair[0], plan, pieces, signature_for(pieces, id(plan)))


def drawn_pieces(plan: Plan, step: FirstStep, alone: list[Pieces]) -> list[Pieces]:
    """Pieces of the rows of a step: as of their prompts alone, unless random numbers decided some."""
    try:
        drawn = plan.split(step.calls, len(alone))
    except Refusal:  # a single row may be built otherwise than several
        return alone
    return [own if _drawn(own, known) else known for own, known in zip(drawn, alone, strict=True)]


def _drawn(own: Pieces, known: Pieces) -> bool:
    """Whether pieces of like shapes differ by more than arithmetic explains."""
    pairs = [(a[key], b[key]) for a, b in zip(own, known, strict=True) for key in a]
    return any(
        torch.is_tensor(a)
        and torch.is_tensor(b)
        and a.shape == b.shape
        and relative(a, b) > tolerance(a.dtype)
        for a, b in pairs
    )
