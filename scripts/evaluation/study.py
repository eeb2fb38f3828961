"""One evaluation: which metrics, which models they share, one pass over the pictures, the figures."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from evaluation.inputs import Run, outside_grammar, read_run
from evaluation.intervals import Figure, difference_rows, rows_of
from evaluation.metrics import METRICS, Evidence, Items, Metric, OfSet, Options
from evaluation.models import LPIPS, Extractor, Lpips, Scorer, check_reward_name, verdicts
from evaluation.reference import Statistics, load_statistics, match, save_statistics
from evaluation.workers import Columns, in_order
from rewards.extractors import INCEPTION
from steering.media import load_pictures


@dataclass(frozen=True)
class Wanted:
    """What was asked for.

    Attributes:
        tasks: metrics by name, with the model that each is computed with.
        optional: metrics that were not asked for by name and are left out where they do not apply.
        extractors: names of those that give features of the pictures.
        reference_extractors: names of those that the reference is looked at by.
        with_prompts: whether prompts are needed.
    """

    tasks: tuple[tuple[str, str], ...]
    optional: frozenset[str]
    extractors: tuple[str, ...]
    reference_extractors: tuple[str, ...]
    with_prompts: bool


def check_choice(choice: Any, *, live: int = 0) -> None:
    """Refuse options that make no sense, before anything is generated or loaded.

    Args:
        choice: a `Choice`.
        live: runs that will be generated.

    Raises:
        ValueError: names the option.
    """
    for name, least in (("batch", 1), ("resamples", 2), ("fid_resamples", 2)):
        if getattr(choice, name) < least:
            raise ValueError(f"{name} is at least {least}, got {getattr(choice, name)}")
    if choice.lpips not in LPIPS:
        raise ValueError(f"lpips is one of {', '.join(LPIPS)}, got {choice.lpips!r}")
    for reward in choice.reward:
        check_reward_name(reward)
    if choice.save_statistics and not choice.save_statistics.endswith(".safetensors"):
        raise ValueError(f"save_statistics is a .safetensors file, got {choice.save_statistics!r}")
    if choice.save_statistics and not choice.reference:
        raise ValueError("save_statistics needs the pictures: give --reference FOLDER")
    if not choice.folders and not live and not choice.save_statistics:
        raise ValueError(
            "nothing to evaluate: give folders of pictures, or a command line of steer generate "
            "after --"
        )
    target = Path(choice.output).expanduser().resolve()
    for folder in (*choice.folders, *([choice.reference] if choice.reference else [])):
        place = Path(folder).expanduser().resolve()
        if target == place or place in target.parents:
            raise ValueError(
                f"the figures in {choice.output!r} would count as pictures of {folder!r} next time; "
                "give an --output outside of it"
            )
    choose(choice)


def choose(choice: Any) -> Wanted:
    """Metrics and models from the options.

    Raises:
        ValueError: an unknown metric, one whose needs are not met, or nothing to do.
    """
    for name in choice.metrics:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"unknown metric {name!r}{hint}; known are {', '.join(METRICS)}")
    names = list(dict.fromkeys(choice.metrics)) or _usual(choice)
    if choice.reward and "reward" not in names:
        names.append("reward")
    models: Mapping[str, Sequence[str]] = {
        "features": choice.features,
        "clip": [choice.clip] if choice.clip else [],
        "inception": [f for f in choice.features if f.partition(":")[0] == INCEPTION],
        "lpips": [choice.lpips],
        "reward": choice.reward,
        "none": [""],
    }
    missing = {
        "features": "--features NAME",
        "clip": "--clip NAME",
        "inception": "--features inception",
        "reward": "--reward NAME",
    }
    for name in names:
        metric = METRICS[name]
        if not models[metric.model]:
            raise ValueError(f"metric {name!r} needs {missing[metric.model]}")
        if "reference" in metric.needs and not choice.reference:
            raise ValueError(f"metric {name!r} compares with real pictures: give --reference")
    if not names and not choice.save_statistics:
        raise ValueError(
            "nothing to do: give a CLIP model (clip), a reference, a reward, or metrics by name"
        )
    tasks = [(name, model) for name in names for model in models[METRICS[name].model]]
    by_features = [
        (name, m) for name, m in tasks if METRICS[name].model in ("features", "clip", "inception")
    ]
    real = [model for name, model in by_features if "reference" in METRICS[name].needs]
    if choice.save_statistics:
        real += choice.features
    return Wanted(
        tuple(tasks),
        frozenset() if choice.metrics else frozenset({"accuracy"}),
        tuple(dict.fromkeys(model for _, model in by_features)),
        tuple(dict.fromkeys(real)),
        any("prompts" in METRICS[name].needs for name in names if name != "accuracy")
        or "accuracy" in choice.metrics,
    )


def study(runs: Sequence[Run], wanted: Wanted, choice: Any, state: PartialState) -> dict[str, Any]:
    """Look at all pictures once, and compute.

    Args:
        runs: what is measured; the others are compared with the first.
        wanted: as of `choose`.
        choice: a `Choice`.
        state: the processes.

    Returns:
        ``{"meta", "rows", "differences", "pictures"}``; on processes but the first the rows are empty.
    """
    tasks = {run.name: _tasks_of(run, wanted) for run in runs}
    real = _reference_pictures(choice, wanted, runs)
    device = _device(choice, state)
    names = dict.fromkeys((*wanted.extractors, *wanted.reference_extractors))
    extractors = {name: Extractor(name, device) for name in names}
    known = [extractors[name] for name in wanted.reference_extractors]
    saved = None
    if choice.reference and real is None and known:
        saved = match(load_statistics(Path(choice.reference).expanduser()), known)
        _check_features(saved, wanted)
    every = [task for run in runs for task in tasks[run.name]]
    scorers = [Scorer(name, device) for name in choice.reward] if _any(every, "reward") else []
    pairs = Lpips(choice.lpips, device) if _any(every, "lpips") else None

    statistics = saved or _look_at_reference(real, known, choice, state)
    lookers = [*(extractors[name] for name in wanted.extractors), *scorers]
    columns = {}
    for run in runs:
        own = [*lookers, *([verdicts] if _any(tasks[run.name], "accuracy") else [])]
        columns[run.name] = _look(run, own, choice.batch, state)
        if pairs is not None:

            def of_pairs(some: Sequence[Any], run: Run = run) -> Columns:
                return pairs(run, some)

            what = f"{run.name}: pairs"
            columns[run.name] |= in_order(state, run.pairs, choice.batch, of_pairs, what)
    meta = {"extractors": {e.name: e.fingerprint for e in extractors.values()}}
    if not state.is_main_process:
        return {"meta": meta, "rows": [], "differences": [], "pictures": {}}
    if choice.save_statistics:
        save_statistics(Path(choice.save_statistics).expanduser(), list(statistics.values()))
    options = Options(choice.resamples, choice.fid_resamples)
    figures = []
    for run in runs:
        for name, model in tasks[run.name]:
            evidence = Evidence(
                run, columns[run.name], model, extractors.get(model), statistics.get(model), options
            )
            figures += _figures(evidence, name)
    return {"meta": meta, **_results(runs, figures, options)}


def _figures(evidence: Evidence, name: str) -> list[Figure]:
    metric = METRICS[name]
    found = []
    for measured in metric.measure(evidence):
        label = getattr(measured, "label", None) or name
        found.append(Figure(evidence.run, label, evidence.model, metric, measured))
        if isinstance(measured, OfSet) and measured.note:
            warnings.warn(f"{evidence.run.name}: {label}: {measured.note}", stacklevel=2)
    return found


def _results(
    runs: Sequence[Run], figures: Sequence[Figure], options: Options
) -> dict[str, list[Any] | dict[str, Any]]:
    base = {(f.name, f.model): f for f in figures if f.run is runs[0]}
    others = [f for f in figures if f.run is not runs[0] and (f.name, f.model) in base]
    pictures = {}
    for run in runs:
        scores = {
            f.name
            if f.model in ("", f.name)
            else f"{f.name} ({f.model})": f.measured.values.tolist()
            for f in figures
            if f.run is run
            and isinstance(f.measured, Items)
            and len(f.measured.values) == len(run.pictures)
            and f.measured.unit != "reference picture"
        }
        pictures[run.name] = {"files": run.names, "prompts": run.prompts, "scores": scores}
    return {
        "rows": [row for figure in figures for row in rows_of(figure, options)],
        "differences": [
            row
            for figure in others
            for row in difference_rows(figure, base[figure.name, figure.model], options)
        ],
        "pictures": pictures,
    }


def _usual(choice: Any) -> list[str]:
    """Metrics that are measured where none are named."""
    names = ["clip-score"] if choice.clip and choice.folders else []
    if choice.reference and not (choice.save_statistics and not choice.folders):
        names += ["fid", "kid", "precision", "recall"]
    if choice.reward:
        names.append("reward")
    return [*names, "accuracy"] if "clip-score" in names or choice.reward else names


def _tasks_of(run: Run, wanted: Wanted) -> list[tuple[str, str]]:
    """Tasks that apply to a run.

    Raises:
        ValueError: one that was asked for by name does not.
    """
    tasks = []
    for name, model in wanted.tasks:
        metric = METRICS[name]
        if "shapes" in metric.needs and not run.of_shapes:
            if name in wanted.optional:
                continue
            strange = outside_grammar(run.prompts)
            raise ValueError(
                f"metric {name!r} judges pictures of the shapes world, 64 x 64 with prompts of its "
                f"grammar; {run.name!r} has {run.size[1]} x {run.size[0]}"
                + (f" and the prompt {strange[0]!r}" if strange else "")
                + "; for other pictures give a reward that detects objects"
            )
        if "copies" in metric.needs and not run.pairs:
            raise ValueError(
                f"metric {name!r} compares pictures of one prompt; {run.name!r} has one picture a "
                "prompt: generate with --images_per_prompt 2 or more"
            )
        if len(run.pictures) < metric.least:
            raise ValueError(_too_few(name, metric, run.name, len(run.pictures)))
        tasks.append((name, model))
    return tasks


def _reference_pictures(choice: Any, wanted: Wanted, runs: Sequence[Run]) -> Run | None:
    """The reference as a run, or None where it is a file of statistics, or there is none."""
    if not choice.reference:
        return None
    path = Path(choice.reference).expanduser()
    if path.suffix == ".safetensors":
        load_statistics(path)  # refused early
        return None
    real = read_run(str(path), "reference", prompts=None, kinds=None, with_prompts=False)
    for name, _ in wanted.tasks:
        metric = METRICS[name]
        if runs and "reference" in metric.needs and len(real.pictures) < metric.least:
            raise ValueError(_too_few(name, metric, "the reference", len(real.pictures)))
    return real


def _too_few(name: str, metric: Metric, where: str, count: int) -> str:
    return f"metric {name!r} needs {metric.least} pictures a side at least, {where} has {count}"


def _check_features(saved: Mapping[str, Statistics], wanted: Wanted) -> None:
    for name, model in wanted.tasks:
        if "reference" in METRICS[name].needs:
            if saved[model].count < METRICS[name].least:
                raise ValueError(_too_few(name, METRICS[name], "the reference", saved[model].count))
            if name != "fid":
                saved[model].need_features()


def _look_at_reference(
    real: Run | None, extractors: Sequence[Extractor], choice: Any, state: PartialState
) -> dict[str, Statistics]:
    if real is None or not extractors:
        return {}
    columns = _look(real, extractors, choice.batch, state)
    return {e.name: Statistics.of(e, columns[f"features:{e.name}"]) for e in extractors}


def _look(run: Run, lookers: Sequence[Any], batch: int, state: PartialState) -> Columns:
    """Every picture is read once and shown to all."""
    if not lookers:
        return {}

    def compute(places: Sequence[int]) -> Columns:
        pictures = load_pictures([run.pictures[i] for i in places])
        columns: Columns = {}
        for look in lookers:
            columns |= look(run, places, pictures)
        return columns

    return in_order(state, range(len(run.pictures)), batch, compute, run.name)


def _device(choice: Any, state: PartialState) -> torch.device:
    return state.device if choice.device in ("cuda", "auto") else torch.device(choice.device)


def _any(tasks: Sequence[tuple[str, str]], name: str) -> bool:
    return any(task == name for task, _ in tasks)
