"""The trace of a run: what was decided at each step, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from steering.snapshots import Snapshot


@dataclass
class Trace:
    """Records of one search, in order; plain Python values, ready for JSON.

    Attributes:
        records: what was decided.
        snapshots: small copies of what was scored; only where the engine is asked for thumbnails.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)

    def record(self, **fields: Any) -> None:
        """Append one record; tensors become lists."""
        self.records.append({name: _plain(value) for name, value in fields.items()})

    def column(self, name: str) -> list[Any]:
        """Values of one field over the records that have it."""
        return [r[name] for r in self.records if name in r]

    def first_difference(self, other: Trace) -> dict[str, Any] | None:
        """The first decision in which two runs differ, or None.

        Decisions are ``ancestors`` and ``chosen``; scores that differ by rounding do not count.
        """
        for i, (a, b) in enumerate(zip(self.records, other.records, strict=False)):
            for name in ("ancestors", "chosen"):
                if a.get(name) != b.get(name):
                    return {
                        "record": i,
                        "decision": name,
                        "here": a.get(name),
                        "there": b.get(name),
                    }
        if len(self.records) != len(other.records):
            return {
                "record": min(len(self.records), len(other.records)),
                "decision": "length",
                "here": len(self.records),
                "there": len(other.records),
            }
        return None


def correlation(a: Tensor, b: Tensor) -> float | None:
    """Pearson correlation of two ``(n,)`` tensors; None where it is undefined."""
    return correlations(a[:, None], b)[0]


def correlations(a: Tensor, b: Tensor) -> list[float | None]:
    """Pearson correlation of each column of ``(n, m)`` with ``(n,)``; None where it is undefined."""
    a, b = a.double() - a.double().mean(0), b.double() - b.double().mean()
    norms, products = (a.norm(dim=0) * b.norm()).tolist(), (b @ a).tolist()
    some = len(b) > 1
    return [
        p / norm if some and norm > 0 else None for p, norm in zip(products, norms, strict=True)
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist() if value.ndim else value.item()
    return value
