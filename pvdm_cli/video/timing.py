"""Which frames of which video: a stretch of it, at its own rate or at another, by time.

A frame comes with the seconds since the beginning of the video, or None where nothing tells.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from pvdm_cli.video.arrays import Part

Item = TypeVar("Item")
Timed = Iterator[tuple[float | None, Item]]

SLACK = 1e-6  # seconds: times are sums of fractions


class Cut(NamedTuple):
    """A stretch of a video, its end excluded; in seconds, or in frames as stored."""

    start: float = 0
    end: float | None = None
    in_frames: bool = False

    def __str__(self) -> str:
        """Write it as names of videos have it: 12.5-20s, or 300-480 for frames."""
        unit = "" if self.in_frames else "s"
        return f"{self.start:g}-{'' if self.end is None else f'{self.end:g}'}{unit}"

    def length(self, frames: int, fps: float | None) -> int | None:
        """Frames of it in a video of so many, at an even rate; None if that cannot be told."""
        if self == WHOLE:
            return frames
        if not self.in_frames and fps is None:
            return None
        scale = 1 if self.in_frames or fps is None else fps
        first = math.ceil(self.start * scale - SLACK)
        last = frames if self.end is None else min(frames, math.ceil(self.end * scale - SLACK))
        return max(0, last - first)


WHOLE = Cut()


class Piece(NamedTuple):
    """A video that is less than a file: one array of several, or a stretch of time."""

    path: Path
    part: Part = Part()
    cut: Cut = WHOLE


def cut_out(timed: Timed[Item], cut: Cut) -> Timed[Item]:
    """Pass on the frames of a stretch, and end where it ends."""
    for number, (time, item) in enumerate(timed):
        at = float(number) if cut.in_frames else time
        assert at is not None
        if cut.end is not None and at >= cut.end - SLACK:
            return
        if at >= cut.start - SLACK:
            yield time, item


def at_rate(timed: Timed[Item], rate: float) -> Timed[Item]:
    """Pass on, for each of the times 0, 1/rate, 2/rate, ... from the first frame on, the nearest frame.

    Of two that are equally near, the earlier. A video that is slower repeats frames. The last
    frame is taken to last as long as the others on average.
    """
    count, seen = 0, 0
    first = before = 0.0
    held: Item | None = None
    for time, item in timed:
        assert time is not None
        if held is None:
            first = time
        now = max(time - first, before)  # a damaged clock may step back
        while held is not None and count / rate <= (before + now) / 2 + SLACK:
            yield count / rate, held
            count += 1
        held, before = item, now
        seen += 1
    half = before / (seen - 1) / 2 if seen > 1 else 0.5 / rate
    while held is not None and count / rate < before + half - SLACK:
        yield count / rate, held
        count += 1


def length_at_rate(frames: int, fps: float, rate: float) -> int:
    """How many frames `at_rate` gives of so many at an even rate."""
    if frames < 2:
        return frames
    return math.ceil((frames - 0.5) / fps * rate - SLACK)
