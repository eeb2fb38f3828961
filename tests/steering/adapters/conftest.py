"""Tiny pipelines, one thread, and how a trajectory is walked."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers.utils.logging
import pytest
import torch
from torch import Tensor


def _load_tiny() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "tiny_of_the_adapters", Path(__file__).parent / "tiny.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_TINY = _load_tiny()


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    return _TINY


@pytest.fixture(autouse=True)
def _quiet() -> None:
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.fixture
def walk() -> Callable[..., Tensor]:
    """Carries handles' initial states through the pipeline's own scheduler."""

    def walk(model: Any, handles: list[Any]) -> Tensor:
        ends = []
        for handle in handles:
            x, run = handle.initial, model.scheduler_run(handle, [0], [0])
            for index, time in enumerate(run.times):
                x = run.step(index, model.denoise(x, [time], [handle]), x)
            ends.append(x)
        return torch.cat(ends)

    return torch.no_grad()(walk)
