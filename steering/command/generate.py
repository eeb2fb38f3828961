"""``steer generate`` and ``steer plan``."""

from __future__ import annotations

import hashlib
import importlib
import json
import resource
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from rewards.base import RewardModel
from steering.adapters import Door
from steering.command.judges import by_name, placed
from steering.command.options import (
    PipelineOptions,
    check_call,
    device_of,
    load_pipeline,
    load_scheduler,
    read_prompts,
)
from steering.command.outputs import OutputFolder, check_writable
from steering.cost import Budget
from steering.engine import Progress
from steering.pipeline import SteeredPipeline
from steering.planning import Figures, describe, device_name, scheduler_facts
from steering.report import SteeredRun
from steering.search import Facts, Search
from steering.streams import copy_key, prompt_keys
from steering.strength import Calibration, Strength, calibration_folders


def generate(
    pipeline: PipelineOptions,
    sampler: Search,
    reward: RewardModel,
    prompt: list[str] = [],  # noqa: B006 - never changed; the option parser wants a list
    prompts_file: Path | None = None,
    output: Path = Path("outputs/generate"),
    held_out: list[RewardModel] = [],  # noqa: B006
    strength: Strength = Strength(),
    budget: Budget = Budget(),
    seed: int = 0,
    images_per_prompt: int = 1,
    negative_prompt: str | None = None,
    door: Door = "auto",
    batch_size: int | None = None,
    deterministic: bool = False,
    bucket: int = 16,
    chunk: int = 64,
    overwrite: bool = False,
    progress: bool = True,
) -> int:
    """Steer a pipeline over prompts; writes pictures and traces, and skips what is done.

    Args:
        pipeline: which pipeline; a name in configs/pipeline, or --pipeline.model FOLDER.
        sampler: the search; a name in configs/sampler, or a class path.
        reward: what is searched for; a name in configs/reward, or a class path.
        prompt: a prompt; repeat for more.
        prompts_file: prompts, one a line; shapes:easy and shapes:hard name the embedded sets.
        output: folder for pictures and traces.
        held_out: rewards that judge the results and are never searched on; name one or more.
        strength: how strongly to follow the reward.
        budget: the most that one search may cost.
        seed: of all random numbers.
        images_per_prompt: independent searches a prompt.
        negative_prompt: for all prompts.
        door: how the pipeline is entered: replay, inverted (its own loop), black-box, or the first of
            these that is open.
        batch_size: most rows a model call.
        deterministic: bit-identical results for any packing.
        bucket: rows of every call in deterministic mode.
        chunk: prompts encoded at once.
        overwrite: replace results of other settings in the output folder.
        progress: show a progress bar.

    Returns:
        Exit status: 0, or 1 if a search failed.
    """
    prompts, judges = read_prompts(prompt, prompts_file), by_name(held_out, reward)
    settings = {  # all that decides the pictures
        "pipeline": asdict(pipeline) | {"device": ""},
        "sampler": repr(sampler),
        "reward": repr(reward),
        "held_out": [repr(judge) for judge in held_out],
        "strength": asdict(strength),
        "budget": asdict(budget),
        "seed": seed,
        "negative_prompt": negative_prompt,
        "deterministic": deterministic,
        "bucket": bucket if deterministic else None,
        **door_setting(door),
    }
    folder = OutputFolder(output, settings)
    state = PartialState(cpu=pipeline.device == "cpu")
    if state.is_main_process:
        folder.prepare(overwrite=overwrite)
    state.wait_for_everyone()
    keys = prompt_keys(prompts)
    todo = [
        i
        for i, key in enumerate(keys)
        if _share(key, state.num_processes) == state.process_index
        and not all(folder.is_done(prompts[i], copy_key(key, c)) for c in range(images_per_prompt))
    ]
    if not todo and state.num_processes == 1:
        return 0
    device = device_of(pipeline, state.local_process_index)
    pipe = load_pipeline(pipeline, device, progress=progress)
    bar = _Bar(len(todo) * images_per_prompt, show=progress and state.is_local_main_process)
    steered = SteeredPipeline(
        pipe,
        sampler=sampler,
        reward=reward.to(device),
        held_out=placed(judges, device),
        strength=strength,
        budget=budget,
        seed=seed,
        door=door,
        on_progress=bar.show,
        batch_size=batch_size,
        deterministic=deterministic,
        bucket=bucket,
    )
    call = dict(pipeline.call)
    if negative_prompt is None:
        negative_prompt = call.get("negative_prompt")
    call["negative_prompt"] = negative_prompt
    steered.strength = _common_strength(steered, state, folder, prompts, call)
    call["num_images_per_prompt"] = images_per_prompt
    failures = []
    say_door(steered, call)
    for start in range(0, len(todo), chunk):
        some = todo[start : start + chunk]
        run = steered.prepare([prompts[i] for i in some], keys=[keys[i] for i in some], **call)
        failures += _write_results(run, folder, bar)
        _remember_speed(run.engine, _figures_path(pipeline, reward.name, device), device)
    bar.close()
    for error in failures:
        print(f"steer: {error}", file=sys.stderr)
    return 1 if failures else 0


def door_setting(door: Door) -> dict[str, str]:
    """The door among the settings of a folder, where one was asked for."""
    return {} if door == "auto" else {"door": door}


def say_door(steered: SteeredPipeline, call: Mapping[str, Any]) -> None:
    """Say how the pipeline is entered and why, where it is not replayed."""
    own = ("negative_prompt", "num_images_per_prompt")
    model = steered.model(**{k: v for k, v in call.items() if k not in own})
    if model.reason:
        print(f"steer: the pipeline's door is {model.door}, since {model.reason}", file=sys.stderr)


