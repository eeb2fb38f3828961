"""The denoiser and the classifiers of digits, in the size that is measured and one for tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from diffusers import UNet2DModel
from torch import Tensor, nn

from digits_training.data import CLASSES, SIDE

NO_CLASS = CLASSES  # the label that says nothing
TIMES = 1000  # noise levels of training


@dataclass(frozen=True)
class Size:
    """Widths and batches.

    Attributes:
        unet: channels at 28, 14 and 7 pixels (fewer for fewer).
        layers: residual blocks a level.
        groups: of the normalisations.
        dropout: share of what a block sees that is left out; 5,000 pictures are few.
        classifier: first width of the classifier whose log-probabilities are searched.
        judge: first width of the other one.
        batch: pictures an update of the denoiser.
        classifier_batch: pictures an update of a classifier.
    """

    unet: tuple[int, ...] = (48, 80, 112)
    layers: int = 1
    groups: int = 16
    dropout: float = 0.1
    classifier: int = 32
    judge: int = 40
    batch: int = 512
    classifier_batch: int = 256


FULL = Size()
#: Trains on a CPU in a quarter of an hour; its digits are readable, not good.
SMALL = Size(unet=(32, 48, 64), dropout=0.0, classifier=16, judge=24, batch=64, classifier_batch=64)
TINY = Size(unet=(8, 8), groups=4, classifier=8, judge=8, batch=16, classifier_batch=32)
SIZES = {"full": FULL, "small": SMALL, "tiny": TINY}


def make_unet(size: Size) -> UNet2DModel:
    """A UNet told time and digit; without attention, for which 7 x 7 pixels have no need."""
    levels = len(size.unet)
    return UNet2DModel(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        block_out_channels=size.unet,
        layers_per_block=size.layers,
        norm_num_groups=size.groups,
        dropout=size.dropout,
        add_attention=False,
        num_class_embeds=CLASSES + 1,
    )


@dataclass(frozen=True)
class ClassifierConfig:
    """What makes a :class:`Classifier`.

    Attributes:
        width: channels of the first layer; the others have twice as many.
        features: numbers that the last layer sees.
        seed: of weights and batches.
    """

    width: int = 32
    features: int = 64
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Classifier(nn.Module):
    """A small convolutional classifier of digits.

    Attributes:
        config: what it was made by.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config, w = config, config.width
        self.body = nn.Sequential(
            *_block(1, w, 1),
            *_block(w, w, 2),
            *_block(w, 2 * w, 1),
            *_block(2 * w, 2 * w, 2),
            *_block(2 * w, 2 * w, 1),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(9 * 2 * w, config.features),
        )
        self.head = nn.Sequential(nn.SiLU(), nn.Dropout(0.2), nn.Linear(config.features, CLASSES))

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees of pictures ``(B, 1, 28, 28)`` in [0, 1], ``(B, features)``."""
        return self.body(2 * images - 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, 10)`` of pictures ``(B, 1, 28, 28)`` in [0, 1]."""
        return self.head(self.features(images))


def _block(before: int, after: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, 3, stride=stride, padding=1),
        nn.GroupNorm(min(4, after // 4), after),
        nn.SiLU(),
    ]
