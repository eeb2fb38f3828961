"""One step of any transition, as a generator: Gaussian ones are made for all searches at once.

Others denoise inside.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from steering.prediction import Posterior, joined
from steering.requests import Denoise, Move
from steering.search import Noise, Problem
from steering.times import Time
from steering.transfer import buffer_for, to_device
from steering.transitions import GaussianTransition, Transition

#: A step in flight: yields what to denoise or the step itself, returns the rows at ``s``.
Step = Generator[Denoise | Move, Any, Tensor]


@runtime_checkable
class InnerSolve(Protocol):
    """A transition whose step needs further denoiser calls."""

    def solve(
        self,
        at: Callable[[float], Time],
        x_t: Tensor,
        posterior: Posterior,
        t: Time,
        s: Time,
        noise: Callable[[], Tensor],
        *,
        keep_graph: bool = False,
    ) -> Step:
        """The step; arguments as in :func:`move`, ``at`` being the problem's."""


def move(
    problem: Problem,
    transition: Transition,
    x_t: Tensor,
    posterior: Posterior,
    t: Time,
    s: Time,
    noise: Callable[[], Tensor],
    *,
    keep_graph: bool = False,
    rows: Tensor | None = None,
) -> Step:
    """Carry rows from one time to a less noisy one: a search says ``yield from`` of it.

    Args:
        problem: gives the records of noise levels between ``t`` and ``s``.
        transition: how.
        x_t: rows ``(n, *shape)`` at ``t``.
        posterior: what the denoiser said of them.
        t: where they are.
        s: where they go.
        noise: returns standard normal rows like ``x_t``; called once, and only if noise is used.
            What ``problem.later`` returns is drawn together with that of other searches.
        keep_graph: keep the autograd graph through the step.
        rows: rows of ``x_t`` and ``posterior`` to move, chosen or repeated, ``(m,)`` on the CPU; the
            noise is then of ``m`` rows. None moves all.

    Yields:
        ``transition.inner_calls`` requests to denoise, or a :class:`Move`.

    Returns:
        Rows ``(n, *shape)`` at ``s``.

    Raises:
        ValueError: ``s`` is not less noisy than ``t``.
    """
    if isinstance(transition, GaussianTransition) and not keep_graph:
        return (yield Move(transition, posterior, t, s, noise, rows))
    if rows is not None:
        chosen = to_device(rows, x_t.device)
        x_t, posterior = x_t[chosen], posterior[chosen]
    if not isinstance(transition, GaussianTransition):
        solver = cast(InnerSolve, transition)
        step = solver.solve(problem.at, x_t, posterior, t, s, noise, keep_graph=keep_graph)
        return (yield from step)
    with torch.enable_grad():
        law = transition(posterior, t, s)
        return law.mean if law.std == 0 else law.sample(noise())


@torch.no_grad()
def made(requests: Sequence[Move]) -> list[Tensor | Exception]:
    """Steps of many searches; those between the same times are computed as one.

    The noise of all is drawn side by side and goes to the device in one transfer, and so do the
    indices of the rows that move. Each row is to the bit what it would be alone.

    Args:
        requests: rows of one shape, at any times.

    Returns:
        Rows one step on of each request, ``(n, *shape)``; or the error of drawing its noise.

    Raises:
        ValueError: a step does not lose noise; nothing was drawn then.
        torch.OutOfMemoryError: so many rows do not fit at once; the same requests can be made again.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault((request.transition, request.t, request.s), []).append(i)
    together = [[requests[i] for i in members] for members in groups.values()]
    laws = [
        group[0].transition(posterior, group[0].t, group[0].s)
        for group, posterior in zip(together, _chosen(together), strict=True)
    ]
    noisy = [
        i for members, law in zip(groups.values(), laws, strict=True) if law.std for i in members
    ]
    answers: list[Tensor | Exception] = [Tensor()] * len(requests)
    try:
        noise, failed = _drawn({i: requests[i] for i in noisy})
        for members, law in zip(groups.values(), laws, strict=True):
            x_s = law.mean
            if law.std:
                own = [noise[i] for i in members]
                x_s = law.sample(own[0] if len(own) == 1 else torch.cat(own))
            parts = x_s.split([len(requests[i]) for i in members])
            for i, rows in zip(members, parts, strict=True):
                answers[i] = failed.get(i, rows)
    except torch.OutOfMemoryError:  # fewer at once may fit, and are to draw the same numbers
        for request in (requests[i] for i in noisy):
            if isinstance(request.noise, Noise):
                request.noise.forget()
        raise
    return answers


def _chosen(groups: Sequence[Sequence[Move]]) -> list[Posterior]:
    """Of each group the rows that move."""
    posteriors = [joined([request.posterior for request in group]) for group in groups]
    indices: list[Tensor | None] = [None] * len(groups)
    for g, group in enumerate(groups):
        if all(request.rows is None for request in group):
            continue
        parts, first = [], 0
        for request in group:
            n = len(request.posterior.x_0)
            parts.append((torch.arange(n) if request.rows is None else request.rows) + first)
            first += n
        indices[g] = torch.cat(parts)
    moving = [rows for rows in indices if rows is not None]
    if moving:
        sent = to_device(torch.cat(moving), posteriors[0].x_0.device)
        parted = iter(sent.split([len(rows) for rows in moving]))
        posteriors = [
            posterior if rows is None else posterior[next(parted)]
            for posterior, rows in zip(posteriors, indices, strict=True)
        ]
    return posteriors


def _drawn(requests: Mapping[int, Move]) -> tuple[dict[int, Tensor], dict[int, Exception]]:
    """Noise of each request, ``(n, *shape)`` on the device, and what was not drawn for an error."""
    failed: dict[int, Exception] = {}
    noise: dict[int, Tensor] = {}
    later = {i: request for i, request in requests.items() if isinstance(request.noise, Noise)}
    for i, request in requests.items():
        if i not in later:
            try:
                noise[i] = request.noise()
            except Exception as error:  # noqa: BLE001 - it is one search's; the others go on
                x_0 = request.posterior.x_0
                noise[i], failed[i] = x_0.new_zeros((len(request), *x_0.shape[1:])), error
    if not later:
        return noise, failed
    like = next(iter(later.values())).posterior.x_0
    host = buffer_for((sum(map(len, later.values())), *like.shape[1:]), like.device)
    array, first = host.numpy(), 0
    for i, request in later.items():
        rows = slice(first, first + len(request))
        first = rows.stop
        try:
            cast(Noise, request.noise).fill(array[rows])
        except Exception as error:  # noqa: BLE001
            failed[i] = error
    parts = to_device(host, like.device).split([len(request) for request in later.values()])
    return noise | dict(zip(later, parts, strict=True)), failed
