"""Proof of what a reward declares: one check for all, also for rewards from elsewhere.

It raises AssertionError with what was expected and what came, so it can stand in any test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rewards.base import RewardModel
from steering.reward import Item, Reward

_AGREEMENT = 0.05  # of finite differences and gradient, relative


def check_reward(
    reward: RewardModel,
    media: Tensor,
    items: Sequence[Item],
    *,
    tolerance: float = 1e-4,
    step: float = 0.3,
) -> None:
    """Prove the abilities that a reward declares.

    Protocol, shape and dtype, determinism, rows that do not depend on their neighbours, range,
    text dependence, and the gradient against finite differences (or its absence).

    Args:
        reward: the reward.
        media: ``(B, 3, H, W)``, or ``(B, F, 3, H, W)`` of a video's reward; B at least 2, away from 0
            and 1 so that steps stay inside.
        items: B items; two of other prompts whose scores differ, if the reward needs text.
        tolerance: of equal scores, relative to 1 + their size.
        step: length of a finite difference, in the norm of one picture; long where rounding to 8
            bits is part of the reward.

    Raises:
        AssertionError: a declared ability is missing.
    """
    _require(isinstance(reward, Reward), "does not follow steering.reward.Reward")
    _require(isinstance(reward.name, str) and bool(reward.name), f"has the name {reward.name!r}")
    _require(reward.calls_per_row >= 1, f"declares {reward.calls_per_row} calls per row")
    features = [reward.prepare(item) for item in items]
    scores = _total(reward, media, features)
    _require(scores.device == media.device, f"scores on {scores.device}, media on {media.device}")
    _require(scores.is_floating_point(), f"returns {scores.dtype}")
    _require(
        torch.equal(scores, _total(reward, media, features)), "gave other scores when repeated"
    )
    _check_range(reward, scores)
    _check_rows(reward, media, features, tolerance)
    if reward.needs_text:
        _check_text(reward, media, features, scores)
    if reward.differentiable:
        _check_gradient(reward, media, features, step)
    else:
        watched = _total(reward, media.clone().requires_grad_(True), features)
        _require(not watched.requires_grad, "declares no gradient but returns a graph")


def _total(reward: RewardModel, media: Tensor, features: Sequence[Any]) -> Tensor:
    """The searched scores, ``(B,)``, after a check of all columns."""
    scores = reward(media, features)
    columns: Mapping[str, Tensor] = scores if isinstance(scores, Mapping) else {reward.name: scores}
    for name, values in columns.items():
        shape = tuple(values.shape)
        _require(shape == (len(media),), f"column {name!r} has shape {shape} for {len(media)} rows")
    return columns[reward.name]


def _check_rows(
    reward: RewardModel, media: Tensor, features: Sequence[Any], tolerance: float
) -> None:
    scores = _total(reward, media, features).detach()
    alone = torch.cat(
        [_total(reward, media[i : i + 1], features[i : i + 1]) for i in range(len(media))]
    )
    mirrored = _total(reward, media.flip(0), list(features)[::-1]).flip(0)
    for how, others in (("alone", alone.detach()), ("in reversed order", mirrored.detach())):
        gap = float(((scores - others).abs() / (1 + scores.abs())).max())
        _require(gap <= tolerance, f"scores rows differently {how}: by {gap:.1e}, relative")


def _check_range(reward: RewardModel, scores: Tensor) -> None:
    _require(
        bool(scores.isfinite().all()), f"returned scores that are not finite: {scores.tolist()}"
    )
    if reward.range is not None:
        low, high = reward.range
        inside = bool(((scores >= low) & (scores <= high)).all())
        _require(inside, f"declares the range {reward.range} and scored {scores.tolist()}")


def _check_text(
    reward: RewardModel, media: Tensor, features: Sequence[Any], scores: Tensor
) -> None:
    turned = _total(reward, media, [*features[1:], *features[:1]])
    _require(not torch.equal(scores, turned), "needs text, but other prompts give the same scores")
    try:
        reward.prepare(Item(prompt=" "))
    except ValueError:
        return
    raise AssertionError("the reward needs text, but takes an empty prompt")


def _check_gradient(
    reward: RewardModel, media: Tensor, features: Sequence[Any], step: float
) -> None:
    watched = media.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(_total(reward, watched, features).sum(), watched)
    steepest = gradient.flatten(1).norm(dim=1)
    _require(bool((steepest > 0).all()), "is differentiable, but the gradient of a row is zero")
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, *media.shape[:-2], 4, 4, generator=generator).to(media)
    # The gradient's own direction has the strongest signal; blocks see what it may have left out.
    blocks = [
        functional.interpolate(noise.flatten(0, -4), size=media.shape[-2:]).reshape(media.shape)
        for noise in coarse
    ]
    for direction in (gradient, *blocks):
        unit = direction / direction.flatten(1).norm(dim=1).reshape(-1, *[1] * (media.ndim - 1))
        with torch.no_grad():
            ahead = _total(reward, media + step * unit, features)
            behind = _total(reward, media - step * unit, features)
        measured = (ahead - behind) / (2 * step)
        claimed = (gradient * unit).flatten(1).sum(1)
        allowed = _AGREEMENT * claimed.abs() + 0.01 * steepest
        _require(
            bool(((measured - claimed).abs() <= allowed).all()),
            f"has the slope {measured.tolist()} by finite differences, {claimed.tolist()} by gradient",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(f"the reward {message}")
