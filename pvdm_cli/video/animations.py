"""Animated gif and webp."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import av
import imageio.v3 as iio
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from PIL import Image

from pvdm_cli.errors import PvdmError
from pvdm_cli.video.encoders import Frame, Old, Sink, Spec

CENTISECOND = Fraction(1, 100)  # what gif counts time in
DESCRIPTION = 0x010E  # the EXIF tag ImageDescription


@contextmanager
def gif(path: Path, spec: Spec) -> Iterator[Sink]:
    """Write a gif with one palette made for all its frames: no flicker from frame to frame.

    Raises:
        PvdmError: If a gif is to be continued, whose palette was made for its own frames.
    """
    if spec.old:
        raise PvdmError(
            f"{spec.old.path}: a gif has one palette for all its frames and cannot be continued; "
            "remove it to draw it anew"
        )
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

    def sink(frame: Frame, cut: bool) -> None:
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
    if spec.about:
        _comment(path, spec.about.encode())


def _comment(path: Path, text: bytes) -> None:
    """Put a comment before the first picture of a gif (GIF89a, section 24); FFmpeg writes none."""
    longer = path.with_name(f"{path.name}.raw")
    pieces = [text[k : k + 255] for k in range(0, len(text), 255)]
    with path.open("rb") as before, longer.open("wb") as after:
        head = before.read(13)
        colours = 3 << 1 + (head[10] & 7) if head[10] & 0x80 else 0  # bytes of the palette
        after.write(head + before.read(colours))
        after.write(b"\x21\xfe" + b"".join(bytes([len(each)]) + each for each in pieces) + b"\0")
        shutil.copyfileobj(before, after)
    longer.replace(path)


def _gif_time(number: int, rate: Fraction) -> int:
    """When a frame is shown, in hundredths of a second; viewers slow down what is faster than 2."""
    return round(number * max(100 / rate, Fraction(2)))


@contextmanager
def webp(path: Path, spec: Spec) -> Iterator[Sink]:
    """Write an animated webp out of single pictures.

    libwebp's own animation encoder would drop frames that hardly differ from the one before.
    """
    number = 0

    def milliseconds(frame: int) -> int:
        return round(1000 * frame / spec.rate)

    with path.open("w+b") as file:
        size = _u24(spec.width - 1) + _u24(spec.height - 1)
        flags = bytes([0x02 | (0x08 if spec.about else 0), 0, 0, 0])  # animated, with EXIF
        file.write(b"RIFF\0\0\0\0WEBP")  # the size is filled in at the end
        file.write(_chunk(b"VP8X", flags + size))
        file.write(_chunk(b"ANIM", b"\xff\xff\xff\xff" + b"\0\0"))  # on white, for ever
        if spec.old:
            _take_pictures(spec.old, file)
            number = spec.old.frames

        def sink(frame: Frame, cut: bool) -> None:
            nonlocal number
            still = iio.imwrite(
                "<bytes>", frame, plugin="pillow", extension=".webp", quality=spec.quality
            )
            duration = milliseconds(number + 1) - milliseconds(number)
            where = _u24(0) + _u24(0) + size + _u24(duration) + b"\x02"  # replaces the last one
            file.write(_chunk(b"ANMF", where + still[12:]))  # without RIFF, size, WEBP
            number += 1

        yield sink
        if spec.about:
            exif = Image.Exif()
            exif[DESCRIPTION] = spec.about
            file.write(_chunk(b"EXIF", exif.tobytes().removeprefix(b"Exif\0\0")))
        length = file.tell() - 8
        file.seek(4)
        file.write(length.to_bytes(4, "little"))


def _take_pictures(old: Old, file: BinaryIO) -> None:
    """Copy the first pictures of a webp as they are.

    Raises:
        PvdmError: If it has fewer.
    """
    taken = 0
    with old.path.open("rb") as source:
        source.seek(12)
        for picture in islice(_pictures(source), old.frames):
            file.write(picture)
            taken += 1
    if taken < old.frames:
        raise PvdmError(f"{old.path}: {taken} frames left of {old.frames}; remove it to draw anew")


def _pictures(source: BinaryIO) -> Iterator[bytes]:
    """Read the ANMF chunks of a webp."""
    while len(head := source.read(8)) == 8:
        length = int.from_bytes(head[4:], "little")
        content = source.read(length + length % 2)
        if head[:4] == b"ANMF":
            yield head + content


def _u24(value: int) -> bytes:
    """Return three bytes, least first."""
    return value.to_bytes(3, "little")


def _chunk(name: bytes, content: bytes) -> bytes:
    """Return a RIFF chunk, padded to an even length."""
    return name + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2)
