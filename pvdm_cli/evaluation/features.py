"""Features of the clips of one side; those of real videos are kept for the next score.

A file in the cache belongs to one detector, one way to cut and resize clips, and one set of videos,
known by what they hold.
"""

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from pvdm_cli.errors import PvdmError
from pvdm_cli.evaluation.contents import Contents
from pvdm_cli.evaluation.detector import Detector, Features
from pvdm_cli.evaluation.i3d import NUM_FEATURES
from pvdm_cli.evaluation.reel import Reel
from pvdm_cli.evaluation.shared import features_of
from pvdm_cli.files import atomic_file, cache_folder
from pvdm_cli.progress import Reporter
from pvdm_cli.ranks import here

FORMAT = 2


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
        kept: Whether the features come from an earlier run.
    """

    path: Path
    videos: int
    clips: int
    resized: int
    skipped: dict[str, str]
    formats: list[str]
    kept: bool = False


def gather(
    reel: Reel,
    where: Path,
    detector: Detector,
    what: str,
    reporter: Reporter,
    *,
    contents: Contents | None = None,
) -> tuple[Side, Features]:
    """Compute the features [n, 400] of all clips, 1.6 kB each.

    Several processes share the clips out; all get all features.

    Args:
        reel: The clips.
        where: Where the videos are.
        detector: I3D.
        what: What the bar calls them.
        reporter: Told of each clip.
        contents: Tells what the videos hold. With it, features are looked for in the cache first,
            and left there.

    Raises:
        DataError: If there are fewer than two clips.
    """
    if contents is not None and (found := here().first(lambda: _load(reel, detector, contents))):
        return replace(found[0], path=where, kept=True), found[1]
    features = features_of(reel, detector.stream, what, reporter)
    reel.require_clips(where)
    formats = sorted({video.format for video in reel.videos})
    side = Side(where, reel.used, reel.clips, reel.resized, reel.skipped, formats)
    if contents is not None and here().main:
        _save(reel, detector, contents, side, features, reporter)
    return side, features


def features_folder() -> Path:
    """Where features of real videos are kept."""
    return cache_folder() / "features"


def _place(reel: Reel, detector: Detector, contents: Contents) -> Path:
    """Where features are kept, by what they depend on.

    Of the videos those that are looked at in any case; the others are checked by `_load`.
    """
    about = {
        "format": FORMAT,
        "videos": contents.of(reel.videos[: reel.most]),
        "of": len(reel.videos),
        **detector.describe(),
        **reel.describe(),
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    return features_folder() / f"{key}.npz"


def _load(reel: Reel, detector: Detector, contents: Contents) -> tuple[Side, Features] | None:
    """Read kept features; a file that is missing, damaged or of other videos is as good as none."""
    try:
        with _place(reel, detector, contents).open("rb") as opened, np.load(opened) as file:
            side, features = Side(**json.loads(str(file["side"]))), file["features"]
            more = [(digest, part) for digest, part in json.loads(str(file["more"]))]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    whole = features.shape == (side.clips, NUM_FEATURES)
    same = more == contents.of(reel.videos[reel.most : reel.most + len(more)])
    return (side, features) if whole and same else None


def _save(
    reel: Reel,
    detector: Detector,
    contents: Contents,
    side: Side,
    features: Features,
    reporter: Reporter,
) -> None:
    """Keep features; a cache that cannot be written is no reason to fail."""
    about = json.dumps(asdict(side), default=str)
    more = json.dumps(contents.of(reel.videos[reel.most : reel.seen]))  # in place of those left out
    try:
        path = _place(reel, detector, contents)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, side=np.array(about), more=np.array(more), features=features)
    except PvdmError as error:
        reporter.say(f"features of real videos are not kept: {error}")
