"""Shared fixtures: tests are offline and pin the number of threads."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    """Calibrations and timings of a test never touch the user's cache."""
    monkeypatch.setenv("DIFFUSION_STEERING_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def shapes_sd():
    """The embedded Stable Diffusion."""
    return _load("StableDiffusionPipeline", "shapes-sd")


@pytest.fixture(scope="session")
def shapes_flux():
    """The embedded Flux."""
    return _load("FluxPipeline", "shapes-flux")


@pytest.fixture(scope="session")
def shapes_clip():
    """The embedded CLIP as a reward."""
    from rewards import ShapesCLIP

    return ShapesCLIP()


def _load(kind, name):
    import diffusers

    from steering import shapes

    pipe = getattr(diffusers, kind).from_pretrained(shapes.folder(name), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe
