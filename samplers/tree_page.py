"""A finished tree as one self-contained page: predicted x_0 at its nodes, values, the chosen path."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samplers.tree import NO_PARENT, ROOT, Tree, back_up
from samplers.tree_state import TreeState
from steering.files import write_atomically

#: Makes pictures (PIL images) of clean states ``(n, *shape)``.
Picture = Callable[[Tensor], Sequence[Any]]

_STYLE = """
body { font: 13px system-ui, sans-serif; margin: 16px; background: #fff; color: #222 }
.tree { overflow: auto; border: 1px solid #ddd }
line { stroke: #bbb; stroke-width: 1 } line.chosen { stroke: #d62728; stroke-width: 3 }
rect { fill: #eef; stroke: #99b; stroke-width: 1 } rect.chosen { stroke: #d62728; stroke-width: 3 }
text { font: 10px system-ui, sans-serif; text-anchor: middle }
text.level { text-anchor: start; fill: #666 }
"""


def tree_page(
    state: TreeState,
    path: str | Path,
    *,
    picture: Picture | None = None,
    title: str = "A search tree",
    size: int = 48,
    by_count: bool = False,
) -> None:
    """Write an HTML file without anything to load: a row a depth, the root on top.

    The path to the best finished leaf is red. A node shows its predicted x_0 and its soft value; a
    pointer on it tells visits, children and the roll-out that made it.

    Args:
        state: the tree, ``outcome.extra["state"]`` of a search.
        path: the file.
        picture: makes pictures of clean states; None leaves the boxes empty.
        title: of the page.
        size: of a picture, in pixels.
        by_count: values as the published backup has them, for a greedy tree.

    Raises:
        ValueError: the tree has no roll-outs, or a size below 8 pixels.
    """
    if not state.tree.rollouts:
        raise ValueError("the tree has no roll-outs yet; run the search first")
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    tree = back_up(state.tree, state.lam, by_count=by_count)
    leaves = tree.leaves
    best = int(leaves[tree.reward[leaves].argmax()])
    columns = _columns(tree)
    step_x, step_y = size + 8, size + 44
    x = [20 + 90 + c * step_x for c in columns]
    y = [20 + int(d) * step_y for d in tree.depth]
    pictures = {} if picture is None else _pictures(state, picture, size)
    chosen = set(tree.path(best))
    parts = [_edge(row, tree, x, y, size, chosen) for row in range(len(tree))]
    parts += [_node(row, tree, x, y, size, chosen, pictures) for row in range(len(tree))]
    for depth in range(tree.depths + 2):
        parts.append(
            f'<text class="level" x="4" y="{20 + depth * step_y + size // 2}">'
            f"{html.escape(_level(state, depth))}</text>"
        )
    width, height = max(x) + size + 20, max(y) + size + 40
    about = (
        f"{tree.rollouts} roll-outs, {len(tree)} nodes, {state.nfe} denoiser calls, lambda "
        f"{state.lam:.4g}; best {state.total} {float(tree.reward[best]):.4g} (roll-out "
        f"{int(tree.born[best])})"
    )
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f'<p>{html.escape(about)}</p><div class="tree"><svg width="{width:.0f}" '
        f'height="{height:.0f}">{"".join(parts)}</svg></div></body></html>\n'
    )
    write_atomically(Path(path), page)


def _columns(tree: Tree) -> list[float]:
    """Column of each node: leaves side by side, families together, parents in their middle."""
    below: list[list[int]] = [[] for _ in range(len(tree))]
    for row in range(len(tree) - 1, ROOT, -1):
        below[int(tree.parent[row])].insert(0, row)
    order, stack = [], [ROOT]
    while stack:  # depth first, so that families stay together
        row = stack.pop()
        order.append(row)
        stack.extend(reversed(below[row]))
    columns, used = [0.0] * len(tree), 0
    for row in order:
        if not below[row]:
            columns[row], used = float(used), used + 1
    for row in range(len(tree) - 1, -1, -1):  # children come after their parents
        if below[row]:
            columns[row] = sum(columns[c] for c in below[row]) / len(below[row])
    return columns


def _pictures(state: TreeState, picture: Picture, size: int) -> dict[int, str]:
    """Data URI of each node that has a state."""
    tree, found = state.tree, {}
    inner = torch.nonzero((tree.depth > 0) & (tree.depth <= tree.depths))[:, 0]
    for rows, states in (
        (tree.leaves, lambda r: state.finished.get(tree.slot[r].tolist())),
        (inner, lambda r: state.posterior(r).x_0),
    ):
        for some in torch.split(rows, 16):
            for row, image in zip(some.tolist(), picture(states(some)), strict=True):
                file = io.BytesIO()
                image.convert("RGB").resize((size, size)).save(file, "PNG")
                found[row] = base64.b64encode(file.getvalue()).decode()
    return found


def _level(state: TreeState, depth: int) -> str:
    if depth == 0:
        return "root"
    if depth > len(state.indices):
        return "finished"
    return f"step {state.indices[depth - 1]} of {state.steps}"


def _edge(row: int, tree: Tree, x: list[float], y: list[int], size: int, chosen: set[int]) -> str:
    above = int(tree.parent[row])
    if above == NO_PARENT:
        return ""
    kind = ' class="chosen"' if row in chosen else ""
    half = size / 2
    return (
        f'<line{kind} x1="{x[above] + half:.1f}" y1="{y[above] + size + 14}" '
        f'x2="{x[row] + half:.1f}" y2="{y[row]}"/>'
    )


def _node(
    row: int,
    tree: Tree,
    x: list[float],
    y: list[int],
    size: int,
    chosen: set[int],
    pictures: dict[int, str],
) -> str:
    kind = ' class="chosen"' if row in chosen else ""
    told = (
        f"value {float(tree.value[row]):.4g}, {int(tree.visits[row])} visits, "
        f"{int(tree.children[row])} children, roll-out {int(tree.born[row])}"
    )
    box = f'x="{x[row]:.1f}" y="{y[row]}" width="{size}" height="{size}"'
    image = ""
    if row in pictures:
        image = f'<image {box} href="data:image/png;base64,{pictures[row]}"/>'
        box += ' fill-opacity="0"'
    return (
        f"<g><title>{told}</title>{image}<rect{kind} {box}/>"
        f'<text x="{x[row] + size / 2:.1f}" y="{y[row] + size + 11}">'
        f"{float(tree.value[row]):.3g}</text></g>"
    )
