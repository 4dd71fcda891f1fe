"""Videos in: any container FFmpeg knows, gif and webp, tiff stacks, arrays, folders of frames.

Frames come out upright, RGB, uint8 [H, W, 3], one at a time: memory does not grow with the
length of a video (but arrays in .npz files are unpacked whole).
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pvdm_cli.errors import VideoError
from pvdm_cli.video import arrays, containers, stills
from pvdm_cli.video.resize import Geometry as Geometry
from pvdm_cli.video.resize import fit
from pvdm_cli.video.timing import WHOLE, Timed, at_rate, cut_out, length_at_rate
from pvdm_cli.video.timing import Piece as Piece

Frame = NDArray[np.uint8]
Later = Callable[[], Frame]  # a frame that is converted only if it is wanted


Readable = str | Path | Piece


class VideoInfo(NamedTuple):
    """What is known about a video without decoding it; the size is that of upright frames."""

    path: Path
    num_frames: int | None  # None where only decoding tells, see `count_frames`
    fps: float | None  # None for arrays and folders of frames
    height: int
    width: int
    codec: str
    estimate: int | None  # of num_frames, where only a header that may err tells
    truncated: bool = False  # the file is shorter than it says

    def length(self, *, rate: float | None = None, fps: float | None = None) -> int | None:
        """Frames that `stream` gives with the same arguments, at an even rate; None: unknown."""
        return self._at(self.num_frames, rate, fps)

    def about(self, *, rate: float | None = None, fps: float | None = None) -> int | None:
        """Tell the same by an estimate where nothing better is known."""
        return self._at(self.estimate, rate, fps)

    def _at(self, frames: int | None, rate: float | None, fps: float | None) -> int | None:
        own = self.fps or fps
        if frames is None or rate is None:
            return frames
        return None if own is None else length_at_rate(frames, own, rate)


def probe(path: Readable, *, fps: float | None = None) -> VideoInfo:
    """Look at the header and the first frame of a video.

    Args:
        path: What `stream` takes.
        fps: The rate of what names none, where a stretch of it is meant.

    Raises:
        VideoError: If it is missing, empty or not a video.
    """
    piece = _existing(path)
    path = piece.path
    codec = path.suffix.lower().lstrip(".")
    own: float | None = None
    estimate: int | None = None
    num_frames: int | None
    truncated = False
    if path.is_dir():
        files = stills.folder_images(path)
        num_frames, codec = len(files), files[0].suffix.lower().lstrip(".")
        height, width, _ = stills.read_image(files[0]).shape
    elif arrays.is_array(path):
        num_frames, height, width, own = arrays.info(path, piece.part)
    elif stills.is_stack(path):
        num_frames = stills.num_pages(path)
        height, width, _ = next(stills.stack_frames(path)).shape
    elif stills.is_animation(path):
        num_frames, mean_rate = stills.animation_header(path)
        height, width, _ = next(stills.animation_frames(path))[1].shape
        own = float(mean_rate)
    else:
        found = containers.header(path)
        num_frames, estimate, truncated = found.num_frames, found.estimate, found.truncated
        height, width, codec = found.height, found.width, found.codec
        own = None if found.fps is None else float(found.fps)
    if num_frames is not None:
        num_frames = piece.cut.length(num_frames, own or fps)
        estimate = num_frames
    elif estimate is not None:
        estimate = piece.cut.length(estimate, own or fps)
    return VideoInfo(path, num_frames, own, height, width, codec, estimate, truncated)


def count_frames(
    path: Readable, *, stride: int = 1, rate: float | None = None, fps: float | None = None
) -> int:
    """Count the frames that `stream` gives, by decoding where nothing else is certain.

    Raises:
        VideoError: If it cannot be decoded to its end.
    """
    piece = _existing(path)
    if rate is None and piece.cut == WHOLE:
        if stills.is_stack(piece.path):
            return -(-stills.num_pages(piece.path) // stride)
        if piece.path.is_file() and stills.is_animation(piece.path):
            return -(-stills.animation_header(piece.path)[0] // stride)
    return sum(1 for _ in _chosen(piece, 0, stride, rate, fps, False))


def stream(
    path: Readable,
    geometry: Geometry | None = None,
    *,
    stride: int = 1,
    start: int = 0,
    rate: float | None = None,
    fps: float | None = None,
    keep_partial: bool = False,
) -> Iterator[Frame]:
    """Yield frames one by one, as stored: without `rate` a varying one is not evened out.

    Args:
        path: Container, gif, webp, tiff stack, array, folder of frames, or a piece of one.
        geometry: Crop and resize to this size; None leaves frames as they are.
        stride: Take every stride-th frame ...
        start: ... from this one on.
        rate: First pick frames so that they come at this rate, see `timing.at_rate`.
        fps: The rate of what names none.
        keep_partial: End quietly at a decode error, after the frames before it.

    Yields:
        uint8 [H, W, 3].

    Raises:
        VideoError: Before the first frame if the video cannot be opened, later at a decode error
            or (without geometry) a change of frame size.
    """
    if stride < 1 or start < 0:
        raise ValueError(f"stride={stride} must be at least 1 and start={start} at least 0")
    piece = _existing(path)
    found = _converted(_chosen(piece, start, stride, rate, fps, keep_partial), keep_partial)
    return (
        _same_size(found, piece.path)
        if geometry is None
        else (fit(frame, geometry) for frame in found)
    )


def read(
    path: Readable,
    geometry: Geometry | None = None,
    *,
    stride: int = 1,
    start: int = 0,
    count: int | None = None,
    rate: float | None = None,
    fps: float | None = None,
    keep_partial: bool = False,
) -> NDArray[np.uint8]:
    """Read frames into one array; arguments as in `stream`.

    Args:
        path: Container, gif, webp, tiff stack, array, folder of frames, or a piece of one.
        geometry: Crop and resize to this size; None leaves frames as they are.
        stride: Take every stride-th frame ...
        start: ... from this one on ...
        count: ... this many of them; None takes all.
        rate: First pick frames so that they come at this rate.
        fps: The rate of what names none.
        keep_partial: End quietly at a decode error, after the frames before it.

    Returns:
        uint8 [s, H, W, 3] with s = count if that is given.

    Raises:
        VideoError: As `stream`, and if the video is too short.
    """
    found = stream(
        path, geometry, stride=stride, start=start, rate=rate, fps=fps, keep_partial=keep_partial
    )
    frames = list(islice(found, count))
    if not frames or len(frames) < (count or 0):
        wanted = "a frame" if count is None else f"{count} frames"
        raise VideoError(
            f"{file_of(path)}: too short: {wanted} at stride {stride} from frame {start} wanted, "
            f"{len(frames)} found"
        )
    return np.stack(frames)


def file_of(path: Readable) -> Path:
    """The file or folder that a video is in."""
    return path.path if isinstance(path, Piece) else Path(path)


def _existing(path: Readable) -> Piece:
    """Refuse what is missing, forbidden or empty before a decoder says something obscure about it."""
    piece = path if isinstance(path, Piece) else Piece(Path(path))
    path = piece.path
    try:
        if path.is_dir():
            os.scandir(path).close()
            return piece
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror or error}") from error
    if empty:
        raise VideoError(f"{path}: the file is empty")
    return piece


def _converted(chosen: Iterator[Later], keep_partial: bool) -> Iterator[Frame]:
    """Convert frames; with keep_partial end quietly at an error, after at least one."""
    number = 0
    try:
        for later in chosen:
            yield later()
            number += 1
    except VideoError:
        if not keep_partial or not number:
            raise


def _chosen(
    piece: Piece, start: int, stride: int, rate: float | None, fps: float | None, keep: bool
) -> Iterator[Later]:
    """Yield every stride-th frame from start on of a piece, at a rate if one is given."""
    timed = _timed(piece, fps, keep)
    if rate is not None or not (piece.cut == WHOLE or piece.cut.in_frames):
        timed = _clocked(timed, piece.path)
    if piece.cut != WHOLE:
        timed = cut_out(timed, piece.cut)
    if rate is not None:
        timed = at_rate(timed, rate)
    for _, later in islice(timed, start, None, stride):
        yield later


def _timed(piece: Piece, fps: float | None, keep_partial: bool) -> Timed[Later]:
    """Tell the frames of a file and their times, whatever kind of file it is."""
    path, cut = piece.path, piece.cut
    if path.is_dir():
        return _even((partial(stills.read_image, i) for i in stills.folder_images(path)), fps)
    if arrays.is_array(path):
        own = arrays.info(path, piece.part).fps or fps
        pixels = arrays.pixels(path, piece.part)
        return _even((partial(stills.to_rgb, frame) for frame in pixels), own)
    if stills.is_stack(path):
        return _even((partial(_itself, page) for page in stills.stack_frames(path)), fps)
    if stills.is_animation(path):
        return ((time, partial(_itself, f)) for time, f in stills.animation_frames(path))
    since = 0 if cut.in_frames else cut.start
    return containers.frames(path, since=since, keep_partial=keep_partial)


def _even(frames: Iterator[Later], fps: float | None) -> Timed[Later]:
    """Give frames the times of an even rate, if it is known."""
    for number, frame in enumerate(frames):
        yield None if fps is None else number / fps, frame


def _clocked(timed: Timed[Later], path: Path) -> Timed[Later]:
    """Refuse frames without times where times decide which of them are taken."""
    for time, later in timed:
        if time is None:
            raise VideoError(
                f"{path}: has no frame rate of its own; give one by --fps (data.fps in training)"
            )
        yield time, later


def _itself(frame: Frame) -> Frame:
    """Return a frame that is converted already."""
    return frame


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
