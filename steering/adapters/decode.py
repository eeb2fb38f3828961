"""From finished states to media: the pipeline's own tail, and a differentiable decode beside it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from steering.adapters.asking import ask, probes
from steering.adapters.capture import arguments, private_copy, quiet_generator
from steering.adapters.checks import exact_float32, tolerance
from steering.adapters.replay import Plan
from steering.adapters.stand import Stand, StepOutput, patch, resized
from steering.model import Looks

_PROMPT = "a"  # the tail does not look at prompts; one text keeps the memo small
_PLACES_AT_ONCE = 16 * 64 * 64  # of latents, where videos are decoded frame by frame: 16 of 512 px
_MEMO_SIZES = 2  # batch sizes whose encoded prompts are kept


class Tail:
    """Decodes states by the pipeline's own tail: its call with a stand-in denoiser and scheduler.

    Args:
        pipe: the pipeline; left as it was.
        call: its arguments shared by all prompts.
        plan: what was learned of its step.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any], plan: Plan) -> None:
        self._pipe = pipe
        self._call = call
        self._plan = plan
        self.alone = False
        (self._asked,) = probes(pipe, call, [_PROMPT])
        self._memo: dict[int, list[Any]] = {}
        #: further arguments of the pipeline's own unpacking of latents, once it was seen
        self.unpacking: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __call__(self, x_0: Tensor, *, output_type: str | None = None, checked: bool = True) -> Any:
        """The pipeline's own output object for these states.

        Args:
            x_0: finished states ``(n, *shape)``.
            output_type: the pipeline's argument of that name; None leaves the user's.
            checked: whether a safety checker looks at the pictures.

        Raises:
            RuntimeError: the pipeline ends without the states having reached its tail.
        """
        states = x_0.detach().to(self._plan.dtype)
        reached = False

        def step(*args: Any, **kwargs: Any) -> StepOutput:
            nonlocal reached
            reached = True
            return StepOutput((states, states))

        scheduler = copy.deepcopy(self._pipe.scheduler)
        patch(scheduler, "step", step)
        _shorten(scheduler)
        kwargs = arguments(
            self._pipe,
            self._call,
            generator=quiet_generator(),
            output_type=output_type,
            return_dict=True,
            **ask(self._pipe, [self._asked] * len(states)),
        )
        with private_copy(self._pipe, scheduler, self._parts(len(states), checked)) as twin:
            output = twin(**kwargs)
        if not reached:
            raise RuntimeError(f"{type(self._pipe).__name__} ended without a scheduler step")
        return output

    def _parts(self, rows: int, checked: bool) -> dict[str, Any]:
        """Stand-ins: the denoiser answers with zeros, prompts are encoded once a batch size."""
        plan, count = self._plan, 0

        def on_call(*_: Any) -> Any:
            nonlocal count
            pattern = plan.outputs[count % len(plan.outputs)]
            count += 1
            return resized(pattern, rows, plan.rows, random=None)

        parts: dict[str, Any] = {
            plan.network: Stand(plan.network, self._pipe.__dict__[plan.network], on_call)
        }
        if hasattr(self._pipe, "encode_prompt"):
            parts["encode_prompt"] = self._memoised(rows)
        if hasattr(self._pipe, "_unpack_latents"):
            parts["_unpack_latents"] = self._watched_unpacking
        if not checked and "safety_checker" in self._pipe.__dict__:
            parts["safety_checker"] = None
        return parts

    def _memoised(self, rows: int) -> Callable[..., Any]:
        if rows not in self._memo and len(self._memo) >= _MEMO_SIZES:
            self._memo.pop(next(iter(self._memo)))
        known = self._memo.setdefault(rows, [])
        calls = itertools.count()
        scratch = copy.copy(self._pipe)  # some pipelines note the LoRA scale on themselves

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            index = next(calls)
            if index == len(known):
                known.append(scratch.encode_prompt(*args, **kwargs))
            return pytree.tree_map(lambda x: x, known[index])  # containers of its own

        return encode_prompt

    def _watched_unpacking(self, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.unpacking = (args, kwargs)
        return self._pipe._unpack_latents(latents, *args, **kwargs)


def media_of(output: Any) -> tuple[str, Any]:
    """Name and value of the media in a pipeline's output object (its first field)."""
    name = fields(output)[0].name
    return name, getattr(output, name)


def tensor_of(media: Any) -> Tensor:
    """Media as a tensor: pictures ``(n, C, H, W)``, videos ``(n, frames, C, H, W)``, others as they are.

    Args:
        media: a tensor of that form, an array with channels last, or a list of PIL pictures.
    """
    if isinstance(media, list) and media and hasattr(media[0], "convert"):
        media = np.stack([np.asarray(picture.convert("RGB")) for picture in media]) / 255.0
    if isinstance(media, np.ndarray) and media.ndim in (4, 5):
        media = np.moveaxis(media, -1, media.ndim - 3)
    return torch.as_tensor(media)


def _shorten(scheduler: Any) -> None:
    """Make the scheduler list its last time only, so that the loop turns once."""
    whole = scheduler.set_timesteps

    def set_timesteps(*args: Any, **kwargs: Any) -> Any:
        result = whole(*args, **kwargs)
        scheduler.timesteps = scheduler.timesteps[-1:]
        return result

    patch(scheduler, "set_timesteps", set_timesteps)


def _affine(vae: Any, z: Tensor) -> Tensor:
    """Latents as the autoencoder made them, from latents as the denoiser sees them."""
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        shape = (1, -1, *[1] * (z.ndim - 2))
        z = z * torch.tensor(std).to(z).view(shape) / config.scaling_factor
        return z + torch.tensor(mean).to(z).view(shape)
    return z / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)


