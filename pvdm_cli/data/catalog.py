"""Which videos there are, and which of them are held out."""

import os
from collections.abc import Sequence
from pathlib import Path

from pvdm_cli.data.source import Source as Source
from pvdm_cli.data.source import footage, sources_of, unit_hash
from pvdm_cli.data.table import is_table, read_list, read_table
from pvdm_cli.errors import DataError
from pvdm_cli.video.arrays import ARRAY_SUFFIXES
from pvdm_cli.video.stills import IMAGE_SUFFIXES, STACK_SUFFIXES, is_stack, natural_key

_CONTAINERS = """
3g2 3gp asf avi divx dv f4v flv gif m2ts m2v m4v mjpeg mkv mov mp4 mpe mpeg mpg mts mxf nut ogm
ogv rm rmvb ts vob webm webp wmv y4m
"""
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _CONTAINERS.split())


def find_videos(root: Path) -> list[Source]:
    """List the videos of a data set, sorted by name.

    Args:
        root: A folder of videos at any depth; one video; a table (.csv, .jsonl) or a list (.txt)
            of videos, in the order that it has.

    A folder that holds two or more images and no video files is one video made of frames. Arrays
    of several videos and tiff files of several pages are found as such. Hidden files and folders
    are passed over; links are followed.

    Raises:
        DataError: If root is missing, unreadable, or holds no videos.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    if root.is_file():
        return _of_file(root)
    found = _walk(root)
    if not found:
        raise DataError(
            f"{root}: no videos found (looked for files such as .mp4, .avi, .mkv, .webm, .gif, "
            "for .npy and .npz arrays, tiff stacks, and folders of .png or .jpg frames)"
        )
    return sorted(found, key=lambda source: source.name)


def split(sources: Sequence[Source], holdout: float) -> tuple[list[Source], list[Source]]:
    """Split into training and held-out videos by a hash of their names.

    A video stays on its side when others are added. Stretches of one file and mirrored copies
    go together. With holdout > 0 and at least two videos,
    neither side is empty: the video nearest to the threshold changes sides if need be.

    Args:
        sources: The videos.
        holdout: Share to hold out, 0 <= holdout < 1.

    Returns:
        Training videos and held-out videos, each in the given order.
    """
    groups = {source.name: footage(source.name) for source in sources}
    by_hash = sorted(set(groups.values()), key=unit_hash)
    if holdout <= 0 or len(by_hash) < 2:
        return list(sources), []
    below = sum(unit_hash(name) < holdout for name in by_hash)
    chosen = set(by_hash[: min(max(below, 1), len(by_hash) - 1)])
    train = [source for source in sources if groups[source.name] not in chosen]
    return train, [source for source in sources if groups[source.name] in chosen]


def _of_file(path: Path) -> list[Source]:
    """List the videos of one file."""
    if is_table(path):
        return [row.source for row in read_table(path)]
    if path.suffix.lower() == ".txt":
        listed = read_list(path)
        return [each for source in listed for each in sources_of(source.path, source.name)]
    return sources_of(path, path.name)


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
    by_suffix = [(name, Path(name).suffix.lower()) for name in files if not name.startswith(".")]
    videos = [name for name, suffix in by_suffix if suffix in VIDEO_SUFFIXES]
    images = [name for name, suffix in by_suffix if suffix in IMAGE_SUFFIXES]
    arrays = [name for name, suffix in by_suffix if suffix in ARRAY_SUFFIXES]
    stacks = _stacks(folder, images)
    found = [
        source
        for path in (folder / name for name in videos + stacks + arrays)
        for source in sources_of(path, path.relative_to(root).as_posix())
    ]
    if not videos and not stacks and len(images) >= 2:
        name = root.resolve().name if folder == root else folder.relative_to(root).as_posix()
        found.append(Source(folder, name))
    return found


def _stacks(folder: Path, images: Sequence[str]) -> list[str]:
    """Names of tiff files of several pages; where the first is a single picture, all are."""
    pages = sorted(
        (name for name in images if Path(name).suffix.lower() in STACK_SUFFIXES), key=natural_key
    )
    return pages if pages and is_stack(folder / pages[0]) else []


def _unreadable(error: OSError) -> None:
    """Refuse a folder that cannot be listed rather than leave its videos out silently."""
    raise DataError(f"{error.filename}: {error.strerror}") from error
