"""Prompts that the user encoded: rows of ``prompt_embeds`` and of what goes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from steering.adapters.fingerprint import fingerprint

_PARTS = ("prompt_embeds", "prompt_attention_mask")


def is_embedding(name: str) -> bool:
    """Whether an argument of this name holds encoded prompts, or what goes with them."""
    return any(part in name for part in _PARTS) and not name.endswith("_scale")


@dataclass(frozen=True, eq=False)
class Embeds:
    """The encoding of one prompt; equal to another of the same numbers.

    Attributes:
        arguments: by name of the pipeline's argument: ``(1, ...)``, or a list of one row.
    """

    arguments: Mapping[str, Any]
    _told: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        told = fingerprint({name: self.arguments[name] for name in sorted(self.arguments)})
        object.__setattr__(self, "_told", told)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Embeds) and self._told == other._told

    def __hash__(self) -> int:
        return hash(self._told)

    @property
    def positive(self) -> bool:
        """Whether they stand for a prompt, not for a negative one alone."""
        return any(not name.startswith("negative") for name in self.arguments)

    @property
    def negative(self) -> bool:
        """Whether they stand for a negative prompt."""
        return any(name.startswith("negative") for name in self.arguments)

    def varied(self, index: int) -> Embeds:
        """Another encoding of the same form: numbers moved at random, masks as they are; 0 is itself."""
        if index == 0:
            return self
        random = torch.Generator().manual_seed(index)

        def moved(name: str, value: Any) -> Any:
            if isinstance(value, list):
                return [moved(name, entry) for entry in value]
            if "mask" in name or not value.is_floating_point():
                return value
            noise = torch.randn(value.shape, generator=random).to(value)
            return value + noise * value.float().std(correction=0).clamp(min=0.1).to(value)

        return Embeds({name: moved(name, value) for name, value in self.arguments.items()})


def take(call: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Encoded prompts among the arguments of a call, and the other arguments."""
    embedded = {k: v for k, v in call.items() if is_embedding(k) and v is not None}
    return embedded, {k: v for k, v in call.items() if not is_embedding(k)}


def count(embedded: Mapping[str, Any]) -> int | None:
    """How many prompts are encoded; None where only negative ones are.

    Raises:
        ValueError: arguments of unlike numbers of rows.
        TypeError: what is neither a tensor nor a list of tensors.
    """
    for name, value in embedded.items():
        entries = value if isinstance(value, list) else [value]
        if not all(torch.is_tensor(entry) for entry in entries):
            raise TypeError(
                f"{name} must be a tensor with a row for each prompt, or a list of tensors, got "
                f"{type(value).__name__}"
            )
    rows = {n: len(v) for n, v in embedded.items() if not n.startswith("negative")}
    if len(set(rows.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in rows.items())
        raise ValueError(f"encoded prompts must have a row for each prompt, got {told}")
    return next(iter(rows.values()), None)


def rows_of(embedded: Mapping[str, Any], prompts: int) -> list[Embeds] | None:
    """The encoding of each prompt; None where nothing is encoded.

    Args:
        embedded: arguments of all prompts; a single negative one serves all.
        prompts: how many there are.

    Raises:
        ValueError: another number of rows.
    """
    if not embedded:
        return None
    count(embedded)
    for name, value in embedded.items():
        if len(value) != prompts and not (name.startswith("negative") and len(value) == 1):
            raise ValueError(f"{name} has {len(value)} rows for {prompts} prompts; give one each")
    return [
        Embeds(
            {
                name: value[i : i + 1] if len(value) > 1 else value
                for name, value in embedded.items()
            }
        )
        for i in range(prompts)
    ]


def joined(rows: Sequence[Embeds]) -> dict[str, Any]:
    """Arguments of a call for these rows, of one form.

    Raises:
        ValueError: rows of unlike forms.
    """
    found: dict[str, Any] = {}
    for name in rows[0].arguments:
        values = [row.arguments[name] for row in rows]
        if isinstance(values[0], list):
            found[name] = [entry for value in values for entry in value]
        elif len({value.shape for value in values}) > 1:
            raise ValueError(f"rows of {name} of unlike shapes cannot share a call")
        else:
            found[name] = torch.cat(values)
    return found


def example_of(embedded: Mapping[str, Any]) -> dict[str, Any]:
    """The first row of each argument."""
    return {name: value[:1] for name, value in embedded.items()}


def form_of(value: Any) -> Any:
    """What of an encoding decides how a pipeline computes with it: shape and kind, not its numbers."""
    if isinstance(value, list):
        return [form_of(entry) for entry in value[:1]]
    return str(value.dtype), str(value.device), tuple(value.shape[1:])
