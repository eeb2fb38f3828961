"""How a pipeline is entered: replayed where possible, else by its own loop, else as a black box."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from steering.adapters.black_box import BlackBoxModel
from steering.adapters.checks import Refusal, check_call, check_pipeline, exact_float32
from steering.adapters.embeds import form_of, is_embedding
from steering.adapters.fingerprint import fingerprint
from steering.adapters.inverted_model import InvertedModel
from steering.adapters.pipeline import PipelineModel

#: Doors that can be asked for.
Door = Literal["auto", "replay", "inverted", "black-box"]
#: A pipeline that was entered.
Entered = PipelineModel | InvertedModel | BlackBoxModel


def check_door(door: str) -> None:
    """Refuse an unknown door.

    Raises:
        ValueError: it is none of the known.
    """
    if door not in get_args(Door):
        raise ValueError(f"door must be one of {', '.join(get_args(Door))}, got {door!r}")


@exact_float32()
def enter(
    pipe: Any,
    *,
    call: Mapping[str, Any] | None = None,
    door: Door = "auto",
    reason: str | None = None,
) -> Entered:
    """Make a model out of an unmodified pipeline; its checks compute without TensorFloat-32.

    Args:
        pipe: a diffusers pipeline with a scheduler; it is left as found.
        call: its own keyword arguments shared by all prompts.
        door: ``"replay"`` learns its denoiser, for every search, rows of all prompts and times in one
            call; ``"inverted"`` denoises by its own loop body, for every search, in calls of one
            prompt and time; ``"black-box"`` calls it whole, for searches over noise; ``"auto"`` takes
            the first of these that is open. The model says which it is, and why, as ``model.door``
            and ``model.reason``.
        reason: why that door was asked for, for messages.

    Raises:
        Refusal: no door that was asked for is open; the message says why.
        TypeError: an argument that the pipeline does not take; the message names the nearest.
        ValueError: an unknown door.
    """
    check_door(door)
    call = call or {}
    if door == "replay":
        return PipelineModel(pipe, call)
    if door != "auto":
        return _OTHERS[door](pipe, call, reason or f"door={door!r} was asked for")
    check_pipeline(pipe)
    check_call(pipe, call)
    try:
        return PipelineModel(pipe, call)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - not only refusals: a probe may break a pipeline
        closed, why = [error], f"replay refuses it: {_said(error)}"
    try:
        return InvertedModel(pipe, call, why)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001
        closed.append(error)
    try:
        return BlackBoxModel(pipe, call, f"{why}; its own loop does not serve: {_said(closed[1])}")
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001
        closed.append(error)
    if all(isinstance(error, Refusal) for error in closed):
        replay, loop, box = closed
        raise Refusal(
            f"{replay}; nor does its own loop serve: {loop}; nor can it be a black box: {box}"
        ) from replay
    broken = next(error for error in closed if not isinstance(error, Refusal))
    raise broken from (None if broken is closed[0] else closed[0])


def _said(error: Exception) -> str:
    """A refusal as it is; with its kind what broke a probe."""
    return str(error) if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"


_OTHERS: dict[str, type[InvertedModel] | type[BlackBoxModel]] = {
    "inverted": InvertedModel,
    "black-box": BlackBoxModel,
}


def key_of(pipe: Any, call: Mapping[str, Any]) -> str:
    """What a model is learned for: the pipeline's parts as they stand, and the arguments.

    Of encoded prompts the form counts alone.
    """
    parts = [(name, id(part)) for name, part in getattr(pipe, "components", {}).items()]
    where = getattr(pipe, "device", None), getattr(pipe, "dtype", None)
    scheduler = getattr(getattr(pipe, "scheduler", None), "config", None)
    told = {k: form_of(v) if is_embedding(k) and v is not None else v for k, v in call.items()}
    return fingerprint((sorted(told.items()), parts, where, scheduler))
