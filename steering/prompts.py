"""Prompts as a user gives them: texts, or encodings with texts beside, and what belongs to each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steering.adapters.embeds import count, rows_of, take
from steering.reward import Item, Reward


def texts_of(
    prompt: str | Sequence[str] | None, call: Mapping[str, Any], rewards: Sequence[Reward]
) -> list[str]:
    """The prompts as rewards read them; empty ones where they are encoded and no reward reads.

    Args:
        prompt: one or several; None where only encodings are given.
        call: the pipeline's arguments, encoded prompts among them.
        rewards: what may read prompts.

    Raises:
        TypeError: a reward reads prompts, and there are encodings alone; or something is no text.
        ValueError: no prompts, or another number than of encodings.
    """
    embedded = take(call)[0]
    encoded = count(embedded)
    if prompt is None and encoded is not None:
        reader = next((r.name for r in rewards if getattr(r, "needs_text", False)), None)
        if reader is not None:
            raise TypeError(
                f"reward {reader!r} reads the prompt, which prompt_embeds alone do not tell; give "
                "prompt= with a text for each of them beside"
            )
        return [""] * encoded
    prompts = check_prompts(prompt if prompt is not None else [])
    rows_of(embedded, len(prompts))  # as many encodings, before any work
    return prompts


def check_prompts(prompt: str | Sequence[str]) -> list[str]:
    """The prompts as a list.

    Raises:
        ValueError: no prompt.
        TypeError: something is no text.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("no prompts: give at least one text")
    for i, p in enumerate(prompts):
        if not isinstance(p, str):
            raise TypeError(f"prompt {i} must be a text, got {type(p).__name__}: {p!r}")
    return prompts


def items_of(prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None) -> list[Item]:
    """What rewards may know of each prompt.

    Raises:
        ValueError: other numbers of prompts and metadata.
    """
    if metadata is None:
        return [Item(p) for p in prompts]
    if len(metadata) != len(prompts):
        raise ValueError(f"{len(metadata)} metadata for {len(prompts)} prompts; give one each")
    return [Item(p, m) for p, m in zip(prompts, metadata, strict=True)]


def per_prompt(negative: str | Sequence[str] | None, count: int) -> list[str] | None:
    """A negative prompt for each of ``count`` prompts, or none at all.

    Raises:
        ValueError: another number.
    """
    if negative is None:
        return None
    texts = [negative] * count if isinstance(negative, str) else list(negative)
    if len(texts) != count:
        raise ValueError(
            f"{len(texts)} negative prompts for {count} prompts; give one, or one each"
        )
    return texts
