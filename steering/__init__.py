"""Inference-time search and steering for unmodified diffusers pipelines."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

#: public names, imported on first use so that ``import steering`` stays fast
_NAMES = {
    "Budget": "steering.cost",
    "DDIM": "steering.transitions",
    "Engine": "steering.engine",
    "Refusal": "steering.adapters",
    "Search": "steering.search",
    "SteeredPipeline": "steering.pipeline",
    "SteeringFailed": "steering.report",
    "SteeringReport": "steering.report",
    "Strength": "steering.strength",
    "adapt": "steering.adapters",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'steering' has no attribute {name!r}")
