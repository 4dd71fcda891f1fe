"""Videos in: any container FFmpeg knows, animated gif and webp, folders of frames.

Frames come out upright, RGB, uint8 [H, W, 3], one at a time: memory does not grow with the
length of a video.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pvdm_cli.errors import VideoError
from pvdm_cli.video import containers, stills
from pvdm_cli.video.resize import Geometry as Geometry
from pvdm_cli.video.resize import fit

Frame = NDArray[np.uint8]


class VideoInfo(NamedTuple):
    """What is known about a video without decoding it; the size is that of upright frames."""

    path: Path
    num_frames: int | None  # None where only decoding tells, see `count_frames`
    fps: float | None  # None for a folder of frames
    height: int
    width: int
    codec: str


def probe(path: str | Path) -> VideoInfo:
    """Look at the header and the first frame of a video.

    Raises:
        VideoError: If it is missing, empty or not a video.
    """
    path = _existing(path)
    if path.is_dir():
        first = next(stills.folder_frames(path))
        files = stills.image_files(path)
        codec = files[0].suffix.lower().lstrip(".")
        return VideoInfo(path, len(files), None, first.shape[0], first.shape[1], codec)
    if stills.is_animation(path):
        num_frames, rate = stills.animation_header(path)
        first = next(stills.animation_frames(path))
        codec = path.suffix.lower().lstrip(".")
        return VideoInfo(path, num_frames, float(rate), first.shape[0], first.shape[1], codec)
    found = containers.header(path)
    fps = None if found.fps is None else float(found.fps)
    return VideoInfo(path, found.num_frames, fps, found.height, found.width, found.codec)


def count_frames(path: str | Path) -> int:
    """Count the frames of a video, by decoding it where nothing else is certain.

    Raises:
        VideoError: If it cannot be decoded to its end.
    """
    path = _existing(path)
    if path.is_dir():
        return len(stills.image_files(path))
    if stills.is_animation(path):
        return stills.animation_header(path)[0]
    return containers.count(path)


def stream(
    path: str | Path,
    geometry: Geometry | None = None,
    *,
    stride: int = 1,
    start: int = 0,
    keep_partial: bool = False,
) -> Iterator[Frame]:
    """Yield frames one by one, as stored: a varying frame rate is not evened out.

    Args:
        path: Container, gif, webp, or folder of frames.
        geometry: Centre crop and resize to this size; None leaves frames as they are.
        stride: Take every stride-th frame ...
        start: ... from this one on.
        keep_partial: End quietly at a decode error, after the frames before it.

    Yields:
        uint8 [H, W, 3].

    Raises:
        VideoError: Before the first frame if the video cannot be opened, later at a decode error
            or (without geometry) a change of frame size.
    """
    if stride < 1 or start < 0:
        raise ValueError(f"stride={stride} must be at least 1 and start={start} at least 0")
    path = _existing(path)
    found = _frames(path, start, stride, keep_partial)
    return (
        _same_size(found, path) if geometry is None else (fit(frame, geometry) for frame in found)
    )


def read(
    path: str | Path,
    geometry: Geometry | None = None,
    *,
    stride: int = 1,
    start: int = 0,
    count: int | None = None,
    keep_partial: bool = False,
) -> NDArray[np.uint8]:
    """Read frames into one array; arguments as in `stream`.

    Args:
        path: Container, gif, webp, or folder of frames.
        geometry: Centre crop and resize to this size; None leaves frames as they are.
        stride: Take every stride-th frame ...
        start: ... from this one on ...
        count: ... this many of them; None takes all.
        keep_partial: End quietly at a decode error, after the frames before it.

    Returns:
        uint8 [s, H, W, 3] with s = count if that is given.

    Raises:
        VideoError: As `stream`, and if the video is too short.
    """
    found = stream(path, geometry, stride=stride, start=start, keep_partial=keep_partial)
    frames = list(islice(found, count))
    if not frames or len(frames) < (count or 0):
        wanted = "a frame" if count is None else f"{count} frames"
        raise VideoError(
            f"{path}: too short: {wanted} at stride {stride} from frame {start} wanted, "
            f"{len(frames)} found"
        )
    return np.stack(frames)


def _existing(path: str | Path) -> Path:
    """Refuse what is missing, forbidden or empty before a decoder says something obscure about it."""
    path = Path(path)
    try:
        if path.is_dir():
            os.scandir(path).close()
            return path
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror or error}") from error
    if empty:
        raise VideoError(f"{path}: the file is empty")
    return path


def _frames(path: Path, start: int, stride: int, keep_partial: bool) -> Iterator[Frame]:
    """Yield every stride-th frame from start on, whatever the path is."""
    if path.is_file() and not stills.is_animation(path):
        yield from containers.frames(path, start=start, stride=stride, keep_partial=keep_partial)
        return
    found = stills.folder_frames(path) if path.is_dir() else stills.animation_frames(path)
    number = -1
    try:
        for number, frame in enumerate(found):
            if number >= start and (number - start) % stride == 0:
                yield frame
    except VideoError:
        if not keep_partial or number < 0:
            raise


def _same_size(frames: Iterator[Frame], path: Path) -> Iterator[Frame]:
    """Pass frames on as long as they have the size of the first."""
    first: tuple[int, ...] | None = None
    for number, frame in enumerate(frames):
        first = first or frame.shape
        if frame.shape != first:
            raise VideoError(
                f"{path}: frame {number} is {frame.shape[1]}x{frame.shape[0]} but the first is "
                f"{first[1]}x{first[0]}; give a size to bring them to"
            )
        yield frame
