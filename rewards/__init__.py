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
    from rewards.frames import MotionAmount, MotionSmoothness, OnFrames
    from rewards.function import PythonFunction
    from rewards.jpeg import JPEGCompressibility
    from rewards.judge import CalibratedSum, JudgeFit, fit_to_judge
    from rewards.shapes import ShapesCLIP, ShapesVerifier

_HOMES = {
    "CalibratedSum": "rewards.judge",
    "CLIPScore": "rewards.clip",
    "ContrastiveScore": "rewards.clip",
    "JPEGCompressibility": "rewards.jpeg",
    "JudgeFit": "rewards.judge",
    "MeanRank": "rewards.ensemble",
    "MotionAmount": "rewards.frames",
    "MotionSmoothness": "rewards.frames",
    "OnFrames": "rewards.frames",
    "OpenClipEncoder": "rewards.encoders",
    "PythonFunction": "rewards.function",
    "RewardModel": "rewards.base",
    "ShapesCLIP": "rewards.shapes",
    "ShapesVerifier": "rewards.shapes",
    "WeightedSum": "rewards.ensemble",
    "WeightsUnavailable": "rewards.encoders",
    "fit_to_judge": "rewards.judge",
}

__all__ = [
    "CLIPScore",
    "CalibratedSum",
    "ContrastiveScore",
    "JPEGCompressibility",
    "JudgeFit",
    "MeanRank",
    "MotionAmount",
    "MotionSmoothness",
    "OnFrames",
    "OpenClipEncoder",
    "PythonFunction",
    "RewardModel",
    "ShapesCLIP",
    "ShapesVerifier",
    "WeightedSum",
    "WeightsUnavailable",
    "fit_to_judge",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
