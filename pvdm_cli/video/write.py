"""Videos out: mp4, gif, webp, npz, or a folder of png frames; whole at their name, or not there.

Frames leave one by one, so memory does not grow with length; only gif holds its frames until the
end, because one palette must see them all.
"""

import math
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import imageio.v3 as iio
import numpy as np
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from pvdm_cli.errors import PvdmError, did_you_mean
from pvdm_cli.files import atomic_file, atomic_folder

Frames = NDArray[np.uint8]  # [s, H, W, 3]
Frame = NDArray[np.uint8]  # [H, W, 3]
Sink = Callable[[Frame], None]

BT709, LIMITED = 1, 1  # FFmpeg's numbers for the colour tags of a stream
CENTISECOND = Fraction(1, 100)  # what gif counts time in


class Spec(NamedTuple):
    """What a format needs to know beforehand."""

    rate: Fraction
    height: int
    width: int
    quality: int


class Writer:
    """Takes the frames of one video, in pieces of any length."""

    def __init__(self, sink: Sink, height: int, width: int) -> None:
        self.num_frames = 0
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
            self._sink(np.ascontiguousarray(frame))
            self.num_frames += 1


@contextmanager
def open_writer(
    path: str | Path,
    *,
    fps: float | Fraction,
    height: int,
    width: int,
    quality: int = 80,
    format: str | None = None,
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

    Raises:
        PvdmError: If the format is unknown, the path cannot be written, or no frame was given.
    """
    path = Path(path)
    spec = Spec(exact_rate(fps), height, width, quality)
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
        writer = Writer(sink, height, width)
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


def grid(videos: Sequence[Frames], columns: int | None = None, gap: int = 2) -> Frames:
    """Lay videos of one size out in rows on white; shorter ones hold their last frame.

    Args:
        videos: uint8 [s, H, W, 3] each.
        columns: Videos per row; None makes the grid about square.
        gap: Pixels between neighbours.

    Returns:
        uint8 [s, H', W', 3].
    """
    columns = min(len(videos), columns or math.ceil(math.sqrt(len(videos))))
    rows = math.ceil(len(videos) / columns)
    _, height, width, _ = videos[0].shape
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap)
    sheet = np.full((max(map(len, videos)), *size, 3), 255, np.uint8)
    for i, video in enumerate(videos):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        cell = sheet[:, top : top + height, left : left + width]
        cell[: len(video)] = video
        cell[len(video) :] = video[-1]
    return sheet


@contextmanager
def _mp4(path: Path, spec: Spec) -> Iterator[Sink]:
    """Write H.264 in yuv420p, which every player shows.

    Hybrid fragmented: what a killed process leaves behind can be played, and a finished file is
    an ordinary mp4.
    """
    options = {
        "movflags": "hybrid_fragmented+negative_cts_offsets",  # the latter: begin at time 0
        "frag_duration": "500000",  # microseconds
        "flush_packets": "1",
    }
    with av.open(path, "w", format="mp4", container_options=options) as container:
        crf = min(51, max(1, round((100 - spec.quality) * 0.9)))  # crf 0 is a profile few play
        stream = container.add_stream("libx264", rate=spec.rate, options={"crf": str(crf)})
        stream.width, stream.height = spec.width + spec.width % 2, spec.height + spec.height % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / spec.rate
        # Untagged, some players take BT.601 and others BT.709: so say which.
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        reformatter = VideoReformatter()
        padding = ((0, spec.height % 2), (0, spec.width % 2), (0, 0))
        number = 0

        def sink(frame: Frame) -> None:
            nonlocal number
            if spec.height % 2 or spec.width % 2:
                frame = np.pad(frame, padding, mode="edge")
            picture = reformatter.reformat(
                VideoFrame.from_ndarray(frame, format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
            picture.pts, picture.time_base = number, 1 / spec.rate
            container.mux(stream.encode(picture))
            number += 1

        yield sink
        if number:
            container.mux(stream.encode(None))


@contextmanager
def _gif(path: Path, spec: Spec) -> Iterator[Sink]:
    """Write a gif with one palette made for all its frames: no flicker from frame to frame."""
    graph = Graph()
    source = graph.add_buffer(
        width=spec.width, height=spec.height, format=VideoFormat("rgb24"), time_base=CENTISECOND
    )
    both, palette = graph.add("split"), graph.add("palettegen", "stats_mode=full")
    # An ordered dither stays where it is; error diffusion would crawl over still areas.
    mapped = graph.add("paletteuse", "dither=bayer:bayer_scale=5:diff_mode=rectangle")
    shown = graph.add("buffersink")
    source.link_to(both)
    both.link_to(mapped, 0, 0)
    both.link_to(palette, 1, 0)
    palette.link_to(mapped, 0, 1)
    mapped.link_to(shown)
    graph.configure()
    number = 0

    def sink(frame: Frame) -> None:
        nonlocal number
        picture = VideoFrame.from_ndarray(frame, format="rgb24")
        picture.pts, picture.time_base = _gif_time(number, spec.rate), CENTISECOND
        graph.push(picture)
        number += 1

    yield sink
    if not number:
        return
    graph.push(None)
    with av.open(path, "w", format="gif") as container:
        stream = container.add_stream("gif", rate=spec.rate)
        stream.width, stream.height, stream.pix_fmt = spec.width, spec.height, "pal8"
        stream.codec_context.time_base = CENTISECOND
        for _ in range(number):
            container.mux(stream.encode(graph.vpull()))
        container.mux(stream.encode(None))


def _gif_time(number: int, rate: Fraction) -> int:
    """When a frame is shown, in hundredths of a second; viewers slow down what is faster than 2."""
    return round(number * max(100 / rate, Fraction(2)))


@contextmanager
def _webp(path: Path, spec: Spec) -> Iterator[Sink]:
    """Write an animated webp out of single pictures.

    libwebp's own animation encoder would drop frames that hardly differ from the one before.
    """
    number = 0

    def milliseconds(frame: int) -> int:
        return round(1000 * frame / spec.rate)

    with path.open("w+b") as file:
        size = _u24(spec.width - 1) + _u24(spec.height - 1)
        file.write(b"RIFF\0\0\0\0WEBP")  # the size is filled in at the end
        file.write(_chunk(b"VP8X", b"\x02\0\0\0" + size))  # animated
        file.write(_chunk(b"ANIM", b"\xff\xff\xff\xff" + b"\0\0"))  # on white, for ever

        def sink(frame: Frame) -> None:
            nonlocal number
            still = iio.imwrite(
                "<bytes>", frame, plugin="pillow", extension=".webp", quality=spec.quality
            )
            duration = milliseconds(number + 1) - milliseconds(number)
            where = _u24(0) + _u24(0) + size + _u24(duration) + b"\x02"  # replaces the last one
            file.write(_chunk(b"ANMF", where + still[12:]))  # without RIFF, size, WEBP
            number += 1

        yield sink
        length = file.tell() - 8
        file.seek(4)
        file.write(length.to_bytes(4, "little"))


def _u24(value: int) -> bytes:
    """Return three bytes, least first."""
    return value.to_bytes(3, "little")


def _chunk(name: bytes, content: bytes) -> bytes:
    """Return a RIFF chunk, padded to an even length."""
    return name + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2)


@contextmanager
def _npz(path: Path, spec: Spec) -> Iterator[Sink]:
    """Write the arrays `frames` [s, H, W, 3] and `fps`; raw frames wait on disk for the header."""
    raw = path.with_name(f"{path.name}.raw")
    number = 0
    try:
        with raw.open("w+b") as waiting:

            def sink(frame: Frame) -> None:
                nonlocal number
                waiting.write(frame.tobytes())
                number += 1

            yield sink
            waiting.seek(0)
            shape = (number, spec.height, spec.width, 3)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                with archive.open("frames.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array_header_1_0(entry, header)
                    shutil.copyfileobj(waiting, entry, 1 << 20)
                with archive.open("fps.npy", "w") as entry:
                    np.lib.format.write_array(entry, np.array(float(spec.rate)))
    finally:
        raw.unlink(missing_ok=True)


@contextmanager
def _png(path: Path, spec: Spec) -> Iterator[Sink]:
    """Write 000000.png, 000001.png, ... into a folder."""
    del spec  # a picture knows its size and has no rate
    number = 0

    def sink(frame: Frame) -> None:
        nonlocal number
        iio.imwrite(path / f"{number:06d}.png", frame, plugin="pillow")
        number += 1

    yield sink


FORMATS: dict[str, Callable[[Path, Spec], AbstractContextManager[Sink]]] = {
    "mp4": _mp4,
    "gif": _gif,
    "webp": _webp,
    "npz": _npz,
    "png": _png,
}
