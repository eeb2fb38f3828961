"""Outlines of the shapes as signed distance functions, and the pixels they cover."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

SIZE = 64


def coverage(shape: int, centres: Tensor, radii: Tensor, tilt: Tensor) -> Tensor:
    """Share of every pixel that a shape covers.

    Args:
        shape: Index into `SHAPES`.
        centres: (N, 2) in pixels.
        radii: (N,) in pixels.
        tilt: (N,) in radians.

    Returns:
        (N, 64, 64) in [0, 1].
    """
    axis = torch.arange(SIZE, device=centres.device) + 0.5
    dx = axis[None, None, :] - centres[:, 0, None, None]
    dy = axis[None, :, None] - centres[:, 1, None, None]
    cos, sin, r = (value[:, None, None] for value in (tilt.cos(), tilt.sin(), radii))
    distance = _DISTANCES[shape]((cos * dx + sin * dy) / r, (cos * dy - sin * dx) / r)
    return (0.5 - distance * r).clamp(0, 1)


# Signed distances in units of the bounding radius, negative inside, y downwards.


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.92


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.72).abs() - 0.22


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.7


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    return (x.abs() + y.abs() - 0.98) / math.sqrt(2)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(y, math.sqrt(0.75) * x.abs() - 0.5 * y) - 0.5


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.minimum(torch.maximum(x - 0.3, y - 0.92), torch.maximum(y - 0.3, x - 0.92))


def _star(x: Tensor, y: Tensor) -> Tensor:
    # Fold the plane onto half a spike, then take the distance from the line tip - notch.
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, -y)
    angle = (angle - sector * torch.round(angle / sector)).abs()
    radius, notch = torch.hypot(x, y), 0.45
    u, v = radius * angle.cos(), radius * angle.sin()
    edge = (notch * math.cos(sector / 2) - 1, notch * math.sin(sector / 2))
    return ((u - 1) * edge[1] - v * edge[0]) / math.hypot(*edge)


_DISTANCES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _circle,
    _ring,
    _square,
    _diamond,
    _triangle,
    _cross,
    _star,
)
