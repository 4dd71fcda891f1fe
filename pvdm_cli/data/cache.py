"""Reading a triplane latent cache: the whole of it in memory, or clip by clip from disk.

Rows are numbered by (video, first frame), whatever the order of the shards. Axes: k rows asked
for, c latent channels, n flat length.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvdm_cli.config import LatentShape
from pvdm_cli.data.cache_format import (
    Manifest,
    Skipped,
    VideoRow,
    read_manifest,
    read_skipped,
    read_videos,
    require_lists,
)
from pvdm_cli.data.cache_shard import Latents, Layout, Rows, read_layout, read_whole
from pvdm_cli.errors import DataError


class Pairs(NamedTuple):
    """Row numbers of consecutive clips, and of the clips that continue none."""

    first: Tensor  # int64 [m]
    next: Tensor  # int64 [m]: row next[i] continues row first[i]
    alone: Tensor  # int64: rows without predecessor; they can only be learnt unconditionally


def find_pairs(index: Tensor, span: int) -> Pairs:
    """Find rows that start `span` source frames after another of the same video.

    Args:
        index: int64 [rows, 3] of video, first frame, label, sorted by video and first frame.
        span: Source frames from a clip to the one that continues it.
    """
    video, first = index[:, 0], index[:, 1]
    # Rows are sorted by this key, and a continuation's key is larger by exactly one span.
    key = video * (int(first.max()) + span + 1) + first
    at = torch.searchsorted(key, key + span).clamp(max=len(key) - 1)
    follows = key[at] == key + span
    predecessor = torch.nonzero(follows).flatten()
    successor = at[follows]
    has_predecessor = torch.zeros(len(key), dtype=torch.bool)
    has_predecessor[successor] = True
    return Pairs(predecessor, successor, torch.nonzero(~has_predecessor).flatten())


class ClipRows:
    """Rows of clips, sorted by video and first frame.

    Attributes:
        manifest: Geometry, frame rate, mean and std [3, c].
        index: int64 [rows, 3] of video, first frame (of the source) and label (-1: none).
    """

    manifest: Manifest
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def pairs(self, overlap: int = 0) -> Pairs:
        """Find every clip whose continuation in the same video is cached.

        Args:
            overlap: Frames that a clip and its continuation share; 0 means they touch.
        """
        clip = self.manifest.clip
        return find_pairs(self.index, (clip.frames - overlap) * clip.frame_stride)

    def rows_of(self, video: int) -> range:
        """Row numbers of one video's clips, by first frame."""
        return self._rows_of.get(video, range(0))

    @cached_property
    def _rows_of(self) -> dict[int, range]:
        """Row numbers of the clips of each video that has any."""
        videos, counts = torch.unique_consecutive(self.index[:, 0], return_counts=True)
        ends = counts.cumsum(0)
        bounds = zip((ends - counts).tolist(), ends.tolist(), strict=True)
        return {video: range(*each) for video, each in zip(videos.tolist(), bounds, strict=True)}


