"""A plain Python function as a reward."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from rewards.base import RewardModel
from steering.reward import Item


class PythonFunction(RewardModel):
    """Scores by ``fn(images, prompts)``: images ``(B, 3, H, W)`` in [0, 1], a list of ``B`` prompts.

    The function returns ``B`` numbers (tensor, array or list), higher is better.

    Args:
        fn: the function, or where it is: "package.module:attribute" or "path/to/file.py:attribute".
        name: the reward's name; the function's own by default.
        differentiable: whether gradients pass through it from the scores to the images.
        needs_text: refuse empty prompts.
        calls_per_row: models that it runs on each picture.

    Raises:
        ValueError: ``fn`` is text of another form, or names something that is no function.
        ImportError: its module cannot be imported.
    """

    def __init__(
        self,
        fn: str | Callable[[Tensor, list[str]], Any],
        *,
        name: str | None = None,
        differentiable: bool = False,
        needs_text: bool = False,
        calls_per_row: int = 1,
    ) -> None:
        super().__init__()
        self.fn = _resolve(fn) if isinstance(fn, str) else fn
        if not callable(self.fn):
            raise ValueError(f"a reward function must be callable, got {self.fn!r}")
        self.name = name or str(getattr(self.fn, "__name__", type(self.fn).__name__))
        self.differentiable = differentiable
        self.needs_text = needs_text
        self.calls_per_row = calls_per_row

    def featurize(self, item: Item) -> str:
        """The prompt itself."""
        return item.prompt

    def score(self, media: Tensor, features: Sequence[str]) -> Tensor:
        """What the function returns; the base class checks it."""
        return self.fn(media, list(features))


def _resolve(path: str) -> Any:
    module_name, colon, attribute = path.rpartition(":")
    if not colon or not module_name or not attribute:
        raise ValueError(
            f"cannot tell which function {path!r} is; write 'package.module:function' or "
            "'path/to/file.py:function'"
        )
    module = (
        _load_file(Path(module_name))
        if module_name.endswith(".py")
        else importlib.import_module(module_name)
    )
    if not hasattr(module, attribute):
        raise ValueError(f"{module_name!r} has no attribute {attribute!r} to score with")
    return getattr(module, attribute)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ImportError(f"there is no file {str(path)!r} to take a reward function from")
    # A name that hides no real module, and a place in sys.modules, where dataclasses look theirs up.
    spec = importlib.util.spec_from_file_location(f"reward_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
