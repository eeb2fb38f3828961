"""Reward models: what a picture is scored by.

Names are imported when they are first used, since their model libraries take seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewards.aesthetic import AestheticScore
    from rewards.base import RewardModel
    from rewards.clip import CLIPScore, ContrastiveScore
    from rewards.compositional import GenEval
    from rewards.detectors import Detector
    from rewards.encoders import OpenClipEncoder
    from rewards.ensemble import MeanRank, WeightedSum
    from rewards.flaw_count import FlawCount
    from rewards.frames import MotionAmount, MotionSmoothness, OnFrames
    from rewards.function import PythonFunction
    from rewards.hps import HPSv2
    from rewards.image_reward import ImageReward
    from rewards.jpeg import JPEGCompressibility
    from rewards.json_judge import JSONJudge
    from rewards.json_planner import JSONPlanner
    from rewards.judge import CalibratedSum, JudgeFit, fit_to_judge
    from rewards.motion import ColourMotion, MotionVerifier, ShapesConsistency, ShapesFrames
    from rewards.pickscore import PickScore
    from rewards.product import Product
    from rewards.shapes import ShapesCLIP, ShapesVerifier
    from rewards.shapes_planner import ShapesPlanner
    from rewards.stages import stage_rewards
    from rewards.transformers_clip import TransformersCLIPScore, TransformersEncoder
    from rewards.vision_language import VisionLanguageModel
    from rewards.vqa import VQAScore
    from rewards.weights import WeightsUnavailable

_HOMES = {
    "AestheticScore": "rewards.aesthetic",
    "CLIPScore": "rewards.clip",
    "CalibratedSum": "rewards.judge",
    "ColourMotion": "rewards.motion",
    "ContrastiveScore": "rewards.clip",
    "Detector": "rewards.detectors",
    "FlawCount": "rewards.flaw_count",
    "GenEval": "rewards.compositional",
    "HPSv2": "rewards.hps",
    "ImageReward": "rewards.image_reward",
    "JPEGCompressibility": "rewards.jpeg",
    "JSONJudge": "rewards.json_judge",
    "JSONPlanner": "rewards.json_planner",
    "JudgeFit": "rewards.judge",
    "MeanRank": "rewards.ensemble",
    "MotionAmount": "rewards.frames",
    "MotionSmoothness": "rewards.frames",
    "MotionVerifier": "rewards.motion",
    "OnFrames": "rewards.frames",
    "OpenClipEncoder": "rewards.encoders",
    "PickScore": "rewards.pickscore",
    "Product": "rewards.product",
    "PythonFunction": "rewards.function",
    "RewardModel": "rewards.base",
    "ShapesCLIP": "rewards.shapes",
    "ShapesConsistency": "rewards.motion",
    "ShapesFrames": "rewards.motion",
    "ShapesPlanner": "rewards.shapes_planner",
    "ShapesVerifier": "rewards.shapes",
    "TransformersCLIPScore": "rewards.transformers_clip",
    "TransformersEncoder": "rewards.transformers_clip",
    "VQAScore": "rewards.vqa",
    "VisionLanguageModel": "rewards.vision_language",
    "WeightedSum": "rewards.ensemble",
    "WeightsUnavailable": "rewards.weights",
    "fit_to_judge": "rewards.judge",
    "stage_rewards": "rewards.stages",
}

__all__ = [
    "AestheticScore",
    "CLIPScore",
    "CalibratedSum",
    "ColourMotion",
    "ContrastiveScore",
    "Detector",
    "FlawCount",
    "GenEval",
    "HPSv2",
    "ImageReward",
    "JPEGCompressibility",
    "JSONJudge",
    "JSONPlanner",
    "JudgeFit",
    "MeanRank",
    "MotionAmount",
    "MotionSmoothness",
    "MotionVerifier",
    "OnFrames",
    "OpenClipEncoder",
    "PickScore",
    "Product",
    "PythonFunction",
    "RewardModel",
    "ShapesCLIP",
    "ShapesConsistency",
    "ShapesFrames",
    "ShapesPlanner",
    "ShapesVerifier",
    "TransformersCLIPScore",
    "TransformersEncoder",
    "VQAScore",
    "VisionLanguageModel",
    "WeightedSum",
    "WeightsUnavailable",
    "fit_to_judge",
    "stage_rewards",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
