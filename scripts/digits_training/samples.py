"""What the trained model draws: a sheet of pictures, and what the judge says of them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from digits_training.data import CLASSES, SIDE
from digits_training.model import DigitsModel, Wanted, load_model
from digits_training.store import load_classifier
from steering.transitions import DDIM

_BATCH = 512


@torch.no_grad()
def sample(model: DigitsModel, labels: list[int | None], seed: int) -> Tensor:
    """Unsteered samples by DDIM(1), pictures ``(N, 1, 28, 28)`` in [0, 1].

    Args:
        model: to sample.
        labels: the digit of each, or None.
        seed: of all noise.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    parts, walk = [], DDIM(1.0)
    for first in range(0, len(labels), _BATCH):
        wanted = [Wanted(label) for label in labels[first : first + _BATCH]]
        shape = (len(wanted), *model.shape)
        x = torch.randn(shape, generator=generator, device=model.device)
        for t, s in zip(model.grid[:-1], model.grid[1:], strict=True):
            noise = torch.randn(shape, generator=generator, device=model.device)
            x = walk(model.denoise(x, [t] * len(wanted), wanted), t, s).sample(noise)
        parts.append((x / 2 + 0.5).clamp(0, 1))
    return torch.cat(parts)


def sheet(images: Tensor, columns: int = 20) -> Image.Image:
    """Pictures ``(N, 1, 28, 28)`` in rows of one image."""
    rows = -(-len(images) // columns)
    page = torch.zeros(rows * columns, 1, SIDE, SIDE)
    page[: len(images)] = images.float().cpu()
    page = page.view(rows, columns, SIDE, SIDE).transpose(1, 2).reshape(rows * SIDE, -1)
    return Image.fromarray((page * 255).round().to(torch.uint8).numpy())


def draw_samples(folder: Path, device: str, count: int, seed: int) -> dict[str, float]:
    """Draw unconditional and conditional samples, print what the judge says, write a sheet of each.

    Returns:
        ``sure``: share of unconditional samples of which the judge is sure (p > .9); ``right``: share
        of conditional ones that it names as asked; ``rarest`` and ``most``: shares of digits among
        the unconditional ones.
    """
    model = load_model(folder, device)
    judge = load_classifier("judge", folder).to(device)
    free = sample(model, [None] * count, seed)
    asked = [i % CLASSES for i in range(count)]
    told = sample(model, asked, seed + 1)
    with torch.no_grad():
        sure, named = judge(free).softmax(-1).max(-1)
        right = judge(told).argmax(-1).cpu() == torch.tensor(asked)
    shares = torch.bincount(named.cpu(), minlength=CLASSES) / count
    found = {
        "sure": float((sure > 0.9).double().mean()),
        "right": float(right.double().mean()),
        "rarest": float(shares.min()),
        "most": float(shares.max()),
    }
    print(json.dumps(found), flush=True)
    sheet(free[:200]).save(folder / "unconditional.png")
    sheet(told[:200]).save(folder / "conditional.png")
    return found
