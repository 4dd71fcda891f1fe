"""Arrays as videos: .npy and .npz, each of one video or of several.

Shapes: [s, H, W] and [s, H, W, 1] grey, [s, H, W, 3] colour; [n, s, H, W], [n, s, H, W, 1] and
[n, s, H, W, 3] are n videos. uint8, or uint16 whose full range is taken for black to white.
"""

import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pvdm_cli.errors import VideoError

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError)
RATE = "fps"  # the array of an .npz file that `pvdm sample --format npz` keeps the rate in


class Part(NamedTuple):
    """Which video of a file."""

    key: str | None = None  # name of the array in an .npz file
    number: int | None = None  # in an array of several videos

    def __str__(self) -> str:
        """Write it as names of videos have it: #key#00003."""
        key = "" if self.key is None else "#" + self.key.replace("/", "_")
        return key + ("" if self.number is None else f"#{self.number:05d}")


class ArrayInfo(NamedTuple):
    """What the header of an array tells about one video."""

    frames: int
    height: int
    width: int
    fps: float | None


def is_array(path: Path) -> bool:
    """Tell arrays by their names."""
    return path.suffix.lower() in ARRAY_SUFFIXES


def parts(path: Path) -> list[Part]:
    """List the videos of a file; the name of an array is left out where there is one only.

    Raises:
        VideoError: If the file cannot be read or an array of it is no video.
    """
    arrays = _headers(path)
    found = []
    for key, (shape, dtype) in arrays.items():
        several = _is_set(shape, dtype, _where(path, key))
        numbers = range(shape[0]) if several else [None]
        found += [Part(key if len(arrays) > 1 else None, number) for number in numbers]
    return found


def info(path: Path, part: Part) -> ArrayInfo:
    """Tell the size of a video without reading it.

    Raises:
        VideoError: If the file cannot be read, or there is no such video in it.
    """
    key, shape, several = _find(path, part)
    del key
    frames, height, width = shape[several : several + 3]
    return ArrayInfo(frames, height, width, _rate(path))


def pixels(path: Path, part: Part) -> NDArray[Any]:
    """The pixels of a video, [s, H, W] or [s, H, W, 3]; of an .npy file they stay on disk.

    Raises:
        VideoError: If the file cannot be read, or there is no such video in it.
    """
    key, _, several = _find(path, part)
    if path.suffix.lower() == ".npz":
        found = _unpacked(path, key, path.stat().st_mtime_ns)
    else:
        found = _mapped(path)
    if several:
        found = found[part.number]
    return found[..., 0] if found.ndim == 4 and found.shape[-1] == 1 else found


def _find(path: Path, part: Part) -> tuple[str, tuple[int, ...], bool]:
    """Find the array of a part: its key, its shape, and whether it holds several videos."""
    arrays = _headers(path)
    key = next(iter(arrays)) if part.key is None and len(arrays) == 1 else part.key
    if key not in arrays:
        names = f"{len(arrays)} arrays ({', '.join(list(arrays)[:3])})"
        raise VideoError(f"{path}: holds {names}; name one of them, as in {path.name}#{names[0]}")
    shape, dtype = arrays[key]
    several = _is_set(shape, dtype, _where(path, key))
    if several and part.number is None:
        raise VideoError(f"{path}: holds {shape[0]} videos; name one, as in {path.name}#00000")
    if part.number is not None and not (several and part.number < shape[0]):
        raise VideoError(f"{path}: holds no video {part.number}")
    return key, shape, several


def _where(path: Path, key: str) -> str:
    """Name an array in messages."""
    return f"{path}: array {key}" if key else f"{path}: it"


def _is_set(shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> bool:
    """Whether an array holds several videos.

    Raises:
        VideoError: If it holds none, or may be read in two ways.
    """
    said = f"{where} is {dtype} {list(shape)}"
    if dtype.kind == "f":
        raise VideoError(
            f"{said}, and where black and white are is not known; save uint8 of 0 to 255 "
            "(from 0 to 1: (x * 255).round().astype('uint8'))"
        )
    if dtype.kind != "u" or dtype.itemsize > 2:
        raise VideoError(f"{said}; videos are uint8 (or uint16)")
    if 0 in shape:
        raise VideoError(f"{said}, which has no pixels")
    wanted = "a video is [s, H, W], [s, H, W, 1] or [s, H, W, 3], a set of them has one axis before"
    if len(shape) == 3:
        if shape[-1] in {1, 3, 4}:
            raise VideoError(f"{said}: one picture, or frames {shape[-1]} wide; {wanted}")
        return False
    if len(shape) == 4:
        if shape[-1] in {1, 3}:
            return False
        if shape[-1] in {2, 4} or shape[0] == 3 or shape[1] in {1, 3}:
            raise VideoError(f"{said}: grey videos, or colours on another axis; {wanted}")
        return True
    if len(shape) == 5 and shape[-1] in {1, 3}:
        return True
    raise VideoError(f"{said}; {wanted}")


@lru_cache(maxsize=8)
def _headers_at(path: Path, mtime: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shapes and types of the arrays of a file, by name ("" in .npy)."""
    del mtime  # another one means another file
    if path.suffix.lower() == ".npy":
        mapped = _mapped(path)
        return {"": (mapped.shape, mapped.dtype)}
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    version = np.lib.format.read_magic(file)
                    read = np.lib.format.read_array_header_1_0
                    if version != (1, 0):
                        read = np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(file)
                if len(shape) > 2:  # those of fewer axes are labels, rates and the like
                    found[name.removesuffix(".npy")] = (shape, dtype)
    except UNREADABLE as error:
        raise VideoError(f"{path}: not readable as .npz ({error})") from error
    if not found:
        raise VideoError(f"{path}: holds no array of three axes or more")
    return found


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shapes and types of the arrays of a file; headers of the same file are read once."""
    try:
        return _headers_at(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror or error}") from error


def _mapped(path: Path) -> NDArray[Any]:
    """Map an .npy file into memory."""
    try:
        found = np.load(path, mmap_mode="r")
    except UNREADABLE as error:
        raise VideoError(f"{path}: not readable as .npy ({error})") from error
    if not isinstance(found, np.ndarray):
        raise VideoError(f"{path}: not readable as .npy (another kind of file)")
    return found


@lru_cache(maxsize=1)
def _unpacked(path: Path, key: str, mtime: int) -> NDArray[Any]:
    """Read an array of an .npz file; the last one stays in memory for its other clips."""
    del mtime
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            return file[key]
    except UNREADABLE as error:
        raise VideoError(f"{path}: not readable as .npz ({error})") from error


@lru_cache(maxsize=8)
def _rate_at(path: Path, mtime: int) -> float | None:
    """Frame rate that an .npz file names, if it does."""
    del mtime
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            rate = float(file[RATE]) if RATE in file and file[RATE].ndim == 0 else None
    except (TypeError, *UNREADABLE):
        return None
    return rate if rate and rate > 0 else None


def _rate(path: Path) -> float | None:
    """Frame rate of a file; an .npy file has none."""
    return _rate_at(path, path.stat().st_mtime_ns) if path.suffix.lower() == ".npz" else None
