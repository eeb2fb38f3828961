"""Models that look at pictures, each once, for all metrics that ask for the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn

from evaluation.inputs import Run
from evaluation.workers import Columns
from rewards.base import RewardModel
from rewards.encoders import WeightsUnavailable
from rewards.extractors import INCEPTION, VGG, ImageFeatures, fidelity_features, load_pair
from steering import shapes
from steering.command.options import find
from steering.media import load_pictures
from steering.reward import Item

LPIPS = ("alex", "vgg", "squeeze")


class Extractor:
    """Features of pictures, uint8 ``(B, 3, H, W)``, under a name.

    Args:
        name: "inception" or "vgg16", with ":FILE" for local weights, or a CLIP model as of
            `rewards.extractors.load_pair`.
        device: where it runs.

    Attributes:
        fingerprint: digest of its weights, which tells models of one name apart.
        pair: the CLIP model behind it, or None.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        kind, _, weights = name.partition(":")
        self.pair: Any = None
        if kind in (INCEPTION, VGG):
            net = fidelity_features(kind, weights or None)
        else:
            self.pair = load_pair(name)
            net = ImageFeatures(self.pair)
        self.net: nn.Module = net.to(device)
        self.device = device
        self.fingerprint = fingerprint(net)

    def __call__(self, run: Run, places: Sequence[int], pictures: Tensor) -> Columns:
        """``features:NAME`` ``(B, D)``, and ``logits:NAME`` where it classifies.

        Raises:
            ValueError: they are not finite.
        """
        with torch.no_grad():
            found = self.net(pictures.to(self.device))
        features, *logits = found if isinstance(found, tuple) else (found,)
        if not features.isfinite().all():
            raise ValueError(
                f"the features of {self.name!r} are not finite: are these its weights?"
            )
        columns = {f"features:{self.name}": features.float()}
        if logits:
            columns[f"logits:{self.name}"] = logits[0].float()
        return columns


class Scorer:
    """A reward by its configuration's name, YAML file or class path.

    Raises:
        ValueError: there is none, or it cannot be made.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.model = make_reward(name).to(device)
        self.device = device
        self._prepared: dict[tuple[str, str], Any] = {}

    def __call__(self, run: Run, places: Sequence[int], pictures: Tensor) -> Columns:
        """``reward:NAME:COLUMN`` ``(B,)`` for each column."""
        media = pictures.to(self.device).float() / 255
        features = [self._features(run, run.prompts[i]) for i in places]
        with torch.no_grad():
            scored = self.model(media, features)
        columns = {self.model.name: scored} if isinstance(scored, Tensor) else dict(scored)
        for column, values in columns.items():
            if not values.isfinite().all():
                first = run.pictures[places[int((~values.isfinite()).nonzero()[0])]]
                raise ValueError(f"reward {self.name!r} gave no finite {column} for {first}")
        return {f"reward:{self.name}:{n}": column.double() for n, column in columns.items()}

    def _features(self, run: Run, prompt: str) -> Any:
        """Features of a prompt of a run, whose metadata are its own."""
        key = (run.name, prompt)
        if key not in self._prepared:
            self._prepared[key] = self.model.prepare(Item(prompt, run.known.get(prompt, {})))
        return self._prepared[key]


def verdicts(run: Run, places: Sequence[int], pictures: Tensor) -> Columns:
    """``accuracy``: 1 where the exact verifier of the shapes world finds the prompt shown."""
    right = shapes.verify(pictures.float() / 255, [run.prompts[i] for i in places])
    return {"accuracy": right.double()}


class Lpips:
    """LPIPS of pairs of pictures by torchmetrics (Zhang et al. 2018, https://arxiv.org/abs/1801.03924).

    Raises:
        WeightsUnavailable: the backbone can neither be downloaded nor found.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity as Metric

        try:
            self.metric = Metric(net_type=name, reduction="none", normalize=True).to(device)
        except (OSError, RuntimeError) as error:
            raise WeightsUnavailable(_backbone_missing(name, error)) from error
        self.name, self.device = name, device

    def __call__(self, run: Run, pairs: Sequence[tuple[int, int]]) -> Columns:
        """``lpips`` ``(B,)``."""
        sides = [load_pictures([run.pictures[pair[side]] for pair in pairs]) for side in (0, 1)]
        first, second = (side.to(self.device).float() / 255 for side in sides)
        self.metric.reset()
        with torch.no_grad():
            self.metric.update(first, second)
        return {"lpips": self.metric.compute().reshape(len(pairs)).double()}


def make_reward(name: str) -> RewardModel:
    """A reward by its configuration's name, YAML file or class path.

    Raises:
        ValueError: as `check_reward_name`; or what its class raises.
    """
    parser, parsed = _parsed(name)
    return parser.instantiate(parsed).reward


def check_reward_name(name: str) -> None:
    """Refuse a reward that is not there, without loading anything.

    Raises:
        ValueError: no such configuration or class, or options that it does not take.
    """
    _parsed(name)


def _parsed(name: str) -> tuple[ArgumentParser, Any]:
    def taker(reward: RewardModel) -> None: ...

    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(taker, sub_configs=True)
    try:
        return parser, parser.parse_args([f"--reward={find('reward', name)}"])
    except ArgumentError as error:
        raise ValueError(f"reward {name!r}: {error}") from error


def fingerprint(net: nn.Module) -> str:
    """Digest of all weights by name."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(net.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _backbone_missing(name: str, error: Exception) -> str:
    import torchvision.models as zoo

    kind = {
        "alex": zoo.AlexNet_Weights,
        "vgg": zoo.VGG16_Weights,
        "squeeze": zoo.SqueezeNet1_1_Weights,
    }[name]
    url = kind.DEFAULT.url
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    return (
        f"cannot load the backbone of LPIPS {name!r}: {error}\n"
        f"Without a network put {url} at {place}; its SHA-256 begins with the digits in its name. "
        "Or measure diversity by features: --metrics diversity"
    )
