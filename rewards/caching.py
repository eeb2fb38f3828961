"""What rewards keep and share: results by content, and models by what was loaded."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Model = TypeVar("Model")


class Bounded(OrderedDict[Key, Value]):
    """A mapping that forgets what was used longest ago once it is full.

    Args:
        size: most entries that are kept.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def __getitem__(self, key: Key) -> Value:
        self.move_to_end(key)
        return super().__getitem__(key)

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > self.size:
            self.popitem(last=False)

    def filled(
        self, keys: Sequence[Key], make: Callable[[list[int]], Sequence[Value]]
    ) -> list[Value]:
        """The value of each key, also where they are more than fit.

        Args:
            keys: what is asked for; repeated ones are made once.
            make: values of the unknown ones, from their places in ``keys``.
        """
        found = {key: self[key] for key in keys if key in self}
        fresh = {key: place for place, key in enumerate(keys) if key not in found}
        if fresh:
            found |= dict(zip(fresh, make(list(fresh.values())), strict=True))
        for key, value in found.items():
            self[key] = value
        return [found[key] for key in keys]


_LOADED: MutableMapping[Hashable, Any] = weakref.WeakValueDictionary()
_LOADING = threading.RLock()


def shared(key: Hashable, make: Callable[[], Model]) -> Model:
    """The living model that was made under this key, else a new one; it lives as long as its users."""
    with _LOADING:
        found = _LOADED.get(key)
        if found is None:
            found = make()
            _LOADED[key] = found
        return found


def fingerprint(source: str | None) -> Hashable:
    """What a name stands for now: of a file or folder its files with sizes and times of change."""
    if source is None:
        return None
    path = Path(source.removeprefix("local-dir:")).expanduser()
    if not path.exists():
        return source
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.resolve(), file.stat()) for file in files if file.is_file()]
    return tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats)


def levels(media: Tensor) -> Tensor:
    """Pictures in [0, 1] as 8-bit levels, which is what a file or a PIL image of them holds."""
    return (media.detach().clamp(0, 1) * 255).round().to(torch.uint8)


def digest(picture: Tensor) -> bytes:
    """A digest of a picture's shape and levels, uint8 ``(3, H, W)``."""
    data = picture.detach().contiguous().cpu()
    told = hashlib.blake2b(str(tuple(data.shape)).encode(), digest_size=16)
    told.update(data.numpy().tobytes())
    return told.digest()
