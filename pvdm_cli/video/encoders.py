"""mp4, npz and folders of png: formats whose frames leave one by one.

Each encoder is a block that gives a sink. Where a video is continued it first takes over frames of
the old file as they are, without decoding them.
"""

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pvdm_cli.errors import PvdmError

Frame = NDArray[np.uint8]  # [H, W, 3]
Sink = Callable[[Frame, bool], None]  # frame, and whether the file may be cut before it

BT709, LIMITED = 1, 1  # FFmpeg's numbers for the colour tags of a stream


class Old(NamedTuple):
    """The frames of a finished video that its continuation begins with."""

    path: Path
    frames: int


class Spec(NamedTuple):
    """What a format needs to know beforehand."""

    rate: Fraction
    height: int
    width: int
    quality: int
    about: str = ""  # JSON that goes into the file
    old: Old | None = None


@contextmanager
def mp4(path: Path, spec: Spec) -> Iterator[Sink]:
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
        if spec.about:
            container.metadata["comment"] = spec.about
        stream = _h264(container, spec)
        number = spec.old.frames if spec.old else 0
        mux = _Joint(container, stream).mux if spec.old else container.mux
        if spec.old:
            _take_packets(spec.old, stream, mux)
        reformatter = VideoReformatter()
        padding = ((0, spec.height % 2), (0, spec.width % 2), (0, 0))

        def sink(frame: Frame, cut: bool) -> None:
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
            picture.pict_type = PictureType.I if cut else PictureType.NONE
            mux(stream.encode(picture))
            number += 1

        yield sink
        if number:
            mux(stream.encode(None))


def _h264(container: OutputContainer, spec: Spec) -> VideoStream:
    """Add the stream; equal specs give equal headers, so that videos can be joined."""
    crf = min(51, max(1, round((100 - spec.quality) * 0.9)))  # crf 0 is a profile few play
    # mbtree=0: with it x264's AVX-512 code reads what it never wrote, and equal frames now and then
    # give unequal files (x264 core 165; 3 % of those of 64 x 64).
    options = {"crf": str(crf), "forced-idr": "1", "mbtree": "0"}
    stream = container.add_stream("libx264", rate=spec.rate, options=options)
    stream.width, stream.height = spec.width + spec.width % 2, spec.height + spec.height % 2
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / spec.rate
    # Untagged, some players take BT.601 and others BT.709: so say which.
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = LIMITED
    return stream


class _Joint:
    """Muxes the packets of several encoders, one after the other, as if they were one's.

    Each encoder counts the time of decoding from its own start, by a delay that depends on how many
    frames it saw; here it is that of x264's usual reordering for all.
    """

    DELAY = 2  # frames

    def __init__(self, container: OutputContainer, stream: VideoStream) -> None:
        self._container, self._stream, self._number = container, stream, -self.DELAY

    def mux(self, packets: Sequence["Packet[VideoStream]"]) -> None:
        """Write the next packets."""
        rate = self._stream.average_rate
        assert rate is not None
        for packet in packets:
            packet.dts = round(self._number / rate / packet.time_base)
            packet.stream = self._stream
            self._container.mux(packet)
            self._number += 1


def _take_packets(
    old: Old, stream: VideoStream, mux: Callable[[Sequence["Packet[VideoStream]"]], None]
) -> None:
    """Copy the compressed frames of an mp4 up to where it may be cut.

    Raises:
        PvdmError: If the old file was made by another encoder, or cannot be cut there.
    """
    with av.open(old.path) as file:
        before = file.streams.video[0]
        _same_encoder(before, stream, old.path)
        # As the encoder gives them: the muxer expects one form of packets all along.
        to_raw = BitStreamFilterContext("h264_mp4toannexb", before)
        last = taken = 0
        for packet in file.demux(before):
            if packet.dts is None or taken == old.frames:
                break
            assert packet.pts is not None
            assert stream.average_rate is not None
            last = max(last, round(packet.pts * packet.time_base * stream.average_rate))
            mux(to_raw.filter(packet))
            taken += 1
        if taken < old.frames or last >= old.frames:
            raise _short(old, taken)


