"""The door: what a network predicts becomes ``(x_0, eps)`` here and nowhere else.

All formulas hold for the state that the network was trained on, ``x_t = alpha x_0 + sigma eps``:
epsilon predicts ``eps``; sample predicts ``x_0``; v predicts ``alpha eps - sigma x_0`` (Salimans and
Ho 2022, 2202.00512); flow predicts the velocity ``eps - x_0`` of the rectified flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from steering.times import Time, coefficients

Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]


@dataclass(frozen=True, eq=False)
class Posterior:
    """What a denoiser says of each row: ``x_t = alpha x_0 + sigma eps``.

    Attributes:
        x_0: predicted clean state ``(n, *shape)``.
        eps: predicted noise ``(n, *shape)``.
        variance: what the network says besides of the noise that its own scheduler adds, ``(n, ...)``,
            where it learned that; only that scheduler's steps read it, no transition of ours.
    """

    x_0: Tensor
    eps: Tensor
    variance: Tensor | None = None

    def __getitem__(self, rows: Tensor | slice) -> Posterior:
        """The chosen rows, so that resampling is ``posterior[ancestors]``."""
        variance = None if self.variance is None else self.variance[rows]
        return Posterior(self.x_0[rows], self.eps[rows], variance)


def joined(posteriors: Sequence[Posterior]) -> Posterior:
    """The rows of several, one after another."""
    if len(posteriors) == 1:
        return posteriors[0]
    x_0, eps = [p.x_0 for p in posteriors], [p.eps for p in posteriors]
    variances = [p.variance for p in posteriors if p.variance is not None]
    variance = torch.cat(variances) if len(variances) == len(posteriors) else None
    return Posterior(torch.cat(x_0), torch.cat(eps), variance)


def known_prediction(kind: str) -> Prediction:
    """Check a prediction type by name.

    Raises:
        ValueError: unknown type; the message lists the known ones.
    """
    if kind not in get_args(Prediction):
        raise ValueError(
            f"unknown prediction type {kind!r}; known are {', '.join(get_args(Prediction))}. "
            "Set scheduler.config.prediction_type to what the model was trained to predict"
        )
    return kind  # type: ignore[return-value]


def posterior_of(
    kind: Prediction, output: Tensor, x_t: Tensor, times: Time | Sequence[Time]
) -> Posterior:
    """Turn a network's output into ``(x_0, eps)``.

    Args:
        kind: what the network predicts.
        output: its output ``(n, *shape)``.
        x_t: its input on the training interpolant ``(n, *shape)``.
        times: noise level of all rows, or of each.

    Raises:
        ValueError: an epsilon prediction where alpha is 0 (x_0 would be 0 / 0), or a sample
            prediction where sigma is 0.
    """
    levels = [times] if isinstance(times, Time) else times
    if kind == "epsilon" and any(t.alpha == 0 for t in levels):
        raise ValueError(
            "an epsilon prediction says nothing of x_0 where alpha is 0 (zero terminal SNR); start "
            "at a later time, or use a model that predicts v, the sample or a flow"
        )
    if kind == "sample" and any(t.sigma == 0 for t in levels):
        raise ValueError("a sample prediction says nothing of eps where sigma is 0; stop before it")
    alpha, sigma = coefficients(times, x_t)
    if kind == "epsilon":
        return Posterior((x_t - sigma * output) / alpha, output)
    if kind == "sample":
        return Posterior(output, (x_t - alpha * output) / sigma)
    if kind == "v_prediction":
        norm = alpha**2 + sigma**2
        x_0 = (alpha * x_t - sigma * output) / norm
        return Posterior(x_0, (sigma * x_t + alpha * output) / norm)
    norm = alpha + sigma
    return Posterior((x_t - sigma * output) / norm, (x_t + alpha * output) / norm)


def output_of(kind: Prediction, posterior: Posterior, times: Time | Sequence[Time]) -> Tensor:
    """Inverse of :func:`posterior_of`: what the network would have said, ``(n, *shape)``."""
    if kind == "epsilon":
        return posterior.eps
    if kind == "sample":
        return posterior.x_0
    if kind == "flow_prediction":
        return posterior.eps - posterior.x_0
    alpha, sigma = coefficients(times, posterior.x_0)
    return torch.as_tensor(alpha * posterior.eps - sigma * posterior.x_0)
