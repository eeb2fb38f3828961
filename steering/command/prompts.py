"""Prompts of a command, with what rewards may know of each beside its text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steering.command.options import UsageError
from steering.reward import Item


def read_prompts(prompt: Sequence[str], prompts_file: Path | None) -> list[Item]:
    """Prompts of the command line, then those of a file.

    A text file holds one a line; ``#`` starts a comment line. A file ``*.jsonl`` holds a JSON object a
    line with the key ``prompt``; its other keys are the prompt's metadata, as GenEval's prompt files
    have them. A file may also be named ``shapes:easy`` or ``shapes:hard`` for the embedded prompt sets.

    Raises:
        UsageError: no prompt, no such file, or a line of another form.
    """
    found = [Item(text) for text in prompt]
    if prompts_file is not None and str(prompts_file).startswith("shapes:"):
        from steering import shapes

        found += map(Item, shapes.prompts(str(prompts_file).removeprefix("shapes:")))
    elif prompts_file is not None:
        if not prompts_file.is_file():
            raise UsageError(f"there is no prompts file {str(prompts_file)!r}")
        lines = [line.strip() for line in prompts_file.read_text(encoding="utf-8").splitlines()]
        if prompts_file.suffix == ".jsonl":
            found += [_item(line, prompts_file, i) for i, line in enumerate(lines, 1) if line]
        else:
            found += [Item(line) for line in lines if line and not line.startswith("#")]
    if not found:
        raise UsageError(
            "no prompts: give --prompt TEXT (repeat it for more) or --prompts_file FILE"
        )
    return found


def _item(line: str, file: Path, number: int) -> Item:
    """A prompt with its metadata."""
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"line {number} of {file} is not JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise UsageError(
            f'line {number} of {file} must be a JSON object with the text "prompt", got {line[:80]!r}'
        )
    return Item(record.pop("prompt"), record)
