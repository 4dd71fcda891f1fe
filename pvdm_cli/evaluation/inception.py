"""Inception score on UCF-101 (Salimans et al. 2016; Saito et al. 2020), by two conventions.

Axes: n clips, k classes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pvdm_cli import weights
from pvdm_cli.errors import PvdmError
from pvdm_cli.evaluation.c3d import FRAMES, load_c3d
from pvdm_cli.evaluation.detector import batched
from pvdm_cli.evaluation.footage import Frames, find_footage
from pvdm_cli.evaluation.fvd import first_size
from pvdm_cli.evaluation.protocol import EXACT
from pvdm_cli.evaluation.reel import Reel, Window
from pvdm_cli.evaluation.shared import features_of
from pvdm_cli.files import sha256
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.video.resize import Geometry

Convention = Literal["tgan2", "stylegan-v"]
Array = NDArray[np.float64]

SPLITS = 10
PER_RUN = 2048  # clips that both conventions score at a time
BATCH = 4
TINY = 1e-16  # of a probability, before its logarithm


@dataclass(frozen=True)
class InceptionResult:
    """A score with its convention.

    Attributes:
        mean: Over splits.
        std: Over splits, divided by their number.
        splits: Score of each.
        fake: Where the videos are.
        clips: Scored.
        protocol: What the score depends on beside the videos.
        differs: Why it may not be compared with published figures.
        skipped: Videos left out, with the reason.
    """

    mean: float
    std: float
    splits: list[float]
    fake: Path
    clips: int
    protocol: dict[str, Any]
    differs: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def inception_score(probabilities: Array) -> float:
    """Exp of the mean KL divergence of p(y|x) [n, k] from their mean p(y); between 1 and k."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), TINY, None)
    marginal = np.clip(p.mean(axis=0, keepdims=True), TINY, None)
    return float(np.exp((p * (np.log(p) - np.log(marginal))).sum(axis=1).mean()))


def split_scores(probabilities: Array, convention: Convention) -> list[float]:
    """Scores of ten splits.

    tgan2 takes ten runs of fresh samples, one after the other. stylegan-v shuffles one run by
    RandomState(42) and cuts it into ten.
    """
    p = probabilities
    if convention == "stylegan-v":
        order = np.random.RandomState(42).permutation(len(p))
        p = p[order]
    bounds = [len(p) * i // SPLITS for i in range(SPLITS + 1)]
    return [inception_score(p[a:b]) for a, b in pairwise(bounds)]


def measure_inception(
    fake: Path,
    device: torch.device,
    *,
    convention: Convention = "stylegan-v",
    num: int | None = None,
    reporter: Reporter = SILENT,
) -> InceptionResult:
    """Score generated videos by their first 16 frames.

    Args:
        fake: The videos, as for FVD.
        device: Where C3D runs.
        convention: How clips are put into splits.
        num: Most clips; by default those of the convention: 2,048, or ten times as many.
        reporter: Told of each clip.

    Raises:
        PvdmError: If C3D is missing or there are fewer than ten clips.
    """
    files = weights.require_c3d()
    wanted = PER_RUN if convention == "stylegan-v" else SPLITS * PER_RUN
    videos = find_footage(fake)
    size = first_size(videos, fake)
    reel = Reel(videos, Window(FRAMES), Geometry(*size), num or wanted, same_size=True)
    network = load_c3d(*files).to(device)

    def classify(clips: Iterable[Frames]) -> Iterator[Array]:
        for batch in batched(clips, BATCH):
            yield network.classify(torch.from_numpy(batch)).cpu().double().numpy()

    probabilities = features_of(reel, classify, "fake clips", reporter)
    if reel.clips < SPLITS:
        raise PvdmError(
            f"{fake}: {reel.clips} clips of {FRAMES} frames found, the inception score takes "
            f"{SPLITS} splits of one or more"
        )
    scores = split_scores(probabilities, convention)
    formats = {video.format for video in videos}
    return InceptionResult(
        mean=float(np.mean(scores)),
        std=float(np.std(scores)),
        splits=scores,
        fake=fake,
        clips=reel.clips,
        protocol={
            "convention": convention,
            "splits": SPLITS,
            "frames": FRAMES,
            "height": size[0],
            "width": size[1],
            "detector": files[0].name,
            "detector_sha256": sha256(files[0]),
            "mean_sha256": sha256(files[1]),
        },
        differs=list(_differences(reel.clips, wanted, formats)),
        skipped=reel.skipped,
    )


def _differences(clips: int, wanted: int, formats: set[str]) -> Iterable[str]:
    """Say why a score may not be compared with published figures."""
    if clips != wanted:
        yield f"{clips:,} clips, the convention takes {wanted:,}; fewer score lower"
    if lossy := sorted(formats - EXACT):
        yield f"videos were compressed ({', '.join(lossy)}); npz and png are exact"
    yield "unverified: this C3D is written anew, and its authors had no copy of the published weights"
