"""Measures repair beside best of N on the embedded world: verified accuracy against all that is spent.

A cell is a way of working, a number of steps to paint with and a chunk of prompts. Every way paints the
same pictures in the same order and is followed turn by turn, so that one run at the largest budget tells
what any smaller one would have returned. ``--plot`` and ``--table`` draw what the file holds instead of
measuring.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from jsonargparse import ArgumentParser
from tqdm import tqdm

from benchmarks.common import Results, describe
from benchmarks.embedded import options_of, steered, synchronise
from benchmarks.repair_report import draw, write_table
from rewards import FlawCount, ShapesPlanner, ShapesVerifier
from samplers import BestOfN, Repair, RepairState
from steering import shapes
from steering.adapters.editor import PipelineEditor, SteeredPainter
from steering.command.options import device_of
from steering.cost import Budget
from steering.files import write_atomically
from steering.reward import Item, Reward
from steering.streams import copy_key, prompt_keys

#: what a picture's record holds at each turn
TRACE = ("nfe", "decodes", "reward_calls", "judge_calls", "right")


@dataclass(frozen=True)
class Way:
    """A way of working.

    Attributes:
        accepts: who compares pictures: "judge" is minus the number of flaws that the exact judge
            finds, "clip" the fallible shapes-clip.
        edits: "inpaint" repaints a flaw's boxes, "whole" the picture from part-way. The exact judge
            lists the flaws, which also tells when to stop. None never edits, and asks no judge
            beside the one that compares.
    """

    accepts: str
    edits: str | None = None


WAYS = {
    "best-of-n, judge": Way("judge"),
    "repair, judge": Way("judge", "inpaint"),
    "best-of-n, clip": Way("clip"),
    "repair, clip": Way("clip", "inpaint"),
    "whole, judge": Way("judge", "whole"),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, help="result file, kept and extended")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--nfe", type=int, default=400, help="the most a prompt may cost")
    parser.add_argument("--prompt_set", choices=["easy", "hard"], default="hard")
    parser.add_argument("--prompts", type=int, default=128, help="the first of the set")
    parser.add_argument("--chunk", type=int, default=128, help="prompts of a cell")
    parser.add_argument("--paint_steps", nargs="+", type=int, default=[25], help="of a new picture")
    parser.add_argument("--edit_steps", type=int, default=8, help="of an edit")
    parser.add_argument("--tries", type=int, default=1, help="edits of a flaw side by side")
    parser.add_argument("--patience", type=int, default=2, help="rounds before a new picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=None, help="32 on a CPU, 256 else")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=None, help="start no cell after this time")
    parser.add_argument("--plot", type=Path, default=None, help="draw the file's rows to this PNG")
    parser.add_argument("--table", type=Path, default=None, help="write them as Markdown")
    parser.add_argument("--quick", action="store_true", help="2 prompts, 60 calls")


def run(options: Any) -> None:
    """Run every cell that the result file lacks; or show what it holds."""
    if options.plot is not None or options.table is not None:
        rows = json.loads(options.json.read_text(encoding="utf-8"))["rows"]
        if options.plot is not None:
            draw(rows, options.plot)
        if options.table is not None:
            write_table(rows, options.table, options.json)
        return
    if options.quick:
        options.prompts, options.nfe = 2, 60
    bench = Bench(options)
    end = math.inf if options.minutes is None else time.monotonic() + 60 * options.minutes
    for cell in tqdm(list(bench.cells()), "repair"):
        if time.monotonic() < end:
            bench.rows.add(cell | bench.measure(cell))


class Rows(Results):
    """Results with one line a row, since a row holds many numbers."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row and save."""
        self.rows.append(dict(row))
        lines = ",\n".join(json.dumps(r, separators=(",", ":")) for r in self.rows)
        write_atomically(
            self.path, f'{{"meta": {json.dumps(self.meta)},\n"rows": [\n{lines}\n]}}\n'
        )


