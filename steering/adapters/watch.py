"""Whole calls of a pipeline, watched: the state they start from, what they drew, what they spent."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from steering.adapters.capture import Enough, networks_of, private_copy
from steering.adapters.checks import Refusal
from steering.adapters.leaves import snapshot
from steering.adapters.stand import Stand, first_output, patch


@dataclass(frozen=True, eq=False)
class Draw:
    """Standard normal numbers that a call drew.

    Attributes:
        generator: whose they are; None for torch's own.
        values: the numbers.
        state: of the generator after them; None for torch's own.
    """

    generator: torch.Generator | None
    values: Tensor
    state: Tensor | None


class Draws(TorchFunctionMode):
    """Notes what ``torch.randn`` returns while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Draw] = []

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function; remember what it drew."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is torch.randn:
            generator = kwargs.get("generator")
            state = None if generator is None else generator.get_state()
            self.seen.append(Draw(generator, snapshot(out), state))
        return out


@dataclass(eq=False)
class Watched:
    """One watched call.

    Attributes:
        sample: the state at its first ``scheduler.step``; None if there was none.
        scale: the scheduler's ``init_noise_sigma`` then.
        dtype: of that state.
        draws: what it drew before, if that was asked for.
        steps: scheduler steps for which a network was called.
        rows: rows of the network that was called last before each of them, guidance included.
        output: what the pipeline returned; None if it was stopped.
    """

    sample: Tensor | None = None
    scale: float = 1.0
    dtype: torch.dtype = torch.float32
    draws: list[Draw] = field(default_factory=list)
    steps: int = 0
    rows: int = 0
    output: Any = None


class Watch:
    """Runs a pipeline's own call on a private copy of it; the pipeline is left as it was.

    Args:
        pipe: the pipeline.
        stop: end the call at its first ``scheduler.step``, and note what was drawn until then.
        counting: after the first step, networks answer what they answered before to arguments of the
            same shapes, so that a long schedule can be counted without its work.
    """

    def __init__(self, pipe: Any, *, stop: bool = False, counting: bool = False) -> None:
        self._pipe, self._stop, self._counting = pipe, stop, counting
        self._found = Watched()
        self._calls: list[tuple[str, int]] = []
        self._known: dict[Any, Any] = {}

    def run(self, kwargs: Mapping[str, Any]) -> Watched:
        """The call with these keyword arguments.

        Raises:
            Refusal: it makes no ``scheduler.step`` with a state.
        """
        scheduler = copy.deepcopy(self._pipe.scheduler)
        self._scheduler, self._real_step = scheduler, scheduler.step
        self._signature = inspect.signature(scheduler.step)
        patch(scheduler, "step", self._on_step)
        stands = {n: Stand(n, m, self._on_call) for n, m in networks_of(self._pipe).items()}
        draws = Draws() if self._stop else None
        with (
            private_copy(self._pipe, scheduler, stands) as twin,
            draws or contextlib.nullcontext(),
            contextlib.suppress(Enough),
        ):
            self._found.output = twin(**kwargs)
        if self._found.sample is None or not self._found.steps:
            raise Refusal(
                f"{type(self._pipe).__name__} ends without a scheduler step of its networks, so "
                "nothing of it can be counted"
            )
        if draws is not None:
            self._found.draws = draws.seen
        return self._found

    def _on_call(
        self, name: str, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._counting:
            raw = self._remembered(name, network, args, kwargs)
        else:
            raw = network(*args, **kwargs)
        self._calls.append((name, _rows_of(raw)))
        return raw

    def _remembered(
        self, name: str, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        key = (name, *(tuple(x.shape) for x in leaves if torch.is_tensor(x)))
        if key not in self._known or not self._found.steps:
            self._known[key] = network(*args, **kwargs)
        return self._known[key]

    def _on_step(self, *args: Any, **kwargs: Any) -> Any:
        found = self._found
        if found.sample is None:
            sample = self._signature.bind(*args, **kwargs).arguments.get("sample")
            if not torch.is_tensor(sample):
                raise Refusal(f"{type(self._scheduler).__name__}.step takes no tensor 'sample'")
            found.sample, found.dtype = snapshot(sample).float(), sample.dtype
            found.scale = float(getattr(self._scheduler, "init_noise_sigma", 1.0))
        if self._calls:
            last = self._calls[-1][0]
            found.steps += 1
            found.rows += sum(rows for name, rows in self._calls if name == last)
            self._calls.clear()
        if self._stop:
            raise Enough
        return self._real_step(*args, **kwargs)


def _rows_of(raw: Any) -> int:
    """Rows of a network's output; 0 where it has none."""
    try:
        return len(first_output(raw))
    except (TypeError, KeyError, IndexError):
        return 0
