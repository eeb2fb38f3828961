"""What all searches by roll-outs on a tree share: where they branch, what they cost, how they walk."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from samplers.initial import at_least_one
from samplers.store import Room
from samplers.tree import ROOT, Tree, expand
from samplers.tree_state import TreeState
from steering.cost import Cost
from steering.model import Stage
from steering.moves import move
from steering.paths import SamplingPath
from steering.prediction import Posterior, joined
from steering.requests import Denoise, Request, Score
from steering.search import BudgetTooSmall, Facts, Needs, Outcome, Plan, Problem, Search
from steering.transfer import to_device
from steering.transitions import DDIM, Transition

Run = Generator[Request, Any, Any]


class Chosen(NamedTuple):
    """Where the roll-outs of a turn start.

    Attributes:
        parents: rows of the tree ``(b,)``.
        log_base: log of the weight of each under the base law, float64 ``(b,)``.
    """

    parents: Tensor
    log_base: Tensor


@dataclass(frozen=True)
class TreeSearch(Search):
    """Roll-outs that share their beginnings: a tree that branches at a few noise levels.

    A roll-out starts at a node of the tree, and what it passes at the branching depths become nodes.
    What the denoiser said of a node is kept, so that a further child of it costs no call for the node
    itself: a roll-out from depth i of T steps costs T - i - 1 calls. Selections of one turn see the
    tree as it was before the turn; turns begin at multiples of ``in_flight``, so that a search that
    stops anywhere and goes on later does what one search would have done.

    Attributes:
        rollouts: how many, at most, over the life of the tree; None: as many as ``nfe`` and the
            budget allow.
        nfe: denoiser calls over the life of the tree, at most; None: no limit but the budget's.
        branching: where the tree branches, as what is left of the grid: 1 is pure noise.
        widening: C of progressive widening: a node of N visits has up to C N^alpha children.
        alpha: its power.
        in_flight: roll-outs of a turn, carried at once.
        transition: how states move, ``"ddim"`` is DDIM(1.0); it must draw noise.
        path: interpolant to sample along; None is the pipeline's own grid.
        room: how much of the stored states may lie where.
        state: an earlier search of the same prompt and seed to go on from, or None.
    """

    rollouts: int | None = 16
    nfe: int | None = None
    branching: tuple[float, ...] = (1.0, 0.8, 0.6, 0.4, 0.2)
    widening: float = 1.0
    alpha: float = 0.5
    in_flight: int = 8
    transition: Transition | Literal["ddim"] = "ddim"
    path: SamplingPath | None = None
    room: Room = field(default_factory=Room)
    state: TreeState | None = None

    def __post_init__(self) -> None:
        at_least_one(self, "in_flight")
        for name in ("rollouts", "nfe"):
            if getattr(self, name) is not None:
                at_least_one(self, name)
        if not self.branching or not all(0 < f <= 1 for f in self.branching):
            raise ValueError(
                f"branching must be shares of the grid that are left, in (0, 1], such as (1.0, 0.5), "
                f"got {self.branching}"
            )
        if not self.widening > 0:
            raise ValueError(f"widening must be positive, got {self.widening}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must lie in (0, 1), got {self.alpha}")
        if not self._transition.stochastic:
            raise ValueError(
                f"{type(self).__name__} branches by noise, but {self._transition} is deterministic: "
                "all children of a node would be the same; use a transition with noise, such as "
                "DDIM(1.0)"
            )

    @property
    def _transition(self) -> Transition:
        return DDIM(1.0) if isinstance(self.transition, str) else self.transition

    @property
    def needs(self) -> Needs:
        """A noisy transition, and rewards that do not depend on the set."""
        return Needs(stochastic=True, density=True)

    def indices(self, steps: int) -> tuple[int, ...]:
        """Indices of a grid of ``steps`` at which the tree branches, in order."""
        found = {min(round((1 - f) * steps), steps - 1) for f in self.branching}
        return tuple(sorted(found))

    # ---- costs

    def costs(self, facts: Facts) -> list[Cost]:
        """Of a roll-out from the root, and from a node of each depth."""
        each = 1 + self._transition.inner_calls
        rows = [facts.steps * each]
        rows += [(facts.steps - i) * each - 1 for i in self.indices(facts.steps)]
        return [Cost(nfe=n, decodes=1, reward_calls=facts.calls_per_row) for n in rows]

    def plan(self, facts: Facts) -> Plan:
        """As many roll-outs as fit: exact where their depths are known beforehand.

        Raises:
            BudgetTooSmall: one roll-out from the root does not fit.
            ValueError: nothing says how many roll-outs to make.
        """
        costs, done, stored = self.costs(facts), 0, 0
        if self.state is not None:
            done, stored = self.state.tree.rollouts, len(self.state.nodes)
        self._limited(facts)
        spent, count = Cost(), 0
        depths = self._depths(done, len(costs) - 1)
        while self.rollouts is None or done + count < self.rollouts:
            depth = next(depths)
            more = spent + costs[depth]
            if self._over(facts, more):
                break
            spent, count = more, count + 1
            stored += len(costs) - 1 - (depth if self._known else 0)
        if not done and not count:
            raise BudgetTooSmall(
                f"one roll-out costs {costs[0]}, more than nfe={self.nfe} and the budget "
                f"{facts.budget} allow"
            )
        if not self._known:  # roll-outs of any depth, but never more calls than all from the root
            most = count * costs[0]
            limits = [n for n in (self._nfe_left, facts.budget.nfe) if n is not None]
            spent = replace(most, nfe=min([most.nfe, *limits]))
        settings = {"rollouts": done + count, "stored": stored}
        if facts.elements is not None:  # two float32 states a node, one a finished sample
            settings["bytes"] = 4 * facts.elements * (2 * stored + done + count)
        alive = min(max(count, 1), self.in_flight)
        return Plan(spent, costs[0], alive, exact=self._known, settings=settings)

    @property
    def _nfe_left(self) -> int | None:
        spent = 0 if self.state is None else self.state.nfe
        return None if self.nfe is None else self.nfe - spent

    def _over(self, facts: Facts, cost: Cost) -> bool:
        limit = self._nfe_left
        return facts.budget.exceeded_by(cost) is not None or (
            limit is not None and cost.nfe > limit
        )

    def _limited(self, facts: Facts) -> None:
        """Refuse a search that only time would end."""
        budget = facts.budget
        counted = (self.rollouts, self.nfe, budget.nfe, budget.decodes, budget.reward_calls)
        if all(limit is None for limit in counted):
            raise ValueError(
                f"{type(self).__name__} was given neither rollouts, nor nfe, nor a counted budget; "
                "give one of them"
            )

    # ---- what a search decides

    @property
    @abstractmethod
    def _known(self) -> bool:
        """Whether the depths of all roll-outs are known beforehand."""

    @abstractmethod
    def _depths(self, done: int, depths: int) -> Generator[int, None, None]:
        """Depth at which each roll-out from number ``done`` on starts, or the cheapest it may."""

    @abstractmethod
    def _choose(self, problem: Problem, tree: Tree, rollouts: range) -> Chosen:
        """Where roll-outs start, seeing the tree as it was before their turn began.

        Args:
            problem: for random numbers.
            tree: of all earlier turns; not backed up.
            rollouts: numbers of the turn, all of them.
        """

    @abstractmethod
    def _outcome(self, problem: Problem, state: TreeState, complete: bool) -> Outcome:
        """What is returned."""

    # ---- the search

    def __call__(self, problem: Problem) -> Generator[Request, Any, Outcome]:
        """Choose, roll out and score, turn after turn."""
        plan, indices = self.plan(problem.facts), self.indices(problem.grid.steps)
        problem.trace.record(**plan.settings)
        if self.state is None:
            state = TreeState.start(problem, indices, self.room)
        else:
            state = self.state.resumed(problem, indices, self.room)
        costs, spent, complete = self.costs(problem.facts), Cost(), True
        while self.rollouts is None or state.tree.rollouts < self.rollouts:
            done = state.tree.rollouts
            begin = done // self.in_flight * self.in_flight
            turn = range(begin, begin + self.in_flight)
            chosen = self._choose(problem, state.tree.before(turn.start), turn)
            at = chosen.parents[done - turn.start :]
            starts, spent = self._fitting(
                problem, state.tree.depth[at].tolist(), spent, costs, done
            )
            if not starts:
                break
            if done and problem.usage.nfe and not self._time(problem, costs, starts):
                complete = False
                break
            base = chosen.log_base[done - turn.start :][: len(starts)]
            state = yield from self._roll_out(problem, state, at[: len(starts)], base)
            state = replace(state, nfe=state.nfe + int(sum(costs[d].nfe for d in starts)))
            if len(starts) < len(at):  # a turn cut short by the budget; a later search ends it
                break
        return self._outcome(problem, state, complete)

    def _fitting(
        self, problem: Problem, depths: list[int], spent: Cost, costs: list[Cost], done: int
    ) -> tuple[list[int], Cost]:
        """The first of the chosen roll-outs, as many as the budgets allow, and what is spent then."""
        kept: list[int] = []
        for depth in depths:
            full = self.rollouts is not None and done + len(kept) >= self.rollouts
            if full or self._over(problem.facts, spent + costs[depth]):
                break
            spent = spent + costs[depth]
            kept.append(depth)
        return kept, spent

    def _time(self, problem: Problem, costs: list[Cost], starts: list[int]) -> bool:
        rows = sum(costs[d].nfe for d in starts)
        return problem.affords(Cost(seconds=problem.seconds_for(rows)))

    def _roll_out(
        self, problem: Problem, state: TreeState, parents: Tensor, log_base: Tensor
    ) -> Generator[Request, Any, TreeState]:
        """Walk to the end from the chosen nodes, score, and add all to the tree."""
        first = state.tree.rollouts
        draws = range(first, first + len(parents))
        x_0, passed = yield from self._walk(problem, state, parents, draws)
        scores = yield Score(x_0, Stage.FINAL)
        finished = state.finished.put(x_0)
        slots = []
        for row, leaf in enumerate(finished):
            slots += [passed[row, i] for i in state.indices if (row, i) in passed] + [leaf]
        tree = expand(state.tree, parents, torch.tensor(slots), scores.total, log_base)
        problem.trace.record(
            nodes=list(draws),
            parents=state.tree.born[parents],
            depth=state.tree.depth[parents],
            reward=scores.total,
        )
        return replace(state, tree=tree, **state.added(scores))  # type: ignore[arg-type]

    def _walk(
        self, problem: Problem, state: TreeState, parents: Tensor, draws: Sequence[int]
    ) -> Run:
        """Finished states ``(b, *shape)``, and slots of the nodes passed, by row and index.

        Rows of deeper nodes wait until the others have come down to their noise level.
        """
        depth = state.tree.depth[parents].tolist()
        begins = [0 if d == 0 else state.indices[d - 1] for d in depth]
        rows = [r for r, d in enumerate(depth) if d == 0]
        x_t = problem.initial([draws[r] for r in rows])
        passed: dict[tuple[int, int], int] = {}
        for i in range(min(begins), problem.grid.steps):
            t, s = problem.grid[i], problem.grid[i + 1]
            known: list[Posterior] = []
            if rows:
                known.append((yield Denoise(x_t, t)))
                if i in state.indices:
                    held = torch.stack([known[0].x_0, known[0].eps], 1)
                    passed |= {
                        (r, i): slot for r, slot in zip(rows, state.nodes.put(held), strict=True)
                    }
            joining = [r for r, d in enumerate(depth) if d > 0 and begins[r] == i]
            if joining:
                known.append(state.posterior(parents[joining]))
                x = t.alpha * known[-1].x_0 + t.sigma * known[-1].eps
                x_t, rows = torch.cat([x_t, x]), rows + joining
            said = joined(known)
            noise = problem.later("transition", [draws[r] for r in rows], i)
            x_t = yield from move(problem, self._transition, x_t, said, t, s, noise)
        order = to_device(torch.argsort(torch.tensor(rows)), x_t.device)
        return x_t[order], passed


def from_root(count: int) -> Chosen:
    """Roll-outs that all start at the root, as the first turn's do."""
    return Chosen(torch.full((count,), ROOT), torch.zeros(count, dtype=torch.float64))


def chosen_outcome(
    state: TreeState, kept: Sequence[int], log_w: Tensor, chosen: list[int], **rest: Any
) -> Outcome:
    """Outcome of the kept leaves, by their roll-outs' numbers."""
    x_0 = state.finished.get(kept)
    return Outcome(x_0, state.scores(list(kept)), log_w, chosen, extra={"state": state}, **rest)
