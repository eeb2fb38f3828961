"""Learn a pipeline's plan from two calls of its own, with N and with 2N prompts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steering.adapters.asking import Pair, ask, probes
from steering.adapters.capture import (
    NetworkCall,
    Recorder,
    Recording,
    arguments,
    networks_of,
    quiet_generator,
)
from steering.adapters.checks import (
    Refusal,
    check_network,
    exact_float32,
    relative,
    signature_of,
    tolerance,
)
from steering.adapters.clock import find_time
from steering.adapters.conditioning import drawn_pieces, first_step
from steering.adapters.guidance import Guidance, fit_guidance
from steering.adapters.leaves import LatentsLeaf, latents_leaf, row_leaf, same
from steering.adapters.own_call import own_call
from steering.adapters.replay import CallPlan, Plan, fit_to_state, split_blocks
from steering.adapters.variance import find_variance, parted
from steering.schedulers import call_times, training_interpolant
from steering.times import Time

# Two rows at least: with one, some pipelines drop masks or crop. Lengths differ, so that masks stay;
# the first two hold the longest, so that both calls are padded alike.
_PROBES = ("a", "one blue ring left of three green stars", "a cat", "two red cubes on a table")
_ROWS = 2


@exact_float32()
def learn(pipe: Any, call: Mapping[str, Any], *, negative: bool) -> Plan:
    """Learn how the pipeline computes a step.

    Args:
        pipe: the pipeline; left as it was.
        call: its arguments shared by all prompts.
        negative: whether prompts come with negative prompts.

    Raises:
        Refusal: the pipeline cannot be replayed; the message says why.
    """
    for name, network in networks_of(pipe).items():
        check_network(name, network)
    pairs = _pairs(pipe, call, negative)
    recording = Recorder(pipe).run(_asked(pipe, call, pairs[:_ROWS]))
    times = _times_of(recording)
    windows = _windows(recording)
    wide = first_step(
        pipe,
        _asked(pipe, call, pairs),
        recording.network,
        [c.raw for c in windows[0]],
        (len(_PROBES), _ROWS),
    )
    scales = [training_interpolant(recording.scheduler).scale_from(t) for t in times]
    calls = tuple(
        _learn_call(pipe, recording, [w[k] for w in windows], wide.calls[k], scales)
        for k in range(len(windows[0]))
    )
    first = recording.steps[0]
    guidance, variance = _learn_guidance(pipe, call, recording, windows, calls)
    plan = Plan(
        network=recording.network,
        calls=calls,
        guidance=guidance,
        shape=tuple(first.sample.shape[1:]),
        dtype=first.sample.dtype,
        outputs=tuple(c.raw for c in windows[0]),
        rows=_ROWS,
        extra=_constant_extra(recording),
        scheduler=recording.scheduler,
        variance=variance,
    )
    _check_first_step(pipe, plan, recording, windows[0], times[0])
    _check_alone(pipe, call, plan, times[0], pairs[-1])
    return plan


def _pairs(pipe: Any, call: Mapping[str, Any], negative: bool) -> list[Pair]:
    """Prompts to probe with; the first two are a call of their own."""
    negatives = [_PROBES[i] if negative else None for i in (1, 0, 3, 2)]
    return probes(pipe, call, _PROBES, negatives)


def _asked(pipe: Any, call: Mapping[str, Any], pairs: list[Pair]) -> dict[str, Any]:
    """Arguments of a call for these rows."""
    own = {"generator": quiet_generator(), "output_type": "latent"}
    return arguments(pipe, call, **own, **ask(pipe, pairs))


def _times_of(recording: Recording) -> list[Time]:
    """Noise level of each recorded step."""
    steps, scheduler = recording.steps, recording.scheduler
    if not steps:
        raise Refusal("the pipeline never calls scheduler.step, so there is nothing to replay")
    if len(steps) < 2:
        raise Refusal(
            "the pipeline takes a single step, which does not tell what changes between steps; use "
            "num_inference_steps of at least 2"
        )
    rows = steps[0].sample.shape[0]
    if rows != _ROWS:
        raise Refusal(f"{_ROWS} prompts became {rows} states; cannot tell which is whose")
    try:
        times = call_times(scheduler)
    except ValueError as error:
        raise Refusal(str(error)) from error
    if [float(step.timestep.flatten()[0]) for step in steps] != [t.model_t for t in times]:
        raise Refusal(
            "the pipeline does not visit all times that its scheduler lists (as image-to-image does, "
            "which starts part-way from a picture); only pipelines that start from noise can be "
            "replayed"
        )
    for early, late in itertools.pairwise(steps):
        if not same(early.returned.to(late.sample.dtype), late.sample):
            raise Refusal(
                "the pipeline changes the latents between scheduler.step and the next call (as "
                "inpainting by blending does), so a step is no function of latents and time"
            )
    return times


def _windows(recording: Recording) -> list[list[NetworkCall]]:
    """The network's calls of each step; what ran before the loop is left out of the first."""
    counts = {len(step.calls) for step in recording.steps[1:]}
    if len(counts) != 1:
        raise Refusal(
            f"the number of network calls changes from step to step ({sorted(counts)}); switch off "
            "options that act on some steps only"
        )
    count = counts.pop()
    windows = [step.calls[-count:] for step in recording.steps]
    if any(c.name != recording.network for c in windows[0]) or len(windows[0]) != count:
        raise Refusal("several networks act in the first step; replay needs one network a step")
    specs = {tuple(str(c.arguments.spec) for c in window) for window in windows}
    if len(specs) != 1:
        raise Refusal("the network's arguments change their structure between steps")
    return windows


