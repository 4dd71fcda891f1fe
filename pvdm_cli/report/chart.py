"""Curves as SVG: raw points faint below their running mean, round ticks, values under the pointer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pvdm_cli.report.markup import Markup, tag
from pvdm_cli.report.scales import figure, linear_ticks, log_ticks, percent, tick_labels
from pvdm_cli.report.series import Point, Series, highest, lowest, smoothed, thinned

WIDTH, HEIGHT = 360, 200
TOP, RIGHT, BOTTOM = 22, 14, 22
MOST_STRIPS = 48  # places along the axis that tell their values
MOST_TOLD = 6  # values beside each other above the chart
LOG_RATIO = 8  # a logarithmic axis from this ratio of values on
TONES = 6  # colours of the style sheet


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        label: What it is called.
        series: Its points; at least one.
        number: Decides colour and dashes: the same curve looks the same in every chart.
        best: The point to mark.
    """

    label: str
    series: Series
    number: int
    best: Point | None = None

    @property
    def tone(self) -> str:
        """Class of its colour and dashes."""
        dashes = self.number // TONES % 3
        return f"t{self.number % TONES}" + (f" d{dashes}" if dashes else "")


@dataclass(frozen=True)
class Look:
    """How a chart is drawn.

    Attributes:
        title: Its name.
        logarithmic: Whether a logarithmic axis may help.
        floor: A value the axis always shows.
        ceiling: Another.
        share: Whether values are shares, told in percent.
        dots: Whether each point is drawn: there are few.
        smooth: Whether to draw a running mean over the points.
        along: What the curves run over.
    """

    title: str
    logarithmic: bool = False
    floor: float | None = None
    ceiling: float | None = None
    share: bool = False
    dots: bool = False
    smooth: bool = True
    along: str = "step"

    def told(self, value: float) -> str:
        """Write a value."""
        return percent(value) if self.share else figure(value)

    def told_at(self, point: Point) -> str:
        """Write a value and where it is."""
        return f"{self.told(point.value)} at {self.along} {point.step:,}"


