"""Repair: paint, let a judge list what is wrong, edit it, and let the reward accept or reject."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from samplers.repair_costs import charge, check_limits, counted, stands_still
from samplers.repair_scoring import Scoring
from samplers.repair_state import RepairState
from steering.cost import Budget, Cost
from steering.flaws import Editor, Painted, Painter, Planner
from steering.reward import Item, Reward
from steering.search import BudgetTooSmall
from steering.streams import Streams, copy_key, prompt_keys

Action = Callable[[list[RepairState]], None]


@dataclass
class Repair:
    """An outer stage around any search: the pictures that it made are mended, one flaw at a time.

    A round goes through the planner's list, as in GraPE (Goswami et al. 2024, 2412.06089); but an
    edit is kept only if the reward says that the picture got better, so nothing is ever made worse
    by it. When whole rounds bear no fruit a new picture is painted, which is the noise axis of
    ReflectionFlow (2504.16080); its other two, the rewritten prompt and reflection on the picture,
    are wordings of the editor, as is the self-correction of PARM++ (2501.13926). Claims no law.

    Many prompts go on side by side: in a turn each does what it needs next, and all paintings, all
    judgements and all edits of a turn are one batch each. Random numbers depend on seed and prompt
    key alone.

    Attributes:
        planner: the judge that lists what is wrong. Where it finds nothing, the picture is done.
        editor: changes a picture as a flaw asks for.
        reward: accepts or rejects.
        painter: makes the pictures; None: they are given, and no further ones are made.
        tries: edits of one flaw side by side, the best of which is put to the reward.
        gain: by how much the reward must rise for an edit to be accepted; more than that.
        rounds: most passes through a plan, over all pictures of a prompt; None: as the budget allows,
            and none after one that spent nothing of what the budget limits.
        patience: rounds in a row without an accepted edit after which a picture is given up, unless
            the budget pays for no new one; None: never.
        replan: ask the planner after each accepted edit, not only after a round.
        budget: the most that one prompt may cost; unlike a search's it counts edits, too. Seconds may
            be overshot by one turn.
        judge_calls: most calls of the planner for one prompt; None: no limit.
        seed: of the edits.

    Raises:
        ValueError: numbers that make no sense, a loop that could not end, or a reward that cannot
            score pictures one by one.
    """

    planner: Planner
    editor: Editor
    reward: Reward
    painter: Painter | None = None
    tries: int = 1
    gain: float = 0.0
    rounds: int | None = None
    patience: int | None = 2
    replan: bool = True
    budget: Budget = field(default_factory=Budget)
    judge_calls: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tries", "rounds", "patience", "judge_calls"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.gain < math.inf:
            raise ValueError(f"gain must be at least 0 and finite, got {self.gain}")
        self._scoring = Scoring(self.reward)
        check_limits(self.budget, self.rounds, self._edit_cost())

    def __call__(self, prompts: Sequence[str | Item], **given: Any) -> list[RepairState]:
        """Repair until every prompt is done; arguments and errors are those of :meth:`begin`."""
        states = self.begin(prompts, **given)
        for _ in self.run(states):
            pass
        return states

    def begin(
        self,
        prompts: Sequence[str | Item],
        *,
        pictures: Tensor | None = None,
        keys: Sequence[str] | None = None,
    ) -> list[RepairState]:
        """States to hand to :meth:`run`.

        Args:
            prompts: texts, or items with metadata.
            pictures: to be repaired ``(B, 3, H, W)`` in [0, 1]; None: they are painted.
            keys: of the prompts, for random numbers; by default text and occurrence.

        Raises:
            ValueError: no pictures and no painter, or numbers of them that do not agree.
            BudgetTooSmall: one painted, scored picture does not fit the budget.
        """
        self._scoring.forget()
        items = [p if isinstance(p, Item) else Item(p) for p in prompts]
        names = prompt_keys([item.prompt for item in items]) if keys is None else list(keys)
        if len(names) != len(items) or len(set(names)) != len(items):
            raise ValueError(f"need one distinct key for each of {len(items)} prompts, got {names}")
        states = [RepairState(item, key) for item, key in zip(items, names, strict=True)]
        self._scoring.prepare(states)
        if pictures is None:
            if self.painter is None:
                raise ValueError("there is nothing to repair: give pictures, or a painter")
            if self.budget.exceeded_by(self._paint_cost()) is not None:
                raise BudgetTooSmall(
                    f"one picture costs {self._paint_cost()}, more than the budget {self.budget}"
                )
            return states
        if pictures.ndim != 4 or len(pictures) != len(states):
            raise ValueError(
                f"pictures must be ({len(states)}, 3, H, W), got {tuple(pictures.shape)}"
            )
        self._take(states, pictures, self._scoring(states, pictures))
        return states

    def run(self, states: Sequence[RepairState]) -> Iterator[Sequence[RepairState]]:
        """Go on with states until all are done; yields them after each turn.

        Stop at any time: ``best`` of each is the best picture so far. States whose budget or rounds
        were used up go on if there are more now.
        """
        for state in states:
            if state.done in ("budget", "rounds", "stuck"):
                state.done = None
        while True:
            turns: list[tuple[Action, list[RepairState]]] = []
            for action, wants in self._actions():
                mine = [s for s in states if s.done is None and wants(s)]
                turns.append((action, mine))
            if not any(mine for _, mine in turns):
                self._scoring.forget()
                return
            for action, mine in turns:
                if mine:
                    action(mine)
            yield states

    def _actions(self) -> list[tuple[Action, Callable[[RepairState], bool]]]:
        """What can be done in a turn, and who needs it."""
        return [
            (self._paint, lambda s: s.picture is None),
            (self._plan, lambda s: s.picture is not None and s.plan is None),
            (self._edit, lambda s: s.plan is not None),
        ]

    def _paint_cost(self) -> Cost:
        assert self.painter is not None
        return self._scoring.painting(self.painter)

    def _edit_cost(self) -> Cost:
        return self.editor.cost() + self._scoring.cost

    def _affords(self, state: RepairState, cost: Cost) -> bool:
        """Whether it fits the budget; if not, the state is done."""
        over = self.budget.exceeded_by(state.spent + cost) is not None
        late = self.budget.seconds is not None and state.spent.seconds >= self.budget.seconds
        if over or late:
            state.done = "budget"
        return state.done is None

    def _paint(self, states: list[RepairState]) -> None:
        if self.painter is None:
            for state in states:
                state.done = "stuck"
            return
        states = [s for s in states if self._affords(s, self._paint_cost())]
        if not states:
            return
        start = time.perf_counter()
        keys = [copy_key(s.key, s.paints) for s in states]
        painted = self.painter.paint([s.item for s in states], keys)
        charge(states, painted.costs, start)
        for state in states:
            state.paints, state.fruitless = state.paints + 1, 0
        rewards = self._scoring.of_painted(states, self.painter, painted)
        self._take(states, painted.pictures, rewards)

    def _take(
        self, states: Sequence[RepairState], pictures: Tensor, rewards: Sequence[float]
    ) -> None:
        """Take pictures, one a state, with their rewards."""
        for state, picture, reward in zip(states, pictures, rewards, strict=True):
            state.show(picture, reward)
            state.record("picture", reward=reward)

    def _plan(self, states: list[RepairState]) -> None:
        limit, each = self.judge_calls, self.planner.calls_per_row
        for state in states:
            if limit is not None and state.judge_calls + each > limit:
                state.done = "budget"
        states = [s for s in states if s.done is None]
        if not states:
            return
        start = time.perf_counter()
        pictures = torch.stack([_picture(s) for s in states])
        plans = self.planner.plan(pictures, [s.item for s in states])
        if len(plans) != len(states):
            raise ValueError(f"the planner answered {len(plans)} of {len(states)} pictures")
        charge(states, [Cost()] * len(states), start)
        for state, plan in zip(states, plans, strict=True):
            state.judge_calls += each
            state.plan, state.flaws = list(plan), list(plan)
            state.record("plan", flaws=[flaw.instruction for flaw in plan])
            if not plan:
                state.best, state.best_score, state.done = state.picture, state.score, "right"

    def _edit(self, states: list[RepairState]) -> None:
        """Try the first flaw of each picture, then see which edits are accepted."""
        tried, rows = [], []
        for state in states:
            count = self._tries(state)
            if count:
                tried.append(state)
                rows += [state] * count
        if not tried:
            return
        start = time.perf_counter()
        flaws = [s.flaws[0] for s in rows]
        painted = self.editor.edit(
            torch.stack([_picture(s) for s in rows]),
            [s.item for s in rows],
            flaws,
            self._seeds(rows),
        )
        charge(rows, painted.costs, start)
        rewards = self._scoring(rows, painted.pictures)
        for state in tried:
            own = [i for i, row in enumerate(rows) if row is state]
            self._judge(state, own, painted, rewards)
            self._advance(state)

    def _tries(self, state: RepairState) -> int:
        """How many edits the budget affords; none ends the repair."""
        if self.rounds is not None and state.rounds >= self.rounds:
            state.done = "rounds"
            return 0
        one = self._edit_cost()
        if not self._affords(state, one):
            return 0
        return int(min(self.tries, self.budget.times(counted(one), state.spent)))

    def _seeds(self, rows: Sequence[RepairState]) -> list[int]:
        """A seed of each edit from the serial of its state's edits."""
        seeds = []
        for state in rows:
            stream = Streams(self.seed, state.key)
            seeds.append(stream.integer("edit", state.edits, 0))
            state.edits += 1
        return seeds

    def _judge(
        self, state: RepairState, own: Sequence[int], painted: Painted, rewards: Sequence[float]
    ) -> None:
        """Accept the best of a flaw's edits if it is better than what there is."""
        best = max(own, key=lambda i: rewards[i])
        flaw, rest = state.flaws[0], state.flaws[1:]
        accepted = rewards[best] > state.score + self.gain
        state.record(
            "edit",
            kind=flaw.kind,
            instruction=flaw.instruction,
            before=state.score,
            rewards=[rewards[i] for i in own],
            accepted=accepted,
        )
        plan = state.plan
        if accepted:
            state.show(painted.pictures[best], rewards[best])
            state.fruitless = -1  # this round bears fruit
            plan = None if self.replan else plan
        state.plan, state.flaws = plan, rest

    def _advance(self, state: RepairState) -> None:
        """End a round where its plan is done or stale, and give up a picture in time."""
        if state.plan is not None and state.flaws:
            return
        state.rounds, state.fruitless = state.rounds + 1, state.fruitless + 1
        if stands_still(state, self.budget) and self.rounds is None:
            state.done = "stuck"
        if self._gives_up(state):
            state.picture, state.plan = None, None
            state.record("given up", reward=state.score)
        elif state.fruitless == 0:
            state.plan = None  # the picture has changed
        elif state.plan is not None:
            state.flaws = list(state.plan)

    def _gives_up(self, state: RepairState) -> bool:
        """Whether patience is at an end; not while only edits can still be paid for."""
        if self.patience is None or state.fruitless < self.patience:
            return False
        if self.painter is None:
            return True
        return self.budget.exceeded_by(state.spent + self._paint_cost()) is None


def _picture(state: RepairState) -> Tensor:
    assert state.picture is not None
    return state.picture
