"""Frechet video distance (Unterthiner et al. 2018), with everything a score depends on beside it.

Axes: n clips, s frames, H x W pixels.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pvdm_cli.errors import VideoError
from pvdm_cli.evaluation import spread
from pvdm_cli.evaluation.contents import Contents
from pvdm_cli.evaluation.detector import Detector, Features
from pvdm_cli.evaluation.features import Side, features_folder, gather
from pvdm_cli.evaluation.footage import Footage, Size, find_footage
from pvdm_cli.evaluation.protocol import (
    PROTOCOLS,
    FvdRequest,
    Protocol,
    describe_protocol,
    differences,
)
from pvdm_cli.evaluation.reel import Reel, Variant, Window
from pvdm_cli.files import atomic_file
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.ranks import here


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
        by_start: Distances by the frame at which fake clips begin, where several were asked for.
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
    by_start: dict[int, float] = field(default_factory=dict)
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
    """Compare two sets of videos; several processes share their clips out.

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
    known = features_folder() / "contents.json"
    contents = Contents(known, again=request.rehash, reporter=reporter)
    scene = _Scene(request, protocol, size, detector, reporter, real, reals, contents)
    fake_side, fake_features = gather(
        scene.fake_reel(fakes, request.fake_start), fake, detector, "fake clips", reporter
    )
    real_side, real_features = scene.real()
    score = spread.distance(real_features, fake_features, protocol.ddof)
    if request.save_features and here().main:
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
        by_start=scene.by_start(fakes, score, fake, real_features),
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
    contents: Contents

    def fake_reel(self, fakes: list[Footage], start: int) -> Reel:
        """Clips of the fake videos that begin at a frame."""
        request = self.request
        window = Window(request.frames, request.frame_stride, "start", start)
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
        contents = self.contents if request.keep else None
        return gather(reel, self.where, self.detector, what, self.reporter, contents=contents)

    def repeats(self, first: float, fake: Features) -> list[float]:
        """Scores with real clips drawn anew; none if one was asked for."""
        seeds = range(self.request.seed + 1, self.request.seed + self.request.repeats)
        more = [spread.distance(self.real(seed)[1], fake, self.protocol.ddof) for seed in seeds]
        return [first, *more] if more else []

    def by_start(
        self, fakes: list[Footage], first: float, where: Path, real: Features
    ) -> dict[int, float]:
        """Scores of fake clips that begin elsewhere; none if no other start was asked for."""
        found = {self.request.fake_start: first}
        for start in self.request.more_starts:
            reel, what = self.fake_reel(fakes, start), f"fake clips from frame {start}"
            _, features = gather(reel, where, self.detector, what, self.reporter)
            found[start] = spread.distance(real, features, self.protocol.ddof)
        return found if self.request.more_starts else {}

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
