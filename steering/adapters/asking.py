"""How a pipeline's own call is asked for some rows: by prompts, class labels, or their number alone."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from steering.adapters.checks import Refusal, signature_of
from steering.adapters.embeds import Embeds, joined, rows_of, take


class Pair(NamedTuple):
    """A prompt and its negative prompt, if any; or their encodings, of which the text is a name."""

    prompt: str
    negative: str | None = None
    embeds: Embeds | None = None


#: Arguments that say how many rows are wanted, the best first.
_COUNTS = ("prompt", "class_labels", "batch_size", "num_images_per_prompt", "num_videos_per_prompt")


def counted_by(pipe: Any) -> str:
    """The argument that says how many rows are wanted.

    Raises:
        Refusal: there is none.
    """
    known = signature_of(pipe)
    for name in _COUNTS:
        if name in known:
            return name
    raise Refusal(
        f"{type(pipe).__name__} takes none of the arguments {', '.join(_COUNTS)}, so it cannot be "
        "asked for several candidates"
    )


def ask(pipe: Any, pairs: Sequence[Pair], images: int = 1) -> dict[str, Any]:
    """Keyword arguments that ask for rows.

    Class-conditional pipelines read a prompt as the number or the name of a class; unconditional ones
    take no notice of it.

    Args:
        pipe: the pipeline.
        pairs: prompts with their negative prompts.
        images: rows of each, side by side.

    Returns:
        Arguments; None where there is nothing to say, and some that the pipeline may not know.

    Raises:
        Refusal: the pipeline cannot be asked for rows, or a prompt names no class.
    """
    by = counted_by(pipe)
    if by == "class_labels":
        return {by: [_label(pipe, pair.prompt) for pair in pairs for _ in range(images)]}
    if by != "prompt":
        return {by: len(pairs) * images}
    several = None if images == 1 else images
    encoded = [pair.embeds for pair in pairs if pair.embeds is not None]
    texts: Any = [pair.prompt for pair in pairs]
    negatives: Any = None if pairs[0].negative is None else [pair.negative for pair in pairs]
    if len(pairs) == 1:  # some pipelines take no lists
        texts, negatives = pairs[0].prompt, pairs[0].negative
    asked: dict[str, Any] = joined(encoded) if encoded else {}
    if not encoded or not encoded[0].positive:
        asked["prompt"] = texts
    if not encoded or not encoded[0].negative:
        asked["negative_prompt"] = negatives
    return {**asked, "num_images_per_prompt": several, "num_videos_per_prompt": several}


def probes(
    pipe: Any,
    call: Mapping[str, Any],
    texts: Sequence[str],
    negatives: Sequence[str | None] | None = None,
) -> list[Pair]:
    """Prompts to probe with.

    They are class labels where the pipeline wants those, and variations of the encoded prompt where
    the call has one.

    Args:
        pipe: the pipeline.
        call: its arguments shared by all prompts.
        texts: what to probe with otherwise.
        negatives: negative prompts, one each; None for none.
    """
    negatives = [None] * len(texts) if negatives is None else negatives
    if counted_by(pipe) == "class_labels":
        texts = [str(i % 2) for i in range(len(texts))]
    encoded = rows_of(take(call)[0], 1)
    return [
        Pair(text, negative, None if encoded is None else encoded[0].varied(i))
        for i, (text, negative) in enumerate(zip(texts, negatives, strict=True))
    ]


def pairs_of(
    call: Mapping[str, Any],
    texts: Sequence[str],
    negatives: Sequence[str | None],
    embeds: Sequence[Embeds] | None,
) -> list[Pair]:
    """Prompts as they are asked for.

    Args:
        call: arguments that the pipeline was learned with.
        texts: the prompts.
        negatives: their negative prompts.
        embeds: their encodings, where the pipeline was learned with such.

    Raises:
        ValueError: encodings are missing or too many.
    """
    if bool(take(call)[0]) != (embeds is not None):
        raise ValueError(
            "the model was learned "
            + ("with encoded prompts; give those" if embeds is None else "without encoded prompts")
        )
    return [
        Pair(text, negative, None if embeds is None else embeds[i])
        for i, (text, negative) in enumerate(zip(texts, negatives, strict=True))
    ]


def _label(pipe: Any, prompt: str) -> int:
    if prompt.strip().isdigit():
        return int(prompt)
    names = getattr(pipe, "labels", None) or {}
    if prompt not in names:
        near = difflib.get_close_matches(prompt, list(names), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise Refusal(
            f"{type(pipe).__name__} is conditioned on classes; a prompt must be the number or the "
            f"name of one, got {prompt!r}{hint}"
        )
    return int(names[prompt])
