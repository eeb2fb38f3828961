"""The gate of early rejection: from when on intermediate rewards are trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steering.clarity import Clarity
from steering.search import Problem
from steering.watching import Watch


@dataclass(frozen=True)
class Gate:
    """Trusts intermediate rewards only from the noise level on at which they rank the final ones.

    Attributes:
        threshold: Spearman's correlation that must be exceeded.
        clarity: what was measured before, or the file in which :meth:`steering.clarity.Clarity.save` put
            it; None: it is learned from the prompt's own first candidates.
        pilot: candidates that are carried to the end for it, at least 3; they count among the
            finished ones.
        levels: steps, or shares of the grid, at which the predictions of those are scored.
    """

    threshold: float = 0.5
    clarity: Clarity | str | None = None
    pilot: int = 6
    levels: Sequence[int | float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)

    def __post_init__(self) -> None:
        if not -1 <= self.threshold < 1:
            raise ValueError(f"threshold is a correlation below 1, got {self.threshold}")
        if self.pilot < 3:
            raise ValueError(f"pilot must be at least 3 candidates to rank, got {self.pilot}")
        self.known  # noqa: B018 - a file that cannot be read is refused now

    @property
    def known(self) -> Clarity | None:
        """What was measured before, read from its file."""
        return Clarity.load(self.clarity) if isinstance(self.clarity, str) else self.clarity


def learned(problem: Problem, seen: Watch) -> Clarity | None:
    """The clarity of the prompt's own pilot; None where its rewards do not vary."""
    try:
        return Clarity.of("", "", problem.grid, seen.looked, [(seen.rewards, seen.scores.total)])
    except ValueError:
        return None
