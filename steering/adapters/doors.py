"""How a pipeline is entered: replayed where that is possible, else as a black box."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from steering.adapters.black_box import BlackBoxModel
from steering.adapters.checks import Refusal, check_call, check_pipeline
from steering.adapters.fingerprint import fingerprint
from steering.adapters.pipeline import PipelineModel

#: Doors that can be asked for.
Door = Literal["auto", "replay", "black-box"]


def check_door(door: str) -> None:
    """Refuse an unknown door.

    Raises:
        ValueError: it is none of the known.
    """
    if door not in get_args(Door):
        raise ValueError(f"door must be one of {', '.join(get_args(Door))}, got {door!r}")


def enter(
    pipe: Any, *, call: Mapping[str, Any] | None = None, door: Door = "auto"
) -> PipelineModel | BlackBoxModel:
    """Make a model out of an unmodified pipeline.

    Args:
        pipe: a text-conditioned diffusers pipeline with a scheduler; it is left as found.
        call: its own keyword arguments shared by all prompts.
        door: ``"replay"`` learns its denoiser, for every search; ``"black-box"`` calls it whole, for
            searches over noise; ``"auto"`` tries the first, then the second. The model says which it
            is, and why, as ``model.door`` and ``model.reason``.

    Raises:
        Refusal: no door that was asked for is open; the message says why.
        TypeError: an argument that the pipeline does not take; the message names the nearest.
        ValueError: an unknown door.
    """
    check_door(door)
    call = call or {}
    if door == "black-box":
        return BlackBoxModel(pipe, call, "door='black-box' was asked for")
    if door == "replay":
        return PipelineModel(pipe, call)
    check_pipeline(pipe)
    check_call(pipe, call)
    try:
        return PipelineModel(pipe, call)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError) as error:  # not only refusals: a probe may break a pipeline
        replay = error
    try:
        return BlackBoxModel(pipe, call, f"replay refuses it: {replay}")
    except Refusal as closed:
        if isinstance(replay, Refusal):
            raise Refusal(f"{replay}; nor can it be a black box: {closed}") from replay
        raise replay from closed
    except (ValueError, RuntimeError) as closed:
        raise replay from closed


def key_of(pipe: Any, call: Mapping[str, Any]) -> str:
    """What a model is learned for: the pipeline's parts as they stand, and the arguments."""
    parts = [(name, id(part)) for name, part in getattr(pipe, "components", {}).items()]
    where = getattr(pipe, "device", None), getattr(pipe, "dtype", None)
    scheduler = getattr(getattr(pipe, "scheduler", None), "config", None)
    return fingerprint((sorted(call.items()), parts, where, scheduler))
