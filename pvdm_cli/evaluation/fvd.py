"""Frechet video distance (Unterthiner et al. 2018), with everything a score depends on beside it.

Axes: s frames, H x W pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pvdm_cli.data.catalog import Source
from pvdm_cli.errors import PvdmError, VideoError
from pvdm_cli.evaluation.detector import Detector
from pvdm_cli.evaluation.footage import Reel, Size, Window, find_footage, frame_size
from pvdm_cli.evaluation.frechet import Ddof, Statistics, frechet_distance
from pvdm_cli.evaluation.i3d import EPS, FEWEST_FRAMES, NUM_FEATURES
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.video.resize import Geometry

PUBLISHED_VIDEOS = 2048  # of either side
PUBLISHED_CLIPS = {(16, 1), (128, 1), (16, 8)}  # frames and stride
PUBLISHED_SIZE = (256, 256)
LOSSLESS = {".npz", ".png"}


@dataclass(frozen=True)
class Protocol:
    """How a score is computed.

    Attributes:
        name: Of the protocol.
        ddof: The covariance is divided by n - ddof.
        resize: Filter that brings frames to the size of the fake ones, after a centre crop.
        antialias: Whether the filter is widened where frames shrink.
        eps: Of BatchNorm inside I3D.
    """

    name: Literal["stylegan-v", "pvdm"]
    ddof: Ddof
    resize: Literal["lanczos", "bilinear"]
    antialias: bool
    eps: float


PROTOCOLS = {
    "stylegan-v": Protocol("stylegan-v", 0, "lanczos", True, EPS),
    "pvdm": Protocol("pvdm", 1, "bilinear", False, 1e-5),
}


@dataclass(frozen=True, kw_only=True)
class FvdRequest:
    """What to compare.

    Attributes:
        frames: Of a clip.
        frame_stride: Take every so-manyth frame.
        fake_start: Frame of each fake video at which its clip begins.
        real_clips: One random clip of each real video, or all that touch.
        protocol: stylegan-v | pvdm.
        num: Most videos of either side (clips, where real_clips is all).
        size: Height and width to compare at; None: those of the fake videos.
        seed: Of the choice of real videos and windows.
    """

    frames: int = 16
    frame_stride: int = 1
    fake_start: int = 0
    real_clips: Literal["one", "all"] = "one"
    protocol: Literal["stylegan-v", "pvdm"] = "stylegan-v"
    num: int = PUBLISHED_VIDEOS
    size: Size | None = None
    seed: int = 0

    def check(self) -> None:
        """Reject impossible values.

        Raises:
            PvdmError: Naming the option, its value and what is allowed.
        """
        least = {"frames": FEWEST_FRAMES, "frame_stride": 1, "fake_start": 0, "num": 2}
        for name, fewest in least.items():
            if (value := getattr(self, name)) < fewest:
                option = name.replace("_", "-")
                raise PvdmError(f"--{option} {value}: expected {fewest} or more")
        if self.protocol not in PROTOCOLS:
            raise PvdmError(f"--protocol {self.protocol!r}: choose {' or '.join(PROTOCOLS)}")


@dataclass(frozen=True)
class Side:
    """One side of a comparison, as it was found.

    Attributes:
        path: Where the videos are.
        videos: That gave clips.
        clips: Compared.
        resized: Videos that were brought to another size.
        skipped: Videos left out, with the reason.
        formats: Endings of the files.
    """

    path: Path
    videos: int
    clips: int
    resized: int
    skipped: dict[str, str]
    formats: list[str]


@dataclass(frozen=True)
class FvdResult:
    """A score with its whole protocol.

    Attributes:
        fvd: The distance.
        real: The real side.
        fake: The fake side.
        protocol: Everything that it depends on beside the videos.
        differs: Why it may not be compared with published figures; empty if it may.
    """

    fvd: float
    real: Side
    fake: Side
    protocol: dict[str, Any]
    differs: list[str] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """Videos left out on either side."""
        return len(self.real.skipped) + len(self.fake.skipped)


def measure_fvd(
    real: Path,
    fake: Path,
    request: FvdRequest,
    device: torch.device,
    reporter: Reporter = SILENT,
) -> FvdResult:
    """Compare two sets of videos.

    Args:
        real: Folder of real videos, or one file.
        fake: Folder of generated ones.
        request: What to compare.
        device: Where the detector runs.
        reporter: Told of every clip.

    Raises:
        PvdmError: If the detector is missing, or a side gives fewer than two clips.
    """
    request.check()
    protocol = PROTOCOLS[request.protocol]
    fakes, reals = find_footage(fake), find_footage(real)
    detector = Detector.load(device, eps=protocol.eps)
    size = request.size or first_size(fakes, fake)
    geometry = Geometry(*size, protocol.resize, protocol.antialias)
    clip = (request.frames, request.frame_stride)
    fake_reel = Reel(
        fakes,
        Window(*clip, "start", request.fake_start),
        geometry,
        request.num,
        same_size=request.size is None,
    )
    real_reel = Reel(
        shuffled(reals, request.seed),
        Window(*clip, request.real_clips),
        geometry,
        request.num,
        request.seed,
    )
    fake_side, fake_statistics = gather(fake_reel, fake, detector, "fake clips", reporter)
    real_side, real_statistics = gather(real_reel, real, detector, "real clips", reporter)
    return FvdResult(
        fvd=frechet_distance(real_statistics, fake_statistics, ddof=protocol.ddof),
        real=real_side,
        fake=fake_side,
        protocol=describe_protocol(request, protocol, size, detector),
        differs=differences(request, size, real_side, fake_side),
    )


def first_size(sources: list[Source], where: Path) -> Size:
    """Size of the first video that can be read: all are to have it.

    Raises:
        VideoError: If none can be.
    """
    reason = ""
    for source in sources:
        try:
            return frame_size(source.path)
        except VideoError as error:
            reason = reason or str(error)
    raise VideoError(f"{where}: no video can be read; the first: {reason}")


def shuffled(sources: list[Source], seed: int) -> list[Source]:
    """Put videos in an order that the seed alone decides."""
    order = np.random.default_rng((seed, len(sources))).permutation(len(sources))
    return [sources[i] for i in order]


def gather(
    reel: Reel, where: Path, detector: Detector, what: str, reporter: Reporter
) -> tuple[Side, Statistics]:
    """Read the clips of a side and gather the statistics of their features.

    Raises:
        DataError: If there are fewer than two.
    """
    statistics = Statistics(NUM_FEATURES)
    total = min(reel.most, len(reel.sources)) if reel.window.rule != "all" else None
    reporter.start(what, total, "clip")
    for features in detector.stream(reel):
        statistics.add(features)
        reporter.advance(len(features))
    reporter.done()
    reel.require_clips(str(where))
    formats = {source.path.suffix.lower() or "folder" for source in reel.sources}
    side = Side(where, reel.videos, reel.clips, reel.resized, reel.skipped, sorted(formats))
    return side, statistics


def describe_protocol(
    request: FvdRequest, protocol: Protocol, size: Size, detector: Detector
) -> dict[str, Any]:
    """Everything a score depends on beside the videos."""
    return {
        "name": protocol.name,
        "detector": detector.file,
        "detector_sha256": detector.sha256,
        "batchnorm_eps": protocol.eps,
        "frames": request.frames,
        "frame_stride": request.frame_stride,
        "fake_start": request.fake_start,
        "real_clips": request.real_clips,
        "num": request.num,
        "height": size[0],
        "width": size[1],
        "resize": f"centre crop, {protocol.resize}"
        + ("" if protocol.antialias else " without antialias"),
        "detector_resize": "bilinear to 224 x 224 without antialias",
        "covariance": "divided by n" if protocol.ddof == 0 else "divided by n - 1",
        "seed": request.seed,
    }


def differences(request: FvdRequest, size: Size, real: Side, fake: Side) -> list[str]:
    """Say why a score may not be compared with published figures."""
    found = list(few(real.clips, fake.clips))
    if (request.frames, request.frame_stride) not in PUBLISHED_CLIPS:
        found.append(
            f"clips of {request.frames} frames at stride {request.frame_stride}; published: 16, "
            "128, or 16 at stride 8"
        )
    if request.fake_start:
        found.append(f"fake clips begin at frame {request.fake_start}, published ones at 0")
    if request.real_clips != "one":
        found.append("several clips of a real video, published: one")
    if size != PUBLISHED_SIZE:
        found.append(f"{size[0]} x {size[1]} pixels, published: 256 x 256")
    lossy = sorted({*fake.formats} - LOSSLESS - {"folder"})
    if lossy:
        found.append(f"fake videos were compressed ({', '.join(lossy)}); npz and png are exact")
    return found


def few(real: int, fake: int) -> Iterable[str]:
    """Say that clips are too few: the distance is then too large, and varies by chance."""
    for count, side in ((real, "real"), (fake, "fake")):
        if count < PUBLISHED_VIDEOS:
            yield f"{count:,} {side} clips, published: {PUBLISHED_VIDEOS:,}; fewer score higher"