@dataclass(frozen=True)
class Axis:
    """Values along one side of a chart.

    Attributes:
        low: The value at `start`.
        high: The value at `end`.
        start: Where it begins, in units of the picture.
        end: Where it ends.
        logarithmic: Whether equal distances are equal ratios.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where a value lies."""
        low, high, value = map(self._scaled, (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    @property
    def ticks(self) -> list[float]:
        """Round values along it."""
        return (log_ticks if self.logarithmic else linear_ticks)(self.low, self.high)


def draw(curves: Sequence[Curve], look: Look, identity: str) -> Markup:
    """Draw curves over steps.

    Args:
        curves: At least one, each of at least one point.
        look: How.
        identity: Unique on the page: names the title for those who cannot see the picture.
    """
    down = _value_axis(curves, look)
    labels = tick_labels([100 * t for t in down.ticks] if look.share else down.ticks)
    if look.share:
        labels = [f"{label} %" for label in labels]
    left = 10 + 6.6 * max(map(len, labels))
    steps = [point.step for curve in curves for point in curve.series]
    first = 0 if look.along == "step" else min(steps)
    across = Axis(*_widened(first, max(steps)), left, WIDTH - RIGHT)
    title, told = f"{identity}-title", f"{identity}-told"
    return tag(
        "svg",
        tag("title", look.title, id=title),
        tag("desc", describe(curves, look), id=told),
        _value_ticks(down, labels, left),
        tag("path", d=f"M{left:.1f} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}", class_="axis"),
        _step_ticks(across),
        [_line(curve, across, down, look) for curve in curves],
        [_mark(curve, across, down, look) for curve in curves if curve.best],
        _strips(curves, across, down, look),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{title} {told}",
    )


def describe(curves: Sequence[Curve], look: Look) -> str:
    """Tell in words what the curves show."""
    told = []
    for curve in curves:
        places = [look.told_at(curve.series[0]), look.told_at(curve.series[-1])]
        if curve.best:
            places.append(f"best {look.told_at(curve.best)}")
        told.append(f"{curve.label}: {', '.join(places)}")
    return "; ".join(told) + "."


def _value_axis(curves: Sequence[Curve], look: Look) -> Axis:
    """Choose the axis of values: from the lowest to the highest, with a little room."""
    low = min(lowest(curve.series).value for curve in curves)
    high = max(highest(curve.series).value for curve in curves)
    start, end = HEIGHT - BOTTOM, TOP
    if look.logarithmic and low > 0 and high >= LOG_RATIO * low:
        room = 10 ** min(1.0, 0.04 * (math.log10(high) - math.log10(low)))
        return Axis(low / room, high * room, start, end, logarithmic=True)
    room = 0.04 * (high - low)
    low, high = low - room, high + room
    if look.floor is not None:
        low = look.floor if low + room >= look.floor else low
    if look.ceiling is not None:
        high = look.ceiling if high - room <= look.ceiling else high
    return Axis(*_widened(low, high), start, end)


def _widened(low: float, high: float) -> tuple[float, float]:
    """Give a range of one value some width."""
    if high > low:
        return low, high
    room = abs(low) / 10 or 1.0
    return low - room, high + room


def _value_ticks(axis: Axis, labels: Sequence[str], left: float) -> list[Markup]:
    """Draw lines across with their values."""
    return [
        tag(
            "g",
            tag("path", d=f"M{left:.1f} {axis.at(tick):.1f}H{WIDTH - RIGHT}", class_="rule"),
            tag("text", label, x=left - 5, y=axis.at(tick) + 4, class_="value"),
        )
        for tick, label in zip(axis.ticks, labels, strict=True)
    ]


def _step_ticks(axis: Axis) -> list[Markup]:
    """Write steps along the bottom."""
    ticks = [tick for tick in axis.ticks if tick >= 0 and tick == int(tick)]
    return [
        tag("text", label, x=axis.at(tick), y=HEIGHT - 6)
        for tick, label in zip(ticks, tick_labels(ticks), strict=True)
    ]


def _line(curve: Curve, across: Axis, down: Axis, look: Look) -> Markup:
    """Draw one curve: where it is smoothed, its raw points faint below."""

    def path(series: Series, kind: str) -> Markup:
        places = [f"{across.at(p.step):.1f} {down.at(p.value):.1f}" for p in thinned(series)]
        return tag("path", d="M" + "L".join(places), class_=kind)

    mean = smoothed(curve.series) if look.smooth and not look.dots else []
    parts = [path(curve.series, "raw"), path(mean, "mean")] if mean else []
    if not mean:
        parts = [path(curve.series, "mean")]
    if len(curve.series) == 1 or (look.dots and len(curve.series) <= MOST_STRIPS):
        parts += [
            tag("circle", cx=across.at(p.step), cy=down.at(p.value), r=2.5) for p in curve.series
        ]
    return tag("g", parts, class_=f"curve {curve.tone}")


def _mark(curve: Curve, across: Axis, down: Axis, look: Look) -> Markup:
    """Mark the best point."""
    assert curve.best
    x, y = across.at(curve.best.step), down.at(curve.best.value)
    return tag(
        "g",
        tag("title", f"{curve.label}: best {look.told_at(curve.best)}"),
        tag("circle", cx=x, cy=y, r=5),
        class_=f"best {curve.tone}",
    )


def _strips(curves: Sequence[Curve], across: Axis, down: Axis, look: Look) -> list[Markup]:
    """Cover the chart with strips, each of which tells the values at one step."""
    steps = sorted({point.step for curve in curves for point in curve.series})
    every = -(-len(steps) // MOST_STRIPS)
    steps = steps[::-1][::every][::-1]  # the last is always among them
    places = [across.at(step) for step in steps]
    edges = [across.start, *((a + b) / 2 for a, b in pairwise(places)), across.end]
    values = [{point.step: point.value for point in curve.series} for curve in curves]
    strips = []
    for step, x, (start, end) in zip(steps, places, pairwise(edges), strict=True):
        found = [
            (curve, look.told(at[step]))
            for curve, at in zip(curves, values, strict=True)
            if step in at
        ]
        words = [f"{look.along} {step:,}", *(f"{curve.label} {value}" for curve, value in found)]
        strips.append(
            tag(
                "g",
                tag("title", "\n".join(words)),
                tag("rect", x=start, y=TOP, width=end - start, height=HEIGHT - TOP - BOTTOM),
                tag("path", d=f"M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"),
                tag(
                    "text",
                    f"{look.along} {step:,}",
                    [tag("tspan", value, dx=8, class_=c.tone) for c, value in found[:MOST_TOLD]],
                    x=across.start,
                    y=13,
                ),
                class_="strip",
            )
        )
    return strips
