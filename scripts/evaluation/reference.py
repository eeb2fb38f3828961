"""Statistics of a reference set: computed once, saved as safetensors with JSON in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from evaluation.models import Extractor
from steering.files import write_atomically

_FORMAT = "diffusion-steering reference statistics 1"


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of the features of one extractor.

    Attributes:
        extractor: its name.
        fingerprint: digest of its weights.
        count: pictures.
        mean: ``(D,)`` float64.
        covariance: ``(D, D)`` float64, of the sample (divided by count - 1).
        features: ``(count, D)``, or None where they were left out.
    """

    extractor: str
    fingerprint: str
    count: int
    mean: Tensor
    covariance: Tensor
    features: Tensor | None

    @classmethod
    def of(cls, extractor: Extractor, features: Tensor) -> Statistics:
        """Statistics of features ``(n, D)``."""
        wide = features.double()
        covariance = torch.cov(wide.T).reshape(wide.shape[1], -1)
        return cls(
            extractor.name, extractor.fingerprint, len(wide), wide.mean(0), covariance, features
        )

    def need_features(self) -> Tensor:
        """The features.

        Raises:
            ValueError: they were left out.
        """
        if self.features is None:
            raise ValueError(
                f"the reference statistics of {self.extractor!r} hold no features, only mean and "
                "covariance: KID, CMMD, precision and recall need them; save the statistics with "
                "features, or ask for --metrics fid"
            )
        return self.features


def save_statistics(path: Path, statistics: Sequence[Statistics], *, features: bool = True) -> None:
    """Write statistics of any number of extractors to one file.

    Args:
        path: a .safetensors file.
        statistics: what to write.
        features: keep the features; without them only FID can be computed.
    """
    tensors: dict[str, Tensor] = {}
    entries = []
    for i, one in enumerate(statistics):
        tensors |= {f"{i}.mean": one.mean, f"{i}.covariance": one.covariance}
        if features and one.features is not None:
            tensors[f"{i}.features"] = one.features.contiguous()
        entries.append(
            {"extractor": one.extractor, "fingerprint": one.fingerprint, "count": one.count}
        )
    header = {"format": _FORMAT, "statistics": json.dumps(entries, ensure_ascii=False)}
    content = save(tensors, header)
    write_atomically(path, lambda file: file.write(content))


def load_statistics(path: Path) -> list[Statistics]:
    """Read what `save_statistics` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r} of reference statistics")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise ValueError(
                    f"{path} holds no reference statistics (format {header.get('format')!r}); write "
                    "them with --reference FOLDER --save_statistics FILE"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    return [
        Statistics(
            entry["extractor"],
            entry["fingerprint"],
            entry["count"],
            tensors[f"{i}.mean"],
            tensors[f"{i}.covariance"],
            tensors.get(f"{i}.features"),
        )
        for i, entry in enumerate(json.loads(header["statistics"]))
    ]


def match(saved: Sequence[Statistics], extractors: Sequence[Extractor]) -> Mapping[str, Statistics]:
    """The statistics that each extractor may be compared with, by its name.

    Raises:
        ValueError: none are of an extractor with these weights.
    """
    found = {}
    for extractor in extractors:
        same = [one for one in saved if one.fingerprint == extractor.fingerprint]
        if not same:
            known = ", ".join(f"{one.extractor!r} (weights {one.fingerprint})" for one in saved)
            raise ValueError(
                f"the reference statistics are of {known or 'no extractor'}; they cannot be compared "
                f"with features of {extractor.name!r} (weights {extractor.fingerprint}). Choose the "
                "same --features and --clip, or save statistics of this one"
            )
        found[extractor.name] = same[0]
    return found
