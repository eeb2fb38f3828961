"""Watch a pipeline's own call, on a shallow copy, without touching the user's object.

Parts of the copy are replaced through its ``__dict__``: ordinary assignment would rewrite the shared
configuration. The scheduler is a deep copy, networks are stood in for by ``Stand``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.guiders.guider_utils import BaseGuidance
from torch import Tensor, nn

from steering.adapters.checks import Refusal, signature_of
from steering.adapters.embeds import is_embedding
from steering.adapters.leaves import Arguments, flatten, same, snapshot
from steering.adapters.processors import processors_of, put_back
from steering.adapters.stand import Stand, first_output, patch, resized


class Enough(BaseException):
    """Ends a watched call early; passes through the pipeline's own error handling."""


def networks_of(pipe: Any) -> dict[str, nn.Module]:
    """Modules that might be the denoiser: all but autoencoders, which are entered by name."""
    return {
        name: part
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module)
        and name in pipe.__dict__
        and not (hasattr(part, "encode") and hasattr(part, "decode"))
    }


@contextmanager
def private_copy(pipe: Any, scheduler: Any, parts: Mapping[str, Any]) -> Iterator[Any]:
    """A shallow copy of the pipeline with some parts replaced; the original stays as it was.

    So do the global generators, from which some pipelines let their schedulers draw.
    """
    cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    vae = getattr(pipe, "vae", None)
    dtype = getattr(vae, "dtype", None)
    networks = networks_of(pipe)
    processors = processors_of(networks)
    try:
        with torch.random.fork_rng(devices=cards), twin_of(pipe, scheduler, parts) as twin:
            yield twin
    finally:
        if vae is not None and getattr(vae, "dtype", None) != dtype:  # upcast, then interrupted
            vae.to(dtype=dtype)
        put_back(networks, processors)


@contextmanager
def twin_of(pipe: Any, scheduler: Any, parts: Mapping[str, Any]) -> Iterator[Any]:
    """A shallow copy with some parts replaced, and nothing else kept apart."""
    twin = copy.copy(pipe)
    guiders = {n: copy.deepcopy(p) for n, p in pipe.__dict__.items() if isinstance(p, BaseGuidance)}
    twin.__dict__.update({**guiders, **parts})  # guiders count steps, and some remember them
    twin.__dict__.update(
        scheduler=scheduler,
        maybe_free_model_hooks=lambda: None,  # it would move hooks on stand-ins
        _progress_bar_config={"disable": True},
    )
    try:
        yield twin
    finally:
        pipe.maybe_free_model_hooks()


