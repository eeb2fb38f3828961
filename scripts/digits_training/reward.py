"""The searched reward: log-probability of a digit, or of a set of digits, by the classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from digits_training.data import CLASSES
from digits_training.networks import Classifier
from steering.reward import Item


class ClassReward:
    """``log sum_{c wanted} p(c | picture)``; the wanted digits are the item's metadata ``classes``.

    With lambda 1 the tilted law p(x) exp(r(x)) is the model's law of pictures of these digits, as far
    as the classifier can tell them.

    Args:
        classifier: of grey pictures, on the device of the media.
    """

    name: ClassVar[str] = "log_p"
    differentiable: ClassVar[bool] = True
    calls_per_row: ClassVar[int] = 1

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier.eval().requires_grad_(False)

    def prepare(self, item: Item) -> Tensor:
        """Log of the 0 / 1 mask of wanted digits, ``(10,)``.

        Raises:
            ValueError: the item asks for no digits.
        """
        classes = item.metadata.get("classes")
        if not classes or any(not 0 <= c < CLASSES for c in classes):
            raise ValueError(f"the item's classes must be digits from 0 to 9, got {classes!r}")
        mask = torch.full((CLASSES,), -torch.inf)
        mask[list(classes)] = 0.0
        return mask.to(next(self.classifier.parameters()).device)

    def __call__(self, media: Tensor, features: Sequence[Any]) -> Tensor:
        """``(B,)`` for media ``(B, 3, 28, 28)`` in [0, 1]."""
        log_p = torch.log_softmax(self.classifier(media[:, :1]).float(), -1)
        return torch.logsumexp(log_p + torch.stack(list(features)), -1)
