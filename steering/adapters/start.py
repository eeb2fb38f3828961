"""Where a pipeline's own call starts, and how ``latents=`` says so; checked against the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steering.adapters.asking import Pair, ask
from steering.adapters.capture import arguments, quiet_generator
from steering.adapters.checks import Refusal, relative, signature_of, tolerance
from steering.adapters.watch import Draw, Watch, Watched

_PLAIN = "so that what latents= decides cannot be known"


@dataclass(frozen=True)
class Start:
    """How the call starts.

    Attributes:
        shape: of one row of ``latents=``.
        dtype: of ``latents=``.
        scaled: whether the pipeline multiplies them by the scheduler's ``init_noise_sigma``.
        draw: which of a generator's draws they are.
        rewind: whether the generator that goes with ``latents=`` must stand where it stood before that
            draw, not after it (other things were drawn before).
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    scaled: bool
    draw: int
    rewind: bool = False

    def noise(self, watched: Watched) -> Tensor:
        """What had to be given as ``latents=`` for the state of this call, ``(n, *shape)``."""
        assert watched.sample is not None
        return watched.sample / (watched.scale if self.scaled else 1.0)


class Caller:
    """The pipeline's own call for some rows.

    Args:
        pipe: the pipeline; left as it was.
        call: its arguments shared by all prompts.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        self.pipe, self._call = pipe, dict(call)
        known = signature_of(pipe)
        for name in ("latents", "generator"):
            if name not in known:
                raise Refusal(f"{type(pipe).__name__} takes no argument {name!r}")

    def arguments(
        self,
        pairs: Sequence[Pair],
        generators: Sequence[torch.Generator],
        latents: Tensor | None,
        *,
        images: int = 1,
        **changed: Any,
    ) -> dict[str, Any]:
        """Keyword arguments of a call: one generator, or one a row."""
        single = len(generators) == 1
        return arguments(
            self.pipe,
            self._call,
            generator=generators[0] if single else list(generators),
            latents=latents,
            return_dict=True,
            **ask(self.pipe, pairs, images),
            **changed,
        )

    def stopped(
        self,
        pairs: Sequence[Pair],
        generators: Sequence[torch.Generator],
        latents: Tensor | None = None,
        images: int = 1,
    ) -> Watched:
        """The call up to its first step."""
        kwargs = self.arguments(pairs, generators, latents, images=images)
        return Watch(self.pipe, stop=True).run(kwargs)

    def short(self) -> dict[str, Any]:
        """Arguments that make the call short, where that is safe."""
        known = signature_of(self.pipe)
        fixed = any(self._call.get(k) is not None for k in ("timesteps", "sigmas", "strength"))
        steps = self._call.get("num_inference_steps", known.get("num_inference_steps"))
        if fixed or not isinstance(steps, int):
            return {}
        return {"num_inference_steps": min(2, steps)}


def learn_start(caller: Caller, pair: Pair) -> Start:
    """Learn the shape and scale of ``latents=`` from two calls, stopped at their first step.

    Raises:
        Refusal: the call starts from anything but plain noise, or ``latents=`` does not decide it.
    """
    who = type(caller.pipe).__name__
    own = caller.stopped([pair], [quiet_generator()])
    assert own.sample is not None
    if len(own.sample) != 1:
        raise Refusal(f"{who} makes {len(own.sample)} states of one prompt")
    start = _matched(own)
    if start is None:
        raise Refusal(
            f"{who} starts from something else than plain noise (an encoded picture, say), {_PLAIN}; "
            "with strength=, try strength=1.0"
        )
    given = torch.randn((1, *start.shape), generator=torch.Generator().manual_seed(1))
    given = given.to(own.sample.device, start.dtype)
    try:
        found = caller.stopped([pair], [quiet_generator()], given)
    except (ValueError, RuntimeError, TypeError) as error:
        raise Refusal(f"{who} does not take latents= of the shape of its state: {error}") from error
    if relative(start.noise(found), given) > tolerance(start.dtype):
        raise Refusal(f"{who} does not start from the latents= that it is given")
    return start


def _matched(watched: Watched) -> Start | None:
    """The draw that the state is made of, in any order of its numbers (some pipelines pack them)."""
    assert watched.sample is not None
    bound = 4 * tolerance(watched.dtype)
    draws = [draw for draw in watched.draws if draw.generator is not None]
    for scaled in (True, False):
        values = watched.sample / (watched.scale if scaled else 1.0)
        ordered = values.flatten().sort().values
        for index, draw in enumerate(draws):
            if draw.values.numel() != values.numel():
                continue
            wanted = draw.values.to(values).flatten().sort().values
            if relative(ordered, wanted) <= bound:
                shape = tuple(values.shape[1:])
                return Start(shape, watched.dtype, scaled, index)
    return None


def generator_after(start: Start, watched: Watched, generator: torch.Generator) -> Tensor | None:
    """State of a generator after it drew the initial noise; None if it did not."""
    own: list[Draw] = [draw for draw in watched.draws if draw.generator is generator]
    return own[start.draw].state if start.draw < len(own) else None


def check_start(
    caller: Caller,
    start: Start,
    pair: Pair,
    media: Callable[[Watched], Tensor],
    changed: Mapping[str, Any],
) -> tuple[Start, Tensor, torch.Generator, Tensor]:
    """Compare a short call with a generator to one with the latents that this generator drew.

    Args:
        caller: makes the calls.
        start: what was learned.
        pair: a prompt.
        media: pictures of a call's output, ``(n, 3, H, W)``.
        changed: arguments that make the call short, and its output type.

    Returns:
        The start, its generator's place settled; the latents, the generator to go with them in the
        state that it must have, and the pictures.

    Raises:
        Refusal: the two differ.
    """
    first = torch.Generator().manual_seed(3)
    own = Watch(caller.pipe).run(caller.arguments([pair], [first], None, **changed))
    wanted = media(own)
    again = torch.Generator().manual_seed(3)
    stopped = caller.stopped([pair], [again])
    after = generator_after(start, stopped, again)
    assert after is not None
    latents = start.noise(own).to(start.dtype)
    worst = float("inf")
    for rewind in (False, True):
        state = torch.Generator().manual_seed(3).get_state() if rewind else after
        generator = torch.Generator()
        generator.set_state(state)
        kwargs = caller.arguments([pair], [generator], latents, **changed)
        found = media(Watch(caller.pipe).run(kwargs))
        worst = min(worst, float((found - wanted).abs().max()))
        if worst <= tolerance(start.dtype):
            generator.set_state(state)
            settled = Start(start.shape, start.dtype, start.scaled, start.draw, rewind)
            return settled, latents, generator, wanted
    raise Refusal(
        f"{type(caller.pipe).__name__} called with the latents that a generator would have drawn "
        f"differs by {worst:.2g} from the call with this generator, {_PLAIN}"
    )
