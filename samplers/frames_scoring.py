"""Scores of the videos of trees of frames."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samplers.chunk_level import ChunkLevel
from samplers.frames_state import FramesState
from steering.chunks import Prefix
from steering.cost import Cost
from steering.reward import Reward


@dataclass(frozen=True, eq=False)
class Child:
    """A chunk to be made.

    Attributes:
        state: of which tree.
        parent: serial of the chunk before it.
        prefix: the video until then.
        seed: of its random numbers.
    """

    state: FramesState
    parent: int
    prefix: Prefix
    seed: int


class FramesScoring:
    """Scores videos by the verifiers of a level, whose features of a prompt are computed once.

    Args:
        batch_size: most videos scored at once.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._features: dict[tuple[str, int], Any] = {}

    def prepare(self, state: FramesState, levels: Sequence[ChunkLevel]) -> None:
        """Features of a prompt by all verifiers, which may refuse it."""
        for level in levels:
            for reward in level.members.values():
                self._feature(state, reward)

    def forget(self) -> None:
        """Let go of all features."""
        self._features.clear()

    def __call__(
        self, level: ChunkLevel, children: Sequence[Child], videos: Sequence[Prefix]
    ) -> dict[str, Tensor]:
        """Scores ``(n,)`` by verifier, float64 on the CPU; charged to the children's trees.

        Raises:
            ValueError: one is not finite.
        """
        columns: dict[str, list[Tensor]] = {name: [] for name in level.members}
        for first in range(0, len(children), self.batch_size):
            start = time.perf_counter()
            rows = children[first : first + self.batch_size]
            media = torch.stack([p.video for p in videos[first : first + self.batch_size]])
            for name, reward in level.members.items():
                columns[name].append(self._scores(name, reward, media, rows))
            charge(rows, [Cost(reward_calls=level.calls_per_row)] * len(rows), start)
        return {name: torch.cat(parts) for name, parts in columns.items() if parts}

    def _scores(self, name: str, reward: Reward, media: Tensor, rows: Sequence[Child]) -> Tensor:
        features = [self._feature(child.state, reward) for child in rows]
        with torch.no_grad():
            found = reward(media, features)
        total = found[reward.name] if isinstance(found, Mapping) else found
        scores = total.detach().double().cpu()
        for child, score in zip(rows, scores.tolist(), strict=True):
            if not math.isfinite(score):
                raise ValueError(
                    f"verifier {name!r} gave {score} for the prompt {child.state.item.prompt!r}; only "
                    "finite scores can be ranked"
                )
        return scores

    def _feature(self, state: FramesState, reward: Reward) -> Any:
        key = state.key, id(reward)
        if key not in self._features:
            self._features[key] = reward.prepare(state.item)
        return self._features[key]


def charge(rows: Sequence[Child], costs: Sequence[Cost], start: float) -> None:
    """Add what each row cost to its tree, and its share of the time since ``start``."""
    share = Cost(seconds=(time.perf_counter() - start) / max(len(rows), 1))
    for child, cost in zip(rows, costs, strict=True):
        child.state.spent += cost + share
