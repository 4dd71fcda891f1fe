"""How well an autoencoder gives clips back: PSNR, SSIM, and the distance of I3D features (rFVD).

Axes: b batch, s frames, H x W pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pvdm_cli import weights
from pvdm_cli.config import (
    AS_STORED,
    DataConfig,
    Policy,
    RunConfig,
    Selection,
    parse_config,
    read_yaml,
)
from pvdm_cli.data.catalog import Source, split
from pvdm_cli.data.clips import Clips
from pvdm_cli.data.labels import say_missing
from pvdm_cli.data.selection import ALL, select
from pvdm_cli.errors import ConfigError, DataError
from pvdm_cli.evaluation.detector import Detector
from pvdm_cli.evaluation.frechet import Statistics, frechet_distance
from pvdm_cli.evaluation.i3d import FEWEST_FRAMES, NUM_FEATURES
from pvdm_cli.evaluation.protocol import PUBLISHED_VIDEOS
from pvdm_cli.evaluation.ssim import WINDOW, ssim
from pvdm_cli.model import Model
from pvdm_cli.models.perceptual import LPIPS
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.ranks import here
from pvdm_cli.video.pixels import psnr, to_float, to_uint8

Split = Literal["held-out", "train", "all"]

BATCH = 4  # clips per forward pass


class FeatureDistance:
    """Frechet distance of I3D features from given clips, whose features are computed once."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._real: Statistics | None = None

    @classmethod
    def load(
        cls,
        device: torch.device,
        frames: int,
        *,
        key: str = "training.judge",
        on: object = "rfvd",
        off: object = "psnr",
    ) -> "FeatureDistance":
        """Find the detector for clips of so many frames.

        Args:
            device: Where it runs.
            frames: Of a clip.
            key: What in the configuration asks for it ...
            on: ... by which value ...
            off: ... and which does without.

        Raises:
            PvdmError: If there is none, or the clips are too short for it.
        """
        without, asks = f"{key}={off}", f"{key}={on}"
        if frames < FEWEST_FRAMES:
            raise ConfigError(
                f"{asks} needs clips of {FEWEST_FRAMES} frames or more, not {frames}; use {without}"
            )
        return cls(Detector.load(device, needed_by=asks, without=without))

    def __call__(self, originals: Tensor, again: Tensor) -> float:
        """Compare clips uint8 [b, s, H, W, 3], the same at every call, with reconstructions."""
        if self._real is None:
            self._real = Statistics.of(self._detector.features(originals))
        fake = Statistics.of(self._detector.features(again))
        return frechet_distance(self._real, fake, ddof=0)


class Reconstructed(NamedTuple):
    """How one clip came back.

    Attributes:
        video: Name of its video.
        psnr: In dB, of pixels as the network gives them; the `val_psnr` of training.
        psnr_mean_frame: What repeating the clip's mean frame would reach.
        ssim: Mean over frames as they would be written; None below 11 pixels a side.
        lpips: Mean over frames; None where its weights are not.
    """

    video: str
    psnr: float
    psnr_mean_frame: float
    ssim: float | None
    lpips: float | None


@dataclass(frozen=True)
class ReconstructionResult:
    """Means over clips, and each clip.

    Attributes:
        model: As it was named.
        data: Folder of the videos.
        split: Which of them.
        holdout: Share that is held out.
        clips: The first window of each video.
        rfvd: Squared Frechet distance of I3D features between clips and reconstructions.
        protocol: What rfvd depends on; where there is none, why (`missing`).
        skipped: Videos that gave no clip, with the reason.
    """

    model: str
    data: Path
    split: Split
    holdout: float
    clips: list[Reconstructed]
    rfvd: float | None
    protocol: dict[str, Any]
    skipped: dict[str, str]

    @property
    def psnr(self) -> float:
        """Mean over clips, in dB."""
        return fmean(clip.psnr for clip in self.clips)

    @property
    def psnr_mean_frame(self) -> float:
        """Mean over clips of what a still picture reaches."""
        return fmean(clip.psnr_mean_frame for clip in self.clips)

    @property
    def ssim(self) -> float | None:
        """Mean over clips; None for frames that are too small."""
        known = [clip.ssim for clip in self.clips if clip.ssim is not None]
        return fmean(known) if known else None

    @property
    def lpips(self) -> float | None:
        """Mean over clips, lower is better; None where its weights are not."""
        known = [clip.lpips for clip in self.clips if clip.lpips is not None]
        return fmean(known) if known else None

    def worst(self, count: int) -> list[Reconstructed]:
        """The clips of lowest PSNR, the worst first."""
        return sorted(self.clips, key=lambda clip: clip.psnr)[:count]

    @property
    def differs(self) -> list[str]:
        """Why rfvd may not be compared with published figures."""
        count = len(self.clips)
        if self.rfvd is None or count >= PUBLISHED_VIDEOS:
            return []
        return [f"{count:,} clips, published: {PUBLISHED_VIDEOS:,}; fewer score higher"]


