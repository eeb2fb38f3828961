"""Editors and painters of repairs, made of diffusers pipelines."""

from __future__ import annotations

import inspect
import string
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from steering.adapters.watch import Watch
from steering.cost import Cost
from steering.flaws import Flaw, Painted
from steering.pipeline import SteeredPipeline
from steering.reward import Item, Reward
from steering.streams import seeded_generator

_WORDS = ("prompt", "instruction", "target")


class PipelineEditor:
    """Edits by any diffusers pipeline that takes a picture and a text.

    Inpainting pipelines (those with ``mask_image``) repaint a flaw's boxes and keep the rest;
    image-to-image and instruction-editing pipelines get the whole picture; a pipeline that takes no
    picture draws a new one from the rewritten text alone. Every call runs on a private copy, so that
    its network calls can be counted and the pipeline stays as it was. With one seed a row and one
    generator made from it, a row's randomness does not depend on its neighbours.

    Args:
        pipe: the pipeline.
        call: its own keyword arguments, such as ``strength`` and ``num_inference_steps``.
        wording: the text it is told, with ``{prompt}``, ``{instruction}`` and ``{target}`` (of a
            flaw; where that is empty, the prompt).
        margin: added around a flaw's boxes, as a fraction of the picture.
        batch_size: most pictures of one call.

    Raises:
        TypeError: the pipeline takes no prompt, or an argument is not one of its own.
        ValueError: an argument that the editor sets itself, a wording of other fields, or numbers
            that make no sense.
    """

    def __init__(
        self,
        pipe: Any,
        call: Mapping[str, Any] | None = None,
        *,
        wording: str = "{prompt}",
        margin: float = 0.03,
        batch_size: int = 16,
    ) -> None:
        self.pipe, self.call = pipe, dict(call or {})
        self.wording, self.margin, self.batch_size = wording, margin, batch_size
        self._takes = set(inspect.signature(type(pipe).__call__).parameters)
        self._cost: Cost | None = None
        self._check()

    def _check(self) -> None:
        name = type(self.pipe).__name__
        if "prompt" not in self._takes:
            raise TypeError(
                f"{name} takes no prompt; an editor needs a pipeline that is told a text"
            )
        own = {"prompt", "image", "mask_image", "generator", "output_type", "return_dict"}
        for argument in self.call:
            if argument in own:
                raise ValueError(f"the editor sets {argument!r} itself; leave it out of call")
            if argument not in self._takes:
                raise TypeError(
                    f"{name} has no argument {argument!r}; give its own keyword arguments"
                )
        used = {
            field for _, field, _, _ in string.Formatter().parse(self.wording) if field is not None
        }
        if not used or not used <= set(_WORDS):
            raise ValueError(
                f"wording must hold some of {{prompt}}, {{instruction}}, {{target}} and no other "
                f"field, got {self.wording!r}"
            )
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin is a fraction of the picture in [0, 1), got {self.margin}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 picture, got {self.batch_size}")

    @property
    def masks(self) -> bool:
        """Whether only a flaw's boxes are repainted."""
        return "mask_image" in self._takes

    def cost(self) -> Cost:
        """Network calls and the decode of one edit: what the calls so far were seen to cost at most.

        Before the first edit it is an upper bound: every inference step, whatever the strength.
        """
        return self._cost or Cost(nfe=self._steps(), decodes=1)

    def _steps(self) -> int:
        known = inspect.signature(type(self.pipe).__call__).parameters.get("num_inference_steps")
        steps = self.call.get("num_inference_steps", known.default if known else 50)
        order = int(getattr(self.pipe.scheduler, "order", 1))
        return int(steps) * order

    def text(self, item: Item, flaw: Flaw) -> str:
        """What the pipeline is told."""
        words = {"prompt": item.prompt, "instruction": flaw.instruction}
        return self.wording.format(**words, target=flaw.target or item.prompt)

    def edit(
        self,
        pictures: Tensor,
        items: Sequence[Item],
        flaws: Sequence[Flaw],
        seeds: Sequence[int],
    ) -> Painted:
        """See `steering.flaws.Editor`."""
        made, costs = [], []
        for first in range(0, len(pictures), self.batch_size):
            rows = slice(first, first + self.batch_size)
            out, cost = self._call(pictures[rows], items[rows], flaws[rows], seeds[rows])
            made.append(out)
            costs += [cost] * len(out)
        if costs:
            self._cost = Cost(nfe=max(c.nfe for c in costs), decodes=1)
        return Painted(torch.cat(made) if made else pictures, costs)

    def _call(
        self,
        pictures: Tensor,
        items: Sequence[Item],
        flaws: Sequence[Flaw],
        seeds: Sequence[int],
    ) -> tuple[Tensor, Cost]:
        height, width = pictures.shape[-2:]
        given: dict[str, Any] = {
            "prompt": [self.text(i, f) for i, f in zip(items, flaws, strict=True)],
            "generator": [seeded_generator(seed) for seed in seeds],
            "output_type": "pt",
        }
        if "image" in self._takes:
            given["image"] = pictures
        if self.masks:
            masks = [flaw.mask(height, width, self.margin) for flaw in flaws]
            given["mask_image"] = torch.stack(masks).to(pictures)
        with torch.no_grad():
            found = Watch(self.pipe).run({**self.call, **given})
        out = getattr(found.output, fields(found.output)[0].name).to(pictures).clamp(0, 1)
        if out.shape != pictures.shape:
            raise ValueError(
                f"{type(self.pipe).__name__} made {tuple(out.shape)} of pictures "
                f"{tuple(pictures.shape)}; set height and width in call so that sizes are kept"
            )
        return out, Cost(nfe=found.steps, decodes=1)


class SteeredPainter:
    """Paints by a steered pipeline: any pipeline, any search.

    Args:
        steered: the pipeline with its search and reward; its seed decides the pictures, and is set
            to 0 where it has none. A budget is one for each picture.
        call: the pipeline's own keyword arguments.
    """

    def __init__(self, steered: SteeredPipeline, call: Mapping[str, Any] | None = None) -> None:
        self.steered, self.call = steered, {**(call or {}), "output_type": "pt"}
        if steered.seed is None:
            steered.seed = 0

    @property
    def reward(self) -> Reward:
        """What the search goes by, and the rewards of what is painted are of."""
        return self.steered.reward

    def cost(self) -> Cost:
        """What the search plans to spend on a picture."""
        plan = self.steered.plan("", **self.call)
        return Cost(nfe=plan["nfe"], decodes=plan["decodes"], reward_calls=plan["reward_calls"])

    def paint(self, items: Sequence[Item], keys: Sequence[str]) -> Painted:
        """See `steering.flaws.Painter`.

        Raises:
            SearchFailed: a search failed.
        """
        run = self.steered.prepare(
            [item.prompt for item in items],
            metadata=[item.metadata for item in items],
            keys=list(keys),
            **self.call,
        )
        results = run.report(list(run.results())).results
        for result in results:
            if result.error is not None:
                raise result.error
        spent = [r.usage.cost for r in results]
        costs = [Cost(c.nfe, c.decodes, c.reward_calls, c.backwards) for c in spent]
        outcomes = [r.outcome for r in results if r.outcome is not None]
        rewards = [float(found.scores.total[found.chosen[0]]) for found in outcomes]
        return Painted(torch.stack([r.media[0] for r in results]), costs, rewards)