def arguments(pipe: Any, call: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """Keyword arguments of one call: shared ones, then own ones; lists copied, None left out."""
    known = signature_of(pipe)
    merged = {**call, **{k: v for k, v in own.items() if v is not None and k in known}}
    encoded = any(is_embedding(name) and name.startswith("negative") for name in merged)
    if encoded and known.get("negative_prompt") is not None:
        merged["negative_prompt"] = None  # a default text, which would contradict the encoded one
    return {k: list(v) if isinstance(v, list) else v for k, v in merged.items()}


def quiet_generator() -> torch.Generator:
    """A generator of our own, so that probes leave the global one alone."""
    return torch.Generator().manual_seed(0)


@dataclass(eq=False)
class NetworkCall:
    """One recorded call of a network.

    Attributes:
        name: the network's name in the pipeline.
        arguments: what it was called with.
        output: its first output tensor (or list of row tensors).
        raw: the whole output as it was returned.
    """

    name: str
    arguments: Arguments
    output: Any
    raw: Any


@dataclass(eq=False)
class Step:
    """One recorded ``scheduler.step``.

    Attributes:
        timestep: the scheduler's time.
        sample: state before it ``(rows, *shape)``.
        model_output: what the pipeline made of the network's outputs.
        returned: state after it.
        extra: further arguments, such as eta; the generator left out.
        calls: network calls since the step before.
    """

    timestep: Tensor
    sample: Tensor
    model_output: Tensor
    returned: Tensor
    extra: dict[str, Any]
    calls: list[NetworkCall]


@dataclass(eq=False)
class Recording:
    """A watched call: its steps, and the scheduler as it stood before the first."""

    steps: list[Step] = field(default_factory=list)
    scheduler: Any = None

    @property
    def network(self) -> str:
        """Name of the network called last before the first step."""
        return self.steps[0].calls[-1].name


class Recorder:
    """Runs a pipeline's own call once and records every step.

    All is real up to and with the first ``scheduler.step``; then the network called last before it
    answers with random numbers, which makes the guidance fit well conditioned and costs nothing.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._recording = Recording()
        self._calls: list[NetworkCall] = []
        self._random = quiet_generator()

    def run(self, kwargs: Mapping[str, Any]) -> Recording:
        """Record the call with these keyword arguments.

        Raises:
            Refusal: a step calls no network, or another than the first step.
        """
        scheduler = copy.deepcopy(self._pipe.scheduler)
        self._real_step = scheduler.step
        self._signature = inspect.signature(scheduler.step)
        self._scheduler = scheduler
        patch(scheduler, "step", self._on_step)
        stands = {n: Stand(n, m, self._on_call) for n, m in networks_of(self._pipe).items()}
        with private_copy(self._pipe, scheduler, stands) as twin:
            twin(**kwargs)
        return self._recording

    def _on_call(
        self, name: str, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        steps = self._recording.steps
        arguments = flatten(args, kwargs)
        if steps and name == self._recording.network:
            raw = resized(steps[0].calls[-1].raw, 1, 1, self._random)
        else:
            arguments.values[:] = [snapshot(value) for value in arguments.values]
            raw = network(*args, **kwargs)
        self._calls.append(NetworkCall(name, arguments, snapshot(first_output(raw)), raw))
        return raw

    def _on_step(self, *args: Any, **kwargs: Any) -> Any:
        bound = dict(self._signature.bind(*args, **kwargs).arguments)
        if not {"sample", "model_output", "timestep"} <= bound.keys():
            raise Refusal(
                f"{type(self._scheduler).__name__}.step takes {', '.join(bound)}; replay needs a "
                "prediction, a time and a state"
            )
        calls, self._calls = self._calls, []
        if not self._recording.steps:
            self._recording.scheduler = _unpatched(self._scheduler)
        self._check(calls)
        sample, output = snapshot(bound.pop("sample")), snapshot(bound.pop("model_output"))
        result = self._real_step(*args, **kwargs)
        step = Step(
            timestep=torch.as_tensor(bound.pop("timestep")).detach().clone(),
            sample=sample,
            model_output=output,
            returned=snapshot(result[0]),
            extra={k: v for k, v in bound.items() if k not in ("generator", "return_dict")},
            calls=calls,
        )
        self._recording.steps.append(step)
        self._compact(step)
        return result

    def _check(self, calls: list[NetworkCall]) -> None:
        if not calls:
            raise Refusal("a step of this pipeline calls no network, so it cannot be replayed")
        if not self._recording.steps:
            return
        names = sorted({call.name for call in calls})
        if names != [self._recording.network]:
            raise Refusal(
                f"several networks act in the denoising loop ({', '.join(names)} beside "
                f"{self._recording.network}); replay needs one network a step"
            )

    def _compact(self, step: Step) -> None:
        """Share what did not change since the first step, so that long schedules fit in memory."""
        first = self._recording.steps[0]
        if step is first:
            return
        for call, model in zip(reversed(step.calls), reversed(first.calls), strict=False):
            if call.arguments.spec != model.arguments.spec:
                raise Refusal("the network's arguments change their structure between steps")
            pairs = zip(call.arguments.values, model.arguments.values, strict=True)
            call.arguments.values[:] = [m if same(v, m) else snapshot(v) for v, m in pairs]
            call.raw = None


def _unpatched(scheduler: Any) -> Any:
    """A copy of a watched scheduler with its own ``step`` again."""
    state = {k: v for k, v in scheduler.__dict__.items() if k != "step"}
    clean = copy.copy(scheduler)
    clean.__dict__.clear()
    clean.__dict__.update(copy.deepcopy(state))
    return clean
