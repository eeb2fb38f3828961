"""Compares tiny pipelines of diffusers with what the adapters make of them, step by step.

Each pipeline is built from configurations with random weights, those that start at zero drawn anew. Its
own call is followed by its own scheduler; then the model that the automatic choice of door makes of it
is carried by a copy of that scheduler from the same start. ``max_diff`` is the largest difference of any
number of any state on the way, over the largest number of that state where that is above 1
(``max_abs_diff``: over nothing); ``decode_diff`` is that of the media of the last state, in [0, 1].
``depends`` says how far the pipeline's prediction moves with the latents, the time, the prompt, and the
picture or embedding given beside it: without that, agreement would mean nothing. ``mixed_diff`` compares
rows of two prompts at two times, handed over together, with each alone; ``per_row_time`` and
``mixed_prompts`` say whether such rows share one call of the network.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import diffusers
import torch
from jsonargparse import ArgumentParser
from tiny_pipelines.cases import CASES, Case
from torch import Tensor

from benchmarks.common import Results
from benchmarks.trajectories import apart, own_steps, trajectory
from steering.adapters import BlackBoxModel, Refusal, enter
from steering.adapters.asking import counted_by
from steering.adapters.decode import media_of, tensor_of
from steering.prediction import output_of
from steering.schedulers import is_flow, prediction_of
from steering.times import Time

_STEPS = 5


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument("--pipelines", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--door", default="auto", help="as in SteeredPipeline")


def run(options: Any) -> None:
    """Measure every pipeline that the result file lacks."""
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    results = Results(Path(options.json), device="cpu", seed=0)
    for name in options.pipelines:
        cell = {"pipeline": name, "asked": options.door}
        if not results.has(cell):
            results.add(cell | measure(CASES[name], options.door))


def measure(case: Case, door: str = "auto") -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    pipe = case.build()
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": _STEPS, "output_type": case.media, **case.call}
    row: dict[str, Any] = {"class": type(pipe).__name__, "scheduler": type(pipe.scheduler).__name__}
    try:
        model: Any = enter(pipe, call=call, door=door)  # type: ignore[arg-type]
    except Refusal as error:
        return row | {"door": None, "reason": str(error)}
    row |= {"door": model.door, "reason": model.reason, "steps": model.scheduler_calls()}
    if isinstance(model, BlackBoxModel):
        unseen = {"max_diff": None, "per_row_time": False, "mixed_prompts": None}
        return row | unseen | {"decode_diff": _carried(pipe, model, call, case)}
    one = counted_by(pipe) in ("prompt", "class_labels")
    fused = model.door == "replay"
    with torch.no_grad():
        return (
            row
            | trajectory(pipe, model, call, case.prompts[0])
            | {
                "per_row_time": fused,
                "mixed_prompts": fused if one else None,
                "mixed_diff": _mixed(model, case.prompts),
                "any_order": model.abilities.any_order,
                "gradients": model.abilities.gradients,
                "depends": _depends(pipe, model, call, case),
            }
        )


def _carried(pipe: Any, model: BlackBoxModel, call: dict[str, Any], case: Case) -> float:
    """Largest difference of the media of a whole call, in [0, 1]; its states are not seen."""
    _, output = own_steps(pipe, call, case.prompts[0], most=None)
    (handle,) = model.encode([case.prompts[0]], generator=torch.Generator().manual_seed(7))
    assert handle.initial is not None
    found = model.carry(handle.initial, [handle], [0], [0]).x_0
    return apart(found, tensor_of(media_of(output)[1]))


def _mixed(model: Any, prompts: tuple[str, str]) -> float:
    """Difference of rows handed over together from each alone, over the size of a prediction."""
    first, second = model.encode(list(prompts))
    handles = [first, second, second, first]
    last = model.grid.steps - 1
    times = [model.grid[i] for i in (0, 0, last, last)]
    x = torch.randn((4, *model.shape), generator=torch.Generator().manual_seed(1))
    together = model.denoise(x, times, handles).eps
    alone = [
        model.denoise(x[i : i + 1], times[i : i + 1], handles[i : i + 1]).eps for i in range(4)
    ]
    separate = torch.cat(alone)
    return apart(together, separate) / float(separate.abs().max())


def _depends(pipe: Any, model: Any, call: dict[str, Any], case: Case) -> dict[str, float | None]:
    """How far the pipeline's second prediction moves, over its size, with all that it should heed.

    The first is not asked, since pipelines that blend look at the picture after it.
    """
    first, second = case.prompts
    base = own_steps(pipe, call, first)[0][-1].output
    size = float(base.abs().max())

    def moved(call: dict[str, Any], prompt: str, seed: int = 7) -> float:
        return apart(own_steps(pipe, call, prompt, seed)[0][-1].output, base) / size

    (handle,) = model.encode([first])
    x = torch.randn((1, *model.shape), generator=torch.Generator().manual_seed(1))
    early, late = model.grid[0], model.grid[model.grid.steps - 1]
    at = [_prediction(pipe, model, x, time, handle) for time in (early, late)]
    prompted = counted_by(pipe) in ("prompt", "class_labels")
    return {
        "latents": moved(call, first, seed=8),
        "time": apart(*at) / float(at[0].abs().max()),
        "prompt": moved(call, second) if prompted else None,
        "control": moved({**call, **case.control}, first) if case.control else None,
    }


def _prediction(pipe: Any, model: Any, x: Tensor, time: Time, handle: Any) -> Tensor:
    """What the network says of one state on its training path, told this time."""
    flow = is_flow(pipe.scheduler)
    scale = 1.0 if flow else 1.0 / math.hypot(time.alpha, time.sigma)
    trained = Time(time.model_t, time.alpha * scale, time.sigma * scale)
    posterior = model.denoise(x / scale, [time], [handle])
    return output_of(prediction_of(pipe.scheduler), posterior, trained)
