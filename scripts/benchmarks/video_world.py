"""The model, rewards and searches of the comparison on moving shapes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import yaml
from shapes_training import networks, video

from benchmarks.embedded import options_of, search_named
from rewards import (
    CalibratedSum,
    ColourMotion,
    JudgeFit,
    MotionAmount,
    MotionSmoothness,
    MotionVerifier,
    ShapesConsistency,
    ShapesFrames,
    fit_to_judge,
)
from rewards.base import RewardModel
from samplers import DLBS
from steering import shapes
from steering.command.options import config_folder, load_pipeline
from steering.search import Facts, Search
from steering.shapes.motion import KINDS
from steering.shapes.motion_sampling import random_movie

MODEL = "shapes-video"
#: searches that are compared: best of N by the pipeline's own scheduler and by DDIM(1), by which the
#: others walk; DLBS by the number of steps it looks ahead
SAMPLERS = ["base", "best-of-n", "best-of-n-ddim", "fk", "dlbs-0", "dlbs-2", "dlbs-4", "dlbs-6"]
_TINY_STEPS = 4
_FIT_SEED = 77  # of the prompts that weights are fitted on


def pipeline_and_call(size: str, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """The embedded model and the arguments of its call; of size tiny with random weights and 4 steps."""
    file = config_folder() / "pipeline" / f"{MODEL}.yaml"
    call = dict(yaml.safe_load(file.read_text(encoding="utf-8"))["call"])
    if size == "full":
        return load_pipeline(options_of(MODEL, str(device)), device), call
    pipe = video.untrained(networks.TINY, shapes.folder("shapes-sd") / "vae").to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe, call | {"num_inference_steps": _TINY_STEPS, "height": 64, "width": 64}


def members(device: torch.device) -> dict[str, RewardModel]:
    """The terms of the searched reward; none of them is the judge."""
    found: dict[str, RewardModel] = {
        "shapes-frames": ShapesFrames(),
        "colour-motion": ColourMotion(),
        "consistency": ShapesConsistency(),
        "smoothness": MotionSmoothness(),
        "amount": MotionAmount(),
    }
    return {name: reward.to(device) for name, reward in found.items()}


def judge() -> MotionVerifier:
    """The held-out judge."""
    return MotionVerifier()


def fit_prompts(count: int, known: list[str]) -> list[str]:
    """Prompts to fit on, of all kinds and none of the compared."""
    rng = random.Random(_FIT_SEED)
    found: dict[str, None] = {}
    while len(found) < count:
        text = str(random_movie(KINDS[len(found) % len(KINDS)], rng))
        if text not in known:
            found[text] = None
    return list(found)


def fit(scores: Mapping[str, list[float]], target: list[float], groups: list[int]) -> JudgeFit:
    """Weights that agree with the judge; equal ones, and so called, where it tells nothing apart."""
    try:
        return fit_to_judge(scores, target, groups=groups)
    except ValueError:
        columns = np.array(list(scores.values()))
        ones = (1.0,) * len(columns)
        means, stds = columns.mean(1), columns.std(1).clip(min=1e-6)
        shares = tuple(1 / len(columns) for _ in ones)
        zeros = (0.0,) * len(columns)
        return JudgeFit(
            tuple(scores), shares, tuple(means), tuple(stds), 0.0, None, zeros, "equal", len(target)
        )


def spread(total: list[float], groups: list[int]) -> float:
    """Standard deviation of the reward among samples of one prompt."""
    values = np.array(total).reshape(len(set(groups)), -1)
    return float(max(values.std(1, ddof=1).mean(), 1e-6))


def reward_of(known: JudgeFit, device: torch.device) -> CalibratedSum:
    """The searched reward."""
    return CalibratedSum(members(device), known, name="calibrated")


def search_of(name: str, nfe: int, steps: int) -> Search:
    """A search by name for a number of denoiser calls a prompt.

    Raises:
        ValueError: an unknown name.
        BudgetTooSmall: the budget pays for no candidate.
    """
    family, _, ahead = name.partition("-")
    if family == "dlbs" and ahead.isdigit():
        return beams(nfe, steps, int(ahead))
    return search_named(name, nfe, steps)


def beams(nfe: int, steps: int, lookahead: int) -> Search:
    """Two to four candidates a beam, and as many beams as the budget pays.

    Of the searches that use 95 % of the calls the one whose comparisons begin earliest is taken, then
    that with fewest candidates a beam; where all begin after a third of the way, the one that uses most
    of those that do not.
    """
    facts, tries = Facts(steps, steps), []
    for count in range(max(nfe // steps, 1), 0, -1):
        for candidates in (2, 3, 4):
            for start in range(1, max(steps // 3, 1) + 1):
                search = DLBS(count, candidates, lookahead=lookahead, start=start)
                spent = search.plan(facts).cost.nfe
                if spent <= nfe:
                    tries.append((spent >= 0.95 * nfe, spent, search))
    full = [search for enough, _, search in tries if enough]
    if full:
        return min(full, key=lambda search: (search.start, search.candidates))
    if tries:
        return max(tries, key=lambda t: t[1])[2]
    return DLBS(1, 1, lookahead=lookahead)
