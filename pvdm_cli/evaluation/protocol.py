"""What a score depends on beside the videos, and what of it differs from what is published."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pvdm_cli.errors import PvdmError
from pvdm_cli.evaluation.detector import Detector
from pvdm_cli.evaluation.features import Side
from pvdm_cli.evaluation.footage import Size
from pvdm_cli.evaluation.frechet import Ddof
from pvdm_cli.evaluation.i3d import EPS, FEWEST_FRAMES
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
        more_starts: Also score the clips that begin at these frames: how long videos drift.
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
        rehash: Hash real videos again, also those of the same size and time of change as before.
        save_features: Where to write the features of both sides (.npz).
    """

    frames: int = 16
    frame_stride: int = 1
    fake_start: int = 0
    more_starts: Sequence[int] = ()
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
    rehash: bool = False
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
