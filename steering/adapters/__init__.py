"""Adapters: an unmodified diffusers pipeline as a denoiser."""

from steering.adapters.cheap_decode import CheapDecode, LinearDecode, LowResolution, TinyDecode
from steering.adapters.checks import Refusal
from steering.adapters.conditioning import Handle
from steering.adapters.pipeline import PipelineModel, adapt

__all__ = [
    "CheapDecode",
    "Handle",
    "LinearDecode",
    "LowResolution",
    "PipelineModel",
    "Refusal",
    "TinyDecode",
    "adapt",
]
