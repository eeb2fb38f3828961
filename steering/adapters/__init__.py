"""Adapters: an unmodified diffusers pipeline as a denoiser."""

from steering.adapters.checks import Refusal
from steering.adapters.conditioning import Handle
from steering.adapters.pipeline import PipelineModel, adapt

__all__ = ["Handle", "PipelineModel", "Refusal", "adapt"]
