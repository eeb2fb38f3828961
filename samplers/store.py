"""Rows of states under a cap: the newest on the device, older ones on the CPU, the oldest on disk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Room:
    """How much of a search's states may lie where.

    Attributes:
        device_bytes: on the device, at most.
        cpu_bytes: in memory of the CPU, at most; what is beyond both goes to disk.
        folder: where files go; None: a temporary folder that goes with the search.
    """

    device_bytes: int = 2**30
    cpu_bytes: int = 2**32
    folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("device_bytes", "cpu_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class Store:
    """Rows of one shape, written once, read by slot.

    Args:
        room: the caps.
        device: where rows are handed out.
    """

    def __init__(self, room: Room, device: torch.device | str) -> None:
        self._room, self._device = room, torch.device(device)
        self._near: dict[int, Tensor] = {}
        self._far: dict[int, Tensor] = {}
        self._files: dict[int, Path] = {}
        self._folder: Path | None = None
        self._count = 0
        self._origin: Store | None = None

    def __len__(self) -> int:
        return self._count

    def put(self, rows: Tensor) -> list[int]:
        """Keep rows ``(n, *shape)``; their slots."""
        slots = list(range(self._count, self._count + len(rows)))
        for slot, row in zip(slots, rows, strict=True):
            self._near[slot] = row.detach().clone()
        self._count += len(rows)
        self._spill()
        return slots

    def get(self, slots: Sequence[int]) -> Tensor:
        """Rows on the device, ``(n, *shape)``.

        Raises:
            KeyError: a slot that was never written.
        """
        return torch.stack([self._row(slot).to(self._device) for slot in slots])

    def copy(self, room: Room, device: torch.device | str) -> Store:
        """Another store of the same rows, which grows apart from this one."""
        other = Store(room, device)
        for slot in range(self._count):
            if slot in self._files:
                other._files[slot] = self._files[slot]
            else:
                other._near[slot] = self._row(slot).to(other._device)
                other._spill()
        other._count = self._count
        other._origin = self  # keeps the files that both read
        return other

    @property
    def held(self) -> dict[str, int]:
        """Rows on the device, on the CPU, on disk."""
        return {"device": len(self._near), "cpu": len(self._far), "disk": len(self._files)}

    def _row(self, slot: int) -> Tensor:
        for held in (self._near, self._far):
            if slot in held:
                return held[slot]
        if slot in self._files:
            return load_file(str(self._files[slot]))["row"]
        raise KeyError(f"slot {slot} was never written; the store holds 0 to {self._count - 1}")

    def _spill(self) -> None:
        """Oldest first, from device to CPU to disk."""
        while self._near and _bytes(self._near) > self._room.device_bytes:
            slot = next(iter(self._near))
            self._far[slot] = self._near.pop(slot).cpu()
        while self._far and _bytes(self._far) > self._room.cpu_bytes:
            slot = next(iter(self._far))
            path = self._at() / f"{slot}.safetensors"
            save_file({"row": self._far.pop(slot).contiguous()}, str(path))
            self._files[slot] = path

    def _at(self) -> Path:
        if self._folder is None:
            if self._room.folder is not None:
                Path(self._room.folder).mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="states-", dir=self._room.folder))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder


def _bytes(rows: dict[int, Tensor]) -> int:
    """Of rows that all have one size."""
    return len(rows) * next(iter(rows.values())).nbytes
