"""Reward models: what a picture is scored by.

Names are imported when they are first used, since their model libraries take seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewards.base import RewardModel
    from rewards.clip import CLIPScore, ContrastiveScore
    from rewards.encoders import OpenClipEncoder, WeightsUnavailable
    from rewards.ensemble import MeanRank, WeightedSum
    from rewards.function import PythonFunction
    from rewards.jpeg import JPEGCompressibility
    from rewards.shapes import ShapesCLIP, ShapesVerifier

_HOMES = {
    "CLIPScore": "rewards.clip",
    "ContrastiveScore": "rewards.clip",
    "JPEGCompressibility": "rewards.jpeg",
    "MeanRank": "rewards.ensemble",
    "OpenClipEncoder": "rewards.encoders",
    "PythonFunction": "rewards.function",
    "RewardModel": "rewards.base",
    "ShapesCLIP": "rewards.shapes",
    "ShapesVerifier": "rewards.shapes",
    "WeightedSum": "rewards.ensemble",
    "WeightsUnavailable": "rewards.encoders",
}

__all__ = [
    "CLIPScore",
    "ContrastiveScore",
    "JPEGCompressibility",
    "MeanRank",
    "OpenClipEncoder",
    "PythonFunction",
    "RewardModel",
    "ShapesCLIP",
    "ShapesVerifier",
    "WeightedSum",
    "WeightsUnavailable",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
