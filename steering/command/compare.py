"""``steer compare`` and ``steer report``: samplers at equal budgets, and the page that shows them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from rewards.base import RewardModel
from samplers import BestOfN
from steering import __version__
from steering.command.contestants import Cell, budgets, cells, contestants
from steering.command.generate import (
    RewardFacts,
    _Bar,
    _common_strength,
    _write_results,
)
from steering.command.options import (
    PipelineOptions,
    UsageError,
    check_call,
    device_of,
    load_pipeline,
    load_scheduler,
    read_prompts,
)
from steering.command.outputs import OutputFolder, check_writable
from steering.comparison.page import write_report
from steering.comparison.results import RUN_FILE
from steering.cost import Budget, Cost
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
    held_out: RewardModel | None = None,
    nfe: list[int] = [],  # noqa: B006
    reward_calls: list[int] = [],  # noqa: B006
    seconds: list[float] = [],  # noqa: B006
    seeds: int = 1,
    strength: Strength = Strength(),
    seed: int = 0,
    negative_prompt: str | None = None,
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
        held_out: a reward that judges the results and is never searched on.
        nfe: budgets in denoiser rows a prompt.
        reward_calls: budgets in reward calls a prompt.
        seconds: budgets in seconds a prompt; sizes follow from a measured speed.
        seeds: independent searches a prompt.
        strength: how strongly to follow the reward.
        seed: of all random numbers.
        negative_prompt: for all prompts.
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
    settings = {
        "pipeline": asdict(pipeline) | {"device": ""},
        "reward": repr(reward),
        "held_out": repr(held_out),
        "strength": asdict(strength),
        "seed": seed,
        "negative_prompt": negative_prompt,
        "deterministic": deterministic,
        "bucket": bucket if deterministic else None,
    }
    root = OutputFolder(output, settings)
    root.prepare(overwrite=overwrite)
    device = device_of(pipeline)
    pipe = load_pipeline(pipeline, device, progress=progress)
    for model in (reward, held_out):
        if model is not None:
            model.to(device)
    call = dict(pipeline.call)
    call["negative_prompt"] = negative_prompt or call.get("negative_prompt")
    steered = SteeredPipeline(
        pipe,
        sampler=BestOfN(1),
        reward=reward,
        held_out={held_out.name: held_out} if held_out is not None else {},
        strength=strength,
        seed=seed,
        batch_size=batch_size,
        deterministic=deterministic,
        bucket=bucket,
        thumbnails=thumbnails or None,
    )
    described = None if overwrite else _described(output)
    facts = _facts(pipeline, reward.calls_per_row)
    limits = budgets(nfe, reward_calls, seconds)
    price = _price(steered, prompts, call) if seconds else None
    chosen = cells(contestants(samplers), limits, facts, price)
    chosen = [_as_before(cell, described) for cell in chosen]
    dense = next((c.search for c in chosen if c.search.needs.density), None)
    if dense is not None:
        steered.sampler = dense
        state = PartialState(cpu=pipeline.device == "cpu")
        steered.strength = _common_strength(steered, state, root, prompts, call)
    names = {"reward": reward.name, "held_out": list(steered.held_out)}
    about = {"prompts": prompts, "seeds": seeds, "device": device_name(device), **names}
    _describe(output, described, chosen, about)
    failures = _run(steered, chosen, output, (prompts, seeds, chunk), call, (overwrite, progress))
    report([output])
    return _told(failures)


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


def _facts(pipeline: PipelineOptions, calls_per_row: int) -> Facts:
    check_call(pipeline)
    scheduler, kind = load_scheduler(pipeline)
    return Facts(*scheduler_facts(scheduler, pipeline.call, kind), calls_per_row)


def _run(
    steered: SteeredPipeline,
    chosen: Sequence[Cell],
    output: Path,
    work: tuple[Sequence[str], int, int],
    call: Mapping[str, Any],
    switches: tuple[bool, bool],
) -> list[Exception]:
    """Run what each cell lacks; returns what failed."""
    (prompts, seeds, chunk), (overwrite, progress) = work, switches
    keys = prompt_keys(prompts)
    failures: list[Exception] = []
    bar = _Bar(len(chosen) * len(prompts) * seeds, show=progress)
    steered.on_progress = bar.show
    for cell in chosen:
        settings = {"sampler": repr(cell.search), "budget": asdict(cell.budget)}
        folder = OutputFolder(output / "runs" / cell.name, settings, output / "looks" / cell.name)
        folder.prepare(overwrite=overwrite)
        steered.sampler, steered.budget = cell.search, cell.enforced
        todo = [
            i
            for i, key in enumerate(keys)
            if not all(folder.is_done(prompts[i], copy_key(key, c)) for c in range(seeds))
        ]
        bar.skip((len(prompts) - len(todo)) * seeds)
        for start in range(0, len(todo), chunk):
            some = todo[start : start + chunk]
            run = steered.prepare(
                [prompts[i] for i in some],
                keys=[keys[i] for i in some],
                num_images_per_prompt=seeds,
                **call,
            )
            failures += _write_results(run, folder, bar)
    bar.close()
    return failures


def _price(
    steered: SteeredPipeline, prompts: Sequence[str], call: Mapping[str, Any]
) -> Callable[[Cost], Cost]:
    """What a cost takes in seconds here, from unsteered samples of a few prompts, run twice."""
    steered.sampler = BestOfN(4)
    some = list(prompts[:8])
    for turn in ("warm", "timed"):
        keys = [f"{turn}:{i}" for i in range(len(some))]
        run = steered.prepare(some, keys=keys, **call)
        for result in run.results():
            if result.error is not None:
                raise result.error
    usage = run.engine.usage
    figures = Figures.of(usage, 0, 0)
    assert figures is not None
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
    output: Path, before: Mapping[str, Any] | None, chosen: Sequence[Cell], about: Mapping[str, Any]
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
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = {"version": __version__, "date": date, **about, "cells": earlier + told}
    write_atomically(output / RUN_FILE, json.dumps(found, indent=1))


def _size(cell: Cell) -> dict[str, int]:
    from steering.comparison.sizes import size_of

    name = size_of(cell.search)
    return {} if name is None else {name: getattr(cell.search, name)}


def _told(failures: Sequence[Exception]) -> int:
    import sys

    for error in failures:
        print(f"steer: {error}", file=sys.stderr)
    return 1 if failures else 0
