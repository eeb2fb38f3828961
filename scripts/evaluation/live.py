"""Runs that are generated first: what follows ``--`` is a command line of ``steer generate``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from steering.command.main import main as steer


def split(words: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The script's own words, and those of each run."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "--":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts[0], parts[1:]


@contextmanager
def generated(commands: Sequence[Sequence[str]], state: PartialState) -> Iterator[list[str]]:
    """Generate the runs; gives their folders, and removes those without an ``--output`` of their own.

    Raises:
        ValueError: ``steer generate`` failed; it has said why.
    """
    scratch = [tempfile.mkdtemp(prefix="evaluate-") if commands and state.is_main_process else ""]
    if state.num_processes > 1 and commands:
        broadcast_object_list(scratch)
    taken: list[str] = []
    try:
        for words in commands:
            folder = value_of(words, "output")
            own = [] if folder else ["--output", str(Path(scratch[0]) / _name(words, taken))]
            folder = folder or own[1]
            status = steer(["generate", *words, *own])
            state.wait_for_everyone()
            if status:
                raise ValueError(f"steer generate {' '.join(words)} ended with status {status}")
            taken.append(folder)
        yield taken
    finally:
        if scratch[0] and state.is_main_process:
            shutil.rmtree(scratch[0], ignore_errors=True)


def value_of(words: Sequence[str], option: str) -> str | None:
    """What a command line gives for an option."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, given, value = word.partition("=")
        if name == f"--{option}":
            return value if given else following
    return None


def _name(words: Sequence[str], taken: Sequence[str]) -> str:
    """The sampler's, made distinct."""
    sampler = Path(value_of(words, "sampler") or "run").stem
    before = sum(Path(folder).name.split("@")[0] == sampler for folder in taken)
    return f"{sampler}@{before + 1}" if before else sampler
