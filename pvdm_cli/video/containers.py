"""Decode video files with FFmpeg (through PyAV): upright RGB frames, one at a time."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pvdm_cli.errors import VideoError
from pvdm_cli.video.stills import flatten_alpha
from pvdm_cli.video.timing import SLACK

# More threads cost memory and start-up for little gain on the clips that are usual here.
MAX_THREADS = 4
SEEK_FROM = 10.0  # seconds that are decoded in vain rather than jumped over
SEEK_MARGIN = 5.0  # so much earlier a jump goes: the first frames may lack what they refer to


class Header(NamedTuple):
    """What a container says about its video stream; the size is that of the upright picture."""

    num_frames: int | None
    estimate: int | None
    truncated: bool
    fps: Fraction | None
    height: int
    width: int
    codec: str


@contextmanager
def open_video(
    path: Path, *, frame_threads: bool = True
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the first real video stream of a file.

    Args:
        path: Any container FFmpeg knows.
        frame_threads: Decode several frames at once. Faster, but an error then also takes away
            some intact frames before it.

    Raises:
        VideoError: If FFmpeg cannot open the file or it holds no video.
    """
    try:
        # The prefix keeps a colon in a file name from being read as a protocol.
        container = av.open(f"file:{path}", metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: not a video that FFmpeg can open ({_reason(error)})") from error
    with container:
        stream = _video_stream(container, path)
        stream.codec_context.thread_type = "AUTO" if frame_threads else "SLICE"
        stream.codec_context.thread_count = min(os.cpu_count() or 1, MAX_THREADS)
        yield container, stream


def header(path: Path) -> Header:
    """Read the header and the first frame, which alone knows how it is to be turned.

    Raises:
        VideoError: If the file cannot be opened or not even its first frame decoded.
    """
    with open_video(path, frame_threads=False) as (container, stream):
        frame = next(_decoded(container, stream, path), None)
        if frame is None:
            raise VideoError(f"{path}: not one frame can be decoded")
        quarter_turned = _display_matrix(frame, path)[0, 0] == 0
        height, width = frame.height, frame.width
        if quarter_turned:
            height, width = width, height
        # Other containers may count frames that are never shown (AVI: placeholders), or none.
        trusted = container.format.name.startswith("mov")
        fps = stream.average_rate or stream.guessed_rate
        return Header(
            num_frames=(stream.frames or None) if trusted else None,
            estimate=stream.frames or _by_duration(container, stream, fps),
            truncated=_end(container, stream, path) > path.stat().st_size,
            fps=fps,
            height=height,
            width=width,
            codec=stream.codec_context.name,
        )


def _by_duration(
    container: InputContainer, stream: VideoStream, fps: Fraction | None
) -> int | None:
    """Frames that a video has if its header tells its duration rightly."""
    if fps is None:
        return None
    if stream.duration is not None and stream.time_base is not None:
        return round(stream.duration * stream.time_base * fps)
    return None if container.duration is None else round(container.duration / 1e6 * fps)


def frames(
    path: Path, *, since: float = 0, keep_partial: bool = False
) -> Iterator[tuple[float | None, Callable[[], NDArray[np.uint8]]]]:
    """Yield for every frame the seconds since the beginning and what converts it.

    Converted, a frame is upright, uint8 [H, W, 3]. Colours are converted as FFmpeg does: by the
    stream's matrix (BT.601 if it names none) and range.

    Args:
        path: Any container FFmpeg knows.
        since: Frames that begin earlier need not come.
        keep_partial: End quietly at a decode error, after the frames before it.

    Raises:
        VideoError: If the file cannot be opened, breaks off, or a frame is damaged; with
            keep_partial only if no frame at all comes before that.
    """
    begun = False
    try:
        for timed in _frames(path, since, keep_partial):
            begun = True
            yield timed
    except VideoError:
        if begun or since < SEEK_FROM:
            raise
        yield from _frames(path, 0, keep_partial)  # the jump itself may be to blame


def _frames(
    path: Path, since: float, keep_partial: bool
) -> Iterator[tuple[float | None, Callable[[], NDArray[np.uint8]]]]:
    """Yield frames as `frames` does, after a jump if `since` is late."""
    reformatter = VideoReformatter()
    zero: float | None = None
    number = -1
    with open_video(path, frame_threads=not keep_partial) as (container, stream):
        if stream.start_time is not None and stream.time_base is not None:
            zero = float(stream.start_time * stream.time_base)
        sought = _seek(container, stream, since)
        try:
            for number, frame in enumerate(_decoded(container, stream, path, sought)):
                time = _time(frame)
                if time is None and stream.average_rate:
                    time = number / float(stream.average_rate)
                if zero is None:
                    zero = time
                seconds = None if time is None or zero is None else time - zero
                yield seconds, partial(_upright_rgb, frame, reformatter, path)
        except VideoError:
            if not keep_partial or number < 0:
                raise
            return
    if number < 0 and not sought:
        raise VideoError(f"{path}: not one frame can be decoded")


def _time(frame: VideoFrame) -> float | None:
    """When a frame is shown, in seconds of the stream's clock."""
    if frame.pts is None or frame.time_base is None:
        return None
    return float(frame.pts * frame.time_base)


def _seek(container: InputContainer, stream: VideoStream, since: float) -> float:
    """Go to a key frame well before a late beginning, where that can be trusted.

    Returns:
        The time of the stream from which on frames count; 0: from the first.
    """
    trusted = container.format.name.startswith(("mov", "matroska"))
    if since < SEEK_FROM or not trusted or stream.start_time is None or stream.time_base is None:
        return 0
    at = round(since / stream.time_base) + stream.start_time
    margin = round(SEEK_MARGIN / stream.time_base)
    container.seek(max(stream.start_time, at - margin), stream=stream, backward=True)
    return float(at * stream.time_base)


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    """Pick the first video stream that is not a cover picture and has a decoder."""
    moving = [
        stream
        for stream in container.streams.video
        if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    if not moving:
        raise VideoError(f"{path}: holds no video stream")
    if moving[0].codec_context is None:
        raise VideoError(f"{path}: FFmpeg has no decoder for its video stream")
    return moving[0]


def _decoded(
    container: InputContainer, stream: VideoStream, path: Path, since: float = 0
) -> Iterator[VideoFrame]:
    """Yield decoded frames; any damage is an error, although FFmpeg would often paint over it.

    Only packets of the video stream are looked at, so a broken audio track does no harm. After a
    jump, frames before the time `since` may lack what they refer to, and are passed over.
    """
    number = 0
    try:
        for packet in container.demux(stream):
            for frame in packet.decode():
                if since and (time := _time(frame)) is not None and time < since - SLACK:
                    continue
                if frame.is_corrupt:
                    raise VideoError(f"{path}: frame {number} is damaged")
                yield frame
                number += 1
    except (av.FFmpegError, EOFError) as error:
        raise VideoError(
            f"{path}: cannot be decoded after {number} frames ({_reason(error)})"
        ) from error
    _expect_whole(container, stream, path, number)


def _expect_whole(container: InputContainer, stream: VideoStream, path: Path, number: int) -> None:
    """Refuse a file that by its own account is longer: FFmpeg takes a missing end for the end."""
    end, size = _end(container, stream, path), path.stat().st_size
    if end > size:
        raise VideoError(f"{path}: truncated after {number} frames ({size} of {end} bytes)")


def _end(container: InputContainer, stream: VideoStream, path: Path) -> int:
    """Return where a file ends by its own account, 0 if it has none."""
    name = container.format.name
    if name.startswith("mov"):
        return max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    return _matroska_end(path) if name.startswith("matroska") else 0


def _matroska_end(path: Path) -> int:
    """Return where the segment of an mkv or webm ends, 0 if it does not say (live recordings).

    The file is two elements, header and segment: each an identifier of 4 bytes, a size whose
    leading zero bits tell how many bytes it has, and so many bytes of content.
    """
    end = 0
    with path.open("rb") as file:
        for _ in range(2):
            file.seek(end + 4)
            first = file.read(1)
            if not first or not first[0]:
                return 0
            extra = 8 - first[0].bit_length()
            value = int.from_bytes(first + file.read(extra), "big")
            length = value & ((1 << 7 * (extra + 1)) - 1)
            if length == (1 << 7 * (extra + 1)) - 1:  # "unknown"
                return 0
            end = file.tell() + length
    return end


def _upright_rgb(frame: VideoFrame, reformatter: VideoReformatter, path: Path) -> NDArray[np.uint8]:
    """Convert a decoded frame to upright uint8 [H, W, 3]."""
    has_alpha = any(component.is_alpha for component in frame.format.components)
    # One reformatter for all frames: a new one each time would set swscale up again.
    rgb = reformatter.reformat(
        frame, format="rgba" if has_alpha else "rgb24", interpolation=Interpolation.POINT, threads=1
    )
    pixels = rgb.to_ndarray().astype(np.uint8, copy=False)
    if has_alpha:
        pixels = flatten_alpha(pixels)
    return orient(pixels, _display_matrix(frame, path))


def _display_matrix(frame: VideoFrame, path: Path) -> NDArray[np.int64]:
    """Return the signs [[a, b], [c, d]] of the frame's display matrix (identity if it has none).

    FFmpeg's convention: the point (x, y) is shown at (a x + c y, b x + d y), y pointing down.

    Raises:
        VideoError: If the frame is to be turned by anything but quarter turns.
    """
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(side_data, SideData):
        return np.eye(2, dtype=np.int64)
    values = np.frombuffer(bytes(side_data), np.int32, 9).astype(np.int64).reshape(3, 3)[:2, :2]
    largest = np.abs(values).max()
    signs = np.where(np.abs(values) * 100 > largest, np.sign(values), 0)
    if sorted(np.abs(signs).sum(0)) != [1, 1] or sorted(np.abs(signs).sum(1)) != [1, 1]:
        raise VideoError(
            f"{path}: is to be shown turned by {frame.rotation} degrees; only quarter turns and "
            "flips are supported, re-encode it with ffmpeg"
        )
    return signs


def orient(pixels: NDArray[np.uint8], matrix: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Turn or flip [H, W, 3] as a matrix of signs [[a, b], [c, d]] says."""
    if matrix[0, 0] == 0:  # x goes to the vertical axis
        pixels = pixels.transpose(1, 0, 2)
    to_x, to_y = matrix.sum(0)
    return pixels[:: int(to_y), :: int(to_x)]


def _reason(error: Exception) -> str:
    """Say FFmpeg's or the system's reason without the numbers around it."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
