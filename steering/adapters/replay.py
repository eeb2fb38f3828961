"""The learned plan of a pipeline's step, and the pure function of any rows rebuilt from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from steering.adapters.capture import NetworkCall
from steering.adapters.checks import Refusal
from steering.adapters.clock import TimeLeaf
from steering.adapters.guidance import Guidance
from steering.adapters.leaves import LatentsLeaf, Piece, RowLeaf, rebuild, same
from steering.adapters.stand import first_output
from steering.adapters.variance import appended, parted

#: What one prompt hands to each call: the place of an argument, and the row's piece of it.
Pieces = tuple[Mapping[int, Piece], ...]
#: Key in :data:`Pieces` of what follows the state in its own argument.
TAIL = -1


@dataclass(frozen=True, eq=False)
class CallPlan:
    """One network call of a step.

    Attributes:
        spec: containers of its arguments.
        values: all values; those that follow rows are replaced at each call.
        latents: where the state goes.
        time: where the time goes.
        rows: arguments that follow the batch.
    """

    spec: pytree.TreeSpec
    values: tuple[Any, ...]
    latents: LatentsLeaf
    time: TimeLeaf
    rows: tuple[RowLeaf, ...]

    @property
    def leaves(self) -> dict[int, RowLeaf]:
        """Row-following arguments by key in a row's pieces, the state's tail included."""
        found = {leaf.index: leaf for leaf in self.rows}
        if self.latents.tail is not None:
            found[TAIL] = self.latents.tail
        return found

    def split(self, call: NetworkCall, rows: int) -> list[dict[int, Piece]]:
        """Pieces of each row from a recorded call with ``rows`` prompts.

        Raises:
            Refusal: the call is built otherwise than the learned one.
        """
        given = call.arguments
        if given.spec != self.spec:
            raise Refusal("the network's arguments depend on the prompts; cannot replay them")
        varying = {self.latents.index, self.time.index, *(leaf.index for leaf in self.rows)}
        for index, (value, known) in enumerate(zip(given.values, self.values, strict=True)):
            if index not in varying and not same(value, known):
                raise Refusal(
                    f"the network's argument {given.names[index]} depends on the prompts but does "
                    "not follow the batch; pad the prompts to one length"
                )
        pieces: list[dict[int, Piece]] = [{} for _ in range(rows)]
        for key, leaf in self.leaves.items():
            value = given.values[leaf.index]
            value = self.latents.tail_of(value) if key == TAIL else value
            for row, piece in zip(pieces, leaf.split(value, rows), strict=True):
                row[key] = piece
        return pieces

    def join(self, pieces: Sequence[Mapping[int, Piece]]) -> dict[int, Any]:
        """Arguments for rows with these pieces."""
        return {key: leaf.join([p[key] for p in pieces]) for key, leaf in self.leaves.items()}

    def __call__(
        self, network: nn.Module, state: Tensor, scaled: Tensor, t: Tensor, joined: dict[int, Any]
    ) -> list[Tensor]:
        """Outputs of each block, ``(n, ...)``.

        Args:
            network: the real network.
            state: rows ``(n, *shape)`` on the training interpolant, in the dtype of the pipeline's
                own state; for pipelines that do not scale it.
            scaled: the same, not rounded to that dtype yet.
            t: the scheduler's time of each row ``(n,)``.
            joined: arguments that follow the rows.
        """
        values = list(self.values)
        for key, value in joined.items():
            if key != TAIL:
                values[key] = value
        carried = scaled if self.latents.scaled else state
        values[self.latents.index] = self.latents.build(carried, joined.get(TAIL))
        values[self.time.index] = self.time.build(t, self.latents.blocks)
        args, kwargs = rebuild(self.spec, values)
        return split_blocks(first_output(network(*args, **kwargs)), self.latents.blocks)


def split_blocks(output: Any, blocks: int) -> list[Tensor]:
    """A call's output as one tensor a block."""
    x = torch.stack(output) if isinstance(output, list) else output
    return list(x.chunk(blocks)) if blocks > 1 else [x]


def fit_to_state(output: Tensor, shape: Sequence[int]) -> Tensor:
    """The part of an output ``(n, ...)`` that predicts the state: reshaped, or the first part of it.

    Raises:
        Refusal: it has no simple relation to the state.
    """
    wanted = (len(output), *shape)
    if output.shape == wanted:
        return output
    if output[0].numel() == torch.Size(shape).numel():
        return output.reshape(wanted)
    if output.ndim == len(wanted):
        longer = [d for d in range(1, output.ndim) if output.shape[d] != wanted[d]]
        if len(longer) == 1 and output.shape[longer[0]] > wanted[longer[0]]:
            return output.narrow(longer[0], 0, wanted[longer[0]])
    raise Refusal(
        f"the network's output {tuple(output.shape)} has no simple relation to the state {wanted}"
    )


@dataclass(frozen=True, eq=False)
class Plan:
    """How a pipeline's step is computed, for any rows.

    Attributes:
        network: name of the denoiser in the pipeline.
        calls: its calls in one step.
        guidance: how their outputs are joined.
        shape: shape of one state.
        dtype: dtype in which the pipeline keeps the state.
        outputs: raw output of each call for ``rows`` prompts, the pattern of stand-ins.
        rows: prompts in the recorded call.
        extra: further arguments of ``scheduler.step``.
        scheduler: the scheduler as the pipeline configures it, before its first step.
        variance: output whose second half the pipeline hands to its scheduler behind the prediction;
            None where it hands over the prediction alone.
    """

    network: str
    calls: tuple[CallPlan, ...]
    guidance: Guidance
    shape: tuple[int, ...]
    dtype: torch.dtype
    outputs: tuple[Any, ...]
    rows: int
    extra: dict[str, Any] = field(default_factory=dict)
    scheduler: Any = None
    variance: int | None = None

    @property
    def passes(self) -> int:
        """Network passes a row costs."""
        return sum(call.latents.blocks for call in self.calls)

    def split(self, calls: Sequence[NetworkCall], rows: int) -> list[Pieces]:
        """Pieces of each row from the recorded calls of one step."""
        each = [plan.split(call, rows) for plan, call in zip(self.calls, calls, strict=True)]
        return list(zip(*each, strict=True))

    def join(self, rows: Sequence[Pieces]) -> list[dict[int, Any]]:
        """Arguments of each call for these rows."""
        return [plan.join([row[i] for row in rows]) for i, plan in enumerate(self.calls)]

    def predict(
        self,
        network: nn.Module,
        x_t: Tensor,
        scale: Tensor,
        t: Tensor,
        joined: list[dict[int, Any]],
    ) -> Tensor:
        """What the pipeline hands to its scheduler for each row, float32.

        It is the prediction ``(n, *shape)``, and behind its channels a learned variance if there is one.

        Args:
            network: the denoiser.
            x_t: states ``(n, *shape)``.
            scale: factor of each row to the training interpolant, broadcastable.
            t: the scheduler's time of each row ``(n,)``.
            joined: from :meth:`join`.
        """
        scaled = x_t * scale
        # A pipeline that hands its state over unscaled keeps it on the training interpolant: the
        # factor is 1 on its own grid, and brings states of other paths there.
        state = scaled.to(self.dtype)
        outputs = [
            block
            for plan, arguments in zip(self.calls, joined, strict=True)
            for block in plan(network, state, scaled, t, arguments)
        ]
        prediction = self.guidance([fit_to_state(block, self.shape) for block in outputs])
        if self.variance is None:
            return prediction
        return appended(prediction, parted(outputs[self.variance], state)[1])
