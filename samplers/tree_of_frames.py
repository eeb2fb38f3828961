"""Tree of frames: a video is searched while it grows, chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

import torch
from torch import Tensor

from samplers.chunk_level import ChunkLevel
from samplers.frames_scoring import Child, FramesScoring, charge
from samplers.frames_state import NO_PARENT, FrameNode, FramesState
from steering.chunks import Continue, Prefix
from steering.cost import Budget, Cost
from steering.reward import Item
from steering.search import BudgetTooSmall
from steering.streams import Streams, prompt_keys

_SEEDS = "chunk"  #: purpose of the random streams


@dataclass
class TreeOfFrames:
    """The tree of frames of Video-T1 (Liu et al. 2025, 2503.18942), over the chunks of a video.

    Level t extends each kept video by ``branch`` chunks and keeps the best ``keep`` of all; branching
    only where the stages change makes N first chunks and a few of each other, O(N + T) in all, where the
    best of N whole videos makes N T. In the paper a candidate for the first frame may be rejected while
    it is denoised; here a chunk is one whole call of its pipeline. An outer stage, no search of the
    engine, and an arg max: it claims no law.

    Trees of many prompts grow side by side, so that a level of all of them is made and scored in full
    batches. Random numbers depend on the seed, the prompt's key and the serial of a chunk alone.

    Attributes:
        generator: makes chunks, e.g. `steering.adapters.chunks.continuing`.
        levels: one a chunk; `ChunkLevel.stages` makes those of the paper.
        budget: the most that one prompt may cost. A tree that is too wide is refused; when seconds run
            out on the way, the best video is finished alone.
        seed: of the run.
        batch_size: most chunks made, and videos scored, at once.
        on_progress: called after each batch with the number of chunks made and of all.

    Raises:
        ValueError: no levels, more than the generator's videos have chunks, or a batch of nothing.
    """

    generator: Continue
    levels: Sequence[ChunkLevel]
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    batch_size: int = 8
    on_progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("levels is empty; give one ChunkLevel for each chunk")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 chunk, got {self.batch_size}")
        self._check_length(Prefix())
        self._scoring = FramesScoring(self.batch_size)

    def __call__(
        self,
        prompts: Sequence[str | Item],
        *,
        keys: Sequence[str] | None = None,
        starts: Sequence[Prefix] | None = None,
    ) -> list[FramesState]:
        """Make one video of each prompt; arguments and errors are those of :meth:`begin`."""
        states = self.begin(prompts, keys=keys, starts=starts)
        for _ in self.run(states):
            pass
        return states

    def plan(self, start: int = 0) -> Cost:
        """What a prompt will cost, seconds left out; the most where the generator says the most.

        Args:
            start: chunks that there are already.
        """
        cost = Cost()
        for i, (level, count) in enumerate(zip(self.levels, self._counts(), strict=True)):
            looked = self._looks(i, count)
            one = self.generator.cost(start + i, frames=looked)
            cost += count * (one + Cost(reward_calls=level.calls_per_row * looked))
        return cost

    @property
    def chunk_count(self) -> int:
        """How many chunks are made of a prompt."""
        return sum(self._counts())

    def _counts(self) -> Iterator[int]:
        """How many chunks are made on each level."""
        alive = 1
        for level in self.levels:
            yield alive * level.branch
            alive = min(level.keep, alive * level.branch)

    def begin(
        self,
        prompts: Sequence[str | Item],
        *,
        keys: Sequence[str] | None = None,
        starts: Sequence[Prefix] | None = None,
    ) -> list[FramesState]:
        """States to hand to :meth:`run`.

        Args:
            prompts: texts, or items with metadata.
            keys: of the prompts, for random numbers; by default text and occurrence.
            starts: what each video goes on from, e.g. ``prefix`` of an earlier state.

        Raises:
            TypeError: one text in place of a list.
            ValueError: numbers of them that do not agree, or a prompt that a verifier refuses.
            BudgetTooSmall: the tree does not fit the budget.
        """
        if isinstance(prompts, str):
            raise TypeError(f"prompts must be a list of texts or items, got the text {prompts!r}")
        items = [p if isinstance(p, Item) else Item(p) for p in prompts]
        names = prompt_keys([item.prompt for item in items]) if keys is None else list(keys)
        if len(names) != len(items) or len(set(names)) != len(items):
            raise ValueError(f"need one distinct key for each of {len(items)} prompts, got {names}")
        begun = [Prefix()] * len(items) if starts is None else list(starts)
        if len(begun) != len(items):
            raise ValueError(f"need one start for each of {len(items)} prompts, got {len(begun)}")
        states = [FramesState(*given) for given in zip(items, names, begun, strict=True)]
        for state in states:
            self._check_length(state.start)
            self._check_budget(state)
            self._scoring.prepare(state, self.levels)
        return states

    def run(self, states: Sequence[FramesState]) -> Iterator[Sequence[FramesState]]:
        """Grow until all videos are whole; yields the states after each level.

        Stop at any time: a level that was not finished is made anew, alike, by the next run.
        """
        while live := [s for s in states if not s.done]:
            for level in sorted({s.level for s in live}):
                self._grow([s for s in live if s.level == level], states)
            yield states
        self._scoring.forget()

    def _check_length(self, start: Prefix) -> None:
        whole, wanted = self.generator.chunks, start.chunks + len(self.levels)
        if whole is not None and wanted > whole:
            raise ValueError(
                f"{len(self.levels)} levels after {start.chunks} chunks make {wanted}, but a video of "
                f"this generator has {whole}; give {max(whole - start.chunks, 0)} levels"
            )

    def _check_budget(self, state: FramesState) -> None:
        cost = self.plan(state.start.chunks)
        over = self.budget.exceeded_by(cost)
        if over is not None:
            raise BudgetTooSmall(
                f"this tree costs {getattr(cost, over):g} {over} a prompt, more than the budget of "
                f"{getattr(self.budget, over)}; branch less, keep fewer, or make fewer chunks"
            )

    def _looks(self, level: int, count: int) -> bool:
        """Whether videos are scored: where there is a choice, and in the end."""
        return count > self.levels[level].keep or level == len(self.levels) - 1

    def _grow(self, states: Sequence[FramesState], everyone: Sequence[FramesState]) -> None:
        """Make, score and choose one level of trees that are equally far."""
        index = states[0].level
        families = [self._children(state) for state in states]
        looked = [self._looks(index, len(family)) for family in families]
        made = iter(self._extend(list(chain(*families)), any(looked), everyone))
        videos = [list(islice(made, len(family))) for family in families]
        judged = [i for i, wanted in enumerate(looked) if wanted]
        columns = self._scoring(
            self.levels[index],
            list(chain(*(families[i] for i in judged))),
            list(chain(*(videos[i] for i in judged))),
        )
        sizes = [len(families[i]) for i in judged]
        parts = {
            name: dict(zip(judged, column.split(sizes), strict=True))
            for name, column in columns.items()
        }
        for i, state in enumerate(states):
            own = {name: part[i] for name, part in parts.items() if i in part}
            self._choose(state, families[i], videos[i], own)

    def _children(self, state: FramesState) -> list[Child]:
        level = self.levels[state.level]
        parents = list(state.alive.items()) if state.level else [(NO_PARENT, state.start)]
        limit = self.budget.seconds
        if state.level and limit is not None and state.spent.seconds >= limit:
            state.narrowed, parents = True, [(state.best, state.prefix)]
        branch = 1 if state.narrowed else level.branch
        pairs = [pair for pair in parents for _ in range(branch)]
        streams, first = Streams(self.seed, state.key), len(state.nodes)
        seeds = [
            streams.integer(_SEEDS, first + i, state.start.chunks + state.level)
            for i in range(len(pairs))
        ]
        return [Child(state, *pair, seed) for pair, seed in zip(pairs, seeds, strict=True)]

    def _extend(
        self, children: Sequence[Child], frames: bool, everyone: Sequence[FramesState]
    ) -> list[Prefix]:
        """The videos that the children make, in batches."""
        made: list[Prefix] = []
        for first in range(0, len(children), self.batch_size):
            rows, start = children[first : first + self.batch_size], time.perf_counter()
            found = self.generator.extend(
                [c.prefix for c in rows],
                [c.state.item for c in rows],
                [c.seed for c in rows],
                frames=frames,
            )
            if len(found.prefixes) != len(rows) or len(found.costs) != len(rows):
                raise ValueError(
                    f"the generator answered {len(found.prefixes)} videos and {len(found.costs)} costs "
                    f"for {len(rows)}; it must give one of each for every row"
                )
            charge(rows, found.costs, start)
            made += found.prefixes
            if self.on_progress is not None:
                before = sum(len(s.nodes) for s in everyone)
                self.on_progress(before + len(made), self.chunk_count * len(everyone))
        return made

    def _choose(
        self,
        state: FramesState,
        children: Sequence[Child],
        made: Sequence[Prefix],
        columns: Mapping[str, Tensor],
    ) -> None:
        """Enter the children as nodes and keep the best, the first of equals."""
        level, first = self.levels[state.level], len(state.nodes)
        values: list[float | None] = [None] * len(children)
        order = list(range(len(children)))
        if columns:
            found = level.values(columns)
            values = list(found.tolist())
            order = torch.argsort(found, descending=True, stable=True).tolist()
        kept = order[: level.keep]
        for i, child in enumerate(children):
            scores = {name: float(column[i]) for name, column in columns.items()}
            state.nodes.append(
                FrameNode(state.level, child.parent, child.seed, i in kept, scores, values[i])
            )
        state.alive = {first + i: made[i] for i in kept}
        state.level += 1
        state.done = state.level == len(self.levels)
