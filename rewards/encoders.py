"""Contrastive image-text models of open_clip: loading by name, hub id or folder, and embedding."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained_from_hf
from torch import Tensor

from rewards.caching import fingerprint, shared
from rewards.embedding import Encoder, Precision
from rewards.preprocessing import Preprocess
from rewards.weights import WeightsUnavailable, load_tensors

_CONFIG = "open_clip_config.json"
_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
)
_PICKLES = (".bin", ".pt", ".pth")
_HUB, _LOCAL = "hf-hub:", "local-dir:"


class OpenClipEncoder(Encoder):
    """Embeds pictures and texts in one space (Radford et al. 2021, https://arxiv.org/abs/2103.00020).

    Args:
        net: an open_clip model; it is frozen and set to evaluation.
        tokenizer: its tokenizer.
        dtype: precision of the weights; embeddings are float32 always.
    """

    def __init__(self, net: Any, tokenizer: Any, *, dtype: Precision = "float32") -> None:
        preprocess = Preprocess.from_config(open_clip.get_model_preprocess_cfg(net))
        super().__init__(net, preprocess, dtype)
        self.net: Any
        self.tokenizer = tokenizer

    @classmethod
    def load(
        cls,
        model: str,
        pretrained: str | None = None,
        *,
        allow_pickle: bool = False,
        cache_dir: str | None = None,
        dtype: Precision = "float32",
    ) -> OpenClipEncoder:
        """Load a model by name.

        Args:
            model: a built-in name of open_clip ("ViT-L-14"), a hub id ("hf-hub:org/name", or just
                "org/name"), or a folder with open_clip_config.json and a safetensors file.
            pretrained: with a built-in name: open_clip's tag of the weights, or a safetensors file (the
                name must then be the right one of "ViT-L-14" and "ViT-L-14-quickgelu").
            allow_pickle: load .bin, .pt and .pth files too, by torch.load with weights_only.
            cache_dir: where downloads are kept instead of the hub's cache.
            dtype: as above.

        Raises:
            ValueError: unknown model or tag, or weights that are not safetensors.
            FileNotFoundError: a folder that lacks a file.
            WeightsUnavailable: the weights can neither be downloaded nor found in the cache.
        """
        source = _source(model, pretrained)
        from_file = pretrained is not None and Path(pretrained).is_file()
        tag = _tag(source, pretrained) if pretrained and not from_file else {}
        try:
            weights = _weights(source, pretrained, tag, cache_dir)
            _check_format(weights, allow_pickle)
            with _without_alarm():
                net = open_clip.create_model(
                    source,
                    load_weights=False,
                    pretrained_text=False,
                    # open_clip only warns when the weights of a tag were trained with QuickGELU and
                    # the architecture of that name has none ("ViT-L-14", "openai"): scores would be
                    # wrong.
                    force_quick_gelu=bool(tag.get("quick_gelu")),
                    force_preprocess_cfg=tag,
                    cache_dir=cache_dir,
                )
            tokenizer = open_clip.get_tokenizer(source, cache_dir=cache_dir)
        except (OSError, RuntimeError) as error:
            if source.startswith(_LOCAL):
                raise
            raise _unavailable(model, pretrained, error) from error
        open_clip.load_checkpoint(net, str(weights), weights_only=True)
        return cls(net, tokenizer, dtype=dtype)

    @classmethod
    def of_file(
        cls, weights: Path, config: Mapping[str, Any], *, dtype: Precision = "float32"
    ) -> OpenClipEncoder:
        """Load a weight file of a known architecture.

        Args:
            weights: safetensors, or a pickle that the caller allows.
            config: the content of an open_clip_config.json; one beside the file goes before it.
            dtype: precision of the weights.

        Raises:
            ValueError: the file holds the weights of something else.
        """
        beside = weights.parent / _CONFIG
        if beside.is_file():
            config = json.loads(beside.read_text(encoding="utf-8"))
        net = open_clip.CLIP(**config["model_cfg"])
        open_clip.set_model_preprocess_cfg(net, dict(config["preprocess_cfg"]))
        try:
            net.load_state_dict(load_tensors(weights), strict=True)
        except RuntimeError as error:
            raise ValueError(
                f"{weights} does not hold the weights of this model: {error}"
            ) from error
        text = config["model_cfg"]["text_cfg"]
        tokenizer = open_clip.SimpleTokenizer(context_length=text.get("context_length", 77))
        return cls(net, tokenizer, dtype=dtype)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Embeddings ``(B, D)`` of preprocessed pictures."""
        device, dtype = self.place
        return self.net.encode_image(pixels.to(device, dtype)).float()

    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings ``(n, D)`` of texts; not normalised."""
        return self.net.encode_text(self.tokenizer(list(prompts)).to(self.place[0])).float()


@dataclass(frozen=True)
class OpenClipSource:
    """Which model of open_clip, and how it is kept; equal ones share one encoder while it lives.

    Attributes:
        model: built-in name, hub id or folder; see `OpenClipEncoder.load`, also for what it raises.
        pretrained: tag or file of the weights, with a built-in name.
        allow_pickle: load weights that are not safetensors.
        dtype: precision of the weights.
        device: of the reward that asks.
        residency: of the reward that asks.
        cache_dir: where downloads are kept instead of the hub's cache.
    """

    model: str
    pretrained: str | None = None
    allow_pickle: bool = False
    dtype: Precision = "float32"
    device: str | None = None
    residency: str = "resident"
    cache_dir: str | None = None

    def encoder(self) -> OpenClipEncoder:
        """The one encoder of this source."""
        return shared(
            (self, fingerprint(self.model), fingerprint(self.pretrained)),
            lambda: OpenClipEncoder.load(
                self.model,
                self.pretrained,
                allow_pickle=self.allow_pickle,
                cache_dir=self.cache_dir,
                dtype=self.dtype,
            ),
        )


@contextlib.contextmanager
def _without_alarm() -> Iterator[None]:
    """Leave out open_clip's warning of random weights; they are loaded right afterwards."""

    def other(record: logging.LogRecord) -> bool:
        return "Model initialized randomly" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)


