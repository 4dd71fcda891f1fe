"""Frechet video distance (Unterthiner et al. 2018), with everything a score depends on beside it.

Axes: n clips, s frames, H x W pixels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pvdm_cli.errors import PvdmError, VideoError
from pvdm_cli.evaluation import spread
from pvdm_cli.evaluation.detector import Detector, Features
from pvdm_cli.evaluation.features import Side, gather
from pvdm_cli.evaluation.footage import Footage, Size, find_footage
from pvdm_cli.evaluation.frechet import Ddof
from pvdm_cli.evaluation.i3d import EPS, FEWEST_FRAMES
from pvdm_cli.evaluation.reel import Reel, Variant, Window
from pvdm_cli.files import atomic_file
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.video.resize import Geometry

PUBLISHED_VIDEOS = 2048  # of either side
PUBLISHED_CLIPS = {(16, 1), (128, 1), (16, 8)}  # frames and stride
PUBLISHED_SIZE = (256, 256)
EXACT = {".npz", ".png", ".bmp"}


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

    def geometry(self, size: Size) -> Geometry:
        """How frames are brought to a size."""
        return Geometry(*size, self.resize, self.antialias)


PROTOCOLS = {
    "stylegan-v": Protocol("stylegan-v", 0, "lanczos", True, EPS),
    # The released code also takes its matrix root in float32, which adds noise of about 0.1 %
    # that differs from machine to machine; that is not repeated.
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
        real_order: Which real videos come first where there are more than num.
        real_jpeg: Store real frames as jpeg of quality 95 first, as StyleGAN-V's data sets do.
        protocol: stylegan-v | pvdm.
        num: Most clips of either side.
        size: Height and width to compare at; None: those of the fake videos.
        seed: Of the choice of real videos and windows.
        repeats: Score so often, the real clips drawn anew by seed, seed + 1, ...
        bootstrap: Draw both sides so often with replacement, for the spread.
        counts: Also score so many clips of either side.
        yardsticks: Also score real clips against halves, still and shuffled ones of themselves.
        keep: Keep the features of real clips for the next score.
        save_features: Where to write the features of both sides (.npz).
    """

    frames: int = 16
    frame_stride: int = 1
    fake_start: int = 0
    real_clips: Literal["one", "all"] = "one"
    real_order: Literal["shuffled", "sorted"] = "shuffled"
    real_jpeg: bool = False
    protocol: Literal["stylegan-v", "pvdm"] = "stylegan-v"
    num: int = PUBLISHED_VIDEOS
    size: Size | None = None
    seed: int = 0
    repeats: int = 1
    bootstrap: int = 0
    counts: Sequence[int] = ()
    yardsticks: bool = False
    keep: bool = True
    save_features: Path | None = None

    def check(self) -> None:
        """Reject impossible values.

        Raises:
            PvdmError: Naming the option, its value and what is allowed.
        """
        least = {"frames": FEWEST_FRAMES, "frame_stride": 1, "fake_start": 0, "num": 2}
        least |= {"repeats": 1, "bootstrap": 0}
        for name, fewest in least.items():
            if (value := getattr(self, name)) < fewest:
                option = name.replace("_", "-")
                raise PvdmError(f"--{option} {value}: expected {fewest} or more")
        if self.protocol not in PROTOCOLS:
            raise PvdmError(f"--protocol {self.protocol!r}: choose {' or '.join(PROTOCOLS)}")
        if self.save_features and self.save_features.suffix != ".npz":
            raise PvdmError(f"--save-features {self.save_features}: expected a name ending in .npz")


@dataclass(frozen=True)
class FvdResult:
    """A score with its whole protocol.

    Attributes:
        fvd: The distance.
        real: The real side.
        fake: The fake side.
        protocol: Everything that it depends on beside the videos.
        differs: Why it may not be compared with published figures; empty if it may.
        repeats: Distances from real clips drawn anew, the first of them `fvd`.
        bootstrap: Distances of sets drawn with replacement.
        counts: Distances by number of clips.
        extrapolated: From counts, to infinitely many clips.
        yardsticks: Distances of real clips from halves (`real_halves`, each against the other),
            from stills and from shuffled frames of themselves.
    """

    fvd: float
    real: Side
    fake: Side
    protocol: dict[str, Any]
    differs: list[str] = field(default_factory=list)
    repeats: list[float] = field(default_factory=list)
    bootstrap: list[float] = field(default_factory=list)
    counts: dict[int, float] = field(default_factory=dict)
    extrapolated: float | None = None
    yardsticks: dict[str, float | None] = field(default_factory=dict)

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
        real: Real videos: a folder, one file, an .npz, or a list of files.
        fake: Generated ones, likewise.
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
    scene = _Scene(request, protocol, size, detector, reporter, real, reals)
    fake_side, fake_features = gather(
        scene.fake_reel(fakes), fake, detector, "fake clips", reporter
    )
    real_side, real_features = scene.real()
    score = spread.distance(real_features, fake_features, protocol.ddof)
    if request.save_features:
        save_features(request.save_features, real_features, fake_features)
    sides = (real_features, fake_features, protocol.ddof)
    counts = spread.at_counts(*sides, counts=request.counts, seed=request.seed)
    return FvdResult(
        fvd=score,
        real=real_side,
        fake=fake_side,
        protocol=describe_protocol(request, protocol, size, detector),
        differs=differences(request, size, detector, real_side, fake_side),
        repeats=scene.repeats(score, fake_features),
        bootstrap=spread.bootstrap(*sides, repeats=request.bootstrap, seed=request.seed),
        counts=counts,
        extrapolated=spread.extrapolate(counts),
        yardsticks=scene.yardsticks(real_features) if request.yardsticks else {},
    )


@dataclass(frozen=True)
class _Scene:
    """What all scores of one request share."""

    request: FvdRequest
    protocol: Protocol
    size: Size
    detector: Detector
    reporter: Reporter
    where: Path
    reals: list[Footage]

    def fake_reel(self, fakes: list[Footage]) -> Reel:
        """Clips of the fake videos."""
        request = self.request
        window = Window(request.frames, request.frame_stride, "start", request.fake_start)
        geometry = self.protocol.geometry(self.size)
        return Reel(fakes, window, geometry, request.num, same_size=request.size is None)

    def real(self, seed: int | None = None, variant: Variant = "as is") -> tuple[Side, Features]:
        """Features of real clips, as the seed draws them."""
        request = self.request
        seed = request.seed if seed is None else seed
        videos = self.reals if request.real_order == "sorted" else shuffled(self.reals, seed)
        reel = Reel(
            videos,
            Window(request.frames, request.frame_stride, request.real_clips),
            self.protocol.geometry(self.size),
            request.num,
            seed,
            jpeg=request.real_jpeg,
            variant=variant,
        )
        what = "real clips" if variant == "as is" else f"{variant} real clips"
        keep = request.keep
        return gather(reel, self.where, self.detector, what, self.reporter, keep=keep)

    def repeats(self, first: float, fake: Features) -> list[float]:
        """Scores with real clips drawn anew; none if one was asked for."""
        seeds = range(self.request.seed + 1, self.request.seed + self.request.repeats)
        more = [spread.distance(self.real(seed)[1], fake, self.protocol.ddof) for seed in seeds]
        return [first, *more] if more else []

    def yardsticks(self, real: Features) -> dict[str, float | None]:
        """What the same distance says of real clips: nothing wrong, no motion, motion jumbled."""
        ddof = self.protocol.ddof
        return {
            "real_halves": spread.halves(real, ddof, seed=self.request.seed),
            "still": spread.distance(real, self.real(variant="still")[1], ddof),
            "shuffled": spread.distance(real, self.real(variant="shuffled")[1], ddof),
        }


def first_size(videos: list[Footage], where: Path) -> Size:
    """Size of the first video that can be read: all are to have it.

    Raises:
        VideoError: If none can be.
    """
    reason = ""
    for video in videos:
        try:
            return video.size()
        except VideoError as error:
            reason = reason or str(error)
    raise VideoError(f"{where}: no video can be read; the first: {reason}")


def shuffled(videos: list[Footage], seed: int) -> list[Footage]:
    """Put videos in an order that the seed alone decides."""
    order = np.random.default_rng((seed, len(videos))).permutation(len(videos))
    return [videos[i] for i in order]


def save_features(path: Path, real: Features, fake: Features) -> None:
    """Write the features of both sides, float32 [n, 400].

    Raises:
        PvdmError: If the path cannot be written.
    """
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, real=real, fake=fake)


def describe_protocol(
    request: FvdRequest, protocol: Protocol, size: Size, detector: Detector
) -> dict[str, Any]:
    """Everything a score depends on beside the videos."""
    blunt = "" if protocol.antialias else " without antialias"
    return {
        "name": protocol.name,
        "detector": detector.file,
        "detector_sha256": detector.sha256,
        "detector_known": detector.known,
        "batchnorm_eps": protocol.eps,
        "frames": request.frames,
        "frame_stride": request.frame_stride,
        "fake_start": request.fake_start,
        "real_clips": request.real_clips,
        "real_order": request.real_order,
        "real_jpeg": request.real_jpeg,
        "num": request.num,
        "height": size[0],
        "width": size[1],
        "resize": f"centre crop, {protocol.resize}{blunt}",
        "detector_resize": "bilinear to 224 x 224 without antialias",
        "covariance": "divided by n" if protocol.ddof == 0 else "divided by n - 1",
        "seed": request.seed,
    }


def differences(
    request: FvdRequest, size: Size, detector: Detector, real: Side, fake: Side
) -> list[str]:
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
    if lossy := sorted({*fake.formats} - EXACT):
        found.append(f"fake videos were compressed ({', '.join(lossy)}); npz and png are exact")
    if detector.known is None:
        found.append(f"{detector.file} is not one of the known files of the detector")
    return found


def few(real: int, fake: int) -> Iterable[str]:
    """Say that clips are too few: the distance is then too large, and varies by chance."""
    for count, side in ((real, "real"), (fake, "fake")):
        if count < PUBLISHED_VIDEOS:
            yield f"{count:,} {side} clips, published: {PUBLISHED_VIDEOS:,}; fewer score higher"
