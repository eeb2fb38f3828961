"""Noise levels as a network is told them, and its posterior as a mixture of input and output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steering.adapters.variance import parted
from steering.prediction import Posterior, posterior_of
from steering.schedulers import prediction_of, time_at, training_interpolant
from steering.times import Time

_KEPT = 4096  # noise levels whose coefficients are kept


@dataclass(frozen=True, eq=False)
class Mixing:
    """Weights that make x_0 and eps of each row out of its state and the network's output.

    Attributes:
        weights: of x_0 by state and output, then of eps; each ``(B, 1, ...)`` or ``(1, 1, ...)``.
    """

    weights: tuple[Tensor, Tensor, Tensor, Tensor]

    def posterior(self, x_t: Tensor, output: Tensor) -> Posterior:
        """Posterior of states ``(B, *shape)`` with these outputs, a learned variance behind them."""
        from_state, from_output, eps_state, eps_output = self.weights
        output, variance = parted(output, x_t)
        return Posterior(
            from_state * x_t + from_output * output,
            eps_state * x_t + eps_output * output,
            variance,
        )


class Levels:
    """The noise levels of one scheduler's network.

    Args:
        scheduler: a scheduler as a pipeline configures it.
    """

    def __init__(self, scheduler: Any) -> None:
        self._kind = prediction_of(scheduler)
        self.training = training_interpolant(scheduler)
        self._known: dict[Time, list[float]] = {}

    def at(self, log_snr: float) -> Time:
        """Record of any noise level on the path that the network was trained on."""
        return time_at(self.training, log_snr)

    def columns(self, times: Sequence[Time], like: Tensor) -> tuple[Tensor, Tensor, Mixing]:
        """Times, scales to the training path, and mixing weights, in one transfer.

        Each is ``(B, 1, ...)``, or ``(1, 1, ...)`` where all rows are at one time.
        """
        first = times[0]
        rows = [first] if all(t is first or t == first for t in times) else times
        values = torch.tensor([self._level(t) for t in rows], dtype=torch.float32).T.contiguous()
        if like.device.type == "cuda":  # pinned, so that the host need not wait
            values = values.pin_memory().to(like.device, non_blocking=True)
        columns = values.to(like.device).reshape(6, len(rows), *[1] * (like.ndim - 1))
        t, scale, *weights = columns.unbind(0)
        return t, scale, Mixing((weights[0], weights[1], weights[2], weights[3]))

    def _level(self, time: Time) -> list[float]:
        """Time and scale as the network wants them; x_0 and eps as mixtures of state and output."""
        if time in self._known:
            return self._known[time]
        if len(self._known) >= _KEPT:
            self._known.clear()
        scale = self.training.scale_from(time)
        trained = Time(time.model_t, time.alpha * scale, time.sigma * scale)
        # the conversion is linear in state and output: its value on a basis holds the weights
        state, output = torch.tensor([[scale, 0.0], [0.0, 1.0]], dtype=torch.float64)
        weights = posterior_of(self._kind, output, state, trained)
        found = [time.model_t, scale, *weights.x_0.tolist(), *weights.eps.tolist()]
        self._known[time] = found
        return found
