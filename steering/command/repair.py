"""``steer repair``."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from rewards.base import RewardModel
from samplers.best_of_n import BestOfN
from samplers.repair import Repair
from samplers.repair_costs import check_limits
from samplers.repair_state import RepairState, load_states, save_states
from steering import __version__
from steering.adapters.editor import PipelineEditor, SteeredPainter
from steering.command.options import (
    PipelineOptions,
    UsageError,
    device_of,
    load_pipeline,
)
from steering.command.outputs import OutputFolder
from steering.command.prompts import read_prompts
from steering.cost import Budget
from steering.files import write_atomically
from steering.flaws import Planner
from steering.pipeline import SteeredPipeline
from steering.reward import Item
from steering.search import Search
from steering.streams import prompt_keys

_SAVE_SECONDS = 60  #: between two savings of what is in flight


@dataclass(frozen=True)
class EditorOptions:
    """Which pipeline edits, and how it is told.

    Attributes:
        kind: inpaint and image-to-image are the painter's own weights in such a pipeline of
            diffusers; own is the pipeline of ``model``, of whatever kind it is.
        model: hub id or folder, for kind own.
        call: the editing pipeline's own keyword arguments, such as strength.
        wording: what it is told, of {prompt}, {instruction} and {target}.
        margin: added around a flaw's boxes, as a fraction of the picture.
        batch_size: most pictures of one call.
    """

    kind: Literal["inpaint", "image-to-image", "own"] = "inpaint"
    model: str | None = None
    call: dict[str, Any] = field(default_factory=dict)
    wording: str = "{prompt}"
    margin: float = 0.03
    batch_size: int = 16


def repair(
    pipeline: PipelineOptions,
    reward: RewardModel,
    planner: Planner,
    editor: EditorOptions = EditorOptions(),
    sampler: Search | None = None,
    prompt: list[str] = [],  # noqa: B006 - never changed; the option parser wants a list
    prompts_file: Path | None = None,
    output: Path = Path("outputs/repair"),
    budget: Budget = Budget(),
    judge_calls: int | None = None,
    rounds: int | None = None,
    patience: int | None = 2,
    tries: int = 1,
    gain: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    chunk: int = 64,
    overwrite: bool = False,
    progress: bool = True,
) -> int:
    """Paint, list what is wrong, edit it, and keep what the reward accepts; resumable.

    Args:
        pipeline: paints; a name in configs/pipeline, or --pipeline.model FOLDER.
        reward: accepts or rejects edits; a name in configs/reward, or a class path.
        planner: lists what is wrong; a name in configs/planner, or a class path.
        editor: which pipeline edits, and how it is told.
        sampler: paints by a search; by default one unsteered sample.
        prompt: a prompt; repeat for more.
        prompts_file: as in generate.
        output: folder for pictures and their histories.
        budget: the most that one prompt may cost, edits included.
        judge_calls: most calls of the planner a prompt.
        rounds: most passes through a plan a prompt.
        patience: rounds without an accepted edit before a new picture is painted.
        tries: edits of a flaw side by side.
        gain: by how much the reward must rise.
        seed: of all random numbers.
        batch_size: most rows of a painting model call.
        chunk: prompts repaired side by side.
        overwrite: replace results of other settings in the output folder.
        progress: show a progress bar.

    Returns:
        Exit status 0.
    """
    items = read_prompts(prompt, prompts_file)
    search = BestOfN(1) if sampler is None else sampler
    check_limits(budget, rounds)
    check_editor(editor)
    options: dict[str, Any] = {"tries": tries, "gain": gain, "rounds": rounds, "patience": patience}
    options["judge_calls"] = judge_calls
    settings = {
        "pipeline": asdict(pipeline) | {"device": ""},
        "editor": asdict(editor) | {"batch_size": 0},
        "planner": repr(planner) if "__repr__" in vars(type(planner)) else type(planner).__name__,
        "sampler": repr(search),
        "reward": repr(reward),
        "budget": asdict(budget),
        "seed": seed,
        **options,
    }
    folder = OutputFolder(output, settings)
    folder.prepare(overwrite=overwrite)
    device = device_of(pipeline)
    pipe = load_pipeline(pipeline, device, progress=progress)
    reward.to(device)
    steered = SteeredPipeline(pipe, sampler=search, reward=reward, seed=seed, batch_size=batch_size)
    loop = Repair(
        planner,
        make_editor(editor, pipe, pipeline, device),
        reward,
        SteeredPainter(steered, pipeline.call),
        budget=budget,
        seed=seed,
        **options,
    )
    keys = prompt_keys([item.prompt for item in items])
    todo = [i for i, key in enumerate(keys) if not folder.is_done(items[i], key)]
    bar = tqdm(total=len(todo), desc="repair", disable=not progress)
    for start in range(0, len(todo), chunk):
        some = todo[start : start + chunk]
        states = _run(loop, [items[i] for i in some], [keys[i] for i in some], output, bar)
        for state in states:
            write(folder, state)
        _flight(output).unlink(missing_ok=True)
    bar.close()
    return 0


def check_editor(options: EditorOptions) -> None:
    """Refuse a kind and a model that do not go together.

    Raises:
        UsageError: says which do.
    """
    if (options.kind == "own") != (options.model is not None):
        raise UsageError(
            f"editor.kind {options.kind!r} with editor.model {options.model!r}: give a model with kind "
            "own, and none with the others, which use the painter's weights"
        )


def make_editor(
    options: EditorOptions, pipe: Any, base: PipelineOptions, device: torch.device
) -> PipelineEditor:
    """The editor of the options.

    Args:
        options: which.
        pipe: the painting pipeline, whose weights are shared if it edits, too.
        base: how the painting pipeline was loaded; an editor of its weights takes its arguments, too.
        device: where to put a model of its own.

    """
    import diffusers

    how: dict[str, Any] = {
        "margin": options.margin,
        "batch_size": options.batch_size,
        "wording": options.wording,
    }
    if options.model is not None:
        # Not the painter's arguments: another model has its own.
        own = load_pipeline(PipelineOptions(options.model, dtype=base.dtype), device)
        return PipelineEditor(own, options.call, **how)
    auto = {
        "inpaint": diffusers.AutoPipelineForInpainting,
        "image-to-image": diffusers.AutoPipelineForImage2Image,
    }
    edits = auto[options.kind].from_pipe(pipe)
    edits.set_progress_bar_config(disable=True)
    takes = inspect.signature(type(edits).__call__).parameters
    shared = {name: value for name, value in base.call.items() if name in takes}
    return PipelineEditor(edits, {**shared, **options.call}, **how)


def _run(
    loop: Repair, items: Sequence[Item], keys: Sequence[str], output: Path, bar: Any
) -> list[RepairState]:
    """Repair some prompts, going on where an earlier run of them was stopped."""
    file = _flight(output)
    states = load_states(file) if file.is_file() else []
    if [state.key for state in states] != list(keys):
        states = loop.begin(items, keys=keys)
    else:
        for state in states:
            state.picture, state.best = _placed(state.picture, loop), _placed(state.best, loop)
    saved, done = time.monotonic(), 0
    for now in loop.run(states):
        finished = sum(state.done is not None for state in now)
        bar.update(finished - done)
        done = finished
        if time.monotonic() - saved > _SAVE_SECONDS:
            save_states(file, states)
            saved = time.monotonic()
    return states


def _placed(picture: Tensor | None, loop: Repair) -> Tensor | None:
    """On the device of the painting pipeline."""
    assert isinstance(loop.painter, SteeredPainter)
    return None if picture is None else picture.to(loop.painter.steered.pipe.device)


def _flight(output: Path) -> Path:
    """Where the repairs in flight are kept."""
    return output / "in-flight.safetensors"


def write(folder: OutputFolder, state: RepairState) -> None:
    """Write the best picture, then the record that marks it done."""
    assert state.best is not None
    name = folder.name(state.item.prompt, state.key)
    levels = (state.best.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(levels)
    write_atomically(folder.path / f"{name}.png", partial(picture.save, format="PNG"))
    record = {
        "prompt": state.item.prompt,
        "metadata": dict(state.item.metadata),
        "key": state.key,
        "files": [f"{name}.png"],
        "reward": state.best_score,
        "done": state.done,
        "usage": {
            **asdict(state.spent),
            "judge_calls": state.judge_calls,
            "paints": state.paints,
            "edits": state.edits,
        },
        "trace": state.history,
        "version": __version__,
    }
    write_atomically(folder.path / f"{name}.json", json.dumps(record, indent=1))
