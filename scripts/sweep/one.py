"""One test class of diffusers: its pipeline, its inputs, and what the doors make of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from benchmarks.trajectories import apart, own_steps, trajectory
from torch import nn

from steering.adapters import BlackBoxModel, Refusal, enter
from steering.adapters.asking import counted_by, probes
from steering.adapters.checks import signature_of

#: Fewest steps of a call; tests ask for two, of which some pipelines skip one.
_STEPS = 4
#: What belongs to a prompt or to the search.
_OURS = (
    "prompt",
    "class_labels",
    "batch_size",
    "generator",
    "latents",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "return_dict",
    "callback",
    "callback_steps",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
)
_TEXT = "a cat on a table"


def measure(test: Any) -> dict[str, Any]:
    """One row of the table.

    ``outcome`` is ``"not built"`` where components or inputs cannot be made here, ``"fails itself"``
    where the pipeline's own call does, ``"refused"``, ``"measured"``, ``"one step"`` where that is all
    it makes, or ``"black box"``; ``notes`` say in what the call differs from the test's.
    """
    row: dict[str, Any] = {"pipeline": None, "door": None, "max_diff": None, "decode_diff": None}
    row |= {"reason": "", "notes": []}
    try:
        row["pipeline"] = test.pipeline_class.__name__
        pipe, redrawn = _built(test)
        call, prompt, notes = _asked(pipe, _inputs(test))
        steps = _inputs(test).get("num_inference_steps")
    except Exception as error:  # noqa: BLE001 - whatever a foreign test raises is what is reported
        return row | {"outcome": "not built", "reason": _said(error)}
    row["notes"] = notes + ([f"{redrawn} layers that start at zero drawn anew"] if redrawn else [])
    row["scheduler"] = type(getattr(pipe, "scheduler", None)).__name__
    with torch.no_grad():
        row |= _entered(pipe, call, prompt)
        if row["outcome"] == "refused" and call.get("num_inference_steps") != steps:
            own = _entered(pipe, call | {"num_inference_steps": steps}, prompt)
            if own["outcome"] != "refused":  # it takes no other number of steps
                row |= own | {"notes": [note for note in row["notes"] if "steps" not in note]}
        if row["outcome"] == "refused":
            row |= _alone(test, pipe)
    return row


def works(row: dict[str, Any], limit: float = 1e-4) -> bool:
    """Whether a row shows a trajectory that is the pipeline's own."""
    found = (row.get("max_diff"), row.get("decode_diff"))
    return row.get("outcome") == "measured" and all(d is not None and d < limit for d in found)


def _entered(pipe: Any, call: dict[str, Any], prompt: str) -> dict[str, Any]:
    try:
        model: Any = enter(pipe, call=call)
    except Exception as error:  # noqa: BLE001 - the pipeline's own error, where no door is open
        return {"outcome": "refused", "reason": _said(error)}
    row = {"door": model.door, "reason": model.reason}
    if isinstance(model, BlackBoxModel):
        return row | {"outcome": "black box"}
    row |= {"any_order": model.abilities.any_order, "steps": model.scheduler_calls()}
    if row["steps"] < 2:
        return row | {"outcome": "one step"}
    try:
        found = trajectory(pipe, model, call, prompt)
        base, other = (
            own_steps(pipe, call, prompt, seed, most=None)[0][-1].returned for seed in (7, 8)
        )
        found["depends_on_noise"] = apart(base, other)
    except Exception as error:  # noqa: BLE001
        return row | {"outcome": "broken", "reason": f"{_said(error)}; {model.reason}"}
    if not all(math.isfinite(value) for value in found.values()):
        return row | {"outcome": "not finite"}
    return row | {"outcome": "measured"} | found


def _alone(test: Any, pipe: Any) -> dict[str, Any]:
    """Whether the pipeline's own call fails on the test's own inputs."""
    try:
        pipe(**_inputs(test))
    except Exception as error:  # noqa: BLE001
        return {"outcome": "fails itself", "reason": _said(error)}
    return {}


def _built(test: Any) -> tuple[Any, int]:
    torch.manual_seed(0)
    pipe = test.pipeline_class(**test.get_dummy_components())
    pipe.set_progress_bar_config(disable=True)
    redrawn = 0
    generator = torch.Generator().manual_seed(0)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            redrawn += _enlivened(part, generator)
    return pipe, redrawn


def _enlivened(module: nn.Module, generator: torch.Generator) -> int:
    """Draw matrices of zeros anew, so that outputs depend on inputs; how many there were."""
    zeros = [p for p in module.parameters() if p.ndim > 1 and not bool(p.detach().any())]
    for parameter in zeros:
        parameter.data = (0.2 * torch.randn(parameter.shape, generator=generator)).to(parameter)
    module.eval()
    return len(zeros)


def _inputs(test: Any) -> dict[str, Any]:
    """The inputs; older tests want a device and a seed."""
    try:
        return dict(test.get_dummy_inputs())
    except TypeError:
        return dict(test.get_dummy_inputs("cpu"))


def _asked(pipe: Any, inputs: dict[str, Any]) -> tuple[dict[str, Any], str, list[str]]:
    """Arguments shared by candidates, the prompt, and notes."""
    known, notes = signature_of(pipe), []
    call = {k: v for k, v in inputs.items() if k not in _OURS}
    embedded = [name for name in call if "prompt_embeds" in name and call[name] is not None]
    if embedded:
        call = {k: v for k, v in call.items() if "prompt" not in k}
        notes.append(f"a text for {', '.join(embedded)}")
    if call.get("output_type", "pil") in ("pil", "latent") and "output_type" in known:
        call["output_type"] = "np"
    steps = call.get("num_inference_steps")
    if "num_inference_steps" in known and isinstance(steps, int) and steps < _STEPS:
        call["num_inference_steps"] = _STEPS
        notes.append(f"{_STEPS} steps instead of {steps}")
    prompt = inputs.get("prompt") or _TEXT
    prompt = prompt if isinstance(prompt, str) else prompt[0]
    try:
        if counted_by(pipe) == "class_labels":
            prompt = probes(pipe, call, [prompt])[0].prompt
    except Refusal:
        pass  # entering will say so
    return call, prompt, notes


def _said(error: Exception) -> str:
    text = str(error) if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:600]
