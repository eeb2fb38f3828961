"""How a pipeline's own call is asked for some rows: by prompts, class labels, or their number alone."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from steering.adapters.checks import Refusal, signature_of

#: A prompt and its negative prompt, if any.
Pair = tuple[str, str | None]

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
        return {by: [_label(pipe, prompt) for prompt, _ in pairs for _ in range(images)]}
    if by != "prompt":
        return {by: len(pairs) * images}
    several = None if images == 1 else images
    texts: Any = [prompt for prompt, _ in pairs]
    negatives: Any = None if pairs[0][1] is None else [negative for _, negative in pairs]
    if len(pairs) == 1:  # some pipelines take no lists
        texts, negatives = pairs[0]
    return {
        "prompt": texts,
        "negative_prompt": negatives,
        "num_images_per_prompt": several,
        "num_videos_per_prompt": several,
    }


def probes(pipe: Any, texts: Sequence[str]) -> list[str]:
    """Prompts to probe with: these texts, or class labels where the pipeline wants those."""
    if counted_by(pipe) == "class_labels":
        return [str(i % 2) for i in range(len(texts))]
    return list(texts)


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
