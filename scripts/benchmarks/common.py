"""What every benchmark shares: the result file, and where and how it was made."""

from __future__ import annotations

import datetime
import json
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from steering.files import write_atomically

PACKAGES = ("diffusion-steering", "torch", "diffusers", "transformers", "numpy", "scipy")


def package_versions() -> dict[str, str]:
    """Versions of what results depend on; "not installed" where a package runs from a checkout."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def describe(device: torch.device | str) -> str:
    """A device in words."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}, {torch.get_num_threads()} thread(s)"


class Results:
    """Rows of one benchmark in one JSON file, saved after each.

    Args:
        path: the file; rows that it holds already are kept.
        device: where the benchmark runs.
        seed: seed of its random numbers.

    Raises:
        ValueError: the file exists and is no result file.
    """

    def __init__(self, path: Path, *, device: torch.device | str, seed: int) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            try:
                self.rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is not a result file; give another --json") from error
        self.meta = {
            "versions": package_versions(),
            "device": describe(device),
            "seed": seed,
            "command": " ".join(sys.argv),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def has(self, settings: Mapping[str, Any]) -> bool:
        """Whether a row of these settings is there."""
        return any(all(row.get(k) == v for k, v in settings.items()) for row in self.rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row and save."""
        self.rows.append(dict(row))
        write_atomically(
            self.path, json.dumps({"meta": self.meta, "rows": self.rows}, indent=1) + "\n"
        )
