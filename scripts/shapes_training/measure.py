"""Measures of the embedded models; each returns plain numbers for the model card."""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor, nn

from steering.shapes.files import prompts
from steering.shapes.grammar import parse
from steering.shapes.render import render
from steering.shapes.sampling import hard_negative, held_out
from steering.shapes.verify import verify

STEPS = 25
_BATCH = 1024


def rates_by_kind(texts: Sequence[str], right: Tensor) -> dict[str, float]:
    """Share of right pictures for each kind, and "overall"."""
    groups: dict[str, list[float]] = defaultdict(list)
    for text, value in zip(texts, right.float().tolist(), strict=True):
        groups[parse(text).kind].append(value)
    result = {kind: sum(values) / len(values) for kind, values in groups.items()}
    return result | {"overall": right.float().mean().item()}


def wilson(rate: float, count: int, z: float = 1.96) -> list[float]:
    """Wilson's 95 % interval of a share (Wilson 1927)."""
    centre = rate + z * z / (2 * count)
    spread = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return [(centre + sign * spread) / (1 + z * z / count) for sign in (-1, 1)]


def judge_rates(vae: AutoencoderKL, repeats: int, device: str) -> dict[str, float]:
    """What the judge says of rendered pictures, of their reconstructions, of hard negatives."""
    texts = prompts("easy") * repeats
    rng = random.Random(0)
    scenes = [parse(text) for text in texts]
    images = render(scenes, seed=100, device=device)
    wrong = render([hard_negative(scene, rng) for scene in scenes], seed=101, device=device)
    with torch.no_grad():
        parts = [vae(part * 2 - 1).sample / 2 + 0.5 for part in images.split(_BATCH)]
    copies = torch.cat(parts).clamp(0, 1)
    return {
        "pictures": len(texts),
        "accepts": verify(images, texts).float().mean().item(),
        "accepts_after_vae": verify(copies, texts).float().mean().item(),
        "rejects_negatives": 1 - verify(wrong, texts).float().mean().item(),
        "vae_error": (copies - images).abs().mean().item(),
    }


def sample(
    pipeline: DiffusionPipeline, texts: Sequence[str], seed: int, **arguments: object
) -> Tensor:
    """Pictures by plain calls of a pipeline, (B, 3, 64, 64) in [0, 1] on the CPU."""
    parts = []
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        generator = torch.Generator("cpu").manual_seed(seed + start)
        result = pipeline(
            batch, num_inference_steps=STEPS, generator=generator, output_type="pt", **arguments
        )
        parts.append(result.images.float().cpu())
    return torch.cat(parts)


def easy_rates(
    pipeline: DiffusionPipeline, repeats: int, seed: int, **arguments: object
) -> tuple[dict[str, object], Tensor]:
    """Verified accuracy on the easy prompts; also the pictures of the first repeat."""
    texts = prompts("easy") * repeats
    images = sample(pipeline, texts, seed, **arguments)
    right = verify(images, texts)
    result: dict[str, object] = dict(rates_by_kind(texts, right))
    position = [parse(text).kind == "position" for text in texts]
    unseen = [held_out(parse(text)) for text in texts]
    result["position_interval"] = wilson(result["position"], sum(position))
    result["held_out"] = right[torch.tensor(unseen)].float().mean().item()
    result["samples"] = len(texts)
    return result, images[: len(texts) // repeats]


@dataclass(frozen=True)
class Pairs:
    """Rendered pictures (B, 3, 64, 64) with true and hard negative captions."""

    images: Tensor
    texts: list[str]
    wrong: list[str]


def caption_pairs(seed: int, repeats: int, device: str) -> Pairs:
    """Pictures of the easy prompts, each with one hard negative caption."""
    texts = prompts("easy") * repeats
    rng = random.Random(seed)
    scenes = [parse(text) for text in texts]
    wrong = [str(hard_negative(scene, rng)) for scene in scenes]
    return Pairs(render(scenes, seed=seed, device=device), texts, wrong)


@torch.no_grad()
def pair_accuracy(
    model: nn.Module, tokenize: Callable[[list[str]], Tensor], pairs: Pairs
) -> dict[str, float]:
    """Share of pictures closer to their caption than to its hard negative, by kind."""
    right = similarity(model, tokenize, pairs.images, pairs.texts)
    wrong = similarity(model, tokenize, pairs.images, pairs.wrong)
    return rates_by_kind(pairs.texts, right > wrong)


@torch.no_grad()
def similarity(
    model: nn.Module, tokenize: Callable[[list[str]], Tensor], images: Tensor, texts: Sequence[str]
) -> Tensor:
    """The reward of shapes-clip: cosine of picture and text, (B,) on the CPU."""
    device = next(model.parameters()).device
    values = []
    for start in range(0, len(texts), _BATCH):
        part = slice(start, start + _BATCH)
        seen = model.encode_image(images[part].to(device) * 2 - 1, normalize=True)
        told = model.encode_text(tokenize(list(texts[part])).to(device), normalize=True)
        values.append((seen * told).sum(-1).float().cpu())
    return torch.cat(values)


def hard_rates(
    pipeline: DiffusionPipeline,
    score: Callable[[Tensor, Sequence[str]], Tensor],
    repeats: int,
    seed: int,
    **arguments: object,
) -> dict[str, object]:
    """Success of single samples on every hard prompt, and the spread of the reward.

    Args:
        pipeline: What to sample from.
        score: Reward of pictures and texts, (B,).
        repeats: Samples a prompt.
        seed: Of the samples.
        **arguments: Of the pipeline's call.
    """
    texts = prompts("hard")
    images = sample(pipeline, texts * repeats, seed, **arguments)
    right = verify(images, texts * repeats)
    rewards = score(images, texts * repeats).view(repeats, len(texts))
    by_prompt = right.view(repeats, len(texts)).float().mean(0)
    separation = rewards.flatten()[right].mean() - rewards.flatten()[~right].mean()
    return {
        **rates_by_kind(texts * repeats, right),
        "samples_per_prompt": repeats,
        "never_solved": int((by_prompt == 0).sum()),
        "mean": rewards.mean().item(),
        "spread": rewards.std(0).mean().item(),
        "reward_gain_when_right": separation.item(),
        "by_prompt": dict(zip(texts, [round(v, 4) for v in by_prompt.tolist()], strict=True)),
    }
