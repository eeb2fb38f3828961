"""A pipeline whose own loop body is the denoiser, as a :class:`steering.model.Model`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steering.adapters.asking import ask, pairs_of
from steering.adapters.capture import quiet_generator
from steering.adapters.cheap_decode import CheapDecode, Decode
from steering.adapters.checks import (
    Refusal,
    check_call,
    check_pipeline,
    check_prompts,
    signature_of,
)
from steering.adapters.decode import Decoder, by_tail
from steering.adapters.embeds import Embeds
from steering.adapters.levels import Levels
from steering.adapters.loop_facts import learn_loop
from steering.adapters.loop_prompts import LoopHandle, started
from steering.adapters.loop_rows import Asked, LoopCalls
from steering.adapters.loop_start import learn_loop_start
from steering.adapters.loop_tail import LoopTail
from steering.adapters.loop_turns import LoopTurns
from steering.adapters.naming import model_name
from steering.adapters.rendering import Renderer
from steering.adapters.scheduling import PipelineSchedule, run_of
from steering.model import CONSISTENCY, Abilities, Looks, Meaning, Stage
from steering.prediction import Posterior
from steering.schedulers import call_times, grid_of, prediction_of
from steering.times import Time, TimeGrid


class InvertedModel:
    """Denoises by the pipeline's own loop body, whatever a pipeline does around its network.

    Rows of a request are grouped by prompt and time; each group goes through calls of a fixed batch
    that stay suspended between requests, padded where it does not fill one. ``tally`` counts what the
    networks computed: rows asked for, padding beside them, and rows of set-up.

    Args:
        pipe: a diffusers pipeline with a scheduler; it is left as it was.
        call: its arguments shared by all prompts.
        reason: why it is not entered by a better door, for messages.

    Raises:
        Refusal: its loop does not serve; the message says why.
        TypeError: an argument that the pipeline does not take; the message names the nearest.
    """

    door = "inverted"  #: how the pipeline is entered

    def __init__(self, pipe: Any, call: Mapping[str, Any], reason: str = "") -> None:
        check_pipeline(pipe)
        check_call(pipe, call)
        self.pipe, self.reason = pipe, reason
        self._call = {k: v for k, v in call.items() if k != "negative_prompt"}
        self._negative = call.get("negative_prompt")
        try:
            prediction_of(pipe.scheduler)
        except ValueError as error:
            raise Refusal(str(error)) from error
        self._calls = LoopCalls(pipe, self._call)
        negative = self._negative
        if negative is not None and not isinstance(negative, str):
            negative = negative[0]
        self._facts = learn_loop(self._calls, self._call, negative)
        self._start = learn_loop_start(self._calls, self._facts)
        if not self._facts.any_order and self._start.latents is None:
            raise Refusal(
                "what a step of its loop does depends on how many were made "
                f"({self._facts.why}), and {type(pipe).__name__} does not start from the latents= that "
                "it is given, so no candidate can go through it from the start"
            )
        self._levels, self._grid = self._scheduled()
        self._turns = LoopTurns(self._calls, self._facts, self._start, self._levels)
        tail = LoopTail(self._calls, self._facts, self._facts.asked)
        self._renderer = Renderer(tail)
        rows = 1 if self._facts.way is None else 2
        example = torch.randn((rows, *self.shape), generator=quiet_generator())
        self._tail = tail
        self._decoder = Decoder(pipe, tail, example.to(self.device))
        self._cheap: Decode | None = None

    def _scheduled(self) -> tuple[Levels, TimeGrid]:
        """Noise levels, and their grid from the loop's start."""
        try:
            times = call_times(self._facts.scheduler)[self._facts.skipped :]
            grid = grid_of(self._facts.scheduler)
            levels = Levels(self._facts.scheduler)
        except ValueError as error:
            raise Refusal(str(error)) from error
        kept = tuple(t for t in grid if t.log_snr >= times[0].log_snr)
        if len(kept) < 2:
            raise Refusal("the pipeline's loop has no step between two noise levels")
        return levels, TimeGrid(kept)

    @property
    def tally(self) -> Any:
        """Rows that the loop's networks computed, see :class:`steering.adapters.loop_networks.Tally`."""
        return self._calls.tally

    def look_by(self, policy: CheapDecode | None) -> InvertedModel:
        """Decode guesses part-way by a cheaper decoder; None: by the full one. Returns itself.

        Raises:
            Refusal: it cannot be done for this model.
        """
        self._cheap = None if policy is None else policy.fit(self)
        return self

    def close(self) -> None:
        """End the suspended calls of the pipeline; the next request begins others."""
        self._turns.close()

    def fix_batch(self, fixed: bool) -> None:
        """Give every turn of the loop the same number of rows, or as few as serve."""
        self._turns.fixed = fixed

    @property
    def name(self) -> str:
        """As that of a replayed model: samples of both have one law."""
        return model_name(self.pipe, self._call, self.scheduler_calls(), self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        return self._facts.shape

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return torch.device(self.pipe._execution_device)

    @property
    def dtype(self) -> torch.dtype:
        """What the pipeline's state is in."""
        return self._facts.dtype

    @property
    def grid(self) -> TimeGrid:
        """The time grid of the pipeline's scheduler, from where its loop starts."""
        return self._grid

    def at(self, log_snr: float) -> Time:
        """Record of any noise level on the interpolant that the network was trained on.

        Raises:
            Refusal: the loop's turns are at the times of the scheduler alone.
        """
        if not self._facts.any_order:
            raise Refusal(f"no noise level off the scheduler's grid: {self.abilities.why}")
        return self._levels.at(log_snr)

    @property
    def initial_std(self) -> float:
        """Standard deviation of the noise at ``grid[0]``."""
        return self._start.std

    @property
    def origin(self) -> Tensor | None:
        """What the noise at ``grid[0]`` is added to, ``(1, *shape)``; None for nothing."""
        return self._start.origin

    @property
    def reached(self) -> Tensor | None:
        """1 where that noise reaches the state and 0 elsewhere, ``(1, *shape)``; None: everywhere."""
        return self._start.reached

    @property
    def passes(self) -> int:
        """Network passes that a row costs."""
        return self._facts.passes

    @property
    def abilities(self) -> Abilities:
        """What replay can do, if slower; in sequence only where the loop counts its turns."""
        facts = self._facts
        distilled = type(facts.scheduler).__name__ in CONSISTENCY
        why = f"it is entered by its own loop, since {self.reason}" if self.reason else ""
        if not facts.any_order:
            why = f"what a step of its loop does depends on how many were made ({facts.why})"
        return Abilities(
            any_order=facts.any_order,
            gradients=facts.gradients and self._decoder.differentiable,
            meaning=Meaning.CONSISTENCY_MAP if distilled else Meaning.POSTERIOR_MEAN,
            why=why,
        )

    def encode(
        self,
        prompts: Sequence[str],
        *,
        negative_prompts: Sequence[str] | str | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        images_per_prompt: int = 1,
        embeds: Sequence[Embeds] | None = None,
    ) -> list[LoopHandle]:
        """Handles of prompts; arguments and order are those of :meth:`PipelineModel.encode`.

        Raises:
            ValueError: no prompts, or numbers that do not match.
            TypeError: a prompt that is no text, or negative prompts that the pipeline does not take.
        """
        given = self._negative if negative_prompts is None else negative_prompts
        texts, negatives = check_prompts(prompts, given, images_per_prompt)
        if given is not None and "negative_prompt" not in signature_of(self.pipe):
            raise TypeError(f"{type(self.pipe).__name__} takes no negative prompts")
        pairs = pairs_of(self._call, texts, negatives, embeds)
        ask(self.pipe, pairs)  # names what is no class, before any work
        rows = [pair for pair in pairs for _ in range(images_per_prompt)]
        if generator is None and latents is None:
            return [LoopHandle(Asked(pair), id(self._calls)) for pair in rows]
        return started(
            self._calls, self._facts, self._call, pairs, images_per_prompt, generator, latents
        )

    def denoise(
        self, x_t: Tensor, times: Sequence[Time], conditioning: Sequence[LoopHandle]
    ) -> Posterior:
        """Posterior of each row, as of the state that the pipeline makes of it.

        Args:
            x_t: states ``(B, *shape)``, float32.
            times: one noise level a row.
            conditioning: one handle a row.

        Raises:
            ValueError: numbers do not match; a time off the grid where the loop counts its turns; an
                epsilon prediction where alpha is 0.
        """
        if not len(x_t) == len(times) == len(conditioning) > 0:
            raise ValueError(
                f"need one time and one handle a row: {len(x_t)} rows, {len(times)} times, "
                f"{len(conditioning)} handles"
            )
        states, outputs = self._turns(x_t, times, conditioning)
        _, _, mixing = self._levels.columns(times, x_t)
        return mixing.posterior(states if self._facts.changes else x_t, outputs)

    def decode(self, x_0: Tensor, conditioning: Sequence[LoopHandle], stage: Stage) -> Tensor:
        """Pictures of each row, ``(B, 3, H, W)`` in [0, 1], float32; videos have frames before these.

        Differentiable if the abilities say so; a safety checker looks at rendered media only.
        """
        if self._cheap is not None and stage is Stage.INTERMEDIATE:
            return self._cheap(x_0)
        if self._decoder.differentiable:
            return self._decoder(x_0)
        made: list[Any] = [None] * len(x_0)
        for places, tail in self._tails(conditioning):
            for place, media in zip(places, by_tail(tail, x_0[places]), strict=True):
                made[place] = media
        return torch.stack(made)

    def decode_frames(
        self, x_0: Tensor, conditioning: Sequence[LoopHandle], stage: Stage, looks: Looks
    ) -> Tensor:
        """As :meth:`decode`; where frames are decoded one by one, those not looked at stay black."""
        cheap = self._cheap is not None and stage is Stage.INTERMEDIATE
        if cheap or not self._decoder.differentiable:
            return self.decode(x_0, conditioning, stage)
        return self._decoder(x_0, looks)

    def render(self, x_0: Tensor, conditioning: Sequence[LoopHandle]) -> list[Any]:
        """Final media of each row by the pipeline's own tail, in the user's ``output_type``."""
        made: list[Any] = [None] * len(x_0)
        for places, tail in self._tails(conditioning):
            for place, media in zip(places, self._renderer(x_0[places], tail), strict=True):
                made[place] = media
        return made

    def _tails(self, handles: Sequence[LoopHandle]) -> Iterator[tuple[list[int], LoopTail]]:
        """Rows that may be decoded at once, each with the tail of its prompt."""
        groups: dict[Any, list[int]] = {}
        for i, handle in enumerate(handles):
            groups.setdefault(handle.asked.key, []).append(i)
        for members in groups.values():
            tail = LoopTail(self._calls, self._facts, handles[members[0]].asked)
            if self._facts.way is None or self._turns.fixed:
                yield from (([i], tail) for i in members)
            else:
                yield members, tail

    def merge_output(self, rows: Sequence[Any]) -> Any:
        """The pipeline's own output type, from entries that :meth:`render` returned.

        Raises:
            ValueError: nothing was rendered yet.
        """
        return self._renderer.merge(rows)

    def scheduler_calls(self) -> int:
        """Model calls that one trajectory of the pipeline's own scheduler makes."""
        return len(self._facts.visited)

    def scheduler_run(
        self,
        conditioning: LoopHandle,
        draws: Sequence[int],
        seeds: Sequence[int],
        start: int = 0,
        stop: int | None = None,
    ) -> PipelineSchedule:
        """A fresh private copy of the pipeline's scheduler for rows with these draw ids and seeds."""
        facts = self._facts

        def make(first: int) -> PipelineSchedule:
            return PipelineSchedule(
                facts.scheduler,
                facts.extra,
                conditioning,
                draws,
                seeds,
                skipped=facts.skipped,
                restated=facts.changes,
                first=first,
                learned_variance=facts.learned_variance,
            )

        return run_of(make, self._grid, start, stop)
