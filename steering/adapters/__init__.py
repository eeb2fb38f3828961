"""Adapters: an unmodified diffusers pipeline as a denoiser."""

from steering.adapters.black_box import BlackBoxModel
from steering.adapters.cheap_decode import CheapDecode, LinearDecode, LowResolution, TinyDecode
from steering.adapters.checks import Refusal
from steering.adapters.conditioning import Handle
from steering.adapters.doors import Door, Entered, enter
from steering.adapters.inverted_model import InvertedModel
from steering.adapters.pipeline import PipelineModel, adapt

__all__ = [
    "BlackBoxModel",
    "CheapDecode",
    "Door",
    "Entered",
    "Handle",
    "InvertedModel",
    "LinearDecode",
    "LowResolution",
    "PipelineModel",
    "Refusal",
    "TinyDecode",
    "adapt",
    "enter",
]