class Bench:
    """The cells that were asked for, and the models that they share.

    Args:
        options: of the command.
    """

    def __init__(self, options: Any) -> None:
        self.options = options
        base = options_of("shapes-sd", options.device)
        self.device = device_of(base)
        self.call = dict(base.call)
        size = options.batch_size or (32 if self.device.type == "cpu" else 256)
        self.steered = steered(base, BestOfN(1), options.seed, batch_size=size)
        self.steered.held_out = {}
        clip, self.planner, self.judge = self.steered.reward, ShapesPlanner(), ShapesVerifier()
        self.rewards: dict[str, Reward] = {"judge": FlawCount(self.planner), "clip": clip}
        parts = {**self.steered.pipe.components, "requires_safety_checker": False}
        edit = {**self.call, "num_inference_steps": options.edit_steps, "strength": 1.0}
        whole = {**edit, "strength": 0.7, "num_inference_steps": round(options.edit_steps / 0.7)}
        kinds = {
            "inpaint": (StableDiffusionInpaintPipeline, edit),
            "whole": (StableDiffusionImg2ImgPipeline, whole),
        }
        self.editors = {
            name: PipelineEditor(_quiet(kind(**parts)), call, batch_size=size)
            for name, (kind, call) in kinds.items()
        }
        self.texts = shapes.prompts(options.prompt_set)[: options.prompts]
        self.keys = prompt_keys(self.texts)
        self.rows = Rows(options.json, device=self.device, seed=options.seed)
        self.where = {"device": describe(self.device), "batch_size": size}

    def cells(self) -> Iterator[dict[str, Any]]:
        """What the file lacks; all ways of a chunk of prompts, then the next chunk."""
        o = self.options
        for first in range(0, len(self.texts), o.chunk):
            for steps in o.paint_steps:
                for name in o.ways:
                    edits = WAYS[name].edits is not None
                    cell = {
                        "way": name,
                        "nfe_limit": o.nfe,
                        "paint_steps": steps,
                        "edit_steps": o.edit_steps if edits else None,
                        "tries": o.tries if edits else None,
                        "patience": o.patience if edits else None,
                        "prompt_set": o.prompt_set,
                        "first": first,
                        "prompts": min(o.chunk, len(self.texts) - first),
                        "seed": o.seed,
                    }
                    if not self.rows.has(cell):
                        yield cell

    def measure(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """The figures of a cell: each prompt's trace, and the seconds of all."""
        way = WAYS[cell["way"]]
        rows = slice(cell["first"], cell["first"] + cell["prompts"])
        items, keys = [Item(text) for text in self.texts[rows]], self.keys[rows]
        call = {**self.call, "num_inference_steps": cell["paint_steps"]}
        paints = SteeredPainter(self.steered, call)
        self.steered.reward = self.rewards[way.accepts]
        synchronise(self.device)
        start = time.perf_counter()
        if way.edits is None:
            traces = self._best_of_n(way, paints, items, keys)
        else:
            traces = self._repair(way, paints, items, keys)
        synchronise(self.device)
        seconds = time.perf_counter() - start
        return {"seconds": round(seconds, 2), "traces": traces, **self.where}

    def _repair(
        self, way: Way, paints: SteeredPainter, items: Sequence[Item], keys: Sequence[str]
    ) -> list[list[list[int]]]:
        assert way.edits is not None
        o = self.options
        loop = Repair(
            self.planner,
            self.editors[way.edits],
            self.rewards[way.accepts],
            paints,
            tries=o.tries,
            patience=o.patience,
            budget=Budget(nfe=o.nfe),
            seed=o.seed,
        )
        states = loop.begin(items, keys=keys)
        traces = Traces(self.judge, states)
        for now in loop.run(states):
            traces.note(now)
        return traces.rows

    def _best_of_n(
        self, way: Way, paints: SteeredPainter, items: Sequence[Item], keys: Sequence[str]
    ) -> list[list[list[int]]]:
        """The pictures that a repair would paint, and nothing else."""
        states = [RepairState(item, key) for item, key in zip(items, keys, strict=True)]
        traces = Traces(self.judge, states)
        for n in range(self.options.nfe // int(paints.cost().nfe)):
            live = [s for s in states if s.done is None]
            if not live:
                break
            painted = paints.paint([s.item for s in live], [copy_key(s.key, n) for s in live])
            assert painted.rewards is not None
            for i, state in enumerate(live):
                state.spent = state.spent + painted.costs[i]
                state.show(painted.pictures[i], painted.rewards[i])
                if way.accepts == "judge" and painted.rewards[i] == 0:  # no flaw is left
                    state.done = "right"
            traces.note(states)
        return traces.rows


class Traces:
    """What each prompt had spent and returned after each turn that spent anything.

    Args:
        judge: says whether a picture is right; what it is asked here is measuring, and not counted.
        states: of the prompts, in order.
    """

    def __init__(self, judge: ShapesVerifier, states: Sequence[RepairState]) -> None:
        self.judge = judge
        self.rows: list[list[list[int]]] = [[] for _ in states]

    def note(self, states: Sequence[RepairState]) -> None:
        """Add a turn."""
        pictures = torch.stack([s.best for s in states if s.best is not None])
        right = self.judge(pictures, [s.item.prompt for s in states]).int().tolist()
        for state, row, verdict in zip(states, self.rows, right, strict=True):
            spent = state.spent
            counts = (spent.nfe, spent.decodes, spent.reward_calls, state.judge_calls)
            entry = [*map(int, counts), verdict]
            if row and row[-1][0] == entry[0]:
                row[-1] = entry
            else:
                row.append(entry)


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
