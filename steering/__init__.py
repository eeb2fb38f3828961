"""Inference-time search and steering for unmodified diffusers pipelines."""

__version__ = "0.1.0"
