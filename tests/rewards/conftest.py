"""A tiny random CLIP model, as an object and as a folder in open_clip's form."""

import json
from dataclasses import asdict
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg
from safetensors.torch import save_file
from torch import Tensor

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
}
PREPROCESS = {**asdict(PreprocessCfg(size=32)), "mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.25]}


@pytest.fixture(scope="session")
def tokenizer():
    return open_clip.SimpleTokenizer()


@pytest.fixture
def net():
    """A random model; its outputs spread, since its weights are not small."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG).eval()
    open_clip.set_model_preprocess_cfg(model, PREPROCESS)
    return model


@pytest.fixture
def clip_folder(net, tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-clip"
    folder.mkdir()
    config = {"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(
        {k: v.contiguous() for k, v in net.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


def natural(rows: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Pictures like photographs: soft forms with a little grain, 8 bits, ``(rows, 3, H, W)``."""
    generator = torch.Generator().manual_seed(seed)
    forms = torch.rand(rows, 3, 7, 9, generator=generator)
    soft = torch.nn.functional.interpolate(forms, size=(height, width), mode="bicubic")
    grain = 0.03 * torch.randn(rows, 3, height, width, generator=generator)
    return ((soft * 0.8 + 0.1 + grain).clamp(0, 1) * 255).round().byte()


@pytest.fixture
def pictures():
    """Makes such pictures."""
    return natural
