"""Which videos there are, and which of them are held out."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pvdm_cli.errors import DataError
from pvdm_cli.video.stills import IMAGE_SUFFIXES

_CONTAINERS = """
3g2 3gp asf avi divx dv f4v flv gif m2ts m2v m4v mjpeg mkv mov mp4 mpe mpeg mpg mts mxf nut ogm
ogv rm rmvb ts vob webm webp wmv y4m
"""
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _CONTAINERS.split())


class Source(NamedTuple):
    """One video: a file or a folder of frames."""

    path: Path
    name: str  # path below the root, with forward slashes: the same on every machine


def find_videos(root: Path) -> list[Source]:
    """List the videos below a folder, sorted by name; root may also be one video.

    A folder that holds two or more images and no video files is one video made of frames.
    Hidden files and folders are passed over; links are followed.

    Raises:
        DataError: If root is missing, unreadable, or holds no videos.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    if root.is_file():
        return [Source(root, root.name)]
    found = _walk(root)
    if not found:
        raise DataError(
            f"{root}: no videos found (looked for files such as .mp4, .avi, .mkv, .webm, .gif "
            "and for folders of .png or .jpg frames)"
        )
    return sorted(found, key=lambda source: source.name)


def split(sources: Sequence[Source], holdout: float) -> tuple[list[Source], list[Source]]:
    """Split into training and held-out videos by a hash of their names.

    A video stays on its side when others are added. With holdout > 0 and at least two videos,
    neither side is empty: the video nearest to the threshold changes sides if need be.

    Args:
        sources: The videos.
        holdout: Share to hold out, 0 <= holdout < 1.

    Returns:
        Training videos and held-out videos, each in the given order.
    """
    if holdout <= 0 or len(sources) < 2:
        return list(sources), []
    by_hash = sorted(sources, key=lambda source: _unit_hash(source.name))
    below = sum(_unit_hash(source.name) < holdout for source in by_hash)
    chosen = set(by_hash[: min(max(below, 1), len(by_hash) - 1)])
    train = [source for source in sources if source not in chosen]
    return train, [source for source in sources if source in chosen]


def _walk(root: Path) -> list[Source]:
    """Collect videos below root in any order."""
    found = []
    seen = set()
    for folder, below, files in os.walk(root, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back up
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not name.startswith(".")]
        found += _sources_in(root, Path(folder), files)
    return found


def _sources_in(root: Path, folder: Path, files: Sequence[str]) -> list[Source]:
    """List the videos that lie directly in one folder, or the folder itself if it is frames."""
    shown = [name for name in files if not name.startswith(".")]
    videos = [name for name in shown if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    images = [name for name in shown if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    if videos:
        paths = [folder / name for name in videos]
        return [Source(path, path.relative_to(root).as_posix()) for path in paths]
    if len(images) >= 2:
        name = root.resolve().name if folder == root else folder.relative_to(root).as_posix()
        return [Source(folder, name)]
    return []


def _unit_hash(name: str) -> float:
    """Map a name to [0, 1), evenly and the same everywhere."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _unreadable(error: OSError) -> None:
    """Refuse a folder that cannot be listed rather than leave its videos out silently."""
    raise DataError(f"{error.filename}: {error.strerror}") from error