def measure_reconstruction(
    model: Model,
    name: str,
    data: Path,
    *,
    split_name: Split = "held-out",
    holdout: float = DataConfig().holdout,
    num: int | None = None,
    selection: Selection = ALL,
    policy: Policy = AS_STORED,
    reporter: Reporter = SILENT,
) -> ReconstructionResult:
    """Reconstruct the first clip of each video of a split; several processes share them out.

    The split is that of training: with the same selection and holdout the same videos are held out.

    Raises:
        DataError: If the split is empty, or no video of it gives a clip.
    """
    videos = select(data, selection)
    if videos.missing:
        reporter.say(say_missing(videos.missing))
    sources = choose(videos.sources, split_name, holdout, data)
    clips = Clips.load(
        sources[:num], model.config.clip, memory_gb=0, policy=policy, reporter=reporter
    )
    frames = model.config.clip.frames
    detector = None
    if weights.has_i3d() and frames >= FEWEST_FRAMES:
        detector = Detector.load(model.device, needed_by="rFVD")
    compare = _Compare(_perceptual(model))
    real, fake = Statistics(NUM_FEATURES), Statistics(NUM_FEATURES)
    found: dict[int, Reconstructed] = {}
    mine = range(here().rank, len(clips), here().size)
    reporter.start("reconstructing", len(mine), "clip")
    for numbers, originals, x, y in _pairs(model, clips, mine):
        again = to_uint8(y.cpu())
        names = [clips.videos[number].source.name for number in numbers]
        found |= zip(numbers, compare(names, x, y, originals, again), strict=True)
        if detector is not None:
            real.add(detector.features(originals))
            fake.add(detector.features(again))
        reporter.advance(len(x))
    reporter.done()
    found, real, fake = _together(found, real, fake)
    return ReconstructionResult(
        model=name,
        data=data,
        split=split_name,
        holdout=holdout,
        clips=[found[number] for number in range(len(clips))],
        rfvd=frechet_distance(real, fake, ddof=0) if detector else None,
        protocol=_protocol(detector, frames),
        skipped=clips.skipped,
    )


def run_config(model: Path) -> RunConfig:
    """Configuration of a run, which says how it chose and read videos; defaults for other models.

    Raises:
        ConfigError: If it is damaged.
    """
    kept = model / "config.yaml"
    if not kept.is_file():
        return RunConfig(stage="autoencoder")
    return parse_config(RunConfig, read_yaml(kept), where=str(kept))


def choose(
    sources: Sequence[Source], split_name: Split, holdout: float, where: Path
) -> list[Source]:
    """Take the videos of a split.

    Raises:
        DataError: If it has none.
    """
    if split_name == "all":
        return list(sources)
    train, held_out = split(sources, holdout)
    chosen = held_out if split_name == "held-out" else train
    if not chosen:
        raise DataError(
            f"{where}: no video is held out of {len(sources)} with --holdout {holdout:g}; use "
            "--split all"
        )
    return chosen


def _together(
    found: dict[int, Reconstructed], real: Statistics, fake: Statistics
) -> tuple[dict[int, Reconstructed], Statistics, Statistics]:
    """Put together what the processes have found of their clips."""
    parts = here().gather((found, real, fake))
    for others, more_real, more_fake in parts[1:]:
        parts[0][0].update(others)
        parts[0][1].merge(more_real)
        parts[0][2].merge(more_fake)
    return parts[0]


def _pairs(
    model: Model, clips: Clips, mine: range
) -> Iterator[tuple[range, Tensor, Tensor, Tensor]]:
    """Yield numbers of clips, the clips uint8 [b, s, H, W, 3], as pixels x, reconstructions y."""
    for first in range(0, len(mine), BATCH):
        numbers = mine[first : first + BATCH]
        frames = torch.stack([torch.from_numpy(clips.window(i, 0)) for i in numbers])
        x = to_float(frames.to(model.device))
        with torch.no_grad():
            yield numbers, frames, x, model.autoencoder(x)


def _perceptual(model: Model) -> LPIPS | None:
    """Make LPIPS where both files of its weights are; nothing is downloaded for a score."""
    if not (weights.has(weights.VGG16) and weights.has(weights.LPIPS_VGG)):
        return None
    asked, network = {"needed_by": "LPIPS", "without": "moving the file away"}, LPIPS()
    network.load_published(
        weights.load(weights.VGG16, **asked), weights.load(weights.LPIPS_VGG, **asked)
    )
    return network.to(model.device)


@dataclass(frozen=True)
class _Compare:
    """Compares clips with their reconstructions."""

    lpips: LPIPS | None

    def __call__(
        self, names: Sequence[str], x: Tensor, y: Tensor, originals: Tensor, again: Tensor
    ) -> list[Reconstructed]:
        """Compare a batch: pixels x, y [b, 3, s, H, W] and frames uint8 [b, s, H, W, 3]."""
        still = x.mean(2, keepdim=True).expand_as(x)
        figures = zip(names, psnr(y, x).tolist(), psnr(still, x).tolist(), strict=True)
        small = min(originals.shape[2:4]) < WINDOW
        return [
            Reconstructed(
                *figure,
                None if small else float(ssim(originals[i], again[i]).mean()),
                self._perceived(x[i], y[i]),
            )
            for i, figure in enumerate(figures)
        ]

    def _perceived(self, x: Tensor, y: Tensor) -> float | None:
        """Mean LPIPS over the frames of one clip [3, s, H, W]."""
        if self.lpips is None:
            return None
        frames = zip(x.movedim(1, 0).split(BATCH), y.movedim(1, 0).split(BATCH), strict=True)
        with torch.no_grad():
            return float(torch.cat([self.lpips(a, b) for a, b in frames]).mean())


def _protocol(detector: Detector | None, frames: int) -> dict[str, Any]:
    """Say what rfvd depends on, or why there is none."""
    if detector is not None:
        return {
            "detector": detector.file,
            "detector_sha256": detector.sha256,
            "frames": frames,
            "detector_resize": "bilinear to 224 x 224 without antialias",
            "covariance": "divided by n",
        }
    if frames < FEWEST_FRAMES:
        return {"missing": f"I3D takes clips of {FEWEST_FRAMES} frames or more, not {frames}"}
    return {"missing": "the I3D is not here; `pvdm eval fvd --help` says where to get it"}
