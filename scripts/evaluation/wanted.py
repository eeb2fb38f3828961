"""Which metrics and models the options ask for, checked before anything is generated or loaded."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.metrics import METRICS
from evaluation.models import LPIPS, check_reward_name
from rewards.extractors import INCEPTION

_MISSING = {
    "features": "--features NAME",
    "clip": "--clip NAME",
    "inception": "--features inception",
    "reward": "--reward NAME",
}


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
    for folder in choice.folders:
        if choice.folders.count(folder) > 1:
            raise ValueError(f"the folder {folder!r} is given twice; runs are told apart by folder")
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
    if not names and not choice.save_statistics:
        raise ValueError(
            "nothing to do: give a CLIP model (clip), a reference, a reward, or metrics by name"
        )
    models = _models(choice)
    for name in names:
        metric = METRICS[name]
        if not models[metric.model]:
            raise ValueError(f"metric {name!r} needs {_MISSING[metric.model]}")
        if "reference" in metric.needs and not choice.reference:
            raise ValueError(f"metric {name!r} compares with real pictures: give --reference")
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


def _models(choice: Any) -> Mapping[str, Sequence[str]]:
    """Names of the models that were chosen, by what they are for."""
    return {
        "features": choice.features,
        "clip": [choice.clip] if choice.clip else [],
        "inception": [f for f in choice.features if f.partition(":")[0] == INCEPTION],
        "lpips": [choice.lpips],
        "reward": choice.reward,
        "none": [""],
    }


def _usual(choice: Any) -> list[str]:
    """Metrics that are measured where none are named."""
    names = ["clip-score"] if choice.clip and choice.folders else []
    if choice.reference and not (choice.save_statistics and not choice.folders):
        names += ["fid", "kid", "precision", "recall"]
    if choice.reward:
        names.append("reward")
    return [*names, "accuracy"] if "clip-score" in names or choice.reward else names