def _same_encoder(before: VideoStream, stream: VideoStream, path: Path) -> None:
    """Check that an old stream has the parameter sets of the new one.

    The encoder lists them between start codes, the file with their lengths.
    """
    stream.codec_context.open()
    now, then = stream.codec_context.extradata, before.codec_context.extradata
    sets = [unit for unit in (now or b"").split(b"\0\0\0\1") if unit and unit[0] & 31 in (7, 8)]
    if not then or not sets or not all(unit in then for unit in sets):
        raise PvdmError(
            f"{path} was written by another version of the encoder and cannot be continued: "
            "remove it to draw it anew"
        )


@contextmanager
def npz(path: Path, spec: Spec) -> Iterator[Sink]:
    """Write the arrays `frames` [s, H, W, 3] and `fps`; raw frames wait on disk for the header."""
    raw = path.with_name(f"{path.name}.raw")
    number = spec.old.frames if spec.old else 0
    try:
        with raw.open("w+b") as waiting:
            if spec.old:
                _take_raw(spec.old, waiting.write)

            def sink(frame: Frame, cut: bool) -> None:
                nonlocal number
                waiting.write(frame.tobytes())
                number += 1

            yield sink
            waiting.seek(0)
            shape = (number, spec.height, spec.width, 3)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                with archive.open(_entry("frames.npy"), "w", force_zip64=True) as entry:
                    np.lib.format.write_array_header_1_0(entry, header)
                    shutil.copyfileobj(waiting, entry, 1 << 20)
                small = {"fps": np.array(float(spec.rate))}
                if spec.about:
                    small["about"] = np.array(spec.about)
                for name, value in small.items():
                    with archive.open(_entry(f"{name}.npy"), "w") as entry:
                        np.lib.format.write_array(entry, value)
    finally:
        raw.unlink(missing_ok=True)


def _entry(name: str) -> zipfile.ZipInfo:
    """Name an entry without the time, so that equal videos are equal files."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def _take_raw(old: Old, write: Callable[[bytes], object]) -> None:
    """Copy the first frames of an npz, one by one."""
    for taken, frame in enumerate(npz_frames(old.path)):
        if taken == old.frames:
            return
        write(frame.tobytes())
    if taken + 1 < old.frames:
        raise _short(old, taken + 1)


def npz_frames(path: Path) -> Iterator[Frame]:
    """Read the frames of an npz one by one."""
    with zipfile.ZipFile(path) as archive, archive.open("frames.npy") as entry:
        np.lib.format.read_magic(entry)
        (count, *size), _, _ = np.lib.format.read_array_header_1_0(entry)
        for _ in range(count):
            yield np.frombuffer(entry.read(int(np.prod(size))), np.uint8).reshape(size)


@contextmanager
def png(path: Path, spec: Spec) -> Iterator[Sink]:
    """Write 000000.png, 000001.png, ... into a folder."""
    number = 0
    if spec.old:
        for number in range(spec.old.frames):
            _link(spec.old, number, path / f"{number:06d}.png")
        number += 1
    note = PngInfo()
    if spec.about:
        note.add_text("Comment", spec.about)

    def sink(frame: Frame, cut: bool) -> None:
        nonlocal number
        Image.fromarray(frame).save(path / f"{number:06d}.png", pnginfo=note)
        number += 1

    yield sink


def _link(old: Old, number: int, path: Path) -> None:
    """Take over one png, without copying where the disk can."""
    source = old.path / path.name
    try:
        os.link(source, path)
    except FileNotFoundError:
        raise _short(old, number) from None
    except OSError:
        shutil.copyfile(source, path)


def _short(old: Old, found: int) -> PvdmError:
    """Say that a video to be continued has been changed."""
    return PvdmError(
        f"{old.path} cannot be continued after frame {old.frames}: it has been changed since it was "
        f"written ({found} frames fit); remove it to draw it anew"
    )
