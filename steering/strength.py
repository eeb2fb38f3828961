"""Lambda in units that carry over between rewards, and the calibration that makes it so.

CLIP's scores differ by a few hundredths between samples and ImageReward's by two: one raw lambda
cannot serve both. By default lambda is therefore given in units of the reward's spread over samples
of the base model. The spread comes from a saved calibration or from a counted pilot, never from the
particles that are being weighted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from steering.files import safe_name, write_atomically

Unit = Literal["spread", "raw", "ess", "kl"]


@dataclass(frozen=True)
class Calibration:
    """How a reward varies over samples of the base model, prompt by prompt.

    Attributes:
        model: name of the model.
        reward: name of the reward.
        centred: rewards less the mean of their prompt, over all prompts.
        prompts: number of prompts.
    """

    model: str
    reward: str
    centred: tuple[float, ...]
    prompts: int

    @classmethod
    def of(cls, model: str, reward: str, totals: Sequence[Tensor]) -> Calibration:
        """From rewards ``(n,)`` of base samples of each prompt.

        Raises:
            ValueError: fewer than two samples of each prompt.
        """
        totals = [t[torch.isfinite(t)] for t in totals]  # impossible candidates have no reward
        if not totals or min(len(t) for t in totals) < 2:
            raise ValueError(
                f"a calibration of reward {reward!r} needs at least two samples of each prompt with a "
                f"finite reward, got {[len(t) for t in totals]}; raise the samples, or give the "
                "strength with unit='raw'"
            )
        centred = torch.cat([t.double() - t.double().mean() for t in totals]).tolist()
        return cls(model, reward, tuple(centred), len(totals))

    @property
    def spread(self) -> float:
        """Standard deviation of the reward within a prompt."""
        freedom = len(self.centred) - self.prompts
        return math.sqrt(sum(c * c for c in self.centred) / freedom)

    def save(self, folder: Path) -> Path:
        """Write to ``folder`` as JSON."""
        path = folder / _file_name(self.model, self.reward)
        write_atomically(path, json.dumps(asdict(self)))
        return path

    @classmethod
    def find(cls, model: str, reward: str, folders: Iterable[Path]) -> Calibration | None:
        """The first saved calibration of this model and reward, or None."""
        for folder in folders:
            path = folder / _file_name(model, reward)
            if path.is_file():
                record = json.loads(path.read_text())
                return cls(model, reward, tuple(record["centred"]), record["prompts"])
        return None


@dataclass(frozen=True)
class Strength:
    """How strongly a search is to follow the reward.

    Attributes:
        value: a number not below 0; 0 samples the base model.
        unit: ``"spread"``: lambda = value / spread of the reward over base samples; ``"raw"``:
            lambda = value; ``"ess"``: lambda at which reweighted base samples keep this share of
            their number, in (0, 1]; ``"kl"``: lambda at which the target is this many nats from
            the base.
    """

    value: float = 4.0
    unit: Unit = "spread"

    def __post_init__(self) -> None:
        if self.unit not in ("spread", "raw", "ess", "kl"):
            raise ValueError(f"unit must be 'spread', 'raw', 'ess' or 'kl', got {self.unit!r}")
        if not (math.isfinite(self.value) and self.value >= 0):
            raise ValueError(f"the strength must be a number not below 0, got {self.value}")
        if self.unit == "ess" and not 0 < self.value <= 1:
            raise ValueError(f"an effective sample share lies in (0, 1], got {self.value}")

    def lam(self, calibration: Callable[[], Calibration]) -> float:
        """Lambda in raw units of the reward.

        Args:
            calibration: called only where the unit needs one.

        Raises:
            ValueError: the reward does not vary over base samples, or the target lies beyond what
                the calibration's samples can tell.
        """
        if self.unit == "raw" or (self.value == 0 and self.unit != "ess"):
            return self.value
        known = calibration()
        spread = known.spread
        if not spread > 0:
            raise ValueError(
                f"reward {known.reward!r} does not vary over {len(known.centred)} samples of the base "
                "model, so lambda has no unit; give the strength with unit='raw'"
            )
        if self.unit == "spread":
            return self.value / spread
        rewards = torch.tensor(known.centred, dtype=torch.float64)
        distance = _lost_share if self.unit == "ess" else _divergence
        target = 1 - self.value if self.unit == "ess" else self.value
        return _solve(lambda lam: distance(rewards, lam), target, 1.0 / spread)


def pilot_prompts(keys: Sequence[str], count: int = 4) -> list[int]:
    """Indices of the prompts on which to calibrate: the same whatever their order."""
    ranked = sorted(range(len(keys)), key=lambda i: hashlib.blake2b(keys[i].encode()).digest())
    return ranked[:count]


def calibration_folders() -> list[Path]:
    """Where calibrations are looked for: the user's cache, then the package."""
    return [cache_folder() / "calibration", Path(__file__).parent / "calibration"]


def cache_folder() -> Path:
    """Folder of calibrations and timings; ``DIFFUSION_STEERING_CACHE`` overrides the default."""
    given = os.environ.get("DIFFUSION_STEERING_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "diffusion-steering"


def _file_name(model: str, reward: str) -> str:
    return safe_name(f"{model}--{reward}") + ".json"


def _lost_share(rewards: Tensor, lam: float) -> float:
    """One minus the effective sample share of samples weighted by exp(lambda r)."""
    w = torch.softmax(lam * rewards, 0)
    return 1.0 - 1.0 / float(w.square().sum()) / len(rewards)


def _divergence(rewards: Tensor, lam: float) -> float:
    """KL divergence of the weighted samples from the unweighted, in nats."""
    w = torch.softmax(lam * rewards, 0)
    log_mean = float(torch.logsumexp(lam * rewards, 0)) - math.log(len(rewards))
    return lam * float(w @ rewards) - log_mean


def _solve(distance: Callable[[float], float], target: float, scale: float) -> float:
    """Lambda at which a rising distance from the base reaches ``target``, by bisection."""
    low, high = 0.0, scale
    while distance(high) < target:
        low, high = high, 2 * high
        if high > 1e6 * scale:
            raise ValueError(
                f"the target strength ({target:.4g}) is further from the base than the calibration's "
                f"samples can tell (at most {distance(high):.4g}); lower it"
            )
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if distance(middle) < target else (low, middle)
    return 0.5 * (low + high)
