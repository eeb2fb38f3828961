"""The name under which calibrations and timings of a pipeline are saved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from steering.adapters.checks import signature_of
from steering.adapters.embeds import is_embedding
from steering.planning import source_name


def model_name(pipe: Any, call: Mapping[str, Any], calls: int, shape: tuple[int, ...]) -> str:
    """Pipeline, weights, scheduler and its calls, shape of the state, and a digest of arguments.

    Arguments at their defaults and the output type do not change it.

    Args:
        pipe: the pipeline.
        call: its arguments shared by all prompts.
        calls: model calls of one trajectory.
        shape: of one state.
    """
    source = str(getattr(pipe.config, "_name_or_path", "") or "unnamed").rstrip("/")
    defaults = signature_of(pipe)
    told = {
        k: v if isinstance(v, int | float | str | list | tuple) else type(v).__name__
        for k, v in sorted(call.items())
        if k != "output_type" and v is not None and not is_embedding(k) and v != defaults[k]
    }
    parts = [
        type(pipe).__name__,
        source_name(source),
        type(pipe.scheduler).__name__,
        str(calls),
        "x".join(map(str, shape)),
        *([hashlib.blake2b(repr(told).encode(), digest_size=4).hexdigest()] if told else []),
    ]
    return ":".join(parts)
