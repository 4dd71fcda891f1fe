"""One video of a data set: where it is, what of it is meant, what it is called."""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from pvdm_cli.errors import VideoError
from pvdm_cli.video.arrays import Part, is_array, parts
from pvdm_cli.video.timing import WHOLE, Cut, Piece

MIRRORED = "#mirrored"  # ends the name of the mirrored copy of a video
STRETCH = re.compile(r"#[\d.e+]+-[\d.e+]*s?$")  # ends the name of a stretch of a file, see `Cut`


class Source(NamedTuple):
    """One video: a file, a folder of frames, an array of a file, or a stretch of one of these."""

    path: Path
    name: str  # path below the root, with forward slashes: the same on every machine
    part: Part = Part()
    cut: Cut = WHOLE

    @property
    def piece(self) -> Piece:
        """What to read."""
        return Piece(self.path, self.part, self.cut)

    @property
    def mirrored(self) -> bool:
        """Whether this is the mirrored copy of another."""
        return self.name.endswith(MIRRORED)

    def mirror(self) -> "Source":
        """The mirrored copy."""
        return self._replace(name=self.name + MIRRORED)


def sources_of(path: Path, name: str) -> list[Source]:
    """List the videos of a file: several in an array of several.

    What cannot be read is listed, too, and named with the reason when it is to be read.
    """
    if is_array(path):
        try:
            return [Source(path, f"{name}{part}", part) for part in parts(path)]
        except VideoError:
            pass
    return [Source(path, name)]


def original(name: str) -> str:
    """Name of the video that a mirrored copy is of."""
    return name.removesuffix(MIRRORED)


def footage(name: str) -> str:
    """What must stay on one side of a split: copies and stretches of one video belong together."""
    return STRETCH.sub("", original(name))


def unit_hash(name: str) -> float:
    """Map a name to [0, 1), evenly and the same everywhere."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
