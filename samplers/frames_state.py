"""Where a tree of frames stands: its nodes, the videos that live, what was spent; saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from steering.chunks import Prefix
from steering.cost import Cost
from steering.files import write_atomically
from steering.reward import Item

NO_PARENT = -1


@dataclass(frozen=True)
class FrameNode:
    """A chunk that was made.

    Attributes:
        level: of the tree, from 0.
        parent: serial of the chunk before it, or `NO_PARENT`.
        seed: of its random numbers.
        kept: whether its video lived on.
        scores: of the video that ends with it, by verifier; empty where there was nothing to choose.
        value: weighted mean rank among its level, from 0 to 1; None where there was nothing to choose.
    """

    level: int
    parent: int
    seed: int
    kept: bool
    scores: dict[str, float] = field(default_factory=dict)
    value: float | None = None


@dataclass(eq=False)
class FramesState:
    """The tree of one prompt, at any time.

    Attributes:
        item: the prompt, and what verifiers may know of it.
        key: its key for random numbers.
        start: what the video goes on from; empty for a new one.
        nodes: every chunk that was made; the place is its serial.
        alive: videos that live, by the serial of their last chunk, the best first.
        level: the next to be made.
        spent: what was spent.
        narrowed: whether the budget of seconds ran out, so that the best video alone was finished.
        done: whether the video is whole.
    """

    item: Item
    key: str
    start: Prefix = field(default_factory=Prefix)
    nodes: list[FrameNode] = field(default_factory=list)
    alive: dict[int, Prefix] = field(default_factory=dict)
    level: int = 0
    spent: Cost = field(default_factory=Cost)
    narrowed: bool = False
    done: bool = False

    @property
    def best(self) -> int:
        """Serial of the last chunk of the best video so far.

        Raises:
            ValueError: no chunk was made yet.
        """
        if not self.alive:
            raise ValueError(f"no chunk of {self.item.prompt!r} was made yet; run the search")
        return next(iter(self.alive))

    @property
    def prefix(self) -> Prefix:
        """The best video so far, to be shown or gone on with."""
        return self.alive[self.best]

    @property
    def video(self) -> Tensor:
        """Frames ``(F, 3, H, W)`` in [0, 1] of the best video so far."""
        return self.prefix.video

    def path(self, serial: int | None = None) -> list[int]:
        """Serials of the chunks of a video, the first first; by default of the best."""
        serial = self.best if serial is None else serial
        found = []
        while serial != NO_PARENT:
            found.append(serial)
            serial = self.nodes[serial].parent
        return found[::-1]

    def to_dict(self) -> dict[str, Any]:
        """All but tensors, as plain JSON."""
        return {
            "prompt": self.item.prompt,
            "metadata": dict(self.item.metadata),
            "key": self.key,
            "nodes": [asdict(node) for node in self.nodes],
            "alive": list(self.alive),
            "level": self.level,
            "spent": asdict(self.spent),
            "narrowed": self.narrowed,
            "done": self.done,
        }


def save_frames(path: str | Path, states: Sequence[FramesState]) -> None:
    """Write states to one safetensors file; metadata of prompts must be plain JSON."""
    tensors: dict[str, Tensor] = {"empty": torch.zeros(1)}
    plain = []
    for i, state in enumerate(states):
        told = state.to_dict()
        told["prefixes"] = {"start": _put(tensors, f"{i} start", state.start)}
        for serial, prefix in state.alive.items():
            told["prefixes"][str(serial)] = _put(tensors, f"{i} {serial}", prefix)
        plain.append(told)
    written = save(tensors, {"frames": json.dumps(plain)})
    write_atomically(Path(path), lambda file: file.write(written))


def load_frames(path: str | Path) -> list[FramesState]:
    """Read what :func:`save_frames` wrote; tensors come to the CPU.

    Raises:
        ValueError: the file holds something else.
    """
    with safe_open(str(path), "pt") as file:
        told = (file.metadata() or {}).get("frames")
        if told is None:
            raise ValueError(f"{path} holds no trees of frames; write it with save_frames")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    states = []
    for i, record in enumerate(json.loads(told)):
        kept = record.pop("prefixes")
        record["item"] = Item(record.pop("prompt"), record.pop("metadata"))
        record["nodes"] = [FrameNode(**node) for node in record["nodes"]]
        record["spent"] = Cost(**record["spent"])
        serials = record.pop("alive")
        alive = {s: _get(tensors, f"{i} {s}", kept[str(s)]) for s in serials}
        start = _get(tensors, f"{i} start", kept["start"])
        states.append(FramesState(start=start, alive=alive, **record))
    return states


def _put(tensors: dict[str, Tensor], name: str, prefix: Prefix) -> tuple[int, int]:
    """Add a prefix's tensors; returns its chunks and number of parts."""
    if prefix.latents is not None:
        tensors[f"{name} latents"] = prefix.latents.detach().cpu().contiguous().clone()
    for j, part in enumerate(prefix.parts):
        tensors[f"{name} part {j}"] = part.detach().cpu().contiguous().clone()
    return prefix.chunks, len(prefix.parts)


def _get(tensors: dict[str, Tensor], name: str, sizes: Sequence[int]) -> Prefix:
    chunks, parts = sizes
    frames = tuple(tensors[f"{name} part {j}"] for j in range(parts))
    return Prefix(chunks, tensors.get(f"{name} latents"), frames)
