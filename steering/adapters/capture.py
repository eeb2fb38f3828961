"""Watch a pipeline's own call, on a shallow copy, without touching the user's object.

Parts of the copy are replaced through its ``__dict__``: ordinary assignment would rewrite the shared
configuration. Networks are stood in for by :class:`Stand`, the scheduler by a deep copy.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from steering.adapters.checks import Refusal, signature_of
from steering.adapters.leaves import Arguments, flatten, same, snapshot

#: A handler of network calls: name, real network, arguments; returns the output.
Handler = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], Any]


class Enough(BaseException):
    """Ends a watched call early; passes through the pipeline's own error handling."""


class Stand:
    """Stands where a network stood: everything but a call is the real one's."""

    def __init__(self, name: str, network: nn.Module, handler: Handler) -> None:
        self.__dict__.update(_name=name, _network=network, _handler=handler)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._network)  # pipelines check the kind of their parts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_network"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._network, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._handler(self._name, self._network, args, kwargs)


class StepOutput(tuple[Tensor, Tensor]):
    """What a replaced ``scheduler.step`` returns: a tuple and the named output at once."""

    @property
    def prev_sample(self) -> Tensor:
        """The new state."""
        return self[0]

    @property
    def pred_original_sample(self) -> Tensor:
        """The clean state, as far as a stand-in knows."""
        return self[1]


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
    """A shallow copy of the pipeline with some parts replaced; the original stays as it was."""
    twin = copy.copy(pipe)
    twin.__dict__.update(parts)
    twin.__dict__.update(
        scheduler=scheduler,
        maybe_free_model_hooks=lambda: None,  # it would move hooks on stand-ins
        _progress_bar_config={"disable": True},
    )
    vae = getattr(pipe, "vae", None)
    dtype = getattr(vae, "dtype", None)
    try:
        yield twin
    finally:
        if vae is not None and getattr(vae, "dtype", None) != dtype:  # upcast, then interrupted
            vae.to(dtype=dtype)
        pipe.maybe_free_model_hooks()


def arguments(pipe: Any, call: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """Keyword arguments of one call: shared ones, then own ones; lists copied, None left out."""
    known = signature_of(pipe)
    merged = {**call, **{k: v for k, v in own.items() if v is not None and k in known}}
    return {k: list(v) if isinstance(v, list) else v for k, v in merged.items()}


def quiet_generator() -> torch.Generator:
    """A generator of our own, so that probes leave the global one alone."""
    return torch.Generator().manual_seed(0)


def patch(scheduler: Any, method: str, replacement: Callable[..., Any]) -> None:
    """Replace a scheduler's method, keeping the signature that pipelines read."""

    @functools.wraps(getattr(scheduler, method))
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return replacement(*args, **kwargs)

    setattr(scheduler, method, replaced)


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


def first_output(raw: Any) -> Any:
    """The prediction within a network's output: a tensor, or a list of row tensors."""
    return raw if torch.is_tensor(raw) else raw[0]


def resized(raw: Any, rows: int, of: int, random: torch.Generator | None) -> Any:
    """An output like ``raw`` for another number of rows: zeros, or random numbers.

    Args:
        raw: what the network returned for ``of`` rows.
        rows: rows wanted, in the same unit.
        of: rows that ``raw`` has.
        random: generator of the numbers; None for zeros.
    """

    def like(x: Any) -> Any:
        if not torch.is_tensor(x) or not x.is_floating_point():
            return x
        shape = (x.shape[0] * rows // of, *x.shape[1:]) if x.ndim else ()
        if random is None:
            return x.new_zeros(shape)
        return torch.randn(shape, generator=random).to(x)

    head = first_output(raw)
    if isinstance(head, list):  # a list of rows: its length follows the batch, not its tensors
        parts = [like_row(head[0], random) for _ in range(len(head) * rows // of)]
        return (parts, *raw[1:])
    return pytree.tree_map(like, raw)


def like_row(x: Tensor, random: torch.Generator | None) -> Tensor:
    """Zeros or random numbers of the shape of one row."""
    return torch.zeros_like(x) if random is None else torch.randn(x.shape, generator=random).to(x)
