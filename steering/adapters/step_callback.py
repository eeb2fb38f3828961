"""``callback_on_step_end`` of a pipeline's call, where the search makes the steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steering.adapters.checks import signature_of
from steering.stepping import Interrupted

NAME, INPUTS = "callback_on_step_end", "callback_on_step_end_tensor_inputs"
#: Why a callback needs the pipeline's own whole calls.
DEEP = "callback_on_step_end reads or changes more than the latents, which the pipeline's own call does"
_FREE = ("_interrupt",)  # attributes of the pipeline that a callback may set wherever it runs


class StepCallback:
    """The user's callback, called with a copy of the pipeline that it may read and interrupt.

    It is told the states of one prompt's candidates, ``(n, *shape)``, as the pipeline tells those of
    its batch. One that reads or changes more than the latents is :attr:`deep`: it acts within the
    pipeline's own whole calls alone.

    Args:
        pipe: the pipeline; left as it was.
        callback: the user's.
        inputs: names of what it is told.
        call: arguments of the pipeline's call.

    Raises:
        TypeError: the pipeline takes no such argument, or the callback is none.
        ValueError: it asks for what the pipeline does not tell.
    """

    def __init__(
        self, pipe: Any, callback: Any, inputs: Sequence[str], call: Mapping[str, Any]
    ) -> None:
        known = signature_of(pipe)
        if NAME not in known:
            raise TypeError(
                f"{type(pipe).__name__} takes no argument {NAME!r}; follow the search by "
                "SteeredPipeline(on_progress=...)"
            )
        if not callable(callback):
            raise TypeError(f"{NAME} must be callable, got {type(callback).__name__}")
        told = list(getattr(callback, "tensor_inputs", inputs))
        offered = list(getattr(pipe, "_callback_tensor_inputs", ["latents"]))
        unknown = [name for name in told if name not in offered]
        if unknown:
            raise ValueError(
                f"{INPUTS} may name {', '.join(offered)} of {type(pipe).__name__}, got {unknown}"
            )
        self._callback, self._inputs = callback, told
        # ready-made callbacks of diffusers have this attribute, and all change something
        self.deep = hasattr(callback, "tensor_inputs") or bool(set(told) - {"latents"})
        self.interrupted = False
        self._pipe = copy.copy(pipe)
        guidance = call.get("guidance_scale", known.get("guidance_scale"))
        self._pipe.__dict__.update(_interrupt=False, _guidance_scale=guidance)

    def set_steps(self, steps: int) -> None:
        """Tell the copy of the pipeline how many steps there are."""
        self._pipe.__dict__["_num_timesteps"] = steps

    def __call__(self, step: int, timestep: float, latents: Tensor) -> Tensor:
        """Tell the user of a step; returns the states to go on with, see :class:`OnStep`.

        Raises:
            TypeError: the callback changed the pipeline, or returned something else than a mapping.
            ValueError: it returned states of another shape.
        """
        before = dict(self._pipe.__dict__)
        told = {"latents": latents} if "latents" in self._inputs else {}
        answer = self._callback(
            self._pipe, step, torch.tensor(timestep, device=latents.device), dict(told)
        )
        self.interrupted = bool(self._pipe.__dict__.get("_interrupt"))
        self._check_pipe(before)
        if answer is None:
            answer = {}
        if not isinstance(answer, Mapping):
            raise TypeError(f"{NAME} must return a dict, got {type(answer).__name__}")
        found = answer.get("latents", latents)
        if found is not latents and found.shape != latents.shape:
            raise ValueError(
                f"{NAME} returned latents {tuple(found.shape)} for {tuple(latents.shape)}"
            )
        return torch.as_tensor(found)

    def _check_pipe(self, before: Mapping[str, Any]) -> None:
        now = self._pipe.__dict__
        changed = [
            name
            for name in {*before, *now}
            if name not in _FREE and before.get(name) is not now.get(name)
        ]
        if changed:
            raise TypeError(
                f"{NAME} set {', '.join(sorted(changed))} of the pipeline, which only its own call "
                "follows: use SteeredPipeline(door='black-box') with a search over noise"
            )

    def within(self) -> dict[str, Any]:
        """Arguments that let the pipeline's own call run the callback."""

        def callback(pipe: Any, step: int, timestep: Any, told: dict[str, Any]) -> Any:
            answer = self._callback(pipe, step, timestep, told)
            if getattr(pipe, "_interrupt", False):
                self.interrupted = True
                raise Interrupted(f"{NAME} interrupted the pipeline's own call at step {step}")
            return {} if answer is None else answer

        return {NAME: callback, INPUTS: self._inputs}


def take_callback(pipe: Any, call: Mapping[str, Any]) -> tuple[StepCallback | None, dict[str, Any]]:
    """The callback among the arguments of a call, and the other arguments."""
    others = {k: v for k, v in call.items() if k not in (NAME, INPUTS)}
    callback = call.get(NAME)
    if callback is None:
        return None, others
    return StepCallback(pipe, callback, call.get(INPUTS) or ["latents"], others), others
