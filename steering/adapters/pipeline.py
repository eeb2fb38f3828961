"""A diffusers pipeline as a :class:`steering.model.Model`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steering.adapters.asking import Pair, pairs_of
from steering.adapters.cheap_decode import CheapDecode, Decode
from steering.adapters.checks import (
    Refusal,
    check_call,
    check_pipeline,
    check_prompts,
)
from steering.adapters.conditioning import Encoder, Handle
from steering.adapters.decode import Decoder, Tail
from steering.adapters.embeds import Embeds
from steering.adapters.learn import learn
from steering.adapters.levels import Levels
from steering.adapters.naming import model_name
from steering.adapters.rendering import Renderer
from steering.adapters.replay import Plan
from steering.adapters.scheduling import PipelineSchedule, run_of
from steering.model import CONSISTENCY, Abilities, Looks, Meaning, Stage
from steering.prediction import Posterior
from steering.schedulers import grid_of, prediction_of
from steering.times import Time, TimeGrid

_GATHERED = 8  # sequences of handles whose joined arguments are kept


def adapt(pipe: Any, *, call: Mapping[str, Any] | None = None) -> PipelineModel:
    """Make a denoiser out of an unmodified pipeline.

    Runs two probe calls of the pipeline's own, on a shallow copy; the pipeline is left as found.

    Args:
        pipe: a diffusers pipeline with a scheduler.
        call: its own keyword arguments shared by all prompts, such as ``num_inference_steps``,
            ``guidance_scale``, ``height`` and ``width``.

    Raises:
        Refusal: it cannot be adapted; the message says why and what to do.
        TypeError: an argument that the pipeline does not take; the message names the nearest.
    """
    return PipelineModel(pipe, call or {})


class PipelineModel:
    """The model built by :func:`adapt`.

    Args:
        pipe: the pipeline.
        call: its arguments shared by all prompts.
    """

    door = "replay"  #: how the pipeline is entered
    reason = ""  #: why by no better door

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        check_pipeline(pipe)
        check_call(pipe, call)
        self.pipe = pipe
        self._call = {k: v for k, v in call.items() if k != "negative_prompt"}
        self._negative = call.get("negative_prompt")
        self._plans: dict[bool, Plan] = {}
        self._device: tuple[Any, torch.device] | None = None
        self._plan = self._learn(negative=self._negative is not None)
        self._encoder = Encoder(pipe, self._call)
        scheduler = self._plan.scheduler
        self._levels = Levels(scheduler)
        try:
            self._grid = grid_of(scheduler)
        except ValueError as error:
            raise Refusal(str(error)) from error
        self._tail = Tail(pipe, self._call, self._plan)
        self._renderer = Renderer(self._tail)
        example = torch.randn((2, *self.shape), generator=torch.Generator().manual_seed(0))
        self._decoder = Decoder(pipe, self._tail, example.to(self.device))
        self._gathered: OrderedDict[tuple[int, ...], tuple[Any, Any]] = OrderedDict()
        self._cheap: Decode | None = None

    def look_by(self, policy: CheapDecode | None) -> PipelineModel:
        """Decode guesses part-way by a cheaper decoder; None: by the full one. Returns itself.

        Raises:
            Refusal: it cannot be done for this model.
        """
        self._cheap = None if policy is None else policy.fit(self)
        return self

    def _learn(self, *, negative: bool) -> Plan:
        if negative in self._plans:
            return self._plans[negative]
        try:
            prediction_of(self.pipe.scheduler)
        except ValueError as error:
            raise Refusal(str(error)) from error
        self._plans[negative] = learn(self.pipe, self._call, negative=negative)
        return self._plans[negative]

    @property
    def name(self) -> str:
        """Pipeline, weights, scheduler and its calls, shape of the state, and a digest of arguments.

        Arguments at their defaults and the output type do not change it.
        """
        return model_name(self.pipe, self._call, self.scheduler_calls(), self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        return self._plan.shape

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes; asked anew only when its denoiser moved or was hooked."""
        network = self.pipe.__dict__[self._plan.network]
        seen = next(network.parameters()).device, id(getattr(network, "_hf_hook", None))
        if self._device is None or self._device[0] != seen:  # the pipeline walks all its modules
            self._device = seen, torch.device(self.pipe._execution_device)
        return self._device[1]

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in."""
        network = self.pipe.__dict__[self._plan.network]
        return next(network.parameters()).dtype

    @property
    def grid(self) -> TimeGrid:
        """The time grid of the pipeline's scheduler, as the pipeline configures it."""
        return self._grid

    def at(self, log_snr: float) -> Time:
        """Record of any noise level on the interpolant that the network was trained on.

        Args:
            log_snr: log(alpha^2 / sigma^2), infinities included; beyond the trained range the network
                is told the nearest time that it knows.
        """
        return self._levels.at(log_snr)

    @property
    def initial_std(self) -> float:
        """Standard deviation of the state at ``grid[0]`` when it is drawn afresh."""
        return float(getattr(self._plan.scheduler, "init_noise_sigma", 1.0))

    @property
    def passes(self) -> int:
        """Network passes that a row costs, for the prompts encoded last."""
        return self._plan.passes

    @property
    def abilities(self) -> Abilities:
        """Replay can do all; gradients also need a decoder that equals the pipeline's own."""
        distilled = type(self._plan.scheduler).__name__ in CONSISTENCY
        meaning = Meaning.CONSISTENCY_MAP if distilled else Meaning.POSTERIOR_MEAN
        return Abilities(gradients=self._decoder.differentiable, meaning=meaning)

    def encode(
        self,
        prompts: Sequence[str],
        *,
        negative_prompts: Sequence[str] | str | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        images_per_prompt: int = 1,
        embeds: Sequence[Embeds] | None = None,
    ) -> list[Handle]:
        """Encode prompts by the pipeline's own call, stopped before its denoiser works.

        Args:
            prompts: the texts.
            negative_prompts: one for all, or one a prompt.
            generator: the pipeline's argument; then every handle knows the state that the pipeline
                would start from. A list holds one a prompt and image.
            latents: the pipeline's argument, ``(prompts x images, ...)``.
            images_per_prompt: handles a prompt.
            embeds: the prompts' encodings, where the arguments that the pipeline was learned with
                have an encoded prompt; the texts are then names alone.

        Returns:
            One handle for each prompt and image, the images of a prompt side by side.

        Raises:
            ValueError: no prompts, or numbers that do not match.
            TypeError: a prompt that is no text.
        """
        negative = self._negative if negative_prompts is None else negative_prompts
        texts, negatives = check_prompts(prompts, negative, images_per_prompt)
        pairs = pairs_of(self._call, texts, negatives, embeds)
        try:
            return self._handles(pairs, generator, latents, images_per_prompt)
        except Refusal:  # negative prompts may bring a pass of their own (Flux)
            self._plan = self._learn(negative=negatives[0] is not None)
            return self._handles(pairs, generator, latents, images_per_prompt)

    def _handles(
        self, pairs: list[Pair], generator: Any, latents: Tensor | None, images: int
    ) -> list[Handle]:
        if generator is None and latents is None:
            return self._encoder.fresh(self._plan, pairs, images)
        return self._encoder.started(self._plan, pairs, images, generator, latents)

    def denoise(
        self, x_t: Tensor, times: Sequence[Time], conditioning: Sequence[Handle]
    ) -> Posterior:
        """Posterior of each row.

        Args:
            x_t: states ``(B, *shape)``, float32.
            times: one noise level a row.
            conditioning: one handle a row, of one signature.

        Raises:
            ValueError: numbers do not match, or handles of unlike shapes; or an epsilon prediction
                where alpha is 0.
        """
        if not len(x_t) == len(times) == len(conditioning) > 0:
            raise ValueError(
                f"need one time and one handle a row: {len(x_t)} rows, {len(times)} times, "
                f"{len(conditioning)} handles"
            )
        plan = conditioning[0].plan
        joined = self._joined(conditioning)
        t, scale, mixing = self._levels.columns(times, x_t)
        output = plan.predict(
            self.pipe.__dict__[plan.network], x_t, scale, t.reshape(-1).expand(len(x_t)), joined
        )
        return mixing.posterior(x_t, output)

    def _joined(self, conditioning: Sequence[Handle]) -> list[dict[int, Any]]:
        """Arguments of the rows, kept for sequences that come again turn after turn."""
        key = tuple(map(id, conditioning))
        if key in self._gathered:
            self._gathered.move_to_end(key)
            return self._gathered[key][1]
        if len({handle.signature for handle in conditioning}) > 1:
            raise ValueError("rows of unlike signatures cannot share a call")
        joined = conditioning[0].plan.join([handle.pieces for handle in conditioning])
        self._gathered[key] = (tuple(conditioning), joined)  # held, so that no id is used again
        if len(self._gathered) > _GATHERED:
            self._gathered.popitem(last=False)
        return joined

    def decode(self, x_0: Tensor, conditioning: Sequence[Handle], stage: Stage) -> Tensor:
        """Pictures of each row, ``(B, 3, H, W)`` in [0, 1], float32.

        Differentiable if the abilities say so; a safety checker looks at rendered media only.
        """
        if self._cheap is not None and stage is Stage.INTERMEDIATE:
            return self._cheap(x_0)
        return self._decoder(x_0)

    def decode_frames(
        self, x_0: Tensor, conditioning: Sequence[Handle], stage: Stage, looks: Looks
    ) -> Tensor:
        """As :meth:`decode`; where frames are decoded one by one, those not looked at stay black."""
        if self._cheap is not None and stage is Stage.INTERMEDIATE:
            return self._cheap(x_0)
        return self._decoder(x_0, looks)

    def render(self, x_0: Tensor, conditioning: Sequence[Handle]) -> list[Any]:
        """Final media of each row by the pipeline's own tail, in the user's ``output_type``."""
        return self._renderer(x_0)

    def merge_output(self, rows: Sequence[Any]) -> Any:
        """The pipeline's own output type, from entries that :meth:`render` returned.

        Raises:
            ValueError: nothing was rendered yet.
        """
        return self._renderer.merge(rows)

    def scheduler_calls(self) -> int:
        """Model calls that one trajectory of the pipeline's own scheduler makes."""
        return len(self._plan.scheduler.timesteps)

    def scheduler_run(
        self,
        conditioning: Handle,
        draws: Sequence[int],
        seeds: Sequence[int],
        start: int = 0,
        stop: int | None = None,
    ) -> PipelineSchedule:
        """A fresh private copy of the pipeline's scheduler for rows with these draw ids and seeds."""
        plan = conditioning.plan

        def make(first: int) -> PipelineSchedule:
            return PipelineSchedule(
                plan.scheduler,
                plan.extra,
                conditioning,
                draws,
                seeds,
                first=first,
                learned_variance=plan.variance is not None,
            )

        return run_of(make, self._grid, start, stop)
