"""What a run will cost, said before anything is loaded to a device."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from steering.cost import Cost, Usage
from steering.files import safe_name, write_atomically
from steering.schedulers import call_times, grid_of
from steering.search import Plan
from steering.strength import cache_folder

DEFAULT_STEPS = 50  # diffusers' usual default, where a pipeline class states none


def source_name(source: str) -> str:
    """Hub id, embedded model, or a folder's name with a digest of where it lies."""
    folder = Path(source)
    if not folder.is_dir():
        return source
    embedded = Path(__file__).parent / "shapes" / "weights"
    if folder.resolve().parent == embedded.resolve():
        return folder.name
    digest = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=4).hexdigest()
    return f"{folder.name}-{digest}"


def device_name(device: torch.device) -> str:
    """``"cpu"``, or what a GPU calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def scheduler_facts(
    scheduler: Any, call: Mapping[str, Any], pipeline_class: type | None = None
) -> tuple[int, int]:
    """Transitions of the time grid, and model calls of one trajectory of the scheduler.

    Args:
        scheduler: the pipeline's scheduler; a private copy is set up.
        call: the pipeline's own keyword arguments.
        pipeline_class: for the default number of steps.

    Raises:
        ValueError: fewer than one inference step.
    """
    private = copy.deepcopy(scheduler)
    given = next((k for k in ("timesteps", "sigmas") if call.get(k) is not None), None)
    arguments: dict[str, Any] = {}
    if given is not None:
        arguments[given] = list(call[given])
    else:
        steps = call.get("num_inference_steps", _default_steps(pipeline_class))
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"num_inference_steps must be a whole number above 0, got {steps!r}")
        arguments["num_inference_steps"] = steps
    if getattr(private.config, "use_dynamic_shifting", False):
        arguments["mu"] = 1.0  # moves the times, not their number
    private.set_timesteps(**arguments)
    return grid_of(private).steps, len(call_times(private))


def _default_steps(pipeline_class: type | None) -> int:
    if pipeline_class is None:
        return DEFAULT_STEPS
    parameter = inspect.signature(pipeline_class.__call__).parameters.get("num_inference_steps")
    return parameter.default if parameter is not None else DEFAULT_STEPS


@dataclass(frozen=True)
class Figures:
    """Speed and memory of one model on one device, measured by an earlier run.

    Attributes:
        seconds_per_nfe: denoiser seconds a row.
        seconds_per_decode: decoder seconds a row.
        seconds_per_reward: reward seconds a scored row.
        peak_bytes: most memory in use.
        rows: rows of a full call in that run.
    """

    seconds_per_nfe: float
    seconds_per_decode: float
    seconds_per_reward: float
    peak_bytes: int
    rows: int

    @classmethod
    def of(cls, usage: Usage, peak_bytes: int, rows: int) -> Figures | None:
        """From what a run spent; None if it did too little to tell."""
        if not (usage.nfe and usage.decodes and usage.reward_calls):
            return None
        return cls(
            usage.seconds_denoise / usage.nfe,
            usage.seconds_decode / usage.decodes,
            usage.seconds_reward / usage.reward_calls,
            peak_bytes,
            rows,
        )

    def seconds(self, cost: Cost) -> float:
        """Seconds that a cost will take inside the models."""
        return (
            cost.nfe * self.seconds_per_nfe
            + cost.decodes * self.seconds_per_decode
            + cost.reward_calls * self.seconds_per_reward
        )

    @staticmethod
    def path(source: str, call: Mapping[str, Any], dtype: str, reward: str, device: str) -> Path:
        """Where the figures are kept, by everything that decides them.

        Args:
            source: the pipeline's hub id, folder or embedded name.
            call: its keyword arguments.
            dtype: of its weights, such as ``"float32"``.
            reward: the reward's name.
            device: ``"cpu"`` or a GPU's name.
        """
        name = source_name(source)
        told = json.dumps([name, dict(call), dtype, reward, device], sort_keys=True, default=str)
        digest = hashlib.blake2b(told.encode(), digest_size=6).hexdigest()
        return cache_folder() / "figures" / f"{safe_name(name)[-40:]}-{digest}.json"

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_atomically(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Figures | None:
        """Read what :meth:`save` wrote; None if nothing was measured."""
        return cls(**json.loads(path.read_text())) if path.is_file() else None


def describe(plan: Plan, searches: int, figures: Figures | None) -> dict[str, Any]:
    """A plan as numbers: totals over all searches, "not measured" where nothing is known.

    Args:
        plan: of one search.
        searches: how many there are.
        figures: of this model, reward and device.
    """
    total = searches * plan.cost
    unknown = "not measured"
    return {
        "searches": searches,
        "bound": "exact" if plan.exact else "at most",
        "nfe": int(total.nfe),
        "decodes": int(total.decodes),
        "reward_calls": int(total.reward_calls),
        "backwards": int(total.backwards),
        "seconds": round(figures.seconds(total), 1) if figures else unknown,
        "memory_bytes": figures.peak_bytes if figures else unknown,
        "rows_alive": plan.rows,
        "settings": plan.settings,
    }
