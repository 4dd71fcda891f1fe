"""The videos that are scored."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pvdm_cli.data.catalog import Source, find_videos
from pvdm_cli.errors import DataError
from pvdm_cli.files import is_run
from pvdm_cli.video.read import count_frames, probe, read
from pvdm_cli.video.resize import Geometry
from pvdm_cli.video.stills import image_files

Frames = NDArray[np.uint8]  # [s, H, W, 3]
Size = tuple[int, int]  # H, W

SAMPLE = "video-*.json"  # what `pvdm sample` writes beside each video


class Footage(Source):
    """One video of either side of a comparison."""

    __slots__ = ()

    @property
    def format(self) -> str:
        """Ending of the file, or of the frames in a folder."""
        if not self.path.is_dir():
            return self.path.suffix.lower()
        endings = (path.suffix.lower() for path in image_files(self.path))
        return next(endings, "")

    def size(self) -> Size:
        """Height and width of its frames.

        Raises:
            VideoError: If it cannot be read.
        """
        info = probe(self.piece)
        return info.height, info.width

    def num_frames(self) -> int:
        """Count its frames, by decoding it where nothing else is certain.

        Raises:
            VideoError: If it cannot be read to its end.
        """
        return count_frames(self.piece)

    def clip(self, geometry: Geometry, *, start: int, count: int, stride: int) -> Frames:
        """Read uint8 [count, H, W, 3].

        Raises:
            VideoError: If it cannot be read so far.
        """
        return read(self.piece, geometry, start=start, count=count, stride=stride)


def find_footage(root: Path) -> list[Footage]:
    """List videos by name.

    Args:
        root: What `data.catalog.find_videos` takes: a folder, a video, a table or a list. In a
            folder that `pvdm sample` has written, the grid of all videos is passed over.

    Raises:
        DataError: If root is missing, holds no videos, or is a training run or its sample pictures.
    """
    sampled = root.is_dir() and any(root.glob(SAMPLE))
    shown = root.name == "samples" and is_run(root.parent) and not sampled
    if is_run(root) or shown:
        run = root.parent if shown else root
        raise DataError(
            f"{root} {'shows' if shown else 'is'} a training run: to score what it has learned, give "
            f"{run} as --model of `pvdm eval fvd`, or draw videos with `pvdm sample {run} --format "
            "npz --out drawn`; as real videos, give those it was trained on"
        )
    videos = [Footage(*source) for source in find_videos(root)]
    if sampled:
        videos = [video for video in videos if Path(video.name).stem != "grid"]
    return videos
