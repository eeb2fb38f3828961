"""The pipeline's own call, its scheduler at work, with every step noted."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steering.adapters.capture import Enough, private_copy
from steering.adapters.checks import Refusal
from steering.adapters.leaves import snapshot
from steering.adapters.stand import patch


@dataclass(frozen=True, eq=False)
class OwnStep:
    """One step of the pipeline's own call.

    Attributes:
        timestep: the scheduler's time.
        sample: the state before it.
        output: the pipeline's prediction.
        returned: the state after it.
        random: where the call's generator stood before it; None where none was given.
    """

    timestep: Tensor
    sample: Tensor
    output: Tensor
    returned: Tensor
    random: Tensor | None


def own_call(
    pipe: Any, kwargs: Mapping[str, Any], *, most: int | None = None
) -> tuple[list[OwnStep], Any]:
    """Call a private copy of a pipeline.

    Args:
        pipe: the pipeline; left as it was.
        kwargs: arguments of the call.
        most: end after so many steps.

    Returns:
        Its steps; and what it returned, None if it was ended.

    Raises:
        Refusal: it makes no step of a known form.
    """
    steps: list[OwnStep] = []
    scheduler = copy.deepcopy(pipe.scheduler)
    real, signature = scheduler.step, inspect.signature(scheduler.step)
    generator = kwargs.get("generator")

    def step(*args: Any, **given: Any) -> Any:
        bound = signature.bind(*args, **given).arguments
        if not {"sample", "model_output", "timestep"} <= bound.keys():
            raise Refusal(
                f"{type(scheduler).__name__}.step takes {', '.join(bound)}, not a prediction, a time "
                "and a state"
            )
        sample, output = snapshot(bound["sample"]), snapshot(bound["model_output"])
        time = torch.as_tensor(bound["timestep"]).clone()
        random = generator.get_state() if isinstance(generator, torch.Generator) else None
        result = real(*args, **given)
        steps.append(OwnStep(time, sample, output, snapshot(result[0]), random))
        if len(steps) == most:
            raise Enough
        return result

    patch(scheduler, "step", step)
    output = None
    with private_copy(pipe, scheduler, {}) as twin, contextlib.suppress(Enough):
        output = twin(**kwargs)
    if not steps:
        raise Refusal(f"{type(pipe).__name__} ends without a scheduler step")
    return steps, output
