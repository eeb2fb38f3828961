"""A grown tree with its states and rewards, kept for a later, larger search, and its files."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from samplers.store import Room, Store
from samplers.tree import Tree
from steering.files import write_atomically
from steering.prediction import Posterior
from steering.requests import Scores
from steering.search import Problem

TENSORS, ABOUT = "tree.safetensors", "tree.json"


@dataclass(frozen=True, eq=False)
class TreeState:
    """Everything that a tree search has paid for.

    Attributes:
        owner: seed and key of the prompt that it belongs to.
        indices: of the grid, at which the tree branches.
        steps: of the grid.
        nfe: denoiser rows spent so far.
        lam: lambda that its values are in.
        tree: the nodes.
        nodes: posteriors at branching depths, rows ``(2, *shape)``: predicted x_0 and noise.
        finished: x_0 of the leaves, rows ``(*shape)``; slots are the roll-outs' numbers.
        columns: named rewards of the leaves, each float64 ``(m,)``.
        total: name of the column that is searched.
    """

    owner: str
    indices: tuple[int, ...]
    steps: int
    nfe: int
    lam: float
    tree: Tree
    nodes: Store
    finished: Store
    columns: dict[str, Tensor]
    total: str

    @classmethod
    def start(cls, problem: Problem, indices: tuple[int, ...], room: Room) -> TreeState:
        """The root alone."""
        stores = (Store(room, problem.device), Store(room, problem.device))
        tree = Tree.empty(len(indices))
        lam = float(problem.lam)
        return cls(_owner(problem), indices, problem.grid.steps, 0, lam, tree, *stores, {}, "")

    def resumed(self, problem: Problem, indices: tuple[int, ...], room: Room) -> TreeState:
        """This tree on the problem's device, to be grown without changing the saved one.

        Raises:
            ValueError: it belongs to another prompt, seed, lambda, grid or branching.
        """
        if self.owner != _owner(problem):
            raise ValueError(
                "the saved tree belongs to another prompt or seed; a state goes on with the search "
                "that left it, one prompt at a time"
            )
        if (self.steps, self.indices) != (problem.grid.steps, indices):
            raise ValueError(
                f"the saved tree branches at steps {self.indices} of {self.steps}, this search at "
                f"{indices} of {problem.grid.steps}; use the settings that it was made with"
            )
        if self.lam != float(problem.lam):
            raise ValueError(
                f"the saved tree was grown with lambda {self.lam}, this search has {problem.lam}; its "
                "selections would have been others"
            )
        stores = {n: getattr(self, n).copy(room, problem.device) for n in ("nodes", "finished")}
        return replace(self, **stores)

    def posterior(self, rows: Tensor) -> Posterior:
        """What the denoiser said at nodes ``(n,)`` of the tree, rows ``(n, *shape)``."""
        held = self.nodes.get(self.tree.slot[rows].tolist())
        return Posterior(held[:, 0], held[:, 1])

    def scores(self, rollouts: list[int]) -> Scores:
        """Rewards of finished leaves."""
        columns = {name: column[rollouts] for name, column in self.columns.items()}
        return Scores(columns[self.total], columns)

    def added(self, scores: Scores) -> dict[str, object]:
        """Columns and the name of the total with further leaves."""
        name = next(n for n, c in scores.columns.items() if torch.equal(c, scores.total))
        if not self.columns:
            return {"columns": dict(scores.columns), "total": name}
        columns = {n: torch.cat([c, scores.columns[n]]) for n, c in self.columns.items()}
        return {"columns": columns}

    def save(self, folder: str | Path) -> None:
        """Write ``tree.safetensors`` and ``tree.json`` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"tree {name}": a for name, a in self.tree.arrays().items()}
        tensors |= {f"column {name}": column for name, column in self.columns.items()}
        for name in ("nodes", "finished"):
            store = getattr(self, name)
            if len(store):
                tensors[name] = store.get(range(len(store)))
        plain = {name: t.cpu().contiguous().clone() for name, t in tensors.items()}
        write_atomically(folder / TENSORS, lambda file: file.write(save(plain)))
        about = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _TENSORS}
        write_atomically(folder / ABOUT, json.dumps(about, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> TreeState:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: the folder holds no tree.
        """
        folder = Path(folder)
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        about["indices"] = tuple(about["indices"])
        tensors = load_file(str(folder / TENSORS))
        stores = {}
        for name in ("nodes", "finished"):
            stores[name] = Store(Room(), "cpu")
            if name in tensors:
                stores[name].put(tensors.pop(name))
        named = {n.removeprefix("tree "): t for n, t in tensors.items() if n.startswith("tree ")}
        columns = {
            n.removeprefix("column "): t for n, t in tensors.items() if n.startswith("column ")
        }
        tree = Tree(**named, depths=len(about["indices"]))
        nodes, finished = stores["nodes"], stores["finished"]
        return cls(**about, tree=tree, nodes=nodes, finished=finished, columns=columns)


_TENSORS = ("tree", "nodes", "finished", "columns")


def _owner(problem: Problem) -> str:
    return f"{problem.streams.seed}\x1f{problem.streams.prompt_key}"
