"""A pipeline's own call against the model that a door makes of it, state by state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steering.adapters.asking import Pair, ask
from steering.adapters.capture import arguments
from steering.adapters.decode import media_of, tensor_of
from steering.adapters.own_call import own_call


def own_steps(
    pipe: Any, call: Mapping[str, Any], prompt: str, seed: int = 7, most: int | None = 2
) -> Any:
    """Steps of the pipeline's own call, and its output; at most so many steps."""
    negative = call.get("negative_prompt")
    negative = negative if negative is None or isinstance(negative, str) else negative[0]
    kwargs = arguments(
        pipe,
        {name: value for name, value in call.items() if name != "negative_prompt"},
        generator=torch.Generator().manual_seed(seed),
        return_dict=True,
        **ask(pipe, [Pair(prompt, negative)]),
    )
    return own_call(pipe, kwargs, most=most)


def trajectory(pipe: Any, model: Any, call: Mapping[str, Any], prompt: str) -> dict[str, float]:
    """Largest differences of the states on the way, and of the media at the end.

    Raises:
        RuntimeError: the model makes another number of steps.
    """
    steps, output = own_steps(pipe, call, prompt, most=None)
    (handle,) = model.encode([prompt], generator=torch.Generator().manual_seed(7))
    x, carried = handle.initial, model.scheduler_run(handle, [0], [0])
    if len(carried.times) != len(steps):
        raise RuntimeError(
            f"{len(carried.times)} times for {len(steps)} steps of the pipeline's own"
        )
    worst = absolute = apart(x, steps[0].sample[:1])
    for index, time in enumerate(carried.times):
        x = carried.step(index, model.denoise(x, [time], [handle]), x)
        wanted = steps[index].returned[:1]
        difference = apart(x, wanted)
        absolute = max(absolute, difference)
        worst = max(worst, difference / max(1.0, float(wanted.abs().max())))
    media = model.merge_output(model.render(x, [handle]))
    own, found = (tensor_of(media_of(made)[1]).float() for made in (output, media))
    return {"max_diff": worst, "max_abs_diff": absolute, "decode_diff": apart(found, own)}


def apart(found: Tensor, wanted: Tensor) -> float:
    """Largest difference of any number."""
    return float((found.float().cpu() - wanted.float().cpu()).abs().max())
