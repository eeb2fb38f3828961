"""Counted calls of pipelines that make videos chunk by chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steering.adapters.checks import check_call, check_pipeline, signature_of
from steering.adapters.watch import Watch, Watched
from steering.chunks import Extended, Prefix
from steering.cost import Cost
from steering.reward import Item
from steering.streams import seeded_generator

#: what is set from chunk to chunk, or begins a video otherwise than by its prompt
_OWN = {
    "prompt", "prompt_embeds", "negative_prompt_embeds", "num_videos_per_prompt", "num_frames",
    "generator", "latents", "image", "image_latents", "fake_image_latents", "video", "video_latents",
    "add_noise_to_image_latents", "add_noise_to_video_latents", "is_skip_first_chunk", "output_type",
    "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs",
}  # fmt: skip


class PipelineChunks(ABC):
    """Base: counted calls on a private copy, one for all rows of the same length.

    Args:
        pipe: the pipeline; it stays as it was.
        call: its own keyword arguments.
    """

    chunks: int | None = None
    _batches = True  #: whether a list of generators keeps rows apart
    _decodes = False  #: whether the pipeline's loop decodes in any case

    def __init__(self, pipe: Any, call: Mapping[str, Any] | None = None) -> None:
        check_pipeline(pipe)
        self.pipe, self.call = pipe, dict(call or {})
        name = type(pipe).__name__
        for argument in self.call:
            if argument in _OWN:
                raise TypeError(
                    f"{argument!r} of {name} is set for each chunk of each video; leave it out of call"
                )
        check_call(pipe, self.call)
        negative = self.call.get("negative_prompt")
        if negative is not None and not isinstance(negative, str):
            raise TypeError(f"negative_prompt must be one text for all videos, got {negative!r}")

    @abstractmethod
    def cost(self, chunk: int, *, frames: bool) -> Cost:
        """See `steering.chunks.Continue`."""

    @abstractmethod
    def _arguments(self, chunk: int, latents: Tensor | None) -> dict[str, Any]:
        """Those that ask for the ``chunk``-th chunk after ``latents`` ``(B, ...)``."""

    @abstractmethod
    def _joined(self, prefix: Prefix, finals: Sequence[Tensor], frames: Tensor | None) -> Prefix:
        """A prefix and what was made after it: latents as in the loop, and the returned frames."""

    def extend(
        self,
        prefixes: Sequence[Prefix],
        items: Sequence[Item],
        seeds: Sequence[int],
        *,
        frames: bool,
    ) -> Extended:
        """See `steering.chunks.Continue`.

        Raises:
            ValueError: a video is whole already, or lacks the latents or frames to go on from.
        """
        for prefix in prefixes:
            self._check(prefix)
        frames = frames or self._decodes
        made: dict[int, tuple[Prefix, Cost]] = {}
        for rows in self._grouped(prefixes):
            kept = [prefixes[i] for i in rows]
            found, finals = self._run(
                kept, [items[i] for i in rows], [seeds[i] for i in rows], frames
            )
            cost = self._counted(kept[0].chunks, found, frames)
            media = found.output.frames.float() if frames else None
            for j, i in enumerate(rows):  # clones, so that rows that are let go free their memory
                own = None if media is None else media[j].clone()
                made[i] = self._joined(prefixes[i], [x[j].clone() for x in finals], own), cost
        ordered = [made[i] for i in range(len(prefixes))]
        return Extended([p for p, _ in ordered], [c for _, c in ordered])

    def _check(self, prefix: Prefix) -> None:
        name = type(self.pipe).__name__
        if self.chunks is not None and prefix.chunks >= self.chunks:
            raise ValueError(
                f"a video of {prefix.chunks} chunks is whole: this {name} makes {self.chunks}; ask for "
                "fewer, or give a longer chunk_partition"
            )
        if prefix.chunks and (prefix.latents is None or (self._decodes and not prefix.parts)):
            lacks = "latents" if prefix.latents is None else "frames"
            raise ValueError(
                f"a prefix of {prefix.chunks} chunks holds no {lacks}, and {name} cannot go on without; "
                "give one that this generator made, or fill them in"
            )

    def _grouped(self, prefixes: Sequence[Prefix]) -> Iterator[list[int]]:
        """Rows that share a call."""
        lengths = [p.chunks for p in prefixes]
        for length in sorted(set(lengths)):
            rows = [i for i, found in enumerate(lengths) if found == length]
            yield from [rows] if self._batches else [[i] for i in rows]

    def _run(
        self, kept: Sequence[Prefix], items: Sequence[Item], seeds: Sequence[int], frames: bool
    ) -> tuple[Watched, list[Tensor]]:
        """One call of the pipeline: what was seen of it, and the last latents of each chunk made."""
        home = self.pipe._execution_device
        before = [p.latents.to(home) for p in kept if p.latents is not None]
        latents = torch.stack(before) if before else None
        finals = _Finals()
        generators = [seeded_generator(seed) for seed in seeds]
        given = {
            **self.call,
            **self._arguments(kept[0].chunks, latents),
            "prompt": [item.prompt for item in items],
            "generator": generators if self._batches else generators[0],
            "output_type": "pt" if frames else "latent",
            "callback_on_step_end": finals,
        }
        return Watch(self.pipe).run(given), finals.seen

    def _counted(self, chunk: int, found: Watched, frames: bool) -> Cost:
        return Cost(nfe=found.steps, decodes=self.cost(chunk, frames=frames).decodes)

    def _steps(self) -> int:
        """Steps of one chunk."""
        known = signature_of(self.pipe)
        for name in ("sigmas", "timesteps"):
            if name in known and self.call.get(name) is not None:
                return len(self.call[name])
        steps = int(self.call.get("num_inference_steps", known["num_inference_steps"]))
        return steps * int(getattr(self.pipe.scheduler, "order", 1))


class _Finals:
    """A callback that keeps the latents after the last step of each run through the steps."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step > 0:
            self.seen.pop()
        self.seen.append(given["latents"])
        return given
