"""From which step on an intermediate reward can be trusted: its rank correlation with the final one.

PARM (Guo et al. 2025, 2501.13926) asks a fine-tuned vision-language model, step by step, whether the
prediction is clear enough to be judged. Here the question is answered by measurement: of samples that
are carried to the end, how well do the rewards of their predicted x_0 at each noise level rank the
rewards that they end with? :mod:`steering.watching` carries them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from scipy.optimize import isotonic_regression
from scipy.stats import rankdata
from torch import Tensor

from steering.files import safe_name, write_atomically
from steering.strength import cache_folder
from steering.times import TimeGrid
from steering.trace import correlation


@dataclass(frozen=True)
class Clarity:
    """How well intermediate rewards rank final ones, by step of one time grid.

    Attributes:
        model: name of the model, its scheduler and number of steps included.
        reward: key of the reward.
        steps: transitions of the grid.
        looked: steps at which it was measured, rising; 0 is pure noise.
        log_snr: noise level of each, log(alpha^2 / sigma^2).
        ranked: Spearman's correlation at each, within prompts, averaged over them.
        samples: over all prompts.
        prompts: whose rewards varied.
    """

    model: str
    reward: str
    steps: int
    looked: tuple[int, ...]
    log_snr: tuple[float, ...]
    ranked: tuple[float, ...]
    samples: int
    prompts: int

    @classmethod
    def of(
        cls,
        model: str,
        reward: str,
        grid: TimeGrid,
        looked: Sequence[int],
        rewards: Sequence[tuple[Tensor, Tensor]],
    ) -> Clarity:
        """From rewards of samples.

        Args:
            model: see the attributes, as ``reward`` and ``looked``.
            reward: likewise.
            grid: whose steps they are.
            looked: likewise.
            rewards: intermediate ``(len(looked), n)`` and final ``(n,)`` ones of each prompt.

        Raises:
            ValueError: no prompt has three samples whose finite final rewards differ.
        """
        rows, samples = [], 0
        for intermediate, final in rewards:
            possible = torch.isfinite(final)
            if int(possible.sum()) < 3 or len(torch.unique(final[possible])) < 2:
                continue
            samples += int(possible.sum())
            rows.append([_spearman(row[possible], final[possible]) for row in intermediate])
        if not rows:
            raise ValueError(
                f"the clarity of reward {reward!r} needs a prompt with three samples whose rewards "
                f"differ, got {[len(final) for _, final in rewards]} samples; raise the samples"
            )
        means = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
        levels = tuple(grid[i].log_snr for i in looked)
        return cls(
            model, reward, grid.steps, tuple(looked), levels, tuple(means), samples, len(rows)
        )

    @property
    def rising(self) -> list[float]:
        """The correlations made to rise as noise falls, by isotonic regression: less noisy."""
        return [float(r) for r in isotonic_regression(self.ranked).x]

    def trusted(self, threshold: float) -> int | None:
        """The first step at which the rising correlation exceeds ``threshold``; None: none does."""
        pairs = zip(self.looked, self.rising, strict=True)
        return next((i for i, r in pairs if r > threshold), None)

    def check(self, grid: TimeGrid) -> None:
        """Refuse another grid than that of the measurement.

        Raises:
            ValueError: another number of steps, or other noise levels.
        """
        same = self.steps == grid.steps and all(
            grid[i].log_snr == s or math.isclose(grid[i].log_snr, s, abs_tol=1e-3)
            for i, s in zip(self.looked, self.log_snr, strict=True)
        )
        if not same:
            levels = [round(level, 2) for level in self.log_snr]
            raise ValueError(
                f"the clarity of {self.reward!r} was measured on a grid of {self.steps} steps, at "
                f"log-SNR {levels}, which is not the grid of {grid.steps} steps that is sampled; "
                "measure it for this scheduler, number of steps and path"
            )

    def save(self, folder: Path) -> Path:
        """Write to ``folder`` as JSON, by model and reward."""
        path = folder / _file_name(self.model, self.reward)
        write_atomically(path, json.dumps(asdict(self)))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Clarity:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        record = json.loads(Path(path).read_text())
        names = {f.name for f in fields(cls)}
        if not isinstance(record, dict) or set(record) != names:
            raise ValueError(f"{path} holds no clarity; write it with Clarity.save")
        for name in ("looked", "log_snr", "ranked"):
            record[name] = tuple(record[name])
        return cls(**record)

    @classmethod
    def find(cls, model: str, reward: str, folders: Iterable[Path]) -> Clarity | None:
        """The first saved clarity of this model and reward, or None."""
        for folder in folders:
            path = folder / _file_name(model, reward)
            if path.is_file():
                return cls.load(path)
        return None


def clarity_folders() -> list[Path]:
    """Where saved clarities are looked for: the user's cache."""
    return [cache_folder() / "clarity"]


def _file_name(model: str, reward: str) -> str:
    return safe_name(f"{model}--{reward}") + ".json"


def _spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation, ties averaged; 0 where ``a`` does not vary and so tells nothing."""
    ranks = (torch.from_numpy(rankdata(x.numpy())) for x in (a, b))
    return correlation(*ranks) or 0.0
