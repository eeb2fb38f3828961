"""Adapters: an unmodified diffusers pipeline as a denoiser."""

from steering.adapters.black_box import BlackBoxModel
from steering.adapters.cheap_decode import CheapDecode, LinearDecode, LowResolution, TinyDecode
from steering.adapters.checks import Refusal
from steering.adapters.conditioning import Handle
from steering.adapters.doors import Door, enter
from steering.adapters.pipeline import PipelineModel, adapt

__all__ = [
    "BlackBoxModel",
    "CheapDecode",
    "Door",
    "Handle",
    "LinearDecode",
    "LowResolution",
    "PipelineModel",
    "Refusal",
    "TinyDecode",
    "adapt",
    "enter",
]
