"""A pipeline as a black box: initial noises in by ``latents=``, finished media out."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steering.adapters.asking import Pair, pairs_of, probes
from steering.adapters.capture import quiet_generator
from steering.adapters.checks import (
    Refusal,
    check_call,
    check_pipeline,
    check_prompts,
    signature_of,
    tolerance,
)
from steering.adapters.embeds import Embeds
from steering.adapters.naming import model_name
from steering.adapters.pictures import output_of, pictures_of
from steering.adapters.rendering import Renderer
from steering.adapters.start import (
    Caller,
    check_start,
    generator_after,
    learn_start,
)
from steering.adapters.step_callback import StepCallback
from steering.adapters.watch import Watch, Watched
from steering.model import Abilities, Carried, Stage
from steering.prediction import Posterior
from steering.streams import seeded_generator
from steering.times import Time, TimeGrid

_PROBES = ("a cat", "two red cubes on a table")
_OUTPUTS = ("pil", "np", "pt")
_GRID = TimeGrid((Time(1.0, 0.0, 1.0), Time(0.0, 1.0, 0.0)))


@dataclass(frozen=True, eq=False)
class BlackBoxHandle:
    """One prompt, as the pipeline's call takes it.

    Attributes:
        pair: its prompt and negative prompt.
        signature: equal for rows that may share a call.
        initial: noise ``(1, *shape)`` that the pipeline would start from, or None.
        noise_state: the user's generator as it goes on from there, where it serves this row alone.
    """

    pair: Pair
    signature: Hashable
    initial: Tensor | None = None
    noise_state: tuple[torch.device, Tensor] | None = None


class BlackBoxModel:
    """Carries initial noises to finished pictures by the pipeline's own call, and does nothing else.

    A state at the start is what the pipeline takes as ``latents=``, before it scales it; a finished
    state is the picture itself, as a safety checker left it. Checked when it is built: a short call
    with a generator equals one with the latents that this generator draws.

    Args:
        pipe: a diffusers pipeline with a scheduler; it is left as it was.
        call: its arguments shared by all prompts.
        reason: why it is not entered by a better door, for messages.

    Raises:
        Refusal: the pipeline does not start from ``latents=``, or makes no pictures.
        TypeError: an argument that the pipeline does not take.
    """

    door = "black-box"  #: how the pipeline is entered

    def __init__(self, pipe: Any, call: Mapping[str, Any], reason: str = "") -> None:
        check_pipeline(pipe)
        check_call(pipe, call)
        self.pipe, self.reason = pipe, reason
        self._call = {k: v for k, v in call.items() if k != "negative_prompt"}
        self._negative = call.get("negative_prompt")
        self._wanted = self._call.get("output_type") or "pil"
        if self._wanted not in _OUTPUTS:
            raise Refusal(
                f"a black box makes pictures, not output_type={self._wanted!r}; use one of "
                f"{', '.join(_OUTPUTS)}"
            )
        self._caller = Caller(pipe, self._call)
        self._start = learn_start(self._caller, self._pair(0))
        self._output_type: type = object
        self._kept = self._countable()
        self._together = self._check()
        self._renderer = Renderer(self._output)
        self._within: dict[str, Any] = {}

    def _pair(self, index: int) -> Pair:
        negative = self._negative
        negative = negative if negative is None or isinstance(negative, str) else "a"
        return probes(self.pipe, self._call, _PROBES, [negative] * len(_PROBES))[index]

    def _countable(self) -> dict[str, Any]:
        """Count the call's steps, and find an output type that it can make."""
        errors, choices = [], list[dict[str, Any]]([{}])
        if "output_type" in signature_of(self.pipe):
            choices = [{"output_type": name} for name in ("pt", "np", "pil")]
        for kept in choices:
            kwargs = self._caller.arguments([self._pair(0)], [quiet_generator()], None, **kept)
            try:
                found = Watch(self.pipe, counting=True).run(kwargs)
                pictures_of(found)
            except Refusal:
                raise
            except (ValueError, RuntimeError, TypeError) as error:
                errors.append(str(error))
                continue
            self._calls, self._passes = found.steps, _passes(found, 1)
            self._output_type = type(found.output)
            return kept
        raise Refusal(f"{type(self.pipe).__name__} returns no pictures: {'; '.join(errors)}")

    def _check(self) -> bool:
        """Check the start; then whether several prompts may share a call.

        Raises:
            Refusal: ``latents=`` does not stand for what a generator draws.
        """
        changed = {**self._kept, **self._caller.short()}
        first, second = self._pair(0), self._pair(1)
        self._start, latents, generator, alone = check_start(
            self._caller, self._start, first, pictures_of, changed
        )
        other = torch.randn(latents.shape, generator=quiet_generator()).to(latents)
        state = generator.get_state()

        def run(pairs: list[Pair], x: Tensor) -> Tensor:
            generator.set_state(state)
            both = [generator, torch.Generator().manual_seed(4)]
            mine = both if len(pairs) == 2 else both[1:]
            kwargs = self._caller.arguments(pairs, mine, x, **changed)
            return pictures_of(Watch(self.pipe).run(kwargs))

        apart = torch.cat([alone, run([second], other)])
        try:
            joined = run([first, second], torch.cat([latents, other]))
        except (ValueError, RuntimeError, TypeError):  # it takes no lists
            return False
        same = joined.shape == apart.shape
        return same and float((joined - apart).abs().max()) <= tolerance(self.dtype)

    @property
    def name(self) -> str:
        """As that of a replayed model: samples of both have one law."""
        return model_name(self.pipe, self._call, self._calls, self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one initial state."""
        return self._start.shape

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return torch.device(self.pipe._execution_device)

    @property
    def dtype(self) -> torch.dtype:
        """What the pipeline's state is in."""
        return self._start.dtype

    @property
    def grid(self) -> TimeGrid:
        """From noise to picture in one transition: what lies between is the pipeline's own."""
        return _GRID

    @property
    def initial_std(self) -> float:
        """Of what ``latents=`` takes."""
        return 1.0

    @property
    def passes(self) -> int:
        """Network passes that a row and model call cost."""
        return self._passes

    @property
    def abilities(self) -> Abilities:
        """Whole roll-outs by the pipeline's own scheduler alone."""
        why = f"it is entered as a black box (latents=), since {self.reason}" if self.reason else ""
        return Abilities(
            time_per_row=False,
            any_order=False,
            gradients=False,
            denoises=False,
            why=why or "it is entered as a black box (latents=)",
        )

    def following(self, callback: StepCallback) -> BlackBoxModel:
        """This model, whose calls of the pipeline run the user's callback."""
        found = copy.copy(self)
        found._within = callback.within()
        return found

    def look_by(self, policy: Any) -> BlackBoxModel:
        """There are no guesses part-way to decode by a policy. Returns itself."""
        return self

    def at(self, log_snr: float) -> Time:
        """Refused: no noise level between start and end is known."""
        raise Refusal(f"no noise level of log-SNR {log_snr} is known: {self.abilities.why}")

    def denoise(self, x_t: Tensor, times: Sequence[Time], conditioning: Sequence[Any]) -> Posterior:
        """Refused."""
        raise Refusal(f"rows cannot be denoised one by one: {self.abilities.why}")

    def scheduler_run(
        self,
        conditioning: Any,
        draws: Sequence[int],
        seeds: Sequence[int],
        start: int = 0,
        stop: int | None = None,
    ) -> Any:
        """Refused: the scheduler runs inside :meth:`carry`."""
        raise Refusal(f"the scheduler cannot be run step by step: {self.abilities.why}")

    def scheduler_calls(self) -> int:
        """Model calls of the pipeline's own call, counted in one."""
        return self._calls

    def encode(
        self,
        prompts: Sequence[str],
        *,
        negative_prompts: Sequence[str] | str | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        images_per_prompt: int = 1,
        embeds: Sequence[Embeds] | None = None,
    ) -> list[BlackBoxHandle]:
        """Handles of prompts; arguments and order are those of :meth:`PipelineModel.encode`.

        Raises:
            ValueError: no prompts, or numbers or shapes that do not match.
            TypeError: a prompt that is no text, or negative prompts that the pipeline does not take.
        """
        given = self._negative if negative_prompts is None else negative_prompts
        texts, negatives = check_prompts(prompts, given, images_per_prompt)
        if given is not None and "negative_prompt" not in signature_of(self.pipe):
            raise TypeError(f"{type(self.pipe).__name__} takes no negative prompts")
        pairs = pairs_of(self._call, texts, negatives, embeds)
        rows = [pair for pair in pairs for _ in range(images_per_prompt)]
        generators = generator if isinstance(generator, list) else [generator] if generator else []
        if len(generators) > 1 and len(generators) != len(rows):
            raise ValueError(f"{len(generators)} generators for {len(rows)} prompts and images")
        initial, states = self._initial(pairs, images_per_prompt, generators, latents)
        alone = len(generators) == len(rows)  # one shared generator serves all rows at once
        return [
            BlackBoxHandle(
                pair,
                signature=(id(self), pair.negative is None),
                initial=None if initial is None else initial[i : i + 1],
                noise_state=(generators[i].device, states[i]) if alone else None,
            )
            for i, pair in enumerate(rows)
        ]

    def _initial(
        self,
        pairs: list[Pair],
        images: int,
        generators: list[torch.Generator],
        latents: Tensor | None,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Noises that the rows start from, and where their generators stand then."""
        stood = [g.get_state() for g in generators]
        if latents is not None:
            wanted = (len(pairs) * images, *self.shape)
            if tuple(latents.shape) != wanted:
                raise ValueError(f"latents must be of shape {wanted}, got {tuple(latents.shape)}")
            return latents.to(self.device, torch.float32), stood
        if not generators:
            return None, []
        rows = [pair for pair in pairs for _ in range(images)]
        if len(generators) < len(rows):  # one generator draws for all rows, as the pipeline has it
            noise = self._start.noise(self._caller.stopped(pairs, generators, None, images))
            if len(noise) != len(rows):
                raise Refusal(f"{len(rows)} prompts and images became {len(noise)} states")
            return noise, stood
        noises, states = [], []
        for pair, generator, state in zip(rows, generators, stood, strict=True):
            watched = self._caller.stopped([pair], [generator])
            after = generator_after(self._start, watched, generator)
            noises.append(self._start.noise(watched))
            states.append(state if after is None or self._start.rewind else after)
        return torch.cat(noises), states

    @torch.no_grad()
    def carry(
        self,
        x_t: Tensor,
        conditioning: Sequence[BlackBoxHandle],
        draws: Sequence[int],
        seeds: Sequence[int],
    ) -> Carried:
        """Pictures of initial noises ``(B, *shape)`` by the pipeline's own call, or one call a row."""
        latents = x_t.to(self.device, self.dtype)
        rows = zip(conditioning, draws, seeds, strict=True)
        generators = [_generator(handle, draw, seed) for handle, draw, seed in rows]
        pairs = [handle.pair for handle in conditioning]
        parts = [slice(None)] if self._together else [slice(i, i + 1) for i in range(len(pairs))]
        pictures, calls = [], 0
        for part in parts:
            kwargs = self._caller.arguments(
                pairs[part], generators[part], latents[part], **self._kept, **self._within
            )
            found = Watch(self.pipe).run(kwargs)
            self._passes = _passes(found, len(pairs[part]))
            calls = max(calls, found.steps)
            pictures.append(pictures_of(found).to(self.device))
        return Carried(torch.cat(pictures), calls, self._passes)

    def decode(self, x_0: Tensor, conditioning: Sequence[Any], stage: Stage) -> Tensor:
        """The pictures that finished states are, ``(B, 3, H, W)`` in [0, 1]."""
        return x_0

    def render(self, x_0: Tensor, conditioning: Sequence[Any]) -> list[Any]:
        """Pictures of each row in the user's ``output_type``."""
        return self._renderer(x_0)

    def merge_output(self, rows: Sequence[Any]) -> Any:
        """The pipeline's own output type, from entries that :meth:`render` returned.

        Raises:
            ValueError: nothing was rendered yet.
        """
        return self._renderer.merge(rows)

    def _output(self, x_0: Tensor) -> Any:
        return output_of(self._output_type, x_0, self._wanted)


def _generator(handle: BlackBoxHandle, draw: int, seed: int) -> torch.Generator:
    """Draw 0 goes on with the user's own generator; others have a stream of their own."""
    if draw == 0 and handle.noise_state is not None:
        device, state = handle.noise_state
        generator = torch.Generator(device)
        generator.set_state(state)
        return generator
    return seeded_generator(seed)


def _passes(found: Watched, rows: int) -> int:
    """Network rows a row and step."""
    return max(math.ceil(found.rows / (found.steps * rows)), 1)
