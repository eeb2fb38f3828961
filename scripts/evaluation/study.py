"""One evaluation: which metrics, which models they share, one pass over the pictures, the figures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from evaluation.inputs import Run, outside_grammar, read_run
from evaluation.intervals import Figure, difference_rows, rows_of
from evaluation.metrics import METRICS, Evidence, Items, Metric, OfSet, Options
from evaluation.models import Extractor, Lpips, Scorer, verdicts
from evaluation.reference import Statistics, load_statistics, match, save_statistics
from evaluation.wanted import Wanted
from evaluation.workers import Columns, in_order
from steering.media import load_pictures


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
    every = {name for run in runs for name, _ in tasks[run.name]}
    scorers = [Scorer(name, device) for name in choice.reward] if "reward" in every else []
    pairs = Lpips(choice.lpips, device) if "lpips" in every else None
    statistics = saved or _look_at_reference(real, known, choice, state)
    lookers = [*(extractors[name] for name in wanted.extractors), *scorers]
    lookers += [verdicts] if "accuracy" in every else []
    columns = {}
    for run in runs:
        names = {name for name, _ in tasks[run.name]}
        own = [look for look in lookers if look is not verdicts or "accuracy" in names]
        columns[run.name] = _look(run, own, choice.batch, state)
        if pairs is not None:
            columns[run.name] |= in_order(
                state, run.pairs, choice.batch, partial(pairs, run), f"{run.name}: pairs"
            )
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
