"""``steer calibrate``: measure a reward's spread once, so that no run needs a pilot."""

from __future__ import annotations

from pathlib import Path

from rewards.base import RewardModel
from steering.clarity import clarity_folders
from steering.command.options import PipelineOptions, device_of, load_pipeline
from steering.command.prompts import read_prompts
from steering.pilot import BaseSamples
from steering.pipeline import SteeredPipeline
from steering.streams import prompt_keys
from steering.strength import cache_folder, pilot_prompts
from steering.watching import Watched, clarity_of


def calibrate(
    pipeline: PipelineOptions,
    reward: RewardModel,
    prompt: list[str] = [],  # noqa: B006 - never changed; the option parser wants a list
    prompts_file: Path | None = None,
    count: int = 16,
    samples: int = 16,
    seed: int = 0,
    output: Path | None = None,
    clarity: bool = False,
) -> int:
    """Measure how a reward varies over samples of the base model, and save it.

    Args:
        pipeline: as in generate.
        reward: as in generate.
        prompt: as in generate.
        prompts_file: as in generate.
        count: prompts used, chosen by their keys.
        samples: base samples a prompt.
        seed: of the samples.
        output: folder; the user's cache by default, where every run looks first.
        clarity: measure as well from which step on intermediate rewards can be trusted, and write it to
            a file that a gate reads (``--sampler.gate.clarity``).

    Returns:
        Exit status 0.
    """
    items = read_prompts(prompt, prompts_file)
    prompts = [item.prompt for item in items]
    device = device_of(pipeline)
    steered = SteeredPipeline(
        load_pipeline(pipeline, device),
        sampler=BaseSamples(samples),
        reward=reward.to(device),
        seed=seed,
    )
    found, usage = steered.calibration(
        prompts,
        keys=prompt_keys(prompts),
        metadata=[item.metadata for item in items],
        folders=[],
        count=count,
        samples=samples,
        **pipeline.call,
    )
    path = found.save(output or cache_folder() / "calibration")
    print(f"spread {found.spread:.4g} from {len(found.centred)} samples, {usage.nfe} NFE: {path}")
    if clarity:
        keys = prompt_keys(prompts)
        some = [items[i] for i in pilot_prompts(keys, count)]
        seen = clarity_of(
            steered,
            [item.prompt for item in some],
            metadata=[item.metadata for item in some],
            search=Watched(samples),
            seed=seed,
            **pipeline.call,
        )
        path = seen.save(output.parent / "clarity" if output else clarity_folders()[0])
        ranked = ", ".join(f"{i}: {r:.2f}" for i, r in zip(seen.looked, seen.ranked, strict=True))
        print(f"rank correlation by step {ranked}, from {seen.samples} samples: {path}")
    return 0
