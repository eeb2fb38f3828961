"""Scores that a model writes down as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rewards.base import Residency, RewardModel
from rewards.caching import Bounded, digest, levels
from rewards.embedding import Precision
from rewards.vision_language import VisionLanguageModel
from rewards.vqa import asked
from steering.reward import Item

_ANSWERS = 16384  #: answers that are kept
_QUESTION = (
    "Look at the picture, which was made for this text: {prompt}\n"
    "Answer with one JSON object and nothing else. Its fields are numbers: {fields}."
)


class JSONJudge(RewardModel):
    """Mean of the marks that an image-text-to-text model gives, each rescaled to [0, 1].

    Columns are the marks as given. Answers are the likeliest ones (no sampling), are checked, stay
    with their picture whatever the batch, and are kept by content of picture and question.

    Args:
        model: hub id or folder.
        fields: least and greatest mark of each field, a pair.
        question: with ``{prompt}`` and ``{fields}`` in it; further ones come from the metadata.
        invalid: what an answer that is no such JSON means: "error", or "lowest": all marks least.
        max_new_tokens: of an answer.
        batch_limit: most pictures at once.
        allow_pickle: load weights that are not safetensors.
        dtype: precision of the weights.
        device: as in `RewardModel`.
        residency: as in `RewardModel`.
        cache_dir: where downloads are kept instead of the hub's cache.

    Raises:
        ValueError: no fields, one without a range or named like the reward, or a question without
            ``{prompt}``.
        WeightsUnavailable: as `rewards.weights.from_transformers`.
    """

    needs_text = True
    range = (0.0, 1.0)

    def __init__(
        self,
        model: str,
        fields: dict[str, list[float]],
        *,
        question: str = _QUESTION,
        invalid: Literal["error", "lowest"] = "error",
        max_new_tokens: int = 128,
        batch_limit: int = 8,
        allow_pickle: bool = False,
        dtype: Precision = "float32",
        device: str | None = None,
        residency: Residency = "resident",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(device=device, residency=residency)
        self.name = f"judge-{Path(model).name}"
        if not fields or not all(len(f) == 2 and f[0] < f[1] for f in fields.values()):
            raise ValueError(f"fields need a least and a greater mark each, got {fields}")
        if self.name in fields:
            raise ValueError(f"the field {self.name!r} is named like the reward; rename it")
        if "{prompt}" not in question:
            raise ValueError(f"the question must hold {{prompt}}, got {question!r}")
        if invalid not in ("error", "lowest"):
            raise ValueError(f"invalid is 'error' or 'lowest', got {invalid!r}")
        self.judge = VisionLanguageModel.load(
            model,
            allow_pickle=allow_pickle,
            dtype=dtype,
            cache_dir=cache_dir,
            place=(device, residency),
        )
        self.fields = {name: (float(low), float(high)) for name, (low, high) in fields.items()}
        self.question, self.invalid = question, invalid
        self.max_new_tokens, self.batch_limit = max_new_tokens, batch_limit
        self._known: Bounded[tuple[bytes, str], dict[str, float]] = Bounded(_ANSWERS)

    def featurize(self, item: Item) -> str:
        """The question about this prompt; raises as `rewards.vqa.asked`."""
        told = ", ".join(
            f'"{k}" from {low:g} to {high:g}' for k, (low, high) in self.fields.items()
        )
        return asked(self.question, Item(item.prompt, {**item.metadata, "fields": told}))

    def score(self, media: Tensor, features: Sequence[str]) -> Mapping[str, Tensor]:
        """Marks ``(B,)`` by field, and their mean.

        Raises:
            ValueError: an answer is no such JSON, and that is an error.
        """
        pictures = levels(media)
        keys = [(digest(p), question) for p, question in zip(pictures, features, strict=True)]

        def make(rows: list[int]) -> list[dict[str, float]]:
            asked_of = [features[row] for row in rows]
            told = self.judge.answers(pictures[rows], asked_of, self.max_new_tokens)
            return [self._marks(answer) for answer in told]

        marks = self._known.filled(keys, make)
        columns = {
            name: torch.tensor([mark[name] for mark in marks], device=media.device)
            for name in self.fields
        }
        spans = self.fields.items()
        parts = [(columns[name] - low) / (high - low) for name, (low, high) in spans]
        return {**columns, self.name: torch.stack(parts).mean(0)}

    def _marks(self, answer: str) -> dict[str, float]:
        try:
            return read_marks(answer, self.fields)
        except ValueError:
            if self.invalid == "error":
                raise
            return {name: low for name, (low, _) in self.fields.items()}


def read_marks(answer: str, fields: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The marks in an answer: the first JSON object in it, whatever stands around.

    Args:
        answer: what the model wrote.
        fields: least and greatest mark of each field.

    Raises:
        ValueError: there is none, a field is missing, or a mark is no number within its bounds.
    """
    start, record = answer.find("{"), None
    while start >= 0 and record is None:
        try:
            record, _ = json.JSONDecoder().raw_decode(answer, start)
        except json.JSONDecodeError:
            start = answer.find("{", start + 1)
    wanted = ", ".join(f"{name} in [{low:g}, {high:g}]" for name, (low, high) in fields.items())
    if not isinstance(record, dict):
        raise ValueError(f"the judge wrote no JSON object with {wanted}, but {answer!r}")
    marks = {name: _mark(record.get(name)) for name in fields}
    for name, (low, high) in fields.items():
        if not low <= marks[name] <= high:
            raise ValueError(
                f"the judge gave {record.get(name)!r} for {name!r}; expected {wanted}; "
                f"it wrote {answer!r}"
            )
    return marks


def _mark(value: Any) -> float:
    """A number, or NaN for anything else (true and "7" are no numbers)."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else math.nan