def _learn_call(
    pipe: Any,
    recording: Recording,
    calls: Sequence[NetworkCall],
    wide: NetworkCall,
    scales: Sequence[float],
) -> CallPlan:
    """Roles of one call's arguments, from all its steps and from a call with twice the prompts."""
    first = calls[0].arguments
    if wide.arguments.spec != first.spec:
        raise Refusal("the network's arguments change their structure with the number of prompts")
    changing = [
        i
        for i, value in enumerate(first.values)
        if not all(same(call.arguments.values[i], value) for call in calls[1:])
    ]
    latents = _find_latents(recording, calls, changing, scales)
    others = [i for i in changing if i != latents.index]
    if len(others) != 1:
        named = ", ".join(first.names[i] for i in others) or "none"
        raise Refusal(
            f"beside the latents exactly the time may change between steps, but what changes is: "
            f"{named}; switch off options that depend on the step"
        )
    time = find_time(
        others[0],
        first.names[others[0]],
        [call.arguments.values[others[0]] for call in calls],
        [step.timestep for step in recording.steps],
        _time_scales(pipe, recording),
    )
    rows = []
    for i, (small, large) in enumerate(zip(first.values, wide.arguments.values, strict=True)):
        if i not in changing:
            rows.append(row_leaf(i, first.names[i], small, large, latents.blocks, _ROWS))
    found = tuple(leaf for leaf in rows if leaf is not None)
    return CallPlan(first.spec, tuple(first.values), latents, time, found)


def _find_latents(
    recording: Recording,
    calls: Sequence[NetworkCall],
    changing: Sequence[int],
    scales: Sequence[float],
) -> LatentsLeaf:
    for i in changing:
        found = [
            latents_leaf(i, call.arguments.values[i], step.sample, scale)
            for call, step, scale in zip(calls, recording.steps, scales, strict=True)
        ]
        known = [leaf for leaf in found if leaf is not None]
        if len(known) == len(found):
            # unscaled and scaled agree where the factor is 1: any step that needs it decides
            best = next((leaf for leaf in known if leaf.scaled), known[0])
            _check_tail(calls, best)
            return best
    names = ", ".join(calls[0].arguments.names[i] for i in changing) or "nothing"
    raise Refusal(
        f"no argument of the network carries the scheduler's state (what changes: {names})"
    )


def _check_tail(calls: Sequence[NetworkCall], leaf: LatentsLeaf) -> None:
    if leaf.tail_dim is None:
        return
    tails = [leaf.tail_of(call.arguments.values[leaf.index]) for call in calls]
    if not all(same(tails[0], tail) for tail in tails[1:]):
        raise Refusal("what the pipeline joins to the latents changes between steps")


