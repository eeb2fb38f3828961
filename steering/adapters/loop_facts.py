"""What is learned and checked of a pipeline's loop before it serves as a denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from steering.adapters.asking import ask, probes
from steering.adapters.capture import arguments, networks_of
from steering.adapters.checks import Refusal, check_network, relative, tolerance
from steering.adapters.inverted import InvertedLoop, Turn
from steering.adapters.leaves import same
from steering.adapters.loop_rows import Asked, LoopCalls, Way
from steering.adapters.own_call import OwnStep, own_call
from steering.adapters.variance import doubles

_PROMPT = "two red cubes on a table"
_STEPS = 3  # of the pipeline's own call that loops are compared with
_WAYS: tuple[Way, ...] = ("prompts", "images")


@dataclass(frozen=True, eq=False)
class LoopFacts:
    """How a pipeline's loop can be used.

    Attributes:
        asked: the probe.
        steps: the first steps of the pipeline's own call for it.
        way: how the pipeline is asked for several rows of a prompt; None: it makes one alone.
        visited: times that its loop goes through, ``(steps,)``.
        skipped: how many times its scheduler lists before those.
        scheduler: the scheduler before its first step.
        extra: further arguments of ``scheduler.step``.
        passes: network passes a row costs.
        copies: how often a state repeats its rows (DiT does so for guidance).
        any_order: whether a state at a time gives the same in any turn of the loop.
        why: what was found where it does not.
        gradients: whether they pass through the body.
    """

    asked: Asked
    steps: list[OwnStep]
    way: Way | None
    visited: Tensor
    skipped: int
    scheduler: Any
    extra: dict[str, Any]
    passes: int
    copies: int
    any_order: bool
    why: str
    gradients: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        return tuple(self.steps[0].sample.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """Of the state."""
        return self.steps[0].sample.dtype

    @property
    def scales(self) -> bool:
        """Whether the scheduler scales what the network sees."""
        return float(getattr(self.scheduler, "init_noise_sigma", 1.0)) != 1.0

    @property
    def learned_variance(self) -> bool:
        """Whether the pipeline hands its scheduler a learned variance behind the prediction."""
        return doubles(self.steps[0].output, self.steps[0].sample)

    @property
    def changes(self) -> bool:
        """Whether the body changes a state between two steps, as blending with a picture does."""
        return len(self.steps) > 1 and not same(self.steps[0].returned, self.steps[1].sample)

    def given(self, x: Tensor) -> Tensor:
        """Rows as the pipeline's loop holds them."""
        return x.repeat(self.copies, *[1] * (x.ndim - 1)) if self.copies > 1 else x

    def taken(self, x: Tensor) -> Tensor:
        """Rows out of what the pipeline's loop holds."""
        return x[: len(x) // self.copies]


def learn_loop(calls: LoopCalls, call: Mapping[str, Any], negative: str | None) -> LoopFacts:
    """Learn and check how a pipeline's loop can be used, from the first steps of its own call.

    Args:
        calls: begins loops of the pipeline.
        call: its arguments shared by all prompts.
        negative: a negative prompt, or None.

    Raises:
        Refusal: the loop does not give what the pipeline's own call gives.
    """
    pipe = calls.pipe
    for name, network in networks_of(pipe).items():
        check_network(name, network)
    asked = Asked(probes(pipe, call, [_PROMPT], [negative])[0])
    kwargs = arguments(
        pipe, call, generator=asked.generator(), return_dict=True, **ask(pipe, [asked.pair])
    )
    steps, _ = own_call(pipe, kwargs, most=_STEPS)
    calls.tally.setup += len(steps)
    loop, networks = calls.begin(asked, 1, "prompts")
    with loop:
        copies = _copies(loop.first)
        visited, skipped = _visited(pipe, loop)
        _in_step(loop, steps, visited)
        passes, scheduler, extra = networks.passes, loop.scheduler, _constant(loop.extra)
    calls.tally.setup += min(len(steps), 2) - 1
    order = _Order(calls, asked, steps, visited)
    order.check()
    if order.wrong:
        whole, _ = own_call(pipe, {**kwargs, "generator": asked.generator()})
        calls.tally.setup += len(whole)
        order.check_in_sequence(whole)
    return LoopFacts(
        asked=asked,
        steps=steps,
        way=_way(calls, asked, steps, visited, copies),
        visited=visited,
        skipped=skipped,
        scheduler=scheduler,
        extra=extra,
        passes=passes,
        copies=copies,
        any_order=not order.wrong,
        why=order.wrong,
        gradients=order.gradients,
    )


def _copies(first: Turn) -> int:
    rows = len(first.sample)
    if any(not same(row, first.sample[0]) for row in first.sample):
        raise Refusal(f"one prompt became {rows} states; cannot tell which is whose")
    if first.output.shape != first.sample.shape and not doubles(first.output, first.sample):
        raise Refusal(
            f"the prediction {tuple(first.output.shape)} has another shape than the state "
            f"{tuple(first.sample.shape)}, which no transition of ours reads"
        )
    return rows


def _visited(pipe: Any, loop: InvertedLoop) -> tuple[Tensor, int]:
    """Times of the loop, and how many the scheduler lists before them."""
    if not loop.began:
        raise Refusal(f"{type(pipe).__name__} does not iterate over the times of its scheduler")
    visited, listed = loop.visited, loop.grid
    skipped = len(listed) - len(visited)
    if skipped < 0 or not torch.equal(listed[skipped:], visited.to(listed)):
        raise Refusal(f"{type(pipe).__name__} visits other times than its scheduler lists")
    return visited, skipped


def _in_step(loop: InvertedLoop, steps: list[OwnStep], visited: Tensor) -> None:
    """The first two turns must be the pipeline's own first two steps."""
    wrong = _differs(loop.first, steps[0])
    if not wrong and len(steps) > 1:
        wrong = _differs(loop.predict(steps[0].returned, visited[1]), steps[1])
    if wrong:
        raise Refusal(f"the inverted loop does not repeat the pipeline's own first steps: {wrong}")


def _differs(turn: Turn, step: OwnStep) -> str:
    """How a turn differs from a step of the pipeline's own; empty if it does not."""
    bound = tolerance(step.sample.dtype)
    if float(turn.timestep.flatten()[0]) != float(step.timestep.flatten()[0]):
        return f"it is at time {turn.timestep.tolist()}, not {step.timestep.tolist()}"
    for name in ("sample", "output"):
        found = relative(getattr(turn, name).detach(), getattr(step, name))
        if not found <= bound:
            return f"relative difference of its {name} {found:.2g}"
    return ""


def _constant(extra: Mapping[str, Any]) -> dict[str, Any]:
    if any(torch.is_tensor(value) for value in extra.values()):
        raise Refusal(
            "the pipeline hands its scheduler more than the prediction, the time and the state: "
            f"{', '.join(extra)}"
        )
    return dict(extra)


class _Order:
    """Whether a state at a time gives the same in any turn of the loop, and if not, in its own."""

    def __init__(
        self, calls: LoopCalls, asked: Asked, steps: list[OwnStep], visited: Tensor
    ) -> None:
        self._calls, self._asked, self._steps, self._visited = calls, asked, steps, visited
        self.wrong = ""
        self.gradients = False

    def check(self) -> None:
        """Try turns over the whole loop."""
        steps, last = self._steps, len(self._visited) - 1
        wrong = (
            ""
            if len(steps) > 1 and not same(steps[0].returned, steps[1].sample)
            else self._tried(1, 0, steps[0].sample)
        )
        if len(steps) > 1:
            for turn in sorted({2, last // 4, last // 2, 3 * last // 4, last}):
                if 2 <= turn <= last and not wrong:
                    wrong = self._tried(turn, 1, steps[0].returned)
        self.wrong = wrong

    def check_in_sequence(self, whole: list[OwnStep]) -> None:
        """Try turns at their own times, where they give the same at no others.

        Args:
            whole: all steps of the pipeline's own call; what they remember of each other (momentum of
                guidance, say) may act late.

        Raises:
            Refusal: a step depends on the states before it.
        """
        self._steps, last = whole, len(whole) - 1
        for index in sorted({min(_STEPS, last), last // 2, last} - {0}):
            own = self._tried(index, index, whole[index - 1].returned)
            if own:
                raise Refusal(
                    "a step of this pipeline's loop depends on the steps before it, so it is no "
                    f"function of a state and a time ({own})"
                )

    def _tried(self, turn: int, index: int, state: Tensor) -> str:
        """What is wrong with step ``index`` in the given turn, the turns before it left dry."""
        loop, networks = self._calls.begin(self._asked, 1, "prompts", dry=True)
        try:
            with loop:
                while loop.turns < turn:
                    loop.predict(loop.first.sample, self._visited[loop.turns])
                networks.dry = False
                self._calls.tally.setup += 1
                with torch.enable_grad():
                    x = state.detach().clone().requires_grad_()
                    found = loop.predict(x, self._visited[index])
                self.gradients = found.output.requires_grad
                wrong = _differs(found, self._steps[index])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a pipeline may raise anything beyond its turns
            wrong = f"{type(error).__name__}: {error}"
        return f"time {index} in turn {turn}: {wrong}" if wrong else ""


def _way(
    calls: LoopCalls, asked: Asked, steps: list[OwnStep], visited: Tensor, copies: int
) -> Way | None:
    """How the pipeline makes two rows of a prompt, each as it makes it alone."""
    for way in _WAYS:
        try:
            loop, _ = calls.begin(asked, 2, way)
            with loop:
                if len(loop.first.sample) != 2 * copies:
                    continue
                doubled = [
                    replace(step, sample=_twice(step.sample), output=_twice(step.output))
                    for step in steps
                ]
                doubled[0] = replace(doubled[0], returned=_twice(steps[0].returned))
                _in_step(loop, doubled, visited)
                calls.tally.setup += 2 * (min(len(steps), 2) - 1)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # noqa: BLE001 - it then makes its rows one by one
            continue
        return way
    return None


def _twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])
