"""The public entry: an unmodified diffusers pipeline, steered."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import secrets
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steering.adapters import BlackBoxModel, Door, Entered, InvertedModel, enter
from steering.adapters.cheap_decode import CheapDecode
from steering.adapters.doors import check_door, key_of
from steering.adapters.embeds import count, example_of, rows_of, take
from steering.adapters.step_callback import DEEP, StepCallback, take_callback
from steering.cost import Budget, Usage
from steering.engine import Engine, Progress, check_search
from steering.live import Job
from steering.pilot import calibrate
from steering.planning import Figures, describe, device_name, scheduler_facts
from steering.prompts import items_of, per_prompt, texts_of
from steering.report import SteeredRun, SteeringFailed
from steering.reward import Reward
from steering.search import Facts, Search
from steering.streams import copy_key, prompt_keys
from steering.strength import Calibration, Strength, calibration_folders, pilot_prompts

_KEPT = 16  # models that are kept, by their arguments


class SteeredPipeline:
    """A diffusers pipeline whose samples are searched for.

    Args:
        pipe: any diffusers pipeline; it is left exactly as it was found.
        sampler: the search.
        reward: what it searches for.
        held_out: rewards by name that judge the result and are never searched on.
        strength: how strongly to follow the reward; a number means units of its spread.
        budget: the most that one search may cost.
        seed: seed of all random numbers; None draws one, which the report states.
        non_finite: see :class:`steering.engine.Engine`, as the rest.
        batch_size: most rows a model call.
        deterministic: bit-identical results for any packing.
        bucket: rows of every call in deterministic mode.
        on_progress: told after each turn what is done and spent.
        door: how the pipeline is entered, see :func:`steering.adapters.enter`; by default replayed
            where that is possible, else by its own loop, else as a black box, for searches over noise
            alone.
        guesses: how guesses part-way are decoded; None: by the full decoder, as finished samples are.

    Example:
        >>> from steering import SteeredPipeline            # doctest: +SKIP
        >>> steered = SteeredPipeline(pipe, sampler=FKSteering(particles=8), reward=ShapesCLIP())
        >>> steered("a red ring left of a blue cross").images[0]
    """

    def __init__(
        self,
        pipe: Any,
        *,
        sampler: Search,
        reward: Reward,
        held_out: Mapping[str, Reward] | None = None,
        strength: Strength | float = Strength(),
        budget: Budget | None = None,
        seed: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        guesses: CheapDecode | None = None,
        door: Door = "auto",
        **engine: Any,
    ) -> None:
        if not isinstance(sampler, Search):
            raise TypeError(
                f"sampler must be a Search (samplers.BestOfN(), samplers.FKSteering(), ...), "
                f"got {type(sampler).__name__}"
            )
        if not isinstance(reward, Reward):
            raise TypeError(
                "reward must offer name, differentiable, calls_per_row, prepare(item) and "
                f"__call__(media, features), got {type(reward).__name__}; wrap a plain function in "
                "rewards.PythonFunction"
            )
        self.pipe, self.sampler, self.reward = pipe, sampler, reward
        self.held_out = dict(held_out or {})
        self.strength = strength if isinstance(strength, Strength) else Strength(float(strength))
        self.budget = budget or Budget()
        self.seed = seed
        check_door(door)
        self.on_progress, self.guesses, self.door = on_progress, guesses, door
        known = inspect.signature(Engine).parameters
        for option in engine:
            if option not in known or option in (
                "model",
                "reward",
                "held_out",
                "on_progress",
                "on_step",
            ):
                near = difflib.get_close_matches(option, known, n=1)
                raise TypeError(
                    f"SteeredPipeline has no option {option!r}"
                    + (f" (did you mean {near[0]!r}?)" if near else "")
                )
        self.engine_options = engine
        self._models: dict[str, Entered] = {}

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        ids: Sequence[Hashable] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **call: Any,
    ) -> Any:
        """Steer.

        Args:
            prompt: one text or several. Beside ``prompt_embeds``, whose rows then stand in their place
                for the pipeline, they are what rewards read; rewards that read none need none.
            negative_prompt: one for all, or one a prompt.
            num_images_per_prompt: independent searches a prompt.
            generator: decides the first candidate's initial latents as in the pipeline; the rest
                comes from ``seed``.
            latents: the first candidate's initial latents of each image.
            ids: keys of the prompts for random numbers; by default the text and its occurrence.
            metadata: what rewards may know of each prompt beside its text.
            output_type: as in the pipeline.
            return_dict: as in the pipeline.
            **call: the pipeline's own keyword arguments.

        Returns:
            The pipeline's own output with the chosen candidates, in the order of the prompts, and a
            :class:`SteeringReport` as its attribute ``steering``.

        Raises:
            SteeringFailed: a search failed; its ``report`` has the others.
            MissingAbility, BudgetTooSmall, Refusal: before anything runs.
        """
        run = self.prepare(
            prompt,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            latents=latents,
            keys=None
            if ids is None
            else prompt_keys(texts_of(prompt, call, (self.reward, *self.held_out.values())), ids),
            metadata=metadata,
            output_type=output_type,
            **call,
        )
        report = run.report(list(run.results()))
        failed = [r for r in report.results if r.error is not None]
        if failed:
            raise SteeringFailed(
                f"{len(failed)} of {len(report.results)} searches failed, first: {failed[0].error}",
                report,
            ) from failed[0].error
        output = run.model.merge_output([row for r in report.results for row in r.media])
        output.steering = report
        if return_dict:
            return output
        return tuple(getattr(output, f.name) for f in fields(output))  # None included, as there

    def prepare(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        keys: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        output_type: str = "pil",
        **call: Any,
    ) -> SteeredRun:
        """Everything up to the searches themselves, whose results can then be taken one by one.

        Arguments and errors are those of a call; ``keys`` are :func:`prompt_keys` of the prompts.
        """
        prompts = texts_of(prompt, call, (self.reward, *self.held_out.values()))
        copies = num_images_per_prompt
        if copies < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {copies}")
        callback, call = take_callback(self.pipe, call)
        model = self._entered({"output_type": output_type, **call}, self._door_for(callback))
        engine = self._engine(model, callback)
        seed = secrets.randbits(63) if self.seed is None else self.seed
        items = items_of(prompts, metadata)
        keys = prompt_keys(prompts) if keys is None else list(keys)
        handles = model.encode(
            prompts,
            negative_prompts=per_prompt(negative_prompt, len(prompts)),
            generator=generator,
            latents=latents,
            images_per_prompt=copies,
            embeds=rows_of(take(call)[0], len(prompts)),
        )
        pilot, lam = Usage(), 0.0
        spread: float | None = None
        if self.sampler.needs.density:

            def calibration() -> Calibration:
                nonlocal spread
                found, spent = self.calibration(
                    prompts,
                    keys=keys,
                    negative_prompt=negative_prompt,
                    metadata=metadata,
                    seed=seed,
                    **call,
                )
                pilot.add(spent)
                spread = found.spread
                return found

            lam = self.strength.lam(calibration)
        jobs = [
            Job(
                items[i // copies],
                copy_key(keys[i // copies], i % copies),
                self.sampler,
                handle,
                seed,
                lam,
                self.budget,
                spread,
            )
            for i, handle in enumerate(handles)
        ]
        return SteeredRun(engine, model, jobs, lam, pilot)

    def plan(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        num_images_per_prompt: int = 1,
        **call: Any,
    ) -> dict[str, Any]:
        """What a call will cost, before anything is computed; the same as ``steer plan``.

        Args:
            prompt: as in a call; None stands for one text.
            num_images_per_prompt: as in a call.
            **call: the pipeline's own keyword arguments.

        Returns:
            Totals over all searches: ``nfe``, ``decodes``, ``reward_calls``, ``seconds`` and
            ``memory_bytes`` (from figures that an earlier run of the command left for this model,
            device and arguments, else "not measured"), ``bound``: "exact" or "at most".

        Raises:
            BudgetTooSmall: one finished candidate does not fit the budget.
        """
        encoded = count(take(call)[0])
        number = (
            (encoded or 1)
            if prompt is None
            else len(texts_of(prompt, call, (self.reward, *self.held_out.values())))
        )
        steps, calls = self._facts(call)
        one = self.sampler.plan(Facts(steps, calls, self.reward.calls_per_row, self.budget))
        source = str(getattr(self.pipe.config, "_name_or_path", "") or "unnamed")
        dtype = str(self.pipe.dtype).removeprefix("torch.")
        device = device_name(torch.device(self.pipe.device))
        figures = Figures.load(Figures.path(source, take(call)[1], dtype, self.reward.name, device))
        return describe(one, number * num_images_per_prompt, figures)

    def model(self, **call: Any) -> Entered:
        """The pipeline as a denoiser for these arguments; learned once and kept.

        Learned anew where a component, the scheduler's configuration, the device or the precision has
        changed, and for other pictures among the arguments. Weights changed in place are not noticed:
        after loading a LoRA for a text encoder, call :meth:`reset`.
        """
        return self._entered(call, self.door)

    def _entered(self, call: Mapping[str, Any], door: Door) -> Entered:
        call, key = self._key(call, door)
        if key not in self._models:
            reason = None if door == self.door else DEEP
            entered = enter(self.pipe, call=call, door=door, reason=reason)
            self._models[key] = entered.look_by(self.guesses)
            if len(self._models) > _KEPT:
                self._models.pop(next(iter(self._models)))
        return self._models[key]

    def _key(self, call: Mapping[str, Any], door: Door) -> tuple[dict[str, Any], str]:
        """Arguments that a model is learned with, and what it is kept by."""
        embedded, others = take(call)
        learned = {"output_type": "pil", **others, **example_of(embedded)}
        return learned, f"{door}:{key_of(self.pipe, learned)}"

    def _door_for(self, callback: StepCallback | None) -> Door:
        """The door, for a callback that wants more than latents the black box.

        Raises:
            TypeError: another door was asked for.
        """
        if callback is None or not callback.deep:
            return self.door
        if self.door not in ("auto", "black-box"):
            raise TypeError(f"{DEEP}; leave door={self.door!r} out")
        return "black-box"

    def _facts(self, call: Mapping[str, Any]) -> tuple[int, int]:
        """Transitions and scheduler calls: as a call was seen to make them, else by the scheduler."""
        callback, call = take_callback(self.pipe, call)
        door = self._door_for(callback)
        call, key = self._key(call, door)
        known = self._models.get(key)
        if known is None and door == "black-box":
            known = self._entered(call, door)
        if isinstance(known, BlackBoxModel | InvertedModel):
            return known.grid.steps, known.scheduler_calls()
        return scheduler_facts(self.pipe.scheduler, call, type(self.pipe))

    def reset(self) -> None:
        """Forget what was learned of the pipeline and its prompts."""
        self._models.clear()

    def calibration(
        self,
        prompt: str | Sequence[str] | None,
        *,
        keys: Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        seed: int | None = None,
        folders: Sequence[Path] | None = None,
        count: int = 4,
        samples: int = 8,
        **call: Any,
    ) -> tuple[Calibration, Usage]:
        """How the reward varies over samples of the base model: as saved, or by a pilot run.

        Args:
            prompt: the prompts of the run; the pilot takes a few, the same whatever their order.
            keys: their keys for random numbers.
            negative_prompt: as in a call.
            metadata: as in a call.
            seed: of the pilot; by default the pipeline's own, or 0.
            folders: where to look for a saved one; by default the user's cache, then the package.
            count: prompts of a pilot.
            samples: base samples a prompt of a pilot.
            call: the pipeline's own keyword arguments.

        Returns:
            The calibration, and what the pilot spent.
        """
        model = self.model(**call)
        folders = calibration_folders() if folders is None else folders
        saved = Calibration.find(*self.calibration_key(negative_prompt, **call), folders)
        if saved is not None:
            return saved, Usage()
        prompts = texts_of(prompt, call, (self.reward, *self.held_out.values()))
        embeds = rows_of(take(call)[0], len(prompts))
        keys = prompt_keys(prompts) if keys is None else keys
        negatives = per_prompt(negative_prompt, len(prompts))
        chosen = pilot_prompts(keys, count)
        handles = model.encode(
            [prompts[i] for i in chosen],
            negative_prompts=None if negatives is None else [negatives[i] for i in chosen],
            embeds=None if embeds is None else [embeds[i] for i in chosen],
        )
        engine = self._engine(model)
        items = items_of(prompts, metadata)
        some = [(items[i], keys[i], h) for i, h in zip(chosen, handles, strict=True)]
        seed = (self.seed or 0) if seed is None else seed
        measured = calibrate(engine, some, seed=seed, samples=samples)
        name, reward = self.calibration_key(negative_prompt, **call)
        return replace(measured, model=name, reward=reward), engine.usage

    def calibration_key(
        self, negative_prompt: str | Sequence[str] | None = None, **call: Any
    ) -> tuple[str, str]:
        """Names of model and reward under which a calibration is saved."""
        name = self.model(**call).name
        if negative_prompt:
            digest = hashlib.blake2b(repr(negative_prompt).encode(), digest_size=4).hexdigest()
            name = f"{name}:not-{digest}"
        return name, getattr(self.reward, "key", self.reward.name)

    def _engine(self, model: Entered, callback: StepCallback | None = None) -> Engine:
        check_search(self.sampler, model.abilities, self.reward)
        self.sampler.plan(
            Facts(model.grid.steps, model.scheduler_calls(), self.reward.calls_per_row, self.budget)
        )
        if callback is not None:
            callback.set_steps(model.scheduler_calls())
            if isinstance(model, BlackBoxModel):
                model = model.following(callback)
        return Engine(
            model,
            self.reward,
            on_step=callback,
            held_out=self.held_out,
            on_progress=self.on_progress,
            **self.engine_options,
        )
