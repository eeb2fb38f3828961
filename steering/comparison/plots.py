"""Curves as inline SVG: colours come from the page, so that they suit light and dark alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.ticker import LogLocator, MaxNLocator

from steering.comparison.results import Estimate

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 42


@dataclass(frozen=True)
class Point:
    """A cell in a plot.

    Attributes:
        x: its cost.
        y: its reward.
        told: what is said of it when it is pointed at.
    """

    x: Estimate
    y: Estimate
    told: str


@dataclass(frozen=True)
class Series:
    """A sampler in a plot.

    Attributes:
        name: as in the legend.
        look: classes of the page's style that give its colour and line.
        points: by budget.
        level: draw a line across at the height of its first point, as for the base model.
    """

    name: str
    look: str
    points: Sequence[Point]
    level: bool = False


class Axis:
    """Numbers to pixels, linear or logarithmic.

    Args:
        values: what has to fit.
        pixels: where the least and the greatest go.
        log: logarithmic, if all values are positive and they spread enough.
    """

    def __init__(
        self, values: Sequence[float], pixels: tuple[float, float], *, log: bool = False
    ) -> None:
        low, high = min(values), max(values)
        self.log = log and low > 0 and high / low > 3
        if self.log:
            room = (high / low) ** 0.08
            self.low, self.high = math.log(low / room), math.log(high * room)
            ticks = LogLocator(subs=(1, 2, 5)).tick_values(low, high)
        else:
            room = 0.07 * (high - low) or 0.1 * abs(high) or 1.0
            self.low, self.high = low - room, high + room
            ticks = MaxNLocator(nbins=5).tick_values(self.low, self.high)
        self.first, self.last = pixels
        self.ticks = [t for t in map(float, ticks) if self.low <= self._scaled(t) <= self.high]

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log and value > 0 else value

    def __call__(self, value: float) -> float:
        """Pixel of a value."""
        share = (self._scaled(value) - self.low) / (self.high - self.low)
        return round(self.first + share * (self.last - self.first), 1)


def plot(series: Sequence[Series], *, x: str, y: str, percent: bool = False) -> str:
    """A plot with 95 % intervals as whiskers, as an ``<svg>`` element.

    Args:
        series: what to draw; at least one point in all.
        x: label of the horizontal axis, a cost.
        y: label of the vertical axis.
        percent: write the vertical numbers as shares.
    """
    points = [p for s in series for p in s.points]
    across = Axis([p.x.mean for p in points], (LEFT, WIDTH - RIGHT), log=True)
    up = Axis([v for p in points for v in (p.y.low, p.y.high)], (HEIGHT - BOTTOM, TOP))
    label = f"{y} against {x}: " + "; ".join(p.told for p in points)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" class="plot">',
        *_frame(across, up, x, y, percent),
        *(part for s in series for part in _drawn(s, across, up)),
        "</svg>",
    ]
    return "\n".join(parts)


def _frame(across: Axis, up: Axis, x: str, y: str, percent: bool) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in up.ticks:
        at = up(tick)
        text = f"{100 * tick:g} %" if percent else f"{tick:g}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{at + 3.5}" text-anchor="end">{text}</text>'
        )
    for tick in across.ticks:
        at = across(tick)
        parts.append(f'<line class="mark" x1="{at}" x2="{at}" y1="{bottom}" y2="{bottom + 4}"/>')
        text = f'x="{at}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
        parts.append(f'<text class="tick" {text}')
    middle = (LEFT + right) / 2
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(
        f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>'
    )
    turned = f'transform="translate(12 {(TOP + bottom) / 2}) rotate(-90)"'
    parts.append(f'<text class="label" {turned} text-anchor="middle">{escape(y)}</text>')
    return parts


def _drawn(series: Series, across: Axis, up: Axis) -> list[str]:
    points = sorted(series.points, key=lambda p: p.x.mean)
    parts = [f'<g class="series {series.look}" data-series="{escape(series.name)}">']
    if series.level and points:
        at = up(points[0].y.mean)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
    if len(points) > 1:
        path = " ".join(f"{across(p.x.mean)},{up(p.y.mean)}" for p in points)
        parts.append(f'<polyline class="curve" points="{path}"/>')
    for p in points:
        x, y, low, high = across(p.x.mean), up(p.y.mean), up(p.y.low), up(p.y.high)
        caps = f"M{x - 3},{low}h6M{x},{low}V{high}M{x - 3},{high}h6"
        parts.append(f'<g class="point"><title>{escape(p.told)}</title>')
        parts.append(f'<path class="whisker" d="{caps}"/><circle cx="{x}" cy="{y}" r="4.2"/></g>')
    parts.append("</g>")
    return parts
