"""Where the repair of one picture stands: kept, saved and gone on with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from steering.cost import Cost
from steering.files import write_atomically
from steering.flaws import Flaw
from steering.reward import Item

_TENSORS = ("picture", "best")
_COSTS = ("spent", "spent_before")


@dataclass(eq=False)
class RepairState:
    """The repair of one prompt's picture, at any time.

    Attributes:
        item: the prompt, and what rewards and planners may know of it.
        key: its key for random numbers.
        picture: the one under repair ``(3, H, W)``; None before it is painted.
        score: its reward.
        best: of the highest reward so far, or the one that the planner found right.
        best_score: its reward.
        plan: flaws that the planner found in ``picture``; None before it was asked.
        flaws: those of them that are still to be tried in this round.
        spent: what was spent.
        spent_before: of that, what was spent before the round that is under way.
        judge_calls: of the planner.
        paints: pictures painted; also the serial of the next.
        edits: edits made; also the serial of the next.
        rounds: passes through a plan that are finished.
        fruitless: of them, those since the last accepted edit of ``picture``.
        done: why nothing more is done: "right", "budget", "rounds", "stuck"; None while it goes on.
        history: every decision, as plain records.
    """

    item: Item
    key: str
    picture: Tensor | None = None
    score: float = float("-inf")
    best: Tensor | None = None
    best_score: float = float("-inf")
    plan: list[Flaw] | None = None
    flaws: list[Flaw] = field(default_factory=list)
    spent: Cost = field(default_factory=Cost)
    spent_before: Cost = field(default_factory=Cost)
    judge_calls: int = 0
    paints: int = 0
    edits: int = 0
    rounds: int = 0
    fruitless: int = 0
    done: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def show(self, picture: Tensor, score: float) -> None:
        """Take a picture under repair; it is the best one if its reward is."""
        self.picture, self.score, self.plan, self.flaws = picture, score, None, []
        if self.best is None or score > self.best_score:
            self.best, self.best_score = picture, score

    def record(self, event: str, **told: Any) -> None:
        """Note a decision, with what was spent until then."""
        self.history.append({"event": event, **told, "nfe": self.spent.nfe})


def save_states(path: str | Path, states: Sequence[RepairState]) -> None:
    """Write states to one safetensors file; metadata of prompts must be plain JSON."""
    tensors: dict[str, Tensor] = {}
    plain = []
    for i, state in enumerate(states):
        for name in _TENSORS:
            value = getattr(state, name)
            if value is not None:
                tensors[f"{name} {i}"] = value.detach().cpu().contiguous().clone()
        told = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in _TENSORS}
        told["item"] = {"prompt": state.item.prompt, "metadata": dict(state.item.metadata)}
        told |= {name: asdict(getattr(state, name)) for name in _COSTS}
        told["plan"] = None if state.plan is None else [asdict(flaw) for flaw in state.plan]
        told["flaws"] = [asdict(flaw) for flaw in state.flaws]
        plain.append(told)
    tensors.setdefault("empty", torch.zeros(1))
    told_all = {"states": json.dumps(plain)}
    write_atomically(Path(path), lambda file: file.write(save(tensors, told_all)))


def load_states(path: str | Path) -> list[RepairState]:
    """Read what :func:`save_states` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    with safe_open(str(path), "pt") as file:
        told = (file.metadata() or {}).get("states")
        if told is None:
            raise ValueError(f"{path} holds no states of repairs; write it with save_states")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    states = []
    for i, record in enumerate(json.loads(told)):
        record["item"] = Item(**record["item"])
        record |= {name: Cost(**record[name]) for name in _COSTS}
        record["plan"] = None if record["plan"] is None else [_flaw(f) for f in record["plan"]]
        record["flaws"] = [_flaw(f) for f in record["flaws"]]
        own: dict[str, Any] = {name: tensors.get(f"{name} {i}") for name in _TENSORS}
        states.append(RepairState(**record, **own))
    return states


def _flaw(record: dict[str, Any]) -> Flaw:
    return Flaw(**{**record, "boxes": tuple(tuple(box) for box in record["boxes"])})
