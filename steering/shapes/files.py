"""What is shipped with the world of shapes: prompt sets and model folders."""

from pathlib import Path
from typing import Any

import torch

MODELS = ("shapes-sd", "shapes-flux", "shapes-clip", "shapes-video")
PROMPT_SETS = ("easy", "hard", "motion")

_HERE = Path(__file__).parent


def prompts(name: str) -> list[str]:
    """A fixed, shipped list of distinct prompts.

    Args:
        name: "easy": 512 prompts of the six kinds of GenEval. "hard": 128 prompts of the kinds
            "groups", "relation" and "chain", on which single samples rarely succeed. "motion": 128
            prompts of moving shapes, half of them of two.

    Raises:
        ValueError: for another name.
    """
    if name not in PROMPT_SETS:
        raise ValueError(f"unknown prompt set {name!r}; use one of {', '.join(PROMPT_SETS)}")
    return (_HERE / "data" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def folder(name: str) -> Path:
    """The folder of an embedded model.

    Args:
        name: "shapes-sd" (for `StableDiffusionPipeline.from_pretrained`), "shapes-flux" (for
            `FluxPipeline.from_pretrained`), "shapes-video" (for `AnimateDiffPipeline.from_pretrained`)
            or "shapes-clip" (for open_clip's "local-dir:" names).

    Raises:
        ValueError: for another name.
        FileNotFoundError: if the installation lacks the weights.
    """
    if name not in MODELS:
        raise ValueError(f"unknown embedded model {name!r}; use one of {', '.join(MODELS)}")
    path = _HERE / "weights" / name
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is missing: reinstall the package, or train the model with scripts/train_shapes.py"
        )
    return path


def load_clip(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[torch.nn.Module, Any]:
    """Loads shapes-clip for inference.

    Pictures in [0, 1], (B, 3, 64, 64), go into `model.encode_image` as `2 * pictures - 1`.

    Returns:
        The open_clip model (evaluation mode, gradients off) and its tokenizer: texts to (B, 24) ids.

    Raises:
        FileNotFoundError: as `folder`.
    """
    import open_clip  # heavy, and only needed here

    name = f"local-dir:{folder('shapes-clip')}"
    model = open_clip.create_model(name, device=str(device)).to(dtype)
    return model.eval().requires_grad_(False), open_clip.get_tokenizer(name)
