"""Videos out: mp4, gif, webp, npz, or a folder of png frames; whole at their name, or not there.

Frames leave one by one, so memory does not grow with length; only gif holds its frames until the
end, because one palette must see them all.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pvdm_cli.errors import PvdmError, did_you_mean
from pvdm_cli.files import atomic_file, atomic_folder
from pvdm_cli.video import animations, encoders
from pvdm_cli.video.encoders import Old as Old
from pvdm_cli.video.encoders import Sink, Spec

Frames = NDArray[np.uint8]  # [s, H, W, 3]


class Writer:
    """Takes the frames of one video, in pieces of any length."""

    def __init__(self, sink: Sink, height: int, width: int, num_frames: int = 0) -> None:
        self.num_frames = num_frames
        self._cut = False
        self._sink = sink
        self._size = (height, width, 3)

    def write(self, frames: Frames) -> None:
        """Append uint8 [s, H, W, 3]."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != self._size:
            raise ValueError(
                f"expected uint8 frames [s, {', '.join(map(str, self._size))}], "
                f"got {frames.dtype} {list(frames.shape)}"
            )
        for frame in frames:
            self._sink(np.ascontiguousarray(frame), self._cut)
            self._cut = False
            self.num_frames += 1

    def cut(self) -> None:
        """Let the file be cut before the next frame, by a continuation that draws it again."""
        self._cut = True


@contextmanager
def open_writer(
    path: str | Path,
    *,
    fps: float | Fraction,
    height: int,
    width: int,
    quality: int = 80,
    format: str | None = None,
    about: str = "",
    old: Old | None = None,
) -> Iterator[Writer]:
    """Open a video for writing; it gets its name only when the block ends well.

    Args:
        path: Where to; an existing video there is replaced.
        fps: Frame rate, kept as an exact fraction (29.97002997 becomes 30000/1001).
        height: Of the frames. An odd size is padded by one pixel in mp4, which knows even ones
            only.
        width: Of the frames.
        quality: 0 to 100, for mp4 (80 is x264's crf 18, hardly visible) and webp.
        format: mp4 | gif | webp | npz | png; None takes it from the suffix of the path, where no
            suffix means a folder of png frames.
        about: Text (JSON) kept inside the file: mp4 and gif as their comment, webp as the EXIF
            image description, png as the text `Comment` of each frame, npz as the array `about`.
        old: A video of the same settings whose first frames begin this one, taken over as they
            are; it may be the one at `path`. Not for gif.

    Raises:
        PvdmError: If the format is unknown, the path cannot be written, no frame was given, or the
            old video cannot be continued.
    """
    path = Path(path)
    spec = Spec(exact_rate(fps), height, width, quality, about, old)
    if not 0 <= quality <= 100:
        raise PvdmError(f"quality={quality} is not between 0 and 100")
    name = format or format_of(path)
    if name not in FORMATS:
        raise PvdmError(
            f"unknown video format {name!r}{did_you_mean(name, FORMATS)} "
            f"(known: {', '.join(FORMATS)})"
        )
    atomic = atomic_folder if name == "png" else atomic_file
    with atomic(path) as temporary, FORMATS[name](temporary, spec) as sink:
        writer = Writer(sink, height, width, old.frames if old else 0)
        yield writer
        if not writer.num_frames:
            raise PvdmError(f"{path}: no frames to write")


def write_video(
    path: str | Path, frames: Frames, fps: float | Fraction, *, quality: int = 80
) -> None:
    """Write uint8 [s, H, W, 3] as one video; see `open_writer`."""
    _, height, width, _ = frames.shape
    with open_writer(path, fps=fps, height=height, width=width, quality=quality) as writer:
        writer.write(frames)


def format_of(path: Path) -> str:
    """Tell the format from a path's suffix.

    Raises:
        PvdmError: If the suffix is none that can be written.
    """
    name = path.suffix.lower().lstrip(".") or "png"
    if name not in FORMATS or path.suffix.lower() == ".png":
        raise PvdmError(
            f"{path}: cannot write {path.suffix}; use .mp4, .gif, .webp, .npz, or a name without "
            "suffix for a folder of png frames"
        )
    return name


def exact_rate(fps: float | Fraction) -> Fraction:
    """Turn a frame rate into the fraction it was meant to be.

    Raises:
        PvdmError: If it is not a positive number.
    """
    if not math.isfinite(fps) or fps <= 0:
        raise PvdmError(f"a frame rate of {fps} cannot be: it must be a positive number")
    rate = Fraction(fps).limit_denominator(100_000)
    if not rate:
        raise PvdmError(f"a frame rate of {fps} is too low to write")
    return rate


FORMATS: dict[str, Callable[[Path, Spec], AbstractContextManager[Sink]]] = {
    "mp4": encoders.mp4,
    "gif": animations.gif,
    "webp": animations.webp,
    "npz": encoders.npz,
    "png": encoders.png,
}
