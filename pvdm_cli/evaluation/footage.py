"""The clips that are scored: which videos, which windows of them, at which size.

Nothing is resampled silently: what cannot give a clip is named with the reason, what had to be
resized is counted.

Axes: s frames of a clip, H x W pixels.
"""

import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pvdm_cli.data.catalog import Source, find_videos
from pvdm_cli.errors import DataError, VideoError
from pvdm_cli.video.read import count_frames, probe, read
from pvdm_cli.video.resize import Geometry, fit

Frames = NDArray[np.uint8]  # [s, H, W, 3]
Size = tuple[int, int]  # H, W
Rule = Literal["start", "one", "all"]  # at a given frame; a random one; all that touch

SAMPLE = "video-*.json"  # what `pvdm sample` writes beside each video


def find_footage(root: Path) -> list[Source]:
    """List the videos below a folder by name: files, folders of frames, and .npz files.

    In a folder that `pvdm sample` has written, the grid of all videos is passed over.

    Raises:
        DataError: If root is missing or holds none.
    """
    arrays = [] if root.is_file() else _arrays(root)
    try:
        videos = find_videos(root)
    except DataError:
        if not arrays:
            raise
        videos = []
    if root.is_dir() and any(root.glob(SAMPLE)):
        videos = [source for source in videos if Path(source.name).stem != "grid"]
    return sorted([*videos, *arrays], key=lambda source: source.name)


def _arrays(root: Path) -> list[Source]:
    """List the .npz files below a folder."""
    found = []
    for folder, _, files in os.walk(root, followlinks=True):
        paths = [Path(folder) / name for name in files]
        shown = [path for path in paths if path.suffix == ".npz" and path.name[0] != "."]
        found += [Source(path, path.relative_to(root).as_posix()) for path in shown]
    return found


def frame_size(path: Path) -> Size:
    """Height and width of a video's frames.

    Raises:
        VideoError: If it cannot be read.
    """
    if path.suffix == ".npz":
        _, height, width, _ = load_array(path).shape
        return height, width
    info = probe(path)
    return info.height, info.width


def load_array(path: Path) -> Frames:
    """Read the array `frames` of an .npz file, as `pvdm sample --format npz` writes it.

    Raises:
        VideoError: If there is none of the right kind.
    """
    try:
        with np.load(path) as file:
            frames: Frames = file["frames"]
    except KeyError:
        raise VideoError(f"{path}: holds no array named frames") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise VideoError(f"{path}: not readable as .npz ({error})") from error
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise VideoError(
            f"{path}: frames is {frames.dtype} {list(frames.shape)}, expected uint8 [s, H, W, 3]"
        )
    return frames


@dataclass(frozen=True)
class Window:
    """Which frames of a video make a clip.

    Attributes:
        frames: Of the clip.
        stride: Take every stride-th frame.
        rule: Which windows of a video: the one at `start`, a random one, or all that touch.
        start: First frame, for the rule of that name.
    """

    frames: int = 16
    stride: int = 1
    rule: Rule = "start"
    start: int = 0

    @property
    def span(self) -> int:
        """Frames of the video that a clip reaches over."""
        return (self.frames - 1) * self.stride + 1

    def starts(self, num_frames: int, rng: np.random.Generator) -> Sequence[int]:
        """First frames of the clips of a video; none if it is too short."""
        last = num_frames - self.span
        if last < (self.start if self.rule == "start" else 0):
            return []
        if self.rule == "start":
            return [self.start]
        return (
            [int(rng.integers(last + 1))] if self.rule == "one" else range(0, last + 1, self.span)
        )


@dataclass
class Reel:
    """The clips of one side of a comparison, read one by one.

    Attributes:
        sources: The videos.
        window: Which clips of them.
        geometry: The size they are brought to, and how.
        most: End after so many clips.
        seed: Of the random windows: that of video i depends on (seed, i) alone.
        same_size: Leave out videos of another size instead of resizing them.
        skipped: Names of videos that gave no clip, with the reason.
        resized: Videos that had another size.
        videos: Videos that gave clips.
        clips: Clips given so far.
    """

    sources: Sequence[Source]
    window: Window
    geometry: Geometry
    most: int
    seed: int = 0
    same_size: bool = False
    skipped: dict[str, str] = field(default_factory=dict)
    resized: int = 0
    videos: int = 0
    clips: int = 0

    def __iter__(self) -> Iterator[Frames]:
        """Yield clips uint8 [s, H, W, 3]."""
        for number, source in enumerate(self.sources):
            if self.clips >= self.most:
                return
            rng = np.random.default_rng((self.seed, number))
            before = self.clips
            try:
                for clip in self._of(source, rng):
                    self.clips += 1
                    yield clip
                    if self.clips >= self.most:
                        break
            except VideoError as error:
                self.skipped[source.name] = str(error)
            self.videos += self.clips > before

    def _of(self, source: Source, rng: np.random.Generator) -> Iterator[Frames]:
        """Yield the clips of one video."""
        size = frame_size(source.path)
        fits = size == (self.geometry.height, self.geometry.width)
        if self.same_size and not fits:
            raise VideoError(
                f"frames are {size[0]}x{size[1]}, those of the first video "
                f"{self.geometry.height}x{self.geometry.width}; --size brings all to one"
            )
        array = load_array(source.path) if source.path.suffix == ".npz" else None
        num_frames = count_frames(source.path) if array is None else len(array)
        starts = self.window.starts(num_frames, rng)
        if not starts:
            raise VideoError(f"only {num_frames} frames, {self._wanted()}")
        self.resized += not fits
        for start in starts:
            yield self._read(source.path, array, start)

    def _read(self, path: Path, array: Frames | None, start: int) -> Frames:
        """Read one clip."""
        window = self.window
        if array is None:
            count = window.frames
            return read(path, self.geometry, stride=window.stride, start=start, count=count)
        cut = array[start : start + window.span : window.stride]
        return np.stack([fit(frame, self.geometry) for frame in cut])

    def _wanted(self) -> str:
        """Say what a video must have."""
        window = self.window
        first = f" from frame {window.start} on" if window.start else ""
        return f"a clip needs {window.span}{first}"

    def require_clips(self, where: str, least: int = 2) -> None:
        """Refuse too few clips to speak of.

        Raises:
            DataError: Naming the first video that was left out.
        """
        if self.clips < least:
            first = next(iter(self.skipped.items()), None)
            why = f"; left out {first[0]}: {first[1]}" if first else ""
            raise DataError(
                f"{where}: {self.clips} clips found, a distance needs {least} or more{why}"
            )