class Cache(ClipRows):
    """A complete cache; safe to use in forked and in spawned worker processes.

    Attributes:
        path: The folder.
        manifest: Geometry, fingerprint, frame rate, mean and std [3, c].
        videos: One entry per source video, skipped ones included.
        skipped: The videos without clips, with reasons.
        index: int64 [rows, 3] of video, first frame (of the source) and label (-1: none).
    """

    def __init__(self, path: Path, *, in_memory: bool, device: torch.device | str = "cpu") -> None:
        self.path = path
        self.manifest = require_complete(path, read_manifest(path))
        require_lists(path, self.manifest)
        self.videos = read_videos(path)
        self.skipped = read_skipped(path)
        layouts = [
            read_layout(path / shard.name, shard, self.shape) for shard in self.manifest.shards
        ]
        index, self._shard, self._offset = _in_order(layouts, self._clip_bytes)
        self.index = torch.from_numpy(index)
        self._handles: dict[int, int] = {}
        _refuse_holes(path, self.manifest, index, self.videos, self.skipped)
        self._z: Tensor | None = None
        if in_memory:
            self._z = torch.from_numpy(self._read_all(layouts)).to(device)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        in_memory: bool = False,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Open a cache folder.

        Sizes, headers, the index, the lists and the manifest are checked. The hash of every byte
        is checked where every byte is read anyway, that is with in_memory; else by
        `pvdm cache verify`, as it takes as long as reading the whole.

        Args:
            path: The folder.
            in_memory: Read everything now (16 KiB per clip at the published size); otherwise
                each clip is read when asked for.
            device: Where latents in memory lie, and what is read comes out.

        Raises:
            DataError: If it is not a cache, unfinished, damaged, or has a hole: a video that is
                neither encoded nor listed as skipped.
        """
        return cls(Path(path), in_memory=in_memory, device=device)

    @cached_property
    def shape(self) -> LatentShape:
        """Sizes of one clip's latent."""
        return self.manifest.shape

    def read(self, rows: Sequence[int] | Tensor, *, dtype: torch.dtype = torch.float16) -> Tensor:
        """Read the latents [k, c, n] of k rows, in the order asked for.

        Raises:
            DataError: If a shard has been changed or removed since the cache was opened.
        """
        wanted = torch.as_tensor(rows, dtype=torch.int64)
        if self._z is not None:
            return self._z.index_select(0, wanted.to(self._z.device)).to(dtype)
        return torch.from_numpy(self._read(wanted.numpy())).to(dtype)

    def shard_of(self, row: int) -> str:
        """Name of the file that holds a row."""
        return self.manifest.shards[self._shard[row]].name

    def close(self) -> None:
        """Close the shard files; the next read opens them again."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    @cached_property
    def _clip_bytes(self) -> int:
        return self.shape.c * self.shape.flat * np.dtype(np.float16).itemsize

    def _read(self, rows: Rows) -> Latents:
        """Positioned reads: no shared file position, so processes do not disturb each other."""
        out = np.empty((len(rows), self.shape.c, self.shape.flat), np.float16)
        size = self._clip_bytes
        buffer = out.reshape(-1).view(np.uint8).data
        places = zip(self._shard[rows].tolist(), self._offset[rows].tolist(), strict=True)
        for k, (shard, offset) in enumerate(places):
            handle = self._handles[shard] if shard in self._handles else self._open(shard)
            if os.preadv(handle, [buffer[k * size : (k + 1) * size]], offset) != size:
                name = self.manifest.shards[shard].name
                raise DataError(f"{self.path / name} is truncated: run `pvdm encode` again")
        return out

    def _read_all(self, layouts: list[Layout]) -> Latents:
        """Read shard after shard, checking its hash; rows come in the order of the index."""
        out = np.empty((len(self), self.shape.c, self.shape.flat), np.float16)
        for number, (shard, layout) in enumerate(zip(self.manifest.shards, layouts, strict=True)):
            z = read_whole(self.path / shard.name, shard, layout, self.shape)
            rows = np.flatnonzero(self._shard == number)
            out[rows] = z[(self._offset[rows] - layout.z_offset) // self._clip_bytes]
        return out

    def _open(self, shard: int) -> int:
        file = self.path / self.manifest.shards[shard].name
        try:
            opened = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}; run `pvdm encode` again") from None
        kept = self._handles.setdefault(shard, opened)  # another thread may have been first
        if kept != opened:
            os.close(opened)
        return kept

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}

    def __del__(self) -> None:
        if hasattr(self, "_handles"):
            self.close()


def require_complete(path: Path, manifest: Manifest) -> Manifest:
    """Refuse a cache whose encoding was interrupted."""
    if not manifest.complete:
        raise DataError(f"cache {path} is unfinished: run the same `pvdm encode` again first")
    if not manifest.clips:
        raise DataError(f"cache {path} holds no clips; encode some videos into it")
    return manifest


def _in_order(
    layouts: list[Layout], clip_bytes: int
) -> tuple[Rows, NDArray[np.int32], NDArray[np.int64]]:
    """Sort the rows of all shards by (video, first frame) and say where each lies."""
    index = np.concatenate([layout.rows for layout in layouts])
    counts = [len(layout.rows) for layout in layouts]
    shard = np.repeat(np.arange(len(layouts), dtype=np.int32), counts)
    offset = np.concatenate(
        [layout.z_offset + clip_bytes * np.arange(len(layout.rows)) for layout in layouts]
    )
    order = np.lexsort((index[:, 1], index[:, 0]))
    return index[order], shard[order], offset[order]


def _refuse_holes(
    path: Path, manifest: Manifest, index: Rows, videos: list[VideoRow], skipped: list[Skipped]
) -> None:
    """Check that every video is there with each of its windows once, or listed as skipped."""
    again = "run the same `pvdm encode` again"
    excused = {entry.video for entry in skipped}
    numbers, counts = np.unique(index[:, 0], return_counts=True)
    found = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    for row in videos:
        expected = 0 if row.frames is None else manifest.num_windows(row.frames)
        missing = expected - found.pop(row.video, 0)
        if missing or (not expected and row.video not in excused):
            raise DataError(
                f"cache {path} has a hole: {row.path} has {expected - missing} of its "
                f"{expected or 'unknown number of'} clips and is not listed as skipped; {again}"
            )
    step = manifest.step
    starts = np.r_[True, np.diff(index[:, 0]) != 0]
    regular = np.where(starts, index[:, 1] == 0, np.diff(index[:, 1], prepend=0) == step)
    named = index[:, 2].max() < len(manifest.labels)
    if found or len(index) != manifest.clips or not regular.all() or not named:
        raise DataError(
            f"cache {path}: the index does not agree with {manifest.clips} clips of "
            f"the listed videos; {again}"
        )
