"""The denoiser of digits as a :class:`steering.model.Model`: pixels are the states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from digits_training.data import CLASSES, SIDE
from digits_training.graphs import Graphed
from digits_training.networks import NO_CLASS, TIMES
from digits_training.store import load_unet
from steering.interpolants import Cosine, VPDiscrete
from steering.mixtures import OdeWalk, vp_grid
from steering.model import Abilities, Stage
from steering.prediction import Posterior, posterior_of
from steering.times import Time, TimeGrid


@cache
def training_path() -> VPDiscrete:
    """The cosine path at 1000 times, short of pure noise at one end and of none at the other.

    Nichol and Dhariwal 2021 (2102.09672), whose offset keeps the first steps from being too small.
    """
    path, offset = Cosine(), 8e-3
    times = [((i + 0.5) / TIMES + offset) / (1 + offset) for i in range(TIMES)]
    return VPDiscrete(tuple(path.alpha(t) ** 2 for t in times))


@dataclass(frozen=True)
class Wanted:
    """Conditioning: a digit, or none.

    Attributes:
        label: 0 to 9; None for the unconditional model.
    """

    label: int | None = None

    @property
    def signature(self) -> str:
        """Rows of any two digits may share a batch."""
        return "digits"

    @property
    def initial(self) -> Tensor | None:
        """None: the search's own stream decides where to start."""
        return None


@dataclass(frozen=True, eq=False)
class DigitsModel(OdeWalk):
    """A UNet that predicts v on pictures of digits, as the engine wants it.

    Gradients recompute the network (checkpointing), so that thousands of rows fit into memory.

    Attributes:
        unet: told state, time and label.
        grid: times to sample at.
        device: where it runs; the network is moved there.
        dtype: what the network computes in; its weights are turned into that.
        graphs: replay CUDA graphs where no gradient is asked for; None: on CUDA.
        name: key under which timings are saved.
    """

    unet: nn.Module
    grid: TimeGrid = field(default_factory=lambda: digit_grid())
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    graphs: bool | None = None
    name: str = "digits"

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", torch.device(self.device))
        # Of all modules: diffusers' own warns of any cast, though this network has no part to spare.
        nn.Module.to(self.unet, self.device, self.dtype, memory_format=torch.channels_last)
        self.unet.eval().requires_grad_(False)
        wanted = self.device.type == "cuda" if self.graphs is None else self.graphs
        object.__setattr__(self, "_graphed", Graphed(self._network) if wanted else None)

    @property
    def shape(self) -> tuple[int, ...]:
        """One grey picture, (1, 28, 28), black -1, white 1."""
        return (1, SIDE, SIDE)

    @property
    def initial_std(self) -> float:
        """Noise of variance one."""
        return 1.0

    @property
    def passes(self) -> int:
        """One: there is no guidance."""
        return 1

    @property
    def abilities(self) -> Abilities:
        """All of them."""
        return Abilities()

    def at(self, log_snr: float) -> Time:
        """Record of any noise level; beyond the trained ones, the nearest time that it knows."""
        path = training_path()
        t = path.nearest_t(log_snr)
        alpha, sigma = path.normalise(float(torch.tensor(-0.5 * log_snr).exp()))
        return Time(path.model_t(t), alpha, sigma)

    def encode(self, prompts: Sequence[str]) -> list[Wanted]:
        """A handle a prompt: ``"digit 3"`` is conditional, anything else is not."""
        return [
            Wanted(int(p[6:])) if p[:6] == "digit " and p[6:].isdigit() else Wanted()
            for p in prompts
        ]

    def denoise(self, x_t: Tensor, times: Sequence[Time], conditioning: Sequence[Any]) -> Posterior:
        """Posterior of each row ``x_t (B, 1, 28, 28)``, float32."""
        told = torch.tensor([t.model_t for t in times], device=x_t.device)
        labels = [NO_CLASS if c.label is None else c.label for c in conditioning]
        asked = x_t.float(), told, torch.tensor(labels, device=x_t.device)
        if torch.is_grad_enabled():
            output = checkpoint(
                self._network, *asked, use_reentrant=False, preserve_rng_state=False
            )
        else:
            graphed = self._graphed  # type: ignore[attr-defined]
            output = self._network(*asked) if graphed is None else graphed(*asked)
        return posterior_of("v_prediction", output, x_t, times)

    def decode(self, x_0: Tensor, conditioning: Sequence[Any], stage: Stage) -> Tensor:
        """Pictures ``(B, 3, 28, 28)`` in [0, 1], their channels alike."""
        return (x_0 / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1)

    def render(self, x_0: Tensor, conditioning: Sequence[Any]) -> list[Tensor]:
        """The pictures themselves, each ``(3, 28, 28)``."""
        return list(self.decode(x_0, conditioning, Stage.FINAL))

    def _network(self, x_t: Tensor, told: Tensor, labels: Tensor) -> Tensor:
        return self.unet(x_t.to(self.dtype), told, class_labels=labels).sample.float()


def digit_grid(steps: int = 50) -> TimeGrid:
    """DDIM's grid of so many steps."""
    return vp_grid(steps, training_path())


def load_model(
    folder: Path, device: torch.device | str, *, steps: int = 50, dtype: torch.dtype | None = None
) -> DigitsModel:
    """The trained model of a folder; bfloat16 on CUDA unless said otherwise.

    Raises:
        ValueError: the folder has none, or ``steps`` does not divide 1000.
    """
    device = torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return DigitsModel(load_unet(folder), digit_grid(steps), device, dtype)


def targets() -> dict[str, tuple[int, ...]]:
    """What is asked for: each digit, the even ones and the odd ones."""
    names = {str(d): (d,) for d in range(CLASSES)}
    return names | {"even": (0, 2, 4, 6, 8), "odd": (1, 3, 5, 7, 9)}
