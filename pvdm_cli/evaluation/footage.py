"""The videos that are scored: files, folders of frames, arrays, lists of files."""

import os
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pvdm_cli.data.catalog import find_videos
from pvdm_cli.errors import DataError, VideoError
from pvdm_cli.files import is_run
from pvdm_cli.video.read import count_frames, probe, read
from pvdm_cli.video.resize import Geometry, fit
from pvdm_cli.video.stills import image_files

Frames = NDArray[np.uint8]  # [s, H, W, 3]
Size = tuple[int, int]  # H, W

SAMPLE = "video-*.json"  # what `pvdm sample` writes beside each video
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)


class Footage(NamedTuple):
    """One video.

    Attributes:
        path: A file or a folder of frames.
        name: What messages call it: the path below the folder it was found in.
        part: Its number in an array of several videos.
    """

    path: Path
    name: str
    part: int | None = None

    @property
    def is_array(self) -> bool:
        """Whether it is an .npz file."""
        return self.path.suffix.lower() == ".npz"

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
        if self.is_array:
            height, width, _ = array_shape(self.path)[-3:]
            return height, width
        info = probe(self.path)
        return info.height, info.width

    def num_frames(self) -> int:
        """Count its frames, by decoding it where nothing else is certain.

        Raises:
            VideoError: If it cannot be read to its end.
        """
        return array_shape(self.path)[-4] if self.is_array else count_frames(self.path)

    def clip(self, geometry: Geometry, *, start: int, count: int, stride: int) -> Frames:
        """Read uint8 [count, H, W, 3].

        Raises:
            VideoError: If it cannot be read so far.
        """
        if not self.is_array:
            return read(self.path, geometry, start=start, count=count, stride=stride)
        frames = load_array(self.path)
        if self.part is not None:
            frames = frames[self.part]
        cut = frames[start : start + (count - 1) * stride + 1 : stride]
        return np.stack([fit(frame, geometry) for frame in cut])


def find_footage(root: Path) -> list[Footage]:
    """List videos by name.

    Args:
        root: A folder (videos at any depth, folders of frames, .npz), one video, an .npz file, or
            a .txt file that names one video a line, relative to itself. In a folder that `pvdm
            sample` has written, the grid of all videos is passed over.

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
    if root.is_file() and root.suffix.lower() == ".txt":
        return _listed(root)
    if root.is_file() and root.suffix.lower() == ".npz":
        return _parts(root, root.name)
    arrays = _arrays(root) if root.is_dir() else []
    try:
        videos = [Footage(*source) for source in find_videos(root)]
    except DataError:
        if not arrays:
            raise
        videos = []
    if sampled:
        videos = [video for video in videos if Path(video.name).stem != "grid"]
    return sorted([*videos, *arrays], key=lambda video: (video.name, video.part or 0))


def _listed(path: Path) -> list[Footage]:
    """Read a list of files.

    Raises:
        DataError: If it cannot be read or names none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as a list of files ({error})") from error
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise DataError(f"{path}: names no videos; it is to hold one path a line")
    return [video for name in names for video in _of(path.parent / name, name)]


def _of(path: Path, name: str) -> list[Footage]:
    """One file of a list: a video, or an array of some."""
    return _parts(path, name) if path.suffix.lower() == ".npz" else [Footage(path, name)]


def _arrays(root: Path) -> list[Footage]:
    """List the videos in .npz files below a folder."""
    found = []
    for folder, below, files in os.walk(root, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        paths = [Path(folder) / name for name in files if not name.startswith(".")]
        for path in paths:
            if path.suffix.lower() == ".npz":
                found += _parts(path, path.relative_to(root).as_posix())
    return found


def _parts(path: Path, name: str) -> list[Footage]:
    """List the videos of an .npz file; one that cannot be read is named when it is read."""
    try:
        shape = array_shape(path)
    except VideoError:
        return [Footage(path, name)]
    if len(shape) == 4:
        return [Footage(path, name)]
    return [Footage(path, f"{name}#{i}", i) for i in range(shape[0])]


@lru_cache(maxsize=1)
def array_shape(path: Path) -> tuple[int, ...]:
    """Shape of the array `frames` of an .npz file, without reading it.

    Raises:
        VideoError: If it is not uint8 [s, H, W, 3] or [n, s, H, W, 3].
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("frames.npy") as file:
            version = np.lib.format.read_magic(file)
            header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = header(file)
    except KeyError:
        raise VideoError(f"{path}: holds no array named frames") from None
    except UNREADABLE as error:
        raise VideoError(f"{path}: not readable as .npz ({error})") from error
    if dtype != np.uint8 or len(shape) not in (4, 5) or shape[-1] != 3:
        raise VideoError(
            f"{path}: frames is {dtype} {list(shape)}, expected uint8 [s, H, W, 3] or "
            "[n, s, H, W, 3]"
        )
    return shape


@lru_cache(maxsize=1)
def load_array(path: Path) -> NDArray[np.uint8]:
    """Read the array `frames` of an .npz file; the last one stays in memory for its other clips.

    Raises:
        VideoError: If it cannot be read.
    """
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            return file["frames"]
    except UNREADABLE as error:
        raise VideoError(f"{path}: not readable as .npz ({error})") from error
