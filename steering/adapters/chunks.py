"""Diffusers pipelines that make videos chunk by chunk, asked for one chunk a call.

Each goes on from latents by arguments of its own public call, so a chain of such calls is what the
pipeline itself does in one: equal to the bit, given the same noise and batch (the tests check it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor

from steering.adapters.checks import Refusal, signature_of
from steering.adapters.chunk_calls import PipelineChunks
from steering.adapters.watch import Watched
from steering.chunks import Continue, Prefix
from steering.cost import Cost


def continuing(pipe: Any, call: Mapping[str, Any] | None = None) -> Continue:
    """What makes the next chunk with a pipeline.

    Args:
        pipe: a ``HeliosPipeline``, ``HeliosPyramidPipeline`` or ``AnyFlowFARPipeline`` of diffusers.
        call: its own keyword arguments, such as ``height`` and ``num_inference_steps``.

    Raises:
        Refusal: a pipeline that is not known to go on from what is kept.
        TypeError: an argument that is not the pipeline's own, or is set here.
        ValueError: chunks that the pipeline cannot make.
    """
    for kind, continued in _KINDS.items():
        if isinstance(pipe, getattr(diffusers, kind)):
            return continued(pipe, call)
    raise Refusal(
        f"{type(pipe).__name__} is not known to go on from a kept beginning by its own call; use one of "
        f"{', '.join(_KINDS)}, or an object of your own with the methods of steering.chunks.Continue"
    )


class HeliosChunks(PipelineChunks):
    """Helios (``HeliosPipeline``): latents of all chunks so far are its history.

    The transformer sees the last of them and the first frame, so a chunk costs the same wherever it
    is, and only it is decoded. The history is handed on without the noise that the pipeline adds by
    default to given videos, as in its own loop. Latents of a prefix are ``(C, T, h, w)``.
    """

    _decodes = True

    def cost(self, chunk: int, *, frames: bool) -> Cost:
        """The steps of one chunk and its decode, which the pipeline's loop makes in any case."""
        return Cost(nfe=self._steps(), decodes=1)

    def _arguments(self, chunk: int, latents: Tensor | None) -> dict[str, Any]:
        known = signature_of(self.pipe)
        window = self.call.get("num_latent_frames_per_chunk", known["num_latent_frames_per_chunk"])
        given: dict[str, Any] = {
            "num_frames": (window - 1) * self.pipe.vae_scale_factor_temporal + 1
        }
        if latents is None:
            return given
        given |= {"video_latents": latents, "add_noise_to_video_latents": False}
        given |= {"image_latents": latents[:, :, :1], "add_noise_to_image_latents": False}
        return given

    def _joined(self, prefix: Prefix, finals: Sequence[Tensor], frames: Tensor | None) -> Prefix:
        last = finals[-1]
        before = [] if prefix.latents is None else [prefix.latents.to(last)]
        latents = torch.cat([*before, last], 1)
        parts = () if frames is None else (*prefix.parts, frames)
        return Prefix(prefix.chunks + 1, latents, parts)


class HeliosPyramidChunks(HeliosChunks):
    """Helios whose chunks grow through several sizes (``HeliosPyramidPipeline``), distilled or not.

    One row a call: of a list of generators the pipeline reads the first alone for the noise that it
    adds between sizes, so that rows of a batch would share it.
    """

    _batches = False

    def cost(self, chunk: int, *, frames: bool) -> Cost:
        """The steps at all sizes and the decode; twice the steps of an amplified first chunk."""
        name = "pyramid_num_inference_steps_list"
        steps = sum(self.call.get(name, signature_of(self.pipe)[name]))
        twice = chunk == 0 and self.call.get("is_amplify_first_chunk")
        twice = twice and self.pipe.config.is_distilled
        return Cost(nfe=2 * steps if twice else steps, decodes=1)

    def _arguments(self, chunk: int, latents: Tensor | None) -> dict[str, Any]:
        given = super()._arguments(chunk, latents)
        # each call's first chunk is amplified, but only the first of these is the video's
        return given if latents is None else {**given, "is_amplify_first_chunk": False}


class AnyFlowChunks(PipelineChunks):
    """AnyFlow with causal chunks (``AnyFlowFARPipeline``): a clean beginning is read into its caches.

    Reading costs a pass of the network a kept chunk in every call (counted as a denoiser call), and
    frames are decoded from the beginning. The pipeline's caches need at least ``full_chunk_limit - 1``
    chunks (2 of the released models), so as many of its ``chunk_partition`` make the first chunk here;
    the others are one each. Latents of a prefix are ``(T, C, h, w)``.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any] | None = None) -> None:
        super().__init__(pipe, call)
        if not self.call.get("use_kv_cache", True):
            raise ValueError(
                "use_kv_cache=False: the pipeline goes on by its caches; leave it True"
            )
        config = pipe.transformer.config
        self._partition = list(self.call.pop("chunk_partition", None) or config.chunk_partition)
        self._first = max(config.full_chunk_limit - 1, 1)
        self.chunks = len(self._partition) - self._first + 1
        if self.chunks < 1:
            raise ValueError(
                f"chunk_partition={self._partition} has {len(self._partition)} chunks, but the caches "
                f"of {type(pipe).__name__} need at least {self._first}; give more"
            )

    def cost(self, chunk: int, *, frames: bool) -> Cost:
        """Steps of what is new, a pass for each chunk but the last, and a decode if asked for."""
        new = self._first if chunk == 0 else 1
        return Cost(nfe=self._steps() * new + self._read(chunk), decodes=int(frames))

    def _read(self, chunk: int) -> int:
        """Chunks that are read into the caches."""
        return self._first + chunk - 1

    def _counted(self, chunk: int, found: Watched, frames: bool) -> Cost:
        return Cost(nfe=found.steps + self._read(chunk), decodes=int(frames))

    def _arguments(self, chunk: int, latents: Tensor | None) -> dict[str, Any]:
        partition = self._partition[: self._first + chunk]
        frames = (sum(partition) - 1) * self.pipe.vae_scale_factor_temporal + 1
        given = {"chunk_partition": partition, "num_frames": frames}
        return given if latents is None else {**given, "video_latents": latents}

    def _joined(self, prefix: Prefix, finals: Sequence[Tensor], frames: Tensor | None) -> Prefix:
        before = [] if prefix.latents is None else [prefix.latents.to(finals[0])]
        latents = torch.cat([*before, *finals])
        return Prefix(prefix.chunks + 1, latents, () if frames is None else (frames,))


_KINDS: dict[str, type[PipelineChunks]] = {
    "HeliosPipeline": HeliosChunks,
    "HeliosPyramidPipeline": HeliosPyramidChunks,
    "AnyFlowFARPipeline": AnyFlowChunks,
}
