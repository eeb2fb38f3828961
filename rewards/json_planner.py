"""A vision-language model that lists what is wrong with a picture, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from rewards.caching import Bounded, digest, levels
from rewards.embedding import Precision
from rewards.vision_language import VisionLanguageModel
from rewards.vqa import asked
from steering.flaws import Flaw
from steering.reward import Item

_ANSWERS = 16384  #: answers that are kept
_KINDS = ("missing", "extra", "wrong", "relation", "quality")
_QUESTION = (
    "The picture was made for this text: {prompt}\n"
    "Compare both. List what is wrong, the most important first, at most {most} flaws, or none if the "
    "picture is right. Answer with one JSON object and nothing else:\n"
    '{{"flaws": [{{"kind": "missing", "instruction": "add a red cup", "target": "a red cup", '
    '"box": [0.1, 0.5, 0.3, 0.9]}}]}}\n'
    "kind is one of {kinds}; instruction orders one edit; target says what the box should show; box "
    "is [left, top, right, bottom] in fractions of the picture, or null for the whole of it."
)


class JSONPlanner:
    """Flaws that an image-text-to-text model of transformers writes down as JSON.

    Answers are the likeliest ones (no sampling), are checked, stay with their picture whatever the
    batch, and are kept by content of picture and question.

    Args:
        model: hub id or folder.
        most: flaws of one picture; further ones are left out.
        question: with ``{prompt}`` in it, and braces of JSON doubled; ``{most}`` and ``{kinds}`` are
            known, further fields come from the metadata.
        invalid: what an answer that is no such JSON means: "error", or "redo": one flaw that asks
            for the whole picture to be made anew. It never means that the picture is right.
        max_new_tokens: of an answer.
        batch_limit: most pictures at once.
        allow_pickle: load weights that are not safetensors.
        dtype: precision of the weights.
        device: where the weights live; None: where they are loaded.
        cache_dir: where downloads are kept instead of the hub's cache.

    Raises:
        ValueError: a question without ``{prompt}``, or numbers that make no sense.
        WeightsUnavailable: as `rewards.weights.from_transformers`.
    """

    calls_per_row = 1

    def __init__(
        self,
        model: str,
        *,
        most: int = 5,
        question: str = _QUESTION,
        invalid: Literal["error", "redo"] = "error",
        max_new_tokens: int = 512,
        batch_limit: int = 8,
        allow_pickle: bool = False,
        dtype: Precision = "float32",
        device: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        if "{prompt}" not in question:
            raise ValueError(f"the question must hold {{prompt}}, got {question!r}")
        if invalid not in ("error", "redo"):
            raise ValueError(f"invalid is 'error' or 'redo', got {invalid!r}")
        for name, value in (("most", most), ("batch_limit", batch_limit)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.judge = VisionLanguageModel.load(
            model,
            allow_pickle=allow_pickle,
            dtype=dtype,
            cache_dir=cache_dir,
            place=(device, "resident"),
        )
        if device is not None:
            self.judge.to(device)
        self.model = model
        self.most, self.question, self.invalid = most, question, invalid
        self.max_new_tokens, self.batch_limit = max_new_tokens, batch_limit
        self._known: Bounded[tuple[bytes, str], list[Flaw]] = Bounded(_ANSWERS)

    def __repr__(self) -> str:
        told = (self.model, self.most, self.question, self.invalid, self.max_new_tokens)
        return f"JSONPlanner{told!r}"

    def plan(self, pictures: Tensor, items: Sequence[Item]) -> list[list[Flaw]]:
        """See `steering.flaws.Planner`.

        Raises:
            ValueError: an answer is no such JSON, and that is an error.
        """
        told = {"most": self.most, "kinds": ", ".join(_KINDS)}
        questions = [asked(self.question, Item(i.prompt, {**i.metadata, **told})) for i in items]
        rows = levels(pictures)
        keys = [(digest(row), question) for row, question in zip(rows, questions, strict=True)]

        def make(places: list[int]) -> list[list[Flaw]]:
            found: list[list[Flaw]] = []
            for first in range(0, len(places), self.batch_limit):
                some = places[first : first + self.batch_limit]
                texts = [questions[place] for place in some]
                answers = self.judge.answers(rows[some], texts, self.max_new_tokens)
                found += [self._read(answer) for answer in answers]
            return found

        return [list(plan) for plan in self._known.filled(keys, make)]

    def _read(self, answer: str) -> list[Flaw]:
        try:
            return read_flaws(answer)[: self.most]
        except ValueError:
            if self.invalid == "error":
                raise
            return [Flaw("unreadable", "make the picture anew, as the text asks")]


def read_flaws(answer: str) -> list[Flaw]:
    """The flaws in an answer: its first JSON object with a list ``flaws``, whatever stands around.

    Raises:
        ValueError: there is none, or a flaw in it is not of the form that was asked for.
    """
    start, record = answer.find("{"), None
    while start >= 0 and not (isinstance(record, dict) and isinstance(record.get("flaws"), list)):
        try:
            record, _ = json.JSONDecoder().raw_decode(answer, start)
        except json.JSONDecodeError:
            record = None
        start = answer.find("{", start + 1)
    if not isinstance(record, dict) or not isinstance(record.get("flaws"), list):
        raise ValueError(f"the judge wrote no JSON object with a list 'flaws', but {answer!r}")
    return [_flaw(entry, answer) for entry in record["flaws"]]


def _flaw(entry: Any, answer: str) -> Flaw:
    wrong = f"the judge listed {entry!r}; it wrote {answer!r}"
    if not isinstance(entry, dict):
        raise ValueError(f"a flaw must be an object with kind, instruction, target, box: {wrong}")
    instruction, target = entry.get("instruction"), entry.get("target") or ""
    if not isinstance(instruction, str) or not instruction.strip():
        raise ValueError(f"a flaw needs an instruction in words: {wrong}")
    if entry.get("kind") not in _KINDS or not isinstance(target, str):
        raise ValueError(f"a flaw's kind is one of {', '.join(_KINDS)}, its target a text: {wrong}")
    box = entry.get("box")
    if box is None:
        return Flaw(entry["kind"], instruction, target)
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"a box is [left, top, right, bottom] or null: {wrong}")
    try:
        left, top, right, bottom = map(float, box)
        return Flaw(entry["kind"], instruction, target, ((left, top, right, bottom),))
    except ValueError as error:
        raise ValueError(f"{error}: {wrong}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