def _source(model: str, pretrained: str | None) -> str:
    """The name in open_clip's own form, checked."""
    folder = Path(model.removeprefix(_LOCAL)).expanduser()
    if folder.is_dir():
        source = f"{_LOCAL}{folder}"
    elif model.startswith((_LOCAL, "/", "./", "../", "~")):
        raise FileNotFoundError(f"there is no folder {str(folder)!r} to load a CLIP model from")
    elif model in open_clip.list_models():
        if pretrained is None:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
            raise ValueError(
                f"model {model!r} needs pretrained=…: a file, or one of the tags {tags}"
            )
        return model
    elif "/" in model:
        source = model if model.startswith(_HUB) else _HUB + model
    else:
        near = difflib.get_close_matches(model, open_clip.list_models(), n=3, cutoff=0.4)
        raise ValueError(
            f"unknown CLIP model {model!r}; nearest names of open_clip: {', '.join(near) or 'none'}; "
            "or give a hub id (org/name) or a folder"
        )
    if pretrained is not None:
        raise ValueError(
            f"pretrained={pretrained!r} goes with a built-in name only; {model!r} brings its own "
            "weights: set pretrained to null"
        )
    return source


def _tag(name: str, pretrained: str) -> dict[str, Any]:
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if not tag:
        raise ValueError(
            f"pretrained={pretrained!r} is neither a file nor a tag of {name!r}; its tags: "
            f"{', '.join(open_clip.list_pretrained_tags_by_model(name)) or 'none'}"
        )
    return dict(tag)


def _weights(
    source: str, pretrained: str | None, tag: dict[str, Any], cache_dir: str | None
) -> Path:
    """The file with the weights, downloaded if need be."""
    if source.startswith(_LOCAL):
        return _weights_in(Path(source.removeprefix(_LOCAL)))
    if source.startswith(_HUB):
        return Path(download_pretrained_from_hf(source.removeprefix(_HUB), cache_dir=cache_dir))
    return Path(open_clip.download_pretrained(tag, cache_dir=cache_dir) if tag else str(pretrained))


def _weights_in(folder: Path) -> Path:
    present = sorted(
        path for path in folder.iterdir() if path.suffix in (".safetensors", *_PICKLES)
    )
    if not (folder / _CONFIG).is_file() or not present:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"a CLIP folder holds {_CONFIG} and {_WEIGHTS[0]}; {str(folder)!r} holds {found}"
        )
    # The usual names first, and any safetensors file before a pickle.
    rank = {name: place for place, name in enumerate(_WEIGHTS)}
    return min(
        present, key=lambda path: (path.suffix != ".safetensors", rank.get(path.name, 9), path.name)
    )


def _check_format(weights: Path, allow_pickle: bool) -> None:
    if weights.suffix == ".safetensors" or (allow_pickle and weights.suffix in _PICKLES):
        return
    if weights.suffix not in _PICKLES:
        raise ValueError(f"{weights} is no weight file that is known here; use safetensors")
    raise ValueError(
        f"{weights} is a pickle, which can run code when loaded. Convert it once with\n"
        f"  {conversion_command(weights)}\n"
        "or load it with allow_pickle=true (torch.load with weights_only)"
    )


def conversion_command(weights: Path) -> str:
    """Shell command that writes a pickled checkpoint as safetensors beside it."""
    code = (
        "import sys; from open_clip.factory import load_state_dict as load; "
        "from safetensors.torch import save_file as save; "
        "save({k: v.clone().contiguous() for k, v in load(sys.argv[1]).items()}, sys.argv[2])"
    )
    words = ["python", "-c", code, str(weights), str(weights.with_suffix(".safetensors"))]
    return " ".join(shlex.quote(word) for word in words)


def _unavailable(model: str, pretrained: str | None, error: Exception) -> WeightsUnavailable:
    weights = f" with the weights {pretrained!r}" if pretrained else ""
    return WeightsUnavailable(
        f"cannot load the CLIP model {model!r}{weights}: {error}\n"
        "Without a network (or with HF_HUB_OFFLINE=1) it must be in the hub's cache already; else copy "
        f"{_CONFIG} and {_WEIGHTS[0]} to a folder and give that folder as the model"
    )
