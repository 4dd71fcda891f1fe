"""The clips that are scored: which windows of which videos, at which size.

Nothing is resampled silently: what cannot give a clip is named with the reason, what had to be
resized is counted.

Axes: s frames of a clip, H x W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pvdm_cli.errors import DataError, VideoError
from pvdm_cli.evaluation.footage import Footage, Frames
from pvdm_cli.video.resize import Geometry

JPEG_QUALITY = 95
ROUND = 32  # videos that a process looks at before all count their clips

Rule = Literal["start", "one", "all"]  # at a given frame; a random one; all that touch
Variant = Literal["as is", "still", "shuffled"]


@dataclass(frozen=True)
class Window:
    """Which frames of a video make a clip.

    Attributes:
        frames: Of the clip.
        stride: Take every stride-th frame.
        rule: Which windows of a video: the one at `start`, a random one, or all that touch.
        start: First frame, for the rule of that name.
    """

    frames: int = 16
    stride: int = 1
    rule: Rule = "start"
    start: int = 0

    @property
    def span(self) -> int:
        """Frames of the video that a clip reaches over."""
        return (self.frames - 1) * self.stride + 1

    def starts(self, num_frames: int, rng: np.random.Generator) -> Sequence[int]:
        """First frames of the clips of a video; none if it is too short."""
        last = num_frames - self.span
        if last < (self.start if self.rule == "start" else 0):
            return []
        if self.rule == "start":
            return [self.start]
        return (
            [int(rng.integers(last + 1))] if self.rule == "one" else range(0, last + 1, self.span)
        )


def _still(clip: Frames, rng: np.random.Generator) -> Frames:
    """Repeat the middle frame."""
    del rng
    return np.repeat(clip[len(clip) // 2][None], len(clip), axis=0)


def _shuffled(clip: Frames, rng: np.random.Generator) -> Frames:
    """Put the frames into a random order."""
    return clip[rng.permutation(len(clip))]


VARIANTS: dict[Variant, Callable[[Frames, np.random.Generator], Frames]] = {
    "as is": lambda clip, rng: clip,
    "still": _still,
    "shuffled": _shuffled,
}


def through_jpeg(clip: Frames) -> Frames:
    """Store each frame as jpeg of quality 95 and read it again, as StyleGAN-V's data sets do."""
    return np.stack([_jpeg(frame) for frame in clip])


def _jpeg(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Store one frame and read it again."""
    stored = BytesIO()
    Image.fromarray(frame).save(stored, format="jpeg", quality=JPEG_QUALITY)
    return np.asarray(Image.open(stored))


class Take(NamedTuple):
    """What one video gave.

    Attributes:
        number: Of the video.
        clips: Given.
        resized: Whether it had another size.
        reason: Why it gave no more.
    """

    number: int
    clips: int
    resized: bool
    reason: str | None


@dataclass
class Reel:
    """The clips of one side of a comparison, read one by one.

    Which videos they come from may depend on every video before. So several processes read some
    videos each, and count afterwards what one process would have taken of them.

    Attributes:
        videos: Where they come from.
        window: Which clips of them.
        geometry: The size they are brought to, and how.
        most: End after so many clips.
        seed: Of the random windows: that of video i depends on (seed, i) alone.
        same_size: Leave out videos of another size instead of resizing them.
        jpeg: Store frames as jpeg in between.
        variant: What is done to each clip.
        skipped: Names of videos that gave no clip, with the reason.
        resized: Videos that had another size.
        used: Videos that gave clips.
        clips: Counted so far.
        seen: Videos that were needed for them.
    """

    videos: Sequence[Footage]
    window: Window
    geometry: Geometry
    most: int
    seed: int = 0
    same_size: bool = False
    jpeg: bool = False
    variant: Variant = "as is"
    skipped: dict[str, str] = field(default_factory=dict)
    resized: int = 0
    used: int = 0
    clips: int = 0
    seen: int = 0

    def coming(self, processes: int) -> range:
        """Numbers of the videos to read next; none once there are clips enough.

        Args:
            processes: That read them. One stops by itself where it has enough; several go on with
                as many as are missing, or where videos give many clips with a few.
        """
        missing = self.most - self.clips
        if missing <= 0:
            return range(0)
        many = ROUND * processes if self.window.rule == "all" else missing
        last = len(self.videos) if processes == 1 else min(len(self.videos), self.seen + many)
        return range(self.seen, last)

    def read(self, numbers: range, takes: list[Take]) -> Iterator[Frames]:
        """Yield clips uint8 [s, H, W, 3] of some videos, no more than are missing.

        Args:
            numbers: Of the videos.
            takes: Gets what each of them gave.
        """
        missing = self.most - self.clips
        for number in numbers:
            if missing <= 0:
                return
            video, rng = self.videos[number], np.random.default_rng((self.seed, number))
            given, resized, reason = 0, False, None
            try:
                resized = self._resizes(video)
                for clip in self._of(video, rng):
                    given += 1
                    yield VARIANTS[self.variant](clip, rng)
                    if given == missing:
                        break
            except VideoError as error:
                reason = str(error)
            missing -= given
            takes.append(Take(number, given, resized and given > 0, reason))

    def count(self, take: Take) -> int:
        """Count in what the next video gave; return how many of its clips are needed."""
        if self.clips >= self.most:
            return 0
        needed = min(take.clips, self.most - self.clips)
        self.clips += needed
        self.used += needed > 0
        self.resized += take.resized
        self.seen = take.number + 1
        if take.reason and self.clips < self.most:
            self.skipped[self.videos[take.number].name] = take.reason
        return needed

    def _resizes(self, video: Footage) -> bool:
        """Whether a video has to be brought to another size.

        Raises:
            VideoError: If it has, and may not be.
        """
        size = video.size()
        fits = size == (self.geometry.height, self.geometry.width)
        if self.same_size and not fits:
            raise VideoError(
                f"frames are {size[0]}x{size[1]}, those of the first video "
                f"{self.geometry.height}x{self.geometry.width}; --size brings all to one"
            )
        return not fits

    def _of(self, video: Footage, rng: np.random.Generator) -> Iterator[Frames]:
        """Yield the clips of one video."""
        num_frames, window = video.num_frames(), self.window
        starts = window.starts(num_frames, rng)
        if not starts:
            first = f" from frame {window.start} on" if window.start else ""
            raise VideoError(f"only {num_frames} frames, a clip needs {window.span}{first}")
        for start in starts:
            clip = video.clip(self.geometry, start=start, count=window.frames, stride=window.stride)
            yield through_jpeg(clip) if self.jpeg else clip

    def describe(self) -> dict[str, Any]:
        """What its clips depend on, beside the videos and their number."""
        return {
            "window": asdict(self.window),
            "geometry": self.geometry._asdict(),
            "most": self.most,
            "seed": self.seed,
            "same_size": self.same_size,
            "jpeg": self.jpeg,
            "variant": self.variant,
        }

    def require_clips(self, where: Path, least: int = 2) -> None:
        """Refuse too few clips to speak of.

        Raises:
            DataError: Naming the first video that was left out.
        """
        if self.clips < least:
            first = next(iter(self.skipped.items()), None)
            why = f"; left out {first[0]}: {first[1]}" if first else ""
            raise DataError(
                f"{where}: {self.clips} clips found, a distance needs {least} or more{why}"
            )
