"""A cloud of weighted particles between two steps; what belongs to a particle moves with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from samplers.potentials import Potential
from steering.particles import Resampler, Weights
from steering.prediction import Posterior, joined
from steering.transfer import to_device


@dataclass(frozen=True, eq=False)
class Cloud:
    """Particles that compete with each other; independent islands are several clouds.

    Attributes:
        x_t: states ``(k, *shape)``.
        weights: their log-weights and the evidence so far.
        potential: what was applied so far.
        roots: index of each particle's ancestor at the start ``(k,)``.
        slots: draw ids of the particles' places, ``k`` of them; a place keeps its id for good.
        posterior: what the denoiser said of the states; None before it was asked.
        gradient: d reward / d x_t of each particle ``(k, *shape)``, where a proposal uses it.
        past: intermediate rewards along each particle's lineage, a column a look, float64 ``(k, m)``.
        records: trace record of each look, ``m`` of them.
        lam: lambda that was applied last.
        memory: what the schedule of lambda remembers of earlier looks.
        looked_at: step of the last look; None before any.
        pull: lambda by which a gradient proposal leads to the next step.
    """

    x_t: Tensor
    weights: Weights
    potential: Potential
    roots: Tensor
    slots: tuple[int, ...]
    posterior: Posterior | None = None
    gradient: Tensor | None = None
    past: Tensor = field(default_factory=lambda: torch.empty(0))
    records: tuple[int, ...] = ()
    lam: float = 0.0
    memory: Any = None
    looked_at: int | None = None
    pull: float = 0.0

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def slope(self) -> Tensor:
        """The gradient of a cloud that has one."""
        assert self.gradient is not None, "the cloud has no gradient"
        return self.gradient

    @property
    def known(self) -> Posterior:
        """The posterior of a cloud that was denoised."""
        assert self.posterior is not None, "the cloud was not denoised yet"
        return self.posterior

    def select(self, rows: Tensor, weights: Weights) -> Cloud:
        """The chosen particles, everything of theirs re-indexed at once, with new weights."""
        on_device = to_device(rows, self.x_t.device)
        return replace(
            self,
            x_t=self.x_t[on_device],
            weights=weights,
            potential=self.potential[rows],
            roots=self.roots[rows],
            slots=self.slots[: len(rows)],
            posterior=None if self.posterior is None else self.posterior[on_device],
            gradient=None if self.gradient is None else self.gradient[on_device],
            past=self.past[rows] if self.records else self.past,
        )

    def looked(self, reward: Tensor, record: int) -> Cloud:
        """The cloud, with the rewards of a look remembered."""
        column = reward[:, None]
        past = torch.cat([self.past, column], 1) if self.records else column
        return replace(self, past=past, records=(*self.records, record))

    def resample(
        self, resampler: Resampler, uniforms: Tensor, children: int, power: float = 1.0
    ) -> tuple[Tensor, Cloud]:
        """Ancestors ``(children,)`` drawn by weight, and the cloud of their copies."""
        ancestors, weights = self.weights.resample(resampler, uniforms, children, power)
        return ancestors, self.select(ancestors, weights)

    def alone(self, row: int) -> Cloud:
        """One particle, in its own place; what the others weighed is forgotten."""
        kept = self.select(torch.tensor([row]), Weights.uniform(1))
        return replace(kept, slots=(self.slots[row],))


def split(rows: Tensor, clouds: list[Cloud]) -> list[Tensor]:
    """Rows of all clouds ``(n, ...)`` cloud by cloud."""
    return [rows] if len(clouds) == 1 else list(torch.split(rows, [len(c) for c in clouds]))


def joined_states(clouds: list[Cloud]) -> Tensor:
    """States of all clouds ``(n, *shape)``."""
    return clouds[0].x_t if len(clouds) == 1 else torch.cat([c.x_t for c in clouds])


def joined_posterior(clouds: list[Cloud]) -> Posterior:
    """What the denoiser said of all clouds, rows ``(n, *shape)``."""
    return joined([c.known for c in clouds])


def joined_weights(clouds: list[Cloud]) -> Weights:
    """Weights of all particles of independent clouds: each cloud counts by its own evidence.

    The estimate of the normalising constant is the mean of theirs, by size.
    """
    if len(clouds) == 1:
        return clouds[0].weights
    parts = [c.weights.log_w + c.weights.log_norm for c in clouds]
    return Weights(torch.cat(parts))