def _decode_images(vae: Any, z: Tensor) -> Tensor:
    pictures = vae.decode(_affine(vae, z).to(vae.dtype), return_dict=False)[0]
    return (pictures.float() / 2 + 0.5).clamp(0, 1)


#: Differentiable decoders, declared per class of autoencoder: (vae, latents) to pictures in [0, 1].
DECODERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "AutoencoderKL": _decode_images,
    "AutoencoderTiny": _decode_images,
    "AutoencoderDC": _decode_images,
}


def _by_frames(decode: Callable[[Tensor], Tensor], z: Tensor, looks: Looks | None) -> Tensor:
    """Videos ``(n, F, 3, H, W)`` of latents ``(n, C, F, h, w)`` by a decoder of pictures."""
    rows, count = len(z), z.shape[2]
    wanted = list(range(count)) if looks is None else sorted(looks(count))
    frames = z[:, :, wanted].transpose(1, 2).flatten(0, 1)
    at_once = max(_PLACES_AT_ONCE // (z.shape[-1] * z.shape[-2]), 1)
    made = torch.cat([decode(part) for part in frames.split(at_once)])
    made = made.unflatten(0, (rows, len(wanted)))
    if len(wanted) == count:
        return made
    black = made.new_zeros(rows, *made.shape[2:])
    place = {frame: i for i, frame in enumerate(wanted)}
    return torch.stack([made[:, place[f]] if f in place else black for f in range(count)], 1)


class DecodingTail(Protocol):
    """A pipeline's tail, as a decoder uses it."""

    @property
    def unpacking(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Further arguments of the pipeline's own unpacking of latents, once it was seen."""

    def __call__(self, x_0: Tensor, *, output_type: str | None = None, checked: bool = True) -> Any:
        """The pipeline's own output object for finished states ``(n, *shape)``."""


def by_tail(tail: DecodingTail, x_0: Tensor) -> Tensor:
    """Media ``(n, 3, H, W)``, or ``(n, frames, 3, H, W)``, of finished states, unchecked, float32."""
    output = together(lambda x: tail(x, output_type="pt", checked=False), x_0, tail)
    if output is None:
        return torch.cat([by_tail(tail, row) for row in x_0.split(1)])
    return tensor_of(media_of(output)[1]).to(x_0.device, torch.float32)


def together(decode: Callable[[Tensor], Any], x_0: Tensor, tail: Any) -> Any:
    """The pipeline's output for several states; None where it makes them one by one alone.

    Some tails drop rows silently, and some autoencoders fail with more than one.

    Args:
        decode: states to the pipeline's own output.
        x_0: finished states ``(n, *shape)``.
        tail: remembers as ``alone`` whether it fails with several.
    """
    several = len(x_0) > 1
    if several and getattr(tail, "alone", False):
        return None
    try:
        output = decode(x_0)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        if not several:
            raise
        decode(x_0[:1])  # what is wrong with one row, too, is raised
        if hasattr(tail, "alone"):
            tail.alone = True
        return None
    return None if several and len(media_of(output)[1]) != len(x_0) else output


class Decoder:
    """Media of states: explicit and differentiable where that equals the pipeline's own tail.

    Videos whose autoencoder is one of pictures are decoded frame by frame, a few at once.

    Args:
        pipe: the pipeline.
        tail: its tail.
        example: states ``(n, *shape)`` on which both are compared.
    """

    def __init__(self, pipe: Any, tail: DecodingTail, example: Tensor) -> None:
        self._pipe = pipe
        self._tail = tail
        self.differentiable = False
        self.differentiable = self._agrees(example)

    def __call__(self, x_0: Tensor, looks: Looks | None = None) -> Tensor:
        """Pictures ``(n, 3, H, W)`` or videos ``(n, F, 3, H, W)`` in [0, 1], float32.

        Args:
            x_0: finished states ``(n, *shape)``.
            looks: of a number of frames those that will be looked at; where frames are decoded one by
                one the others stay black. None: all.
        """
        if self.differentiable:
            return self._explicit(x_0, looks)
        return by_tail(self._tail, x_0)

    def _explicit(self, x_0: Tensor, looks: Looks | None = None) -> Tensor:
        if self._tail.unpacking is not None:
            args, kwargs = self._tail.unpacking
            x_0 = self._pipe._unpack_latents(x_0, *args, **kwargs)
        vae = self._pipe.vae
        decode = partial(DECODERS[type(vae).__name__], vae)
        return decode(x_0) if x_0.ndim != 5 else _by_frames(decode, x_0, looks)

    @torch.no_grad()
    @exact_float32()
    def _agrees(self, example: Tensor) -> bool:
        vae: Any = getattr(self._pipe, "vae", None)
        own = by_tail(self._tail, example)
        if type(vae).__name__ not in DECODERS:
            return False
        try:
            found = self._explicit(example)
        except (RuntimeError, TypeError, ValueError):  # latents are packed in an unknown way
            return False
        bound = tolerance(vae.dtype)
        return found.shape == own.shape and float((found - own).abs().max()) <= bound
