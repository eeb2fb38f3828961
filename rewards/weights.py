"""Finding published weights: safetensors by default, pickles refused with what converts them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

Loaded = TypeVar("Loaded")

PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class WeightsUnavailable(OSError):
    """A model's files cannot be had: no network, no such id, or nothing in the cache."""


def conversion(source: str | Path, target: str | Path, layout: str = "plain") -> str:
    """Shell command that converts a pickled checkpoint, see `rewards.conversion`."""
    words = ["python", "-m", "rewards.conversion", str(source), str(target)]
    return " ".join(
        map(shlex.quote, [*words, *(["--layout", layout] if layout != "plain" else [])])
    )


def find_weights(
    source: str,
    names: Sequence[str],
    *,
    layout: str = "plain",
    allow_pickle: bool = False,
    cache_dir: str | None = None,
) -> Path:
    """The file with a model's weights.

    Args:
        source: a file, a folder, or a hub id "owner/name".
        names: files to look for in a folder or on the hub, the best first.
        layout: what `rewards.conversion` makes of a pickle.
        allow_pickle: take a pickle where nothing better is found; loaded with weights_only.
        cache_dir: where downloads are kept instead of the hub's cache.

    Raises:
        FileNotFoundError: the folder holds none of them, or there is no such file.
        ValueError: only a pickle is published, and it is not allowed; names the command.
        WeightsUnavailable: it can neither be downloaded nor found.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _checked(path, layout, allow_pickle)
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return _checked(path / name, layout, allow_pickle)
        held = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
        raise FileNotFoundError(f"{source!r} should hold {' or '.join(names)}, but holds {held}")
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise FileNotFoundError(
            f"there is no file or folder {source!r}, and it is no hub id of the form owner/name"
        )
    return _download(source, names, layout, allow_pickle, cache_dir)


def _download(
    source: str, names: Sequence[str], layout: str, allow_pickle: bool, cache_dir: str | None
) -> Path:
    from huggingface_hub import hf_hub_download

    pickles = [name for name in names if name.endswith(PICKLES)]
    wanted = [name for name in names if allow_pickle or name not in pickles]
    error: Exception | None = None
    for name in wanted:
        try:
            return Path(hf_hub_download(source, name, cache_dir=cache_dir))
        except (
            OSError
        ) as found:  # no such file there, no network, or offline: the next may be cached
            error = found
    if pickles and not allow_pickle:
        name = pickles[0]
        raise ValueError(
            f"{source!r} publishes {name}, a pickle, which can run code when loaded. Convert it once:\n"
            f"  hf download {source} {name} --local-dir weights\n"
            f"  {conversion(f'weights/{name}', f'weights/{_stem(name, layout)}', layout)}\n"
            "and give what that wrote as the model, or load it with allow_pickle=true (torch.load with "
            "weights_only)"
        )
    raise WeightsUnavailable(
        f"cannot get {' or '.join(wanted)} of {source!r}: {error}\n"
        "Without a network (or with HF_HUB_OFFLINE=1) it must be in the hub's cache already; else copy "
        "the file to this machine and give its path"
    ) from error


def _checked(path: Path, layout: str, allow_pickle: bool) -> Path:
    if path.suffix == ".safetensors" or (allow_pickle and path.suffix in PICKLES):
        return path
    if path.suffix not in PICKLES:
        raise ValueError(f"{path} is no weight file that is known here; use safetensors")
    target = path.with_name(_stem(path.name, layout))
    raise ValueError(
        f"{path} is a pickle, which can run code when loaded. Convert it once with\n"
        f"  {conversion(path, target, layout)}\n"
        f"and give {target} instead, or load it with allow_pickle=true (torch.load with weights_only)"
    )


def _stem(name: str, layout: str) -> str:
    """What a conversion writes: one file, or a folder where the layout needs more."""
    return str(Path(name).with_suffix(".safetensors" if layout == "plain" else ""))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, without the wrappings that training scripts leave."""
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapping in ("state_dict", "model", "module"):
        if isinstance(state.get(wrapping), dict):
            state = state[wrapping]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): v for name, v in tensors.items()}
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name, but {', '.join(map(str, state))}")
    return tensors


def from_transformers(
    load: Callable[..., Loaded], model: str, *, allow_pickle: bool | None = None, **options: Any
) -> Loaded:
    """Load a model or processor by a ``from_pretrained`` of transformers.

    Args:
        load: that method.
        model: hub id or folder.
        allow_pickle: whether weights may be a pickle; None for what has no weights.
        **options: passed on.

    Raises:
        ValueError: the weights are a pickle and that is not allowed; names the command.
        WeightsUnavailable: it can neither be downloaded nor found, or files are missing.
    """
    folder = Path(model).expanduser()
    if allow_pickle is False and folder.is_dir() and not list(folder.glob("*.safetensors")):
        for pickled in sorted(folder.glob("pytorch_model*.bin")):
            raise ValueError(
                f"{pickled} is a pickle, which can run code when loaded. Convert it once with\n"
                f"  {conversion(pickled, folder / 'model.safetensors')}\n"
                "or load it with allow_pickle=true (torch.load with weights_only)"
            )
    if allow_pickle is False:
        options["use_safetensors"] = True
    try:
        return load(str(folder) if folder.is_dir() else model, **options)
    except (OSError, ValueError) as error:
        raise WeightsUnavailable(
            f"cannot load {model!r} by transformers: {error}\n"
            "Without a network (or with HF_HUB_OFFLINE=1) it must be in the hub's cache already; else "
            "copy config.json, model.safetensors and the tokenizer and processor files to a folder and "
            "give that folder"
        ) from error
