"""Networks that learned the variance of their scheduler's steps beside the prediction.

Such a network (Nichol and Dhariwal 2021, 2102.09672; DeepFloyd IF) answers with twice the channels of
its state: the prediction, and as many numbers from which its own scheduler takes the spread of the noise
that it adds. Transitions of ours have a spread of their own and read the prediction alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steering.adapters.checks import Refusal


def doubles(output: Tensor, state: Tensor) -> bool:
    """Whether an output ``(n, 2 c, ...)`` has a variance behind the prediction of ``(n, c, ...)``."""
    return (
        output.ndim == state.ndim > 1
        and output.shape[1] == 2 * state.shape[1]
        and output.shape[2:] == state.shape[2:]
    )


def parted(output: Tensor, state: Tensor) -> tuple[Tensor, Tensor | None]:
    """The prediction of states ``(n, c, ...)``, and the variance behind it; None where there is none."""
    if not doubles(output, state):
        return output, None
    prediction, variance = output.chunk(2, dim=1)
    return prediction, variance


def appended(prediction: Tensor, variance: Tensor | None) -> Tensor:
    """Inverse of :func:`parted`."""
    return prediction if variance is None else torch.cat([prediction, variance], dim=1)


def find_variance(
    outputs: Sequence[Sequence[Tensor]], handed: Sequence[Tensor | None], state: Tensor
) -> int | None:
    """Which of a step's outputs holds the variance that the pipeline hands to its scheduler.

    Args:
        outputs: outputs of each step, whole.
        handed: the variance handed over at each step; None where there was none.
        state: a state of the same rows.

    Raises:
        Refusal: it is the second half of no output as it stands.
    """
    if handed[0] is None:
        return None
    for index in range(len(outputs[0])):
        halves = [parted(step[index], state)[1] for step in outputs]
        if all(_equal(half, wanted) for half, wanted in zip(halves, handed, strict=True)):
            return index
    raise Refusal(
        "the variance that the pipeline hands to its scheduler behind the prediction is that of no pass "
        "of its network, so it cannot be replayed"
    )


def _equal(half: Tensor | None, wanted: Tensor | None) -> bool:
    """Whether both are there and equal, bit for bit in the dtype that the scheduler gets."""
    return half is not None and wanted is not None and torch.equal(half.to(wanted.dtype), wanted)
