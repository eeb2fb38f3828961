"""What an adapter refuses, and how it says so."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

#: Arguments that belong to a prompt or to the search, and who takes them instead.
_RESERVED = {
    "prompt": "give prompts to encode()",
    "class_labels": "give the number or the name of the class as the prompt",
    "batch_size": "give as many prompts to encode(), or images_per_prompt",
    "generator": "give it to encode()",
    "latents": "give them to encode()",
    "num_images_per_prompt": "give images_per_prompt to encode()",
    "num_videos_per_prompt": "give images_per_prompt to encode()",
    "prompt_cu_seqlens": "encoded prompts that are not laid row by row cannot be told apart; give texts",
    "negative_prompt_cu_seqlens": "as prompt_cu_seqlens; give texts",
    "return_dict": "the pipeline's own output type is built by merge_output()",
    "callback": "give callback_on_step_end= to the call of a SteeredPipeline, or on_progress=",
    "callback_on_step_end": "give it to the call of a SteeredPipeline",
}


class Refusal(ValueError):
    """This pipeline, or these arguments, cannot be adapted; the message says why and what to do."""


def check_pipeline(pipe: Any) -> None:
    """Refuse what is no diffusers pipeline with a scheduler.

    Raises:
        Refusal: the object is of another kind.
    """
    parts = getattr(pipe, "components", None)
    if not isinstance(parts, Mapping) or not callable(pipe):
        raise Refusal(
            f"{type(pipe).__name__} is no diffusers pipeline; load one with "
            "DiffusionPipeline.from_pretrained(...)"
        )
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None or not hasattr(scheduler, "step"):
        raise Refusal(
            f"{type(pipe).__name__} has no scheduler with a step(), so nothing can be steered; set "
            "pipe.scheduler, or use the pipeline inside it that has one"
        )


def check_call(pipe: Any, call: Mapping[str, Any]) -> None:
    """Check names of the shared arguments against the pipeline's own ``__call__``.

    Raises:
        TypeError: an unknown argument, with the nearest right one; or one that is given elsewhere.
    """
    known = signature_of(pipe)
    for name, value in call.items():
        if name in _RESERVED and value is not None:
            raise TypeError(f"argument {name!r} cannot be shared by all prompts: {_RESERVED[name]}")
        if name not in known:
            near = difflib.get_close_matches(name, [*known], n=1, cutoff=0.0)
            raise TypeError(
                f"{type(pipe).__name__} takes no argument {name!r}; the nearest is {near[0]!r}"
            )


def check_network(name: str, network: Any) -> None:
    """Refuse a network whose output depends on what it was called with before.

    Raises:
        Refusal: feature caching is on.
    """
    if getattr(network, "is_cache_enabled", False):
        raise Refusal(
            f"feature caching is enabled on {name}, so its output depends on earlier calls; switch "
            f"it off with pipe.{name}.disable_cache()"
        )


def check_prompts(
    prompts: Sequence[str], negative: Sequence[str] | str | None, images: int
) -> tuple[list[str], list[str | None]]:
    """Prompts, and one negative prompt (or None) for each.

    Raises:
        TypeError: a prompt that is no text.
        ValueError: no prompts, or numbers that do not match.
    """
    if isinstance(prompts, str) or not all(isinstance(p, str) for p in prompts):
        raise TypeError("prompts must be a list of texts")
    if not prompts:
        raise ValueError("need at least one prompt, got an empty list")
    if images < 1:
        raise ValueError(f"images_per_prompt must be at least 1, got {images}")
    if negative is None or isinstance(negative, str):
        return list(prompts), [negative] * len(prompts)
    if len(negative) != len(prompts) or not all(isinstance(n, str) for n in negative):
        raise ValueError(
            f"need one negative prompt, a text, for each prompt: got {len(negative)} for {len(prompts)}"
        )
    return list(prompts), list(negative)


def signature_of(pipe: Any) -> dict[str, Any]:
    """Arguments of the pipeline's ``__call__`` with their defaults."""
    parameters = inspect.signature(type(pipe).__call__).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        p.name: None if p.default is inspect.Parameter.empty else p.default
        for p in parameters
        if p.name != "self" and p.kind in kinds
    }


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative difference that arithmetic in ``dtype`` explains."""
    return {torch.bfloat16: 3e-2, torch.float16: 4e-3}.get(dtype, 1e-4)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 arithmetic without TensorFloat-32, whatever the user chose; the choice comes back.

    TF32 (the default of convolutions on NVIDIA GPUs) keeps 10 bits, and how they round depends on the
    size of a batch: calls of other sizes would seem to compute something else. Both of torch's
    interfaces are set, since compiled networks read the older.
    """
    cudnn: Any = torch.backends.cudnn
    operations = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
    kept = [operation.fp32_precision for operation in operations]
    try:
        older = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:  # the newer was set so that it cannot be told
        older = None
    try:
        _set_float32(("highest", False) if older else None, ["ieee"] * 3)
        yield
    finally:
        _set_float32(older, kept)


def _set_float32(older: tuple[str, bool] | None, newer: Sequence[str]) -> None:
    cudnn: Any = torch.backends.cudnn
    if older:
        torch.set_float32_matmul_precision(older[0])
        cudnn.allow_tf32 = older[1]
    for operation, precision in zip(
        (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn), newer, strict=True
    ):
        operation.fp32_precision = precision


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest absolute difference over the scale of what was wanted; inf for other shapes."""
    if found.shape != wanted.shape:
        return float("inf")
    wanted = wanted.float()
    scale = max(float(wanted.abs().max()), 1e-12)
    return float((found.float() - wanted).abs().max()) / scale
