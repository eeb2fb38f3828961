"""Measures shapes-video and writes the figures as JSON."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AnimateDiffPipeline
from torch import Tensor

from shapes_training.evaluate import describe_run, save_grid
from shapes_training.measure import STEPS
from steering.shapes.files import prompts
from steering.shapes.motion import FRAMES, parse_motion
from steering.shapes.motion_render import render_motion
from steering.shapes.motion_verify import Verdict, judge_motion

_GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0)
_BATCH = 64  # movies; attention over time takes 65,535 places at once


def evaluate_video(
    weights: Path, pictures: Path, device: str, repeats: int = 4, steps: int = STEPS
) -> dict[str, object]:
    """Measures the model in `weights`/shapes-video and returns the figures.

    Args:
        weights: Folder of the model.
        pictures: Folder for a sheet of movies to look at, one a row.
        device: "cuda" or "cpu".
        repeats: Samples a prompt at the best guidance.
        steps: Of the sampler.
    """
    pipeline = AnimateDiffPipeline.from_pretrained(weights / "shapes-video").to(device)
    pipeline.set_progress_bar_config(disable=True)
    texts = prompts("motion")
    scan = []
    for guidance in _GUIDANCE:
        videos = sample_videos(pipeline, texts, 300, steps, guidance)
        scan.append({"guidance_scale": guidance, **rates(texts, judge_motion(videos, texts))})
        print(scan[-1], flush=True)
    best = max(scan, key=lambda entry: entry["right"]["overall"])["guidance_scale"]
    videos = sample_videos(pipeline, texts * repeats, 400, steps, best)
    sheet = videos[torch.linspace(0, len(texts) - 1, 24).long()]
    save_grid(sheet.flatten(0, 1), pictures / "shapes-video.png", FRAMES)
    return {
        "meta": describe_run(device, "python scripts/train_shapes.py evaluate-video"),
        "parameters": {
            part: sum(p.numel() for p in module.parameters())
            for part, module in pipeline.components.items()
            if isinstance(module, torch.nn.Module)
        },
        "steps": steps,
        "guidance_scale": best,
        "samples": len(videos),
        **rates(texts * repeats, judge_motion(videos, texts * repeats)),
        "judge": _judge_rates(pipeline, texts, device),
        "scan": scan,
    }


def sample_videos(
    pipeline: AnimateDiffPipeline, texts: Sequence[str], seed: int, steps: int, guidance: float
) -> Tensor:
    """Videos by plain calls of the pipeline, (B, 8, 3, 64, 64) in [0, 1] on the CPU."""
    parts = []
    for start in range(0, len(texts), _BATCH):
        result = pipeline(
            list(texts[start : start + _BATCH]),
            num_frames=FRAMES,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator("cpu").manual_seed(seed + start),
            decode_chunk_size=_BATCH * FRAMES,
            output_type="pt",
        )
        parts.append(result.frames.float().cpu())
    return torch.cat(parts)


def rates(texts: Sequence[str], verdict: Verdict) -> dict[str, dict[str, float]]:
    """Shares of right videos, of right frames and of right motions, by kind of the prompt."""
    kinds = [parse_motion(text).kind for text in texts]
    columns = {
        "right": verdict.right.float(),
        "frames": verdict.shows.float().mean(1),
        "motion": verdict.moves.float(),
    }
    result = {}
    for name, values in columns.items():
        groups: dict[str, list[float]] = defaultdict(list)
        for kind, value in zip(kinds, values.tolist(), strict=True):
            groups[kind].append(value)
        means = {kind: sum(group) / len(group) for kind, group in groups.items()}
        result[name] = means | {"overall": values.mean().item()}
    return result


@torch.no_grad()
def _judge_rates(
    pipeline: AnimateDiffPipeline, texts: Sequence[str], device: str
) -> dict[str, float]:
    """What the judge says of rendered movies, of their reconstructions, and backwards."""
    videos = render_motion([parse_motion(text) for text in texts], seed=100, device=device)
    frames = videos.flatten(0, 1)
    copies = (pipeline.vae(frames * 2 - 1).sample / 2 + 0.5).clamp(0, 1).view_as(videos)
    moving = [i for i, t in enumerate(texts) if all(m.way for m in parse_motion(t).movers)]
    backwards, of = videos.flip(1)[moving], [texts[i] for i in moving]
    return {
        "movies": len(texts),
        "accepts": judge_motion(videos, texts).right.float().mean().item(),
        "accepts_after_vae": judge_motion(copies, texts).right.float().mean().item(),
        "rejects_backwards": 1 - judge_motion(backwards, of).right.float().mean().item(),
    }
