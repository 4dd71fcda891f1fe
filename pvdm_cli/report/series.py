"""Series of values over steps: smoothed, thinned for drawing, and what is best in them."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

MOST_POINTS = 400  # of a drawn line: more than a card is wide in pixels
FEWEST_TO_SMOOTH = 16


class Point(NamedTuple):
    """A value and the step it was logged at."""

    step: int
    value: float


Series = list[Point]  # by rising step


def smoothed(series: Sequence[Point], span: float = 1 / 15) -> Series:
    """Return means over a centred window of points, narrow at the start, where values fall fast.

    Args:
        series: Values over steps.
        span: Width of the window as a share of the series.

    Returns:
        As many points, or none where there are too few to smooth.
    """
    if len(series) < FEWEST_TO_SMOOTH:
        return []
    most = max(1, round(len(series) * span / 2))
    sums = [0.0, *accumulate(point.value for point in series)]
    found = []
    for i, point in enumerate(series):
        k = min(most, i)
        low, high = i - k, min(i + k + 1, len(series))
        found.append(Point(point.step, (sums[high] - sums[low]) / (high - low)))
    return found


def thinned(series: Sequence[Point], most: int = MOST_POINTS) -> Series:
    """Keep the lowest and the highest point of each stretch, so that no spike is lost."""
    if len(series) <= most:
        return list(series)
    stretches = max(1, (most - 2) // 2)
    kept = {0, len(series) - 1}
    for k in range(stretches):
        stretch = range(k * len(series) // stretches, (k + 1) * len(series) // stretches)
        kept.add(min(stretch, key=lambda i: series[i].value))
        kept.add(max(stretch, key=lambda i: series[i].value))
    return [series[i] for i in sorted(kept)]


def lowest(series: Sequence[Point]) -> Point:
    """The first point of the lowest value."""
    return min(series, key=lambda point: point.value)


def highest(series: Sequence[Point]) -> Point:
    """The first point of the highest value."""
    return max(series, key=lambda point: point.value)
