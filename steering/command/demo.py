"""``steer demo``: why steering matters, on the embedded models, in three minutes on two cores."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from rewards.shapes import ShapesCLIP, ShapesVerifier
from samplers import BestOfN, FKSteering
from steering import __version__, shapes
from steering.command import figures
from steering.command.options import (
    PipelineOptions,
    config_folder,
    device_of,
    load_pipeline,
)
from steering.files import write_atomically
from steering.live import JobResult
from steering.pipeline import SteeredPipeline
from steering.search import Search
from steering.strength import Strength


@dataclass(frozen=True, eq=False)
class Run:
    """One sampler over all prompts.

    Attributes:
        name: what tables and plots call it.
        results: one a prompt, in order.
        seconds: wall-clock seconds of the whole run, rendering and judging of what is returned included
            (best-of-N returns all candidates here, to show the base).
    """

    name: str
    results: list[JobResult]
    seconds: float

    def row(self) -> dict[str, Any]:
        """The record of this run: means a prompt; reward and accuracy of what it returns first."""
        usages = [r.usage for r in self.results]
        mean = lambda values: float(np.mean(list(values)))  # noqa: E731
        return {
            "sampler": self.name,
            "nfe": mean(u.nfe for u in usages),
            "decodes": mean(u.decodes for u in usages),
            "reward_calls": mean(u.reward_calls for u in usages),
            "seconds": self.seconds / len(self.results),
            "reward": mean(_searched(r)[0] for r in self.results),
            "accuracy": mean(_judged(r)[0] for r in self.results),
            "prompts": len(self.results),
        }


def demo(
    model: Literal["shapes-sd", "shapes-flux"] = "shapes-sd",
    output: Path = Path("outputs/demo"),
    prompts: int = 8,
    candidates: int = 12,
    seed: int = 0,
    strength: Strength = Strength(),
    device: str = "auto",
    progress: bool = True,
) -> int:
    """Compare base, best-of-N and FK steering at equal NFE on a few hard prompts.

    Prompts and noises follow from the seed alone. The searched reward is the embedded CLIP; the exact
    verifier judges the results and is never searched on.

    Args:
        model: embedded model.
        output: folder for pictures, grid.png, plot.png and summary.json.
        prompts: how many of the hard prompts.
        candidates: samples of best-of-N and particles of FK steering.
        seed: chooses the prompts and all noises.
        strength: how strongly FK steering follows the reward.
        device: cpu, cuda or auto.
        progress: show a progress bar.

    Returns:
        Exit status 0.
    """
    texts = random.Random(seed).sample(shapes.prompts("hard"), prompts)
    options = _pipeline_options(model, device)
    steered = SteeredPipeline(
        load_pipeline(options, device_of(options)),
        sampler=BestOfN(candidates, returns="all"),
        reward=ShapesCLIP().to(device_of(options)),
        held_out={"accuracy": ShapesVerifier()},
        strength=strength,
        seed=seed,
    )
    smaller = [max(candidates // 4, 1)] if candidates > 1 else []
    searches: dict[str, Search] = {f"best-of-{candidates}": steered.sampler}
    searches |= {f"fk-{k}": FKSteering(k) for k in (*smaller, candidates)}
    with tqdm(total=len(searches) * len(texts), unit="search", disable=not progress) as bar:
        runs = [_run(steered, name, s, texts, options.call, bar) for name, s in searches.items()]
    best, *fk = runs
    rows = [_base_row(best), best.row(), fk[-1].row()]
    curve = [_nested_row(best, n) for n in (1, *smaller, candidates)] + [run.row() for run in fk]
    _write(output, texts, rows, curve, best, fk[-1])
    base, chosen, steering = rows
    print(
        f"At {chosen['nfe']:.0f} denoiser calls a prompt, verified accuracy on {prompts} hard prompts "
        f"rose from {base['accuracy']:.0%} (base) to {chosen['accuracy']:.0%} (best-of-{candidates}) "
        f"and {steering['accuracy']:.0%} (FK steering): see {output / 'grid.png'}"
    )
    return 0


def _pipeline_options(model: str, device: str) -> PipelineOptions:
    import yaml

    text = (config_folder() / "pipeline" / f"{model}.yaml").read_text()
    return PipelineOptions(**yaml.safe_load(text), device=device)


def _run(
    steered: SteeredPipeline,
    name: str,
    search: Search,
    texts: Sequence[str],
    call: dict[str, Any],
    bar: Any,
) -> Run:
    bar.set_description(name)
    steered.sampler = search
    start = time.perf_counter()
    run = steered.prepare(texts, **call)
    found = []
    for result in run.results():
        if result.error is not None:
            raise result.error
        found.append(result)
        bar.update()
    return Run(name, run.report(found).results, time.perf_counter() - start)


def _searched(result: JobResult) -> list[float]:
    """Searched rewards of the returned candidates."""
    assert result.outcome is not None
    return result.outcome.scores.total[result.outcome.chosen].tolist()


def _judged(result: JobResult) -> list[float]:
    """Verdicts of the exact verifier on the returned candidates."""
    return result.held_out["accuracy"]


def _base_row(best: Run) -> dict[str, Any]:
    """The unsteered model: the mean over all the noises that best-of-N drew."""
    row = best.row()
    share = len(_searched(best.results[0]))
    for part in ("nfe", "decodes", "reward_calls", "seconds"):
        row[part] /= share
    row["sampler"] = "base"
    row["reward"] = float(np.mean([_searched(r) for r in best.results]))
    row["accuracy"] = float(np.mean([_judged(r) for r in best.results]))
    return row


def _nested_row(best: Run, n: int) -> dict[str, Any]:
    """Best of the first ``n`` candidates of a larger best-of-N."""
    rewards, verdicts = [], []
    for result in best.results:
        assert result.outcome is not None
        first = [place for place, draw in enumerate(result.outcome.chosen) if draw < n]
        rewards.append(_searched(result)[first[0]])  # the places are sorted by reward
        verdicts.append(_judged(result)[first[0]])
    whole = best.row()
    return {
        "sampler": f"best-of-{n}",
        "nfe": whole["nfe"] * n / len(_searched(best.results[0])),
        "reward": float(np.mean(rewards)),
        "accuracy": float(np.mean(verdicts)),
        "prompts": len(best.results),
    }


def _write(
    output: Path,
    texts: Sequence[str],
    rows: list[dict[str, Any]],
    curve: list[dict[str, Any]],
    best: Run,
    fk: Run,
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    grid = []
    for i, text in enumerate(texts):
        a, b = best.results[i], fk.results[i]
        assert a.outcome is not None
        plain = a.outcome.chosen.index(0)  # the noise that the pipeline itself would have used
        entry: dict[str, Any] = {"prompt": text}
        for column, (result, place) in {
            "base": (a, plain),
            best.name: (a, 0),
            fk.name: (b, 0),
        }.items():
            picture = result.media[place]
            picture.save(output / f"{i:02d}-{column}.png")
            entry[column] = (picture, _searched(result)[place], bool(_judged(result)[place]))
        grid.append(entry)
    figures.picture_grid(grid, output / "grid.png", rows)
    figures.reward_and_accuracy(curve, rows[0], output / "plot.png")
    meta = {"version": __version__, "torch": torch.__version__, "prompts": list(texts)}
    summary = {"rows": rows, "curve": curve, "meta": meta}
    write_atomically(output / "summary.json", json.dumps(summary, indent=1))
