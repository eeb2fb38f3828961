"""A device that is none: tensors on the CPU that count what an accelerator would have to wait for.

On an accelerator a copy from or to the host, and every number that the host reads, stalls until the
queue of kernels is empty; only copies to the device that are told not to block do not. Here such
tensors are wrapped, compute on the CPU as ever, and each crossing is counted; so the counts are exact
and need no accelerator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

#: its name; a backend that torch knows, but has no kernels of
DEVICE = torch.device("lazy")
#: whose results the host must know before it goes on
_READS = ("_local_scalar_dense", "nonzero", "equal", "_unique2", "masked_select")


class Far(Tensor):
    """A tensor on the stand-in device; ``near`` is what it holds."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, near.size(), strides=near.stride(), dtype=near.dtype, device=DEVICE
        )
        made.near = near
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} on a stand-in tensor outside of `with StandIn()`")


class StandIn(TorchDispatchMode):
    """While it is entered, tensors can live on :data:`DEVICE`, and operations are counted.

    Attributes:
        operations: dispatched, on either device.
        waits: how often the host would wait for the device: copies, and numbers that it reads.
        sent: copies from the host that it would not wait for.
        by_name: both, by the name of the operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.waits = self.sent = 0
        self.by_name: Counter[str] = Counter()
        self._factories = _Factories()

    def __enter__(self) -> StandIn:
        super().__enter__()
        self._factories.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._factories.__exit__(kind, error, trace)
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        self.operations += 1
        kwargs = dict(kwargs or {})
        asked, name = kwargs.get("device"), func.overloadpacket.__name__
        leaves = pytree.tree_leaves((args, kwargs))
        here = any(isinstance(leaf, Far) for leaf in leaves)
        there = here if asked is None else torch.device(asked) == DEVICE
        copies = name == "_to_copy" and here != there
        mixes = name == "copy_" and isinstance(args[0], Far) != isinstance(args[1], Far)
        if copies or mixes or (here and name in _READS):
            unwatched = there and bool(kwargs.get("non_blocking"))
            self.sent += unwatched
            self.waits += not unwatched
            self.by_name[name] += 1
        if there and asked is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = pytree.tree_map_only(Far, lambda t: t.near, (args, kwargs))
        found = func(*args, **kwargs)
        return pytree.tree_map_only(Tensor, Far, found) if there else found


class _Factories(TorchFunctionMode):
    """``torch.tensor(values, device=...)``, or a list as an index, is moved there from the host."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and options.get("device") is not None:
            device = options.pop("device")
            return func(*args, **options).to(device)
        if func is Tensor.__getitem__ and isinstance(args[1], list):
            args = (args[0], torch.tensor(args[1]).to(args[0].device))
        return func(*args, **options)
