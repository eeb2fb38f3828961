"""What is evaluated: folders of pictures with prompts and kinds, checked before any model loads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from steering import shapes
from steering.media import common_size, list_pictures, read_metadata

_SHAPES_SIZE = (64, 64)


@dataclass(frozen=True)
class Run:
    """One folder.

    Attributes:
        name: what the tables call it.
        pictures: its files, sorted by path.
        names: the same relative to the folder.
        prompts: one a picture; empty if none are needed.
        kinds: one a picture, "" where unknown.
        known: what rewards may know of a prompt beside its text, by prompt.
    """

    name: str
    pictures: list[Path]
    names: list[str]
    prompts: list[str]
    kinds: list[str]
    known: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of its pictures."""
        return common_size(self.pictures)

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Indices of any two pictures of one prompt."""
        places: dict[str, list[int]] = {}
        for i, prompt in enumerate(self.prompts):
            places.setdefault(prompt, []).append(i)
        return [
            (a, b) for same in places.values() for n, a in enumerate(same) for b in same[n + 1 :]
        ]

    @property
    def of_shapes(self) -> bool:
        """Whether the exact verifier of the shapes world can judge it."""
        known = bool(self.prompts) and not outside_grammar(self.prompts)
        return known and self.size == _SHAPES_SIZE


def read_run(
    folder: str, name: str, *, prompts: str | None, kinds: str | None, with_prompts: bool
) -> Run:
    """List and check a folder.

    Args:
        folder: with pictures of one size.
        name: for the tables.
        prompts: file of prompts instead of those in the PNG files.
        kinds: file of kinds by prompt, and of metadata if it is one of JSON lines.
        with_prompts: whether prompts are needed.

    Raises:
        NotADirectoryError, FileNotFoundError: no folder, or no pictures in it.
        ValueError: sizes differ, prompts are missing or do not fit.
    """
    pictures = list_pictures(folder)
    names = [path.relative_to(Path(folder).expanduser()).as_posix() for path in pictures]
    common_size(pictures)
    if not with_prompts:
        return Run(name, pictures, names, [], [])
    inside = [read_metadata(path) for path in pictures]
    texts = _from_file(Path(prompts), pictures) if prompts else _from_inside(pictures, inside)
    table, known = _read_kinds(Path(kinds)) if kinds else ({}, {})
    found = [
        table.get(text) or tags.get("kind") or _grammar_kind(text)
        for text, tags in zip(texts, inside, strict=True)
    ]
    written = {
        text: json.loads(tags["metadata"])
        for text, tags in zip(texts, inside, strict=True)
        if "metadata" in tags
    }
    return Run(name, pictures, names, texts, found, written | known)


def run_names(folders: Sequence[str]) -> list[str]:
    """Last parts of the paths, or the paths where these are not distinct."""
    short = [Path(folder).resolve().name for folder in folders]
    often = Counter(short)
    return [f if often[s] > 1 else s for f, s in zip(folders, short, strict=True)]


def outside_grammar(prompts: Sequence[str]) -> list[str]:
    """Prompts that the shapes world does not know."""
    return [prompt for prompt in prompts if not _grammar_kind(prompt)]


def _grammar_kind(prompt: str) -> str:
    try:
        return shapes.kind(prompt)
    except ValueError:
        return ""


def _from_inside(pictures: Sequence[Path], inside: Sequence[Mapping[str, str]]) -> list[str]:
    texts = [tags.get("prompt", "") for tags in inside]
    missing = [path.name for path, text in zip(pictures, texts, strict=True) if not text.strip()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(pictures)} pictures have no prompt written inside "
            f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}); give --prompts FILE, or "
            "--clip null and metrics that need no prompts, such as fid"
        )
    return texts


def _from_file(file: Path, pictures: Sequence[Path]) -> list[str]:
    content = _read(file, "prompts")
    try:
        given = json.loads(content) if file.suffix == ".json" else content.splitlines()
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if isinstance(given, dict):
        missing = [path.name for path in pictures if path.name not in given]
        if missing:
            raise ValueError(f"{file} has no prompt for {len(missing)} pictures, say {missing[0]}")
        given = [given[path.name] for path in pictures]
    if not isinstance(given, list) or not all(
        isinstance(text, str) and text.strip() for text in given
    ):
        raise ValueError(
            f"{file} must hold texts, none of them empty: a list, or file name to prompt"
        )
    if len(given) != len(pictures):
        raise ValueError(f"{file} has {len(given)} prompts for {len(pictures)} pictures")
    return given


def _read_kinds(file: Path) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Kinds by prompt, and metadata by prompt."""
    content = _read(file, "kinds")
    known: dict[str, dict[str, Any]] = {}
    try:
        if file.suffix == ".jsonl":
            lines = [json.loads(line) for line in content.splitlines() if line.strip()]
            found = {line["prompt"]: line["tag"] for line in lines}
            known = {line["prompt"]: {k: line[k] for k in line if k != "prompt"} for line in lines}
        else:
            found = json.loads(content)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} must hold kinds by prompt: a JSON object from prompt to kind, or lines of JSON "
            f"with the keys prompt and tag as GenEval's (.jsonl): {error!r}"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(kind, str) for kind in found.values()):
        raise ValueError(f"{file} must hold a JSON object from prompt to kind")
    return found, known


def _read(file: Path, what: str) -> str:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {str(file)!r} of {what}")
    return file.read_text(encoding="utf-8")