def _time_scales(pipe: Any, recording: Recording) -> dict[str, float]:
    """Numbers that pipelines divide or multiply the time by."""
    steps = float(recording.scheduler.config.num_train_timesteps)
    config = getattr(pipe.__dict__[recording.network], "config", None)
    scale = getattr(config, "timestep_scale", None)
    own = {} if scale is None else {"timestep_scale": float(scale)}
    return {"num_train_timesteps": steps, "1000": 1000.0, **own}


def _learn_guidance(
    pipe: Any,
    call: Mapping[str, Any],
    recording: Recording,
    windows: Sequence[Sequence[NetworkCall]],
    plans: Sequence[CallPlan],
) -> tuple[Guidance, int | None]:
    """How outputs are joined, and which of them holds the variance that is handed over, if any."""
    sample = recording.steps[0].sample
    whole = [
        [
            block
            for c, plan in zip(window, plans, strict=True)
            for block in split_blocks(c.output, plan.latents.blocks)
        ]
        for window in windows
    ]
    outputs = [[fit_to_state(block, sample.shape[1:]) for block in blocks] for blocks in whole]
    handed = [parted(step.model_output, sample) for step in recording.steps]
    values = {**signature_of(pipe), **call}
    numbers = [
        float(v)
        for name, v in values.items()
        if isinstance(v, int | float) and ("guidance" in name or "cfg" in name)
    ]
    guidance = fit_guidance(outputs, [prediction for prediction, _ in handed], numbers)
    return guidance, find_variance(whole, [variance for _, variance in handed], sample)


def _constant_extra(recording: Recording) -> dict[str, Any]:
    """Further arguments of ``scheduler.step``, such as eta.

    Raises:
        Refusal: they are tensors, or change from step to step.
    """
    first = recording.steps[0].extra
    for step in recording.steps:
        if step.extra.keys() != first.keys() or not all(
            same(step.extra[k], first[k]) and not torch.is_tensor(first[k]) for k in first
        ):
            raise Refusal(
                "the pipeline hands its scheduler more than the prediction, the time and the state: "
                f"{', '.join(step.extra)}"
            )
    return dict(first)


def _check_first_step(
    pipe: Any, plan: Plan, recording: Recording, calls: Sequence[NetworkCall], time: Time
) -> None:
    """The rebuilt function must reproduce the pipeline's own first, real step."""
    step = recording.steps[0]
    found = _predicted(pipe, plan, step.sample, plan.split(calls, _ROWS), time)
    wrong = relative(found, step.model_output)
    if not wrong <= tolerance(plan.dtype):
        raise Refusal(
            "the rebuilt denoiser does not reproduce the pipeline's own first step (relative "
            f"difference {wrong:.2g}); this pipeline does more in a step than replay can see"
        )


def _predicted(pipe: Any, plan: Plan, state: Tensor, pieces: Any, time: Time) -> Tensor:
    """The rebuilt prediction of states that are all at one time."""
    rows, state = len(state), state.float()
    scale = training_interpolant(plan.scheduler).scale_from(time)
    scales = torch.full((rows, *[1] * (state.ndim - 1)), scale).to(state)
    t = torch.full((rows,), time.model_t, dtype=torch.float32, device=state.device)
    with torch.no_grad():
        return plan.predict(pipe.__dict__[plan.network], state, scales, t, plan.join(pieces))


def _check_alone(pipe: Any, call: Mapping[str, Any], plan: Plan, time: Time, pair: Pair) -> None:
    """A prompt by itself must give what it gives among others: a user's own call often has one alone."""
    (step,), _ = own_call(pipe, _asked(pipe, call, [pair]), most=1)
    once, twice = (
        first_step(pipe, _asked(pipe, call, [pair] * n), plan.network, plan.outputs, (n, plan.rows))
        for n in (1, 2)
    )
    pieces = drawn_pieces(plan, once, plan.split(twice.calls, 2)[:1])
    found = _predicted(pipe, plan, step.sample, pieces, time)
    wrong = relative(found, step.output)
    if not wrong <= tolerance(plan.dtype):
        raise Refusal(
            f"the pipeline computes a prompt by itself otherwise than among others (relative difference "
            f"{wrong:.2g}), and a replay cannot know which is wanted"
        )
