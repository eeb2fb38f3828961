"""Trains the denoiser of digits and the two classifiers, by the loop of the world of shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from shapes_training.loop import Plan, Trainer
from torch import Tensor
from torch.nn import functional

from digits_training.augment import GENTLE, STRONG
from digits_training.data import Digits
from digits_training.model import training_path
from digits_training.networks import (
    NO_CLASS,
    TIMES,
    Classifier,
    ClassifierConfig,
    Size,
    make_unet,
)
from digits_training.store import save_network

_DROP = 0.5  # labels left out: the paper's setting uses the model without them
_JUDGE_SEED = 1000


def train_model(digits: Digits, size: Size, plan: Plan, work: Path, out: Path) -> None:
    """Trains the denoiser (v-prediction, cosine path) and saves it as ``out``/unet.safetensors."""
    torch.manual_seed(plan.seed)
    unet = make_unet(size).to(plan.device, memory_format=torch.channels_last).train()
    digits = digits.to(plan.device)
    squares = torch.tensor(training_path().alphas_cumprod, device=plan.device, dtype=torch.float32)

    def loss() -> Tensor:
        index = torch.randint(len(digits), (size.batch,), device=plan.device)
        clean = 2 * GENTLE(digits.images[index].float() / 255) - 1
        dropped = torch.rand(size.batch, device=plan.device) < _DROP
        labels = torch.where(dropped, NO_CLASS, digits.labels[index])
        noise = torch.randn_like(clean)
        # One time from every equal slice: less variance than independent times.
        slices = torch.arange(size.batch, device=plan.device)
        slices = (slices + torch.rand(size.batch, device=plan.device)) / size.batch
        time = (slices * TIMES).long().clamp(max=TIMES - 1)
        level = squares[time][:, None, None, None]
        alpha, sigma = level.sqrt(), (1 - level).sqrt()
        noisy = (alpha * clean + sigma * noise).contiguous(memory_format=torch.channels_last)
        guess = unet(noisy, time, class_labels=labels).sample
        return (guess.float() - (alpha * noise - sigma * clean)).square().mean()

    trainer = Trainer(unet, loss, plan, work / "unet.pt")
    trainer.run()
    unet = trainer.average.to(memory_format=torch.contiguous_format)
    network = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    save_network(unet, "unet", {"network": network, "steps": trainer.step}, out)


def train_classifiers(
    digits: Digits, size: Size, plan: Plan, work: Path, out: Path
) -> dict[str, float]:
    """Trains the searched classifier and the judge on the same part; returns held-out accuracies.

    They differ in width, first weights, batches and augmentations.
    """
    train, rest = (part.to(plan.device) for part in digits.split())
    found = {}
    for name, width, seed in (
        ("classifier", size.classifier, plan.seed),
        ("judge", size.judge, plan.seed + _JUDGE_SEED),
    ):
        config = ClassifierConfig(width, seed=seed)
        batch, own = size.classifier_batch, replace(plan, seed=seed)
        model, steps = _train_classifier(name, config, train, batch, own, work)
        found[name] = accuracy(model, rest)
        print(f"{name}: held-out accuracy {found[name]:.4f} of {len(rest)}", flush=True)
        entry = {"network": config.to_dict(), "steps": steps, "held_out": found[name]}
        save_network(model, name, entry, out)
    return found


def _train_classifier(
    name: str, config: ClassifierConfig, train: Digits, batch: int, plan: Plan, work: Path
) -> tuple[Classifier, int]:
    torch.manual_seed(config.seed)
    model = Classifier(config).to(plan.device).train()

    def loss() -> Tensor:
        index = torch.randint(len(train), (batch,), device=plan.device)
        images = STRONG(train.images[index].float() / 255)
        return functional.cross_entropy(model(images).float(), train.labels[index])

    trainer = Trainer(model, loss, plan, work / f"{name}.pt")
    trainer.run()
    return trainer.average, trainer.step  # type: ignore[return-value]


@torch.no_grad()
def accuracy(model: Classifier, digits: Digits) -> float:
    """Share of digits that a classifier names."""
    guess = model(digits.images.float() / 255).argmax(1)
    return float((guess == digits.labels).double().mean())
