"""``steer compare`` and ``steer report``: samplers at equal budgets, and the page that shows them."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from rewards.base import RewardModel
from samplers import BestOfN
from steering import __version__
from steering.adapters import Door
from steering.command.contestants import Cell, budgets, cells, contestants
from steering.command.generate import (
    RewardFacts,
    _Bar,
    _common_strength,
    _write_results,
    door_setting,
    say_door,
)
from steering.command.judges import by_name, placed
from steering.command.options import (
    PipelineOptions,
    UsageError,
    check_call,
    device_of,
    load_pipeline,
    load_scheduler,
    read_prompts,
)
from steering.command.outputs import OutputFolder
from steering.comparison.page import write_report
from steering.comparison.results import RUN_FILE
from steering.comparison.sizes import size_of
from steering.cost import Cost
from steering.files import write_atomically
from steering.pipeline import SteeredPipeline
from steering.planning import Figures, device_name, scheduler_facts
from steering.search import Facts
from steering.streams import copy_key, prompt_keys
from steering.strength import Strength


def compare(
    pipeline: PipelineOptions,
    reward: RewardModel,
    samplers: list[str] = [],  # noqa: B006 - never changed; the option parser wants a list
    prompt: list[str] = [],  # noqa: B006
    prompts_file: Path | None = None,
    limit: int | None = None,
    output: Path = Path("outputs/compare"),
    held_out: list[RewardModel] = [],  # noqa: B006
    nfe: list[int] = [],  # noqa: B006
    reward_calls: list[int] = [],  # noqa: B006
    seconds: list[float] = [],  # noqa: B006
    seeds: int = 1,
    strength: Strength = Strength(),
    seed: int = 0,
    negative_prompt: str | None = None,
    door: Door = "auto",
    batch_size: int | None = None,
    deterministic: bool = False,
    bucket: int = 16,
    chunk: int = 64,
    thumbnails: int = 32,
    overwrite: bool = False,
    progress: bool = True,
) -> int:
    """Run several samplers at equal budgets and write report.html; skips what is done.

    Args:
        pipeline: which pipeline; a name in configs/pipeline, or --pipeline.model FOLDER.
        reward: what is searched for; a name in configs/reward, or a class path.
        samplers: base, names in configs/sampler, files or class paths, with options:
            fk:particles=8,potential=max; label=fk:particles=8 names one. Each is made as large as a
            budget pays for, unless its size is among the options.
        prompt: a prompt; repeat for more.
        prompts_file: prompts, one a line; shapes:easy and shapes:hard name the embedded sets.
        limit: at most so many prompts, the first.
        output: folder for results and report.html.
        held_out: rewards that judge the results and are never searched on; name one or more.
        nfe: budgets in denoiser rows a prompt.
        reward_calls: budgets in reward calls a prompt.
        seconds: budgets in seconds a prompt; sizes follow from a measured speed.
        seeds: independent searches a prompt.
        strength: how strongly to follow the reward.
        seed: of all random numbers.
        negative_prompt: for all prompts.
        door: how the pipeline is entered: replay, inverted (its own loop), black-box, or the first of
            these that is open.
        batch_size: most rows a model call.
        deterministic: bit-identical results for any packing.
        bucket: rows of every call in deterministic mode.
        chunk: prompts encoded at once.
        thumbnails: pixels of the pictures of particles over time in the report; 0 for none.
        overwrite: replace results of other settings in the output folder.
        progress: show a progress bar.

    Returns:
        Exit status: 0, or 1 if a search failed.
    """
    prompts = read_prompts(prompt, prompts_file)[:limit]
    judges = by_name(held_out, reward)
    settings = {
        "pipeline": asdict(pipeline) | {"device": ""},
        "reward": repr(reward),
        "held_out": [repr(judge) for judge in held_out],
        "strength": asdict(strength),
        "seed": seed,
        "negative_prompt": negative_prompt,
        "deterministic": deterministic,
        "bucket": bucket if deterministic else None,
        **door_setting(door),
    }
    root = OutputFolder(output, settings)
    root.prepare(overwrite=overwrite)
    steered = _opened(
        pipeline,
        reward,
        judges,
        progress=progress,
        strength=strength,
        seed=seed,
        door=door,
        batch_size=batch_size,
        deterministic=deterministic,
        bucket=bucket,
        thumbnails=thumbnails or None,
    )
    call = dict(pipeline.call)
    call["negative_prompt"] = negative_prompt or call.get("negative_prompt")
    say_door(steered, call)
    work = Work(output, prompts, seeds, chunk, call, overwrite, progress)
    before = None if overwrite else _described(output)
    facts = _facts(pipeline, reward.calls_per_row)
    price = _price(steered, work) if seconds else None
    chosen = cells(contestants(samplers), budgets(nfe, reward_calls, seconds), facts, price)
    chosen = [_as_before(cell, before) for cell in chosen]
    dense = next((c.search for c in chosen if c.search.needs.density), None)
    if dense is not None:
        steered.sampler = dense
        state = PartialState(cpu=pipeline.device == "cpu")
        steered.strength = _common_strength(steered, state, root, prompts, call)
    _describe(work, before, chosen, steered)
    failures = _run(steered, chosen, work)
    report([output])
    for error in failures:
        print(f"steer: {error}", file=sys.stderr)
    return 1 if failures else 0


def report(
    folders: list[Path],
    output: Path | None = None,
) -> int:
    """Write the report of a comparison again, or one that compares two runs.

    Args:
        folders: one folder that steer compare wrote, or two.
        output: the page; by default report.html in the first folder, or report-NAME.html for a
            comparison with the folder NAME.

    Returns:
        Exit status 0.
    """
    if not 1 <= len(folders) <= 2:
        raise UsageError(f"steer report takes one folder or two, got {len(folders)}")
    if output is None:
        other = f"-{folders[1].resolve().name}" if len(folders) > 1 else ""
        output = folders[0] / f"report{other}.html"
    print(write_report(folders, output))
    return 0


def check_samplers(wanted: Any, pipeline: PipelineOptions) -> None:
    """Find what is wrong with samplers and budgets before a model loads.

    Args:
        wanted: parsed options of the command, the reward not built yet.
        pipeline: the options of the pipeline.

    Raises:
        UsageError: names it and the fix.
    """
    for name, least in (("seeds", 1), ("thumbnails", 0), ("chunk", 1)):
        if getattr(wanted, name) < least:
            raise UsageError(f"{name} must be at least {least}, got {getattr(wanted, name)}")
    if wanted.limit is not None and wanted.limit < 1:
        raise UsageError(f"limit must be at least 1 prompt, got {wanted.limit}")
    limits = budgets(wanted.nfe, wanted.reward_calls, wanted.seconds)
    calls = RewardFacts.of(wanted.reward).calls_per_row
    cells(contestants(wanted.samplers), limits, _facts(pipeline, calls))


@dataclass(frozen=True)
class Work:
    """What is done to every cell.

    Attributes:
        output: folder of the comparison.
        prompts: to search for.
        seeds: searches a prompt.
        chunk: prompts encoded at once.
        call: the pipeline's own keyword arguments.
        overwrite: replace results of other settings.
        progress: show a bar.
    """

    output: Path
    prompts: Sequence[str]
    seeds: int
    chunk: int
    call: Mapping[str, Any]
    overwrite: bool
    progress: bool


def _opened(
    pipeline: PipelineOptions,
    reward: RewardModel,
    judges: dict[str, RewardModel],
    *,
    progress: bool,
    **options: Any,
) -> SteeredPipeline:
    """The pipeline and its rewards on their device; the sampler is set cell by cell."""
    device = device_of(pipeline)
    pipe = load_pipeline(pipeline, device, progress=progress)
    return SteeredPipeline(
        pipe,
        sampler=BestOfN(1),
        reward=reward.to(device),
        held_out=placed(judges, device),
        **options,
    )


def _facts(pipeline: PipelineOptions, calls_per_row: int) -> Facts:
    check_call(pipeline)
    scheduler, kind = load_scheduler(pipeline)
    return Facts(*scheduler_facts(scheduler, pipeline.call, kind), calls_per_row)


def _run(steered: SteeredPipeline, chosen: Sequence[Cell], work: Work) -> list[Exception]:
    """Run what each cell lacks; returns what failed."""
    prompts, keys = work.prompts, prompt_keys(work.prompts)
    failures: list[Exception] = []
    bar = _Bar(len(chosen) * len(prompts) * work.seeds, show=work.progress)
    steered.on_progress = bar.show
    for cell in chosen:
        settings = {"sampler": repr(cell.search), "budget": asdict(cell.budget)}
        home, looks = work.output / "runs" / cell.name, work.output / "looks" / cell.name
        folder = OutputFolder(home, settings, looks)
        folder.prepare(overwrite=work.overwrite)
        steered.sampler, steered.budget = cell.search, cell.enforced
        todo = [
            i
            for i, key in enumerate(keys)
            if not all(folder.is_done(prompts[i], copy_key(key, c)) for c in range(work.seeds))
        ]
        bar.skip((len(prompts) - len(todo)) * work.seeds)
        for start in range(0, len(todo), work.chunk):
            some = todo[start : start + work.chunk]
            run = steered.prepare(
                [prompts[i] for i in some],
                keys=[keys[i] for i in some],
                num_images_per_prompt=work.seeds,
                **work.call,
            )
            failures += _write_results(run, folder, bar)
    bar.close()
    return failures


def _price(steered: SteeredPipeline, work: Work) -> Callable[[Cost], Cost]:
    """What a cost takes in seconds here, from unsteered samples of a few prompts, run twice."""
    steered.sampler = BestOfN(4)
    some = list(work.prompts[:8])
    for turn in ("warm", "timed"):
        keys = [f"{turn}:{i}" for i in range(len(some))]
        run = steered.prepare(some, keys=keys, **work.call)
        for result in run.results():
            if result.error is not None:
                raise result.error
    usage = run.engine.usage
    figures = Figures.of(usage, 0, 0)
    assert figures is not None, "best of N denoises, decodes and scores"
    outside = usage.seconds / figures.seconds(usage.cost)  # what is not spent inside the models

    def price(cost: Cost) -> Cost:
        return replace(cost, seconds=outside * figures.seconds(cost))

    return price


def _described(output: Path) -> dict[str, Any] | None:
    """What an earlier run left of its cells, or None."""
    path = output / RUN_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _as_before(cell: Cell, before: Mapping[str, Any] | None) -> Cell:
    """A cell of a budget in seconds keeps the size that was settled on first."""
    known = next((c for c in (before or {}).get("cells", []) if c["name"] == cell.name), None)
    if cell.budget.seconds is None or known is None or not known["size"]:
        return cell
    return replace(cell, search=replace(cell.search, **known["size"]))  # type: ignore[type-var]


def _describe(
    work: Work,
    before: Mapping[str, Any] | None,
    chosen: Sequence[Cell],
    steered: SteeredPipeline,
) -> None:
    """Write what the report needs to know of the run; cells of earlier calls stay."""
    told = [
        {
            "name": cell.name,
            "label": cell.label,
            "budget": cell.limits,
            "search": repr(cell.search),
            "size": _size(cell),
        }
        for cell in chosen
    ]
    names = {cell["name"] for cell in told}
    earlier = [c for c in (before or {}).get("cells", []) if c["name"] not in names]
    about = {
        "version": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_name(torch.device(steered.pipe.device)),
        "prompts": list(work.prompts),
        "seeds": work.seeds,
        "reward": steered.reward.name,
        "held_out": list(steered.held_out),
        "cells": earlier + told,
    }
    write_atomically(work.output / RUN_FILE, json.dumps(about, indent=1))


def _size(cell: Cell) -> dict[str, int]:
    name = size_of(cell.search)
    return {} if name is None else {name: getattr(cell.search, name)}
