"""The things a search may ask for. It yields one and receives its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from steering.model import Stage
from steering.prediction import Posterior
from steering.times import Time
from steering.transitions import GaussianTransition, Transition


@dataclass(frozen=True, eq=False)
class Denoise:
    """Posterior of each row; answered by a :class:`steering.prediction.Posterior`.

    Attributes:
        x_t: rows ``(n, *shape)``.
        time: noise level of all rows, or of each.
        keep_graph: keep the autograd graph, so that a later Score can return gradients. If ``x_t``
            is no part of a graph yet it becomes its leaf (``requires_grad`` is set on it).
    """

    x_t: Tensor
    time: Time | Sequence[Time]
    keep_graph: bool = False


@dataclass(frozen=True, eq=False)
class Rollout:
    """Rows carried along the grid, to its end; answered by the states there, ``(n, *shape)``.

    Attributes:
        x_t: rows ``(n, *shape)``.
        start: index in the problem's grid at which the rows are.
        solver: ``"scheduler"`` is a private copy of the pipeline's own scheduler, a deterministic one
            where it begins after the grid's start; a transition walks the problem's grid, or ``path``.
        draws: draw ids of the rows' noise; needed by stochastic solvers.
        path: times to walk instead of the grid's, the first being the rows' own.
        keep_graph: as in :class:`Denoise`, through every step.
        purpose: random purpose of the noise, for roll-outs beside a trajectory.
        stop: index in the problem's grid at which to end; None is the end of it, or of ``path``.
    """

    x_t: Tensor
    start: int = 0
    solver: Transition | Literal["scheduler"] = "scheduler"
    draws: Sequence[int] = ()
    path: Sequence[Time] | None = None
    keep_graph: bool = False
    purpose: str = "transition"
    stop: int | None = None


@dataclass(frozen=True, eq=False)
class Score:
    """Rewards of each row; answered by :class:`Scores`.

    Attributes:
        x_0: clean states ``(n, *shape)``.
        stage: INTERMEDIATE for a guess, FINAL for a finished sample.
        grad_to: the tensor to differentiate the total reward by: ``x_0`` itself, or the leaf
            ``(n, *shape)`` of the graph that ``x_0`` came from. None asks for no gradient.
        embed: whether the reward's embeddings are wanted, too; not together with a gradient.
    """

    x_0: Tensor
    stage: Stage = Stage.INTERMEDIATE
    grad_to: Tensor | None = None
    embed: bool = False


@dataclass(frozen=True, eq=False)
class Render:
    """Final media by the pipeline's own tail; answered by a list with one entry a row.

    Attributes:
        x_0: finished states ``(n, *shape)``.
    """

    x_0: Tensor


@dataclass(frozen=True, eq=False)
class Scores:
    """Rewards of rows.

    Attributes:
        total: what is searched, float64 on the CPU, ``(n,)``.
        columns: every named reward, the total included, each ``(n,)``.
        grad: gradient of the total by what was asked, ``(n, *shape)`` on the device, or None.
        ranked: columns by whose mean rank candidates are compared; the total then says nothing until
            a search has ranked all that it has seen (:mod:`samplers.pool`). None: by the total.
        embedding: the reward's features of what it saw, float32 on the CPU ``(n, d)``, if asked for.
    """

    total: Tensor
    columns: dict[str, Tensor]
    grad: Tensor | None = None
    ranked: tuple[str, ...] | None = None
    embedding: Tensor | None = None

    def __getitem__(self, rows: Tensor | slice) -> Scores:
        """The chosen rows."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        grad = None if self.grad is None else self.grad[rows]
        embedding = None if self.embedding is None else self.embedding[rows]
        return Scores(self.total[rows], columns, grad, self.ranked, embedding)


@dataclass(frozen=True, eq=False)
class Move:
    """A step whose law is Gaussian; answered by the rows one step on, ``(n, *shape)``.

    :func:`steering.moves.move` asks for it, so that the steps of all searches are made at once.

    Attributes:
        transition: how.
        posterior: what the denoiser said of the rows.
        t: where they are.
        s: where they go.
        noise: returns standard normal rows ``(n, *shape)``; used only if the law has a width.
        rows: rows of the posterior to move, chosen or repeated, ``(n,)`` on the CPU; None: all.
    """

    transition: GaussianTransition
    posterior: Posterior
    t: Time
    s: Time
    noise: Callable[[], Tensor]
    rows: Tensor | None = None

    def __len__(self) -> int:
        return (self.posterior.x_0 if self.rows is None else self.rows).shape[0]


Request = Denoise | Rollout | Score | Render | Move
