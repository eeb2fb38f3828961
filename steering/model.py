"""What the engine needs of a generative model; adapters make one out of a diffusers pipeline."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from steering.prediction import Posterior
from steering.times import Time, TimeGrid

#: Of a number of frames, the indices of those that are looked at.
Looks = Callable[[int], Collection[int]]


class Stage(enum.Enum):
    """Why media are wanted: the decode policy maps it to a decoder."""

    INTERMEDIATE = "intermediate"  #: a guess of x_0 part-way: may be decoded cheaply
    FINAL = "final"  #: a finished sample: always the full decoder


class Meaning(enum.Enum):
    """What a denoiser's x_0 is."""

    POSTERIOR_MEAN = "posterior mean"
    CONSISTENCY_MAP = "consistency map"  #: LCM and other distilled models


#: Schedulers of networks that jump to a sample instead of predicting a mean.
CONSISTENCY = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler")


@dataclass(frozen=True)
class Abilities:
    """What a model can do; a search that needs what is missing is refused before any work.

    Attributes:
        any_rows: the number of rows may differ from call to call.
        time_per_row: rows at different times may share a call.
        any_order: times may come in any order, not only falling.
        gradients: autograd passes through denoiser and decoder.
        meaning: what its x_0 is.
        denoises: rows can be denoised one by one. A black box cannot: it is a :class:`Carrier`, which
            only carries initial noises to finished samples.
        why: why it cannot do more, for messages.
    """

    any_rows: bool = True
    time_per_row: bool = True
    any_order: bool = True
    gradients: bool = True
    meaning: Meaning = Meaning.POSTERIOR_MEAN
    denoises: bool = True
    why: str = ""


class Conditioning(Protocol):
    """One prompt, encoded: an opaque handle that the model made and understands."""

    @property
    def signature(self) -> Hashable:
        """Rows are fused only with rows of an equal signature (the same shapes)."""

    @property
    def initial(self) -> Tensor | None:
        """State ``(m, *shape)`` that the pipeline would start from, for the first ``m`` draws.

        None where the search's own random stream decides (no generator or latents were given).
        """


class SchedulerRun(Protocol):
    """A private copy of the pipeline's own scheduler, carrying one batch of rows in step."""

    @property
    def times(self) -> Sequence[Time]:
        """Noise level of each model call, in order; some schedulers call twice a step."""

    def step(self, index: int, posterior: Posterior, x_t: Tensor) -> Tensor:
        """State after model call ``index``, ``(n, *shape)``."""


@runtime_checkable
class FrameDecoder(Protocol):
    """A model that can leave out frames of videos that nobody looks at."""

    def decode_frames(
        self, x_0: Tensor, conditioning: Sequence[Any], stage: Stage, looks: Looks
    ) -> Tensor:
        """As :meth:`Model.decode`; frames that are not looked at may be black."""


class Model(Protocol):
    """A denoiser with its decoder. States are float32 ``(rows, *shape)`` on ``device``."""

    @property
    def name(self) -> str:
        """Key under which calibrations and timings are saved."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one state."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in; states are float32 all the same."""

    @property
    def grid(self) -> TimeGrid:
        """The time grid of the pipeline's scheduler."""

    def at(self, log_snr: float) -> Time:
        """Record of any noise level, by log(alpha^2 / sigma^2), with the time the network is told.

        Alpha and sigma are those of the interpolant it was trained on. Beyond the trained range the
        network is told the nearest time that it knows.
        """

    @property
    def initial_std(self) -> float:
        """Standard deviation of the state at ``grid[0]`` when it is drawn afresh."""

    @property
    def passes(self) -> int:
        """Network passes a denoised row costs (2 with classifier-free guidance)."""

    @property
    def abilities(self) -> Abilities: ...

    def denoise(self, x_t: Tensor, times: Sequence[Time], conditioning: Sequence[Any]) -> Posterior:
        """Posterior of each row: ``x_t (B, *shape)``, one time and one handle a row."""

    def decode(self, x_0: Tensor, conditioning: Sequence[Any], stage: Stage) -> Tensor:
        """Media of each row, images ``(B, 3, H, W)`` in [0, 1]; differentiable if abilities say so."""

    def render(self, x_0: Tensor, conditioning: Sequence[Any]) -> list[Any]:
        """Final media of each row by the pipeline's own tail, one entry a row."""

    def scheduler_calls(self) -> int:
        """Model calls that one trajectory of the pipeline's own scheduler makes."""

    def scheduler_run(
        self,
        conditioning: Any,
        draws: Sequence[int],
        seeds: Sequence[int],
        start: int = 0,
        stop: int | None = None,
    ) -> SchedulerRun:
        """A fresh private copy of the pipeline's scheduler for rows with these draw ids.

        ``seeds`` are one a row, for the noise of stochastic schedulers; draw 0 follows the user's own
        generator where one was given, from the grid's start. ``start`` and ``stop`` are where in the
        grid the rows are and how far they go (None: to the end); its calls are numbered from there.

        Raises:
            ValueError: the scheduler cannot be entered or left there.
        """


@dataclass(frozen=True, eq=False)
class Carried:
    """What a :class:`Carrier` made of initial states.

    Attributes:
        x_0: finished states ``(B, ...)``; their shape may differ from that of the initial ones.
        calls: model calls of each row's trajectory.
        passes: network passes that a row and call cost.
    """

    x_0: Tensor
    calls: int
    passes: int


class Carrier(Protocol):
    """What a model that does not denoise offers in its place."""

    def carry(
        self,
        x_t: Tensor,
        conditioning: Sequence[Any],
        draws: Sequence[int],
        seeds: Sequence[int],
    ) -> Carried:
        """Carry initial states ``(B, *shape)``, one handle a row, to the end.

        ``draws`` and ``seeds`` are as in :meth:`Model.scheduler_run`.
        """