def _write_results(run: SteeredRun, folder: OutputFolder, bar: _Bar) -> list[Exception]:
    """Run the searches and write each as it finishes; returns what failed."""
    failures = []
    for result in run.results():
        bar.done()
        if result.error is None:
            entered = {"door": run.model.door, "reason": run.model.reason}
            folder.write(result, {"lambda": run.lam, "settings": folder.settings, **entered})
        else:
            failures.append(result.error)
    return failures


def check_early(
    prompt: Sequence[str], prompts_file: Path | None, pipeline: PipelineOptions, output: Path
) -> None:
    """Find what is wrong with prompts, pipeline, its arguments or the folder before a model loads.

    Raises:
        UsageError: names it and the fix.
    """
    read_prompts(prompt, prompts_file)
    check_call(pipeline)
    check_writable(output)


def plan(
    pipeline: PipelineOptions,
    sampler: Search,
    reward: RewardModel | RewardFacts,
    prompt: list[str] = [],  # noqa: B006 - never changed; the option parser wants a list
    prompts_file: Path | None = None,
    budget: Budget = Budget(),
    images_per_prompt: int = 1,
    strength: Strength = Strength(),
) -> int:
    """Say what a run will cost, without loading a model.

    Args:
        pipeline: as in generate.
        sampler: as in generate.
        reward: as in generate.
        prompt: as in generate.
        prompts_file: as in generate.
        budget: as in generate.
        images_per_prompt: as in generate.
        strength: as in generate.

    Returns:
        Exit status 0.
    """
    prompts = read_prompts(prompt, prompts_file)
    check_call(pipeline)
    scheduler, pipeline_class = load_scheduler(pipeline)
    steps, calls = scheduler_facts(scheduler, pipeline.call, pipeline_class)
    one = sampler.plan(Facts(steps, calls, reward.calls_per_row, budget))
    figures = Figures.load(_figures_path(pipeline, reward.name, device_of(pipeline)))
    said = describe(one, len(prompts) * images_per_prompt, figures)
    pilot = sampler.needs.density and strength.unit != "raw"
    # a saved calibration makes the pilot needless, but which one is known only with the model
    said["pilot_nfe_at_most"] = min(len(prompts), 4) * 8 * calls if pilot else 0
    print(json.dumps(said, indent=1))
    return 0


@dataclass(frozen=True)
class RewardFacts:
    """What a plan needs of a reward, known without building it.

    Attributes:
        name: of the reward.
        calls_per_row: what a scored row counts.
    """

    name: str
    calls_per_row: int

    @classmethod
    def of(cls, spec: Any) -> RewardFacts:
        """From a parsed ``class_path`` with ``init_args``; the members of an ensemble add up."""
        module, _, name = spec["class_path"].rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        arguments = spec.get("init_args") or {}
        members = arguments.get("members")
        if members:
            specs = members.values() if isinstance(members, Mapping) else members
            return cls(
                arguments.get("name") or kind.name, sum(cls.of(m).calls_per_row for m in specs)
            )
        return cls(kind.name, kind.calls_per_row)


def _share(key: str, processes: int) -> int:
    """Which process a prompt belongs to, by its key alone."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) % processes


def _common_strength(
    steered: SteeredPipeline,
    state: Any,
    folder: OutputFolder,
    prompts: Sequence[str],
    call: Mapping[str, Any],
) -> Strength:
    """Lambda in raw units, the same in every process and after every resumption."""
    if not steered.sampler.needs.density or steered.strength.unit == "raw":
        return steered.strength
    home = folder.path / "calibration"
    if state.is_main_process:
        folders = [home, *calibration_folders()]
        known, spent = steered.calibration(prompts, folders=folders, **call)
        known.save(home)
        if spent.nfe:
            folder.note(pilot=spent.to_dict())
    state.wait_for_everyone()
    found = Calibration.find(*steered.calibration_key(**call), [home])
    if found is None:
        raise RuntimeError(f"the main process left no calibration in {home}")
    return Strength(steered.strength.lam(lambda: found), "raw")


def _figures_path(pipeline: PipelineOptions, reward: str, device: torch.device) -> Path:
    """Where speed is kept: by everything that decides it."""
    return Figures.path(pipeline.model, pipeline.call, pipeline.dtype, reward, device_name(device))


def _remember_speed(engine: Any, path: Path, device: torch.device) -> None:
    """Keep what was measured, for later plans."""
    peak = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    figures = Figures.of(engine.usage, peak, engine.packer.cap)
    if figures is None:
        return
    try:
        figures.save(path)
    except OSError as error:  # a cache that cannot be written is no reason to lose a run
        warnings.warn(f"timings were not saved: {error}", stacklevel=2)


class _Bar:
    """A progress bar that counts prompts and says what was spent."""

    def __init__(self, total: int, *, show: bool) -> None:
        self._bar = tqdm(total=total, unit="search", disable=not show, dynamic_ncols=True)

    def show(self, progress: Progress) -> None:
        usage = progress.usage
        self._bar.set_postfix(nfe=usage.nfe, decodes=usage.decodes, live=progress.live)

    def done(self) -> None:
        self._bar.update()

    def skip(self, count: int) -> None:
        """Searches that an earlier run finished."""
        self._bar.update(count)

    def close(self) -> None:
        self._bar.close()
