"""Filling a triplane latent cache so that a kill at any instant costs at most the open shard.

Axes: k clips, c latent channels, n flat length.
"""

import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pvdm_cli import files
from pvdm_cli.data.cache_format import (
    MANIFEST,
    SKIPPED,
    VIDEOS,
    Identity,
    Manifest,
    Shard,
    Skipped,
    VideoRow,
    read_manifest,
    read_skipped,
    read_videos,
    require_same,
    to_lines,
)
from pvdm_cli.data.cache_journal import Journal, facts, journals, only_writer
from pvdm_cli.data.cache_shard import (
    Latents,
    Rows,
    moments,
    read_latents,
    read_layout,
    write_shard,
)
from pvdm_cli.errors import DataError

SHARD_BYTES = 256 << 20
SHARD_SECONDS = 60.0


class Stamp(NamedTuple):
    """A source video as it is now; another size or mtime means another video."""

    path: str  # relative to the folder of videos
    size: int
    mtime: int  # nanoseconds


class Plan(NamedTuple):
    """What is to be done, and what has changed since the cache was last written."""

    todo: list[VideoRow]
    added: int
    changed: int
    removed: int


class CacheWriter:
    """Writes one cache folder; opening it again after a kill continues.

    Use as a context manager: `plan`, then `add` / `end_video` / `skip_video`, then `finish`.
    Leaving it otherwise (an error, Ctrl-C) still writes the open shard.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity,
        *,
        shard_bytes: int = SHARD_BYTES,
        shard_seconds: float = SHARD_SECONDS,
        rank: int = 0,
        autoencoder: str | None = None,
        source: str | None = None,
    ) -> None:
        self.path = path
        self._identity = identity
        self._shard_bytes, self._shard_seconds = shard_bytes, shard_seconds
        self._rank = rank
        self._hints = {"autoencoder": autoencoder, "source": source}
        self._journal = Journal(path, rank)
        self._shards: dict[str, Shard] = {}
        self._index: dict[str, Rows] = {}
        self._present: defaultdict[int, set[int]] = defaultdict(set)
        self._videos: dict[int, VideoRow] = {}
        self._skipped: dict[int, str] = {}
        self._rates: dict[int, VideoRow] = {}
        self._open_z: list[Latents] = []
        self._open_index: list[Rows] = []
        self._open_bytes, self._opened_at = 0, 0.0
        self._next_shard = 0

    def __enter__(self) -> Self:
        """Take hold of the folder and find out what is already there.

        Raises:
            DataError: If the folder holds something else, a cache of another autoencoder,
                geometry or policy, or another process is writing into it.
        """
        with ExitStack() as stack:
            self._manifest = self._claim(stack)
            self._recover()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with self._stack:
            self.flush()

    @property
    def complete(self) -> bool:
        """Whether the cache on disk is complete as it is."""
        return self._manifest.complete

    @property
    def manifest(self) -> Manifest:
        """The manifest on disk."""
        return self._manifest

    @property
    def skipped(self) -> list[Skipped]:
        """The videos without clips, so far."""
        return [
            Skipped(row.video, row.path, self._skipped[row.video])
            for row in self._videos.values()
            if row.video in self._skipped
        ]

    def plan(self, sources: Sequence[Stamp]) -> Plan:
        """Give every source its number and say which videos lack clips.

        Sources that changed are encoded anew under a new number; clips of changed and of
        removed sources go at the end.

        Raises:
            DataError: If the cache holds videos and none of the sources is among them.
        """
        known = {row.path: row for row in self._videos.values()}
        if known and not any(source.path in known for source in sources):
            raise DataError(
                f"cache {self.path} is of other videos (such as {next(iter(known))}): "
                "choose another --out or encode afresh with --overwrite"
            )
        kept: dict[str, VideoRow] = {}
        for source in sources:
            row = known.get(source.path)
            if row is not None and (row.size, row.mtime) == (source.size, source.mtime):
                kept[source.path] = row
        number = 1 + max([-1, *self._videos, *self._present, *self._rates])
        rows = []
        for source in sources:
            row = kept.get(source.path) or VideoRow(number, *source)
            number += source.path not in kept
            rows.append(row)
        changed = sum(source.path in known and source.path not in kept for source in sources)
        removed = len(known) - len(kept) - changed
        self._videos = {row.video: row for row in rows}
        todo = [row for row in rows if not self._is_done(row)]
        if todo or changed or removed or not self.complete:
            self._reopen()
        return Plan(todo, len(rows) - len(kept) - changed, changed, removed)

    def present(self, video: int) -> set[int]:
        """First frames of the clips of one video that are safe on disk."""
        return self._present.get(video, set())  # without making an entry

    def add(self, index: Rows, z: Latents) -> None:
        """Take k clips: index [k, 3] (video, first frame, label) and z [k, c, n]."""
        if not self._open_z:
            self._opened_at = time.monotonic()
        self._collect(index, z)
        if time.monotonic() - self._opened_at >= self._shard_seconds:
            self.flush()

    def end_video(
        self, video: int, *, frames: int, fps: float | None, note: str | None = None
    ) -> None:
        """Record that a video was decoded to its end (or as far as it is kept: the note)."""
        self._rates[video] = self._ended(video, frames, fps, note)
        self._journal.append({"video": video, "frames": frames, "fps": fps, "note": note})

    def skip_video(self, video: int, reason: str) -> None:
        """Record that a video gives no clips; those it gave are dropped at the end."""
        self._skipped[video] = reason
        self._journal.append({"video": video, "skipped": reason}, durable=True)

    def flush(self) -> None:
        """Close the open shard: it becomes visible, whole, with its hash in the journal."""
        if not self._open_z:
            return
        z, index = np.concatenate(self._open_z), np.concatenate(self._open_index)
        self._open_z, self._open_index, self._open_bytes = [], [], 0
        name = f"shard-{self._rank:03d}-{self._next_shard:05d}.safetensors"
        self._next_shard += 1
        with files.atomic_file(self.path / name) as temporary:
            shard = write_shard(temporary, name, index, z, self._identity.shape)
            self._journal.append({"shard": shard.model_dump()}, durable=True)
        self._take(shard)

    def finish(self) -> Manifest:
        """Merge small shards, drop rows of videos that are gone, write the final manifest.

        Raises:
            DataError: If a video has neither all of its clips nor a reason to be skipped.
        """
        self.flush()
        for video, row in self._videos.items():
            self._videos[video] = self._rates.get(video, row)
            if video not in self._skipped and not self._is_done(self._videos[video]):
                raise DataError(f"cache {self.path}: {row.path} is not fully encoded; run again")
        replaced = self._merge()
        shards = [shard for name, shard in sorted(self._shards.items()) if name not in replaced]
        rows = list(self._videos.values())
        rates = [row.fps for row in rows if row.fps and row.video not in self._skipped]
        files.write_text(self.path / VIDEOS, to_lines(rows))
        files.write_text(self.path / SKIPPED, to_lines(self.skipped))
        mean, std = moments(shards, self._identity.shape)
        self._write_manifest(
            complete=True,
            fps=float(np.median(rates)) / self._identity.clip.frame_stride if rates else None,
            mean=mean.tolist(),
            std=std.tolist(),
            videos=len(rows) - len(self.skipped),
            clips=sum(shard.clips for shard in shards),
            skipped=len(self.skipped),
            shards=[shard.model_dump() for shard in shards],
        )
        self._sweep()
        return self._manifest

    # Opening ------------------------------------------------------------------------------

    def _claim(self, stack: ExitStack) -> Manifest:
        """Lock the folder and read its manifest, or write the first one."""
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"{self.path} is a file; choose another --out")
        files.make_folder(self.path)
        visible = [item for item in self.path.iterdir() if not item.name.startswith(".")]
        if (self.path / MANIFEST).exists():
            require_same(self.path, read_manifest(self.path).identity, self._identity)
        elif visible:
            raise DataError(f"{self.path} is neither empty nor a cache; choose another --out")
        stack.enter_context(only_writer(self.path))
        if (self.path / MANIFEST).exists():
            return read_manifest(self.path)
        return self._write_manifest(complete=False, **self._hints)

    def _recover(self) -> None:
        """Learn what is on disk: from the manifest, and from the journal if it is newer."""
        self._videos = {row.video: row for row in read_videos(self.path)}
        self._skipped = {entry.video: entry.reason for entry in read_skipped(self.path)}
        for shard in self._manifest.shards:
            self._take_if_whole(shard)
        if self._manifest.complete:
            self._sweep()
        else:
            self._replay()
        for leftover in self.path.glob(".*.partial"):
            leftover.unlink()
        for file in self.path.glob("shard-*.safetensors"):
            if file.name not in self._shards:  # never recorded, or of the wrong size
                file.unlink()

    def _replay(self) -> None:
        """Take the facts of the journal."""
        for fact in facts(self.path):
            if "shard" in fact:
                self._take_if_whole(Shard.model_validate(fact["shard"]))
            elif "skipped" in fact:
                self._skipped[fact["video"]] = fact["skipped"]
            else:
                self._rates[fact["video"]] = self._ended(**fact)
        self._videos |= {n: row for n, row in self._rates.items() if n in self._videos}

    def _take_if_whole(self, shard: Shard) -> None:
        """Count a recorded shard in, unless its file is absent or damaged."""
        number = int(shard.name.split("-")[2].split(".")[0])
        if int(shard.name.split("-")[1]) == self._rank:
            # Numbers are never given twice, so a record always means this very file.
            self._next_shard = max(self._next_shard, number + 1)
        try:
            self._take(shard)
        except DataError:
            return

    def _take(self, shard: Shard) -> None:
        layout = read_layout(self.path / shard.name, shard, self._identity.shape)
        self._shards[shard.name] = shard
        self._index[shard.name] = layout.rows
        for video, first, _ in layout.rows.tolist():
            self._present[video].add(first)

    def _reopen(self) -> None:
        """Mark the cache unfinished, then write the list of videos to be in it."""
        self._write_manifest(complete=False, **self._hints)
        self._skipped = {n: why for n, why in self._skipped.items() if n in self._videos}
        files.write_text(self.path / VIDEOS, to_lines(list(self._videos.values())))
        files.write_text(self.path / SKIPPED, to_lines(self.skipped))

    def _write_manifest(self, **changes: object) -> Manifest:
        """Write the manifest with some keys changed."""
        before = self._manifest.model_dump() if hasattr(self, "_manifest") else {}
        values = {**self._identity.model_dump(), **before, **changes}
        self._manifest = Manifest.model_validate(values)
        files.write_json(self.path / MANIFEST, self._manifest.model_dump(mode="json"))
        return self._manifest

    # Bookkeeping --------------------------------------------------------------------------

    def _ended(self, video: int, frames: int, fps: float | None, note: str | None) -> VideoRow:
        """The line of a video, with what decoding it has told."""
        row = self._videos.get(video, VideoRow(video, "", 0, 0))
        return row._replace(frames=frames, fps=fps, note=note)

    def _is_done(self, row: VideoRow) -> bool:
        """Whether a video is skipped, or decoded to its end with every clip on disk."""
        if row.video in self._skipped:
            return True
        if row.frames is None:
            return False
        expected = self._identity.num_windows(row.frames)
        return expected > 0 and len(self.present(row.video)) == expected

    # Finishing ----------------------------------------------------------------------------

    def _collect(self, index: Rows, z: Latents) -> None:
        """Put rows into the open shard; a full one is closed."""
        self._open_z.append(z)
        self._open_index.append(index)
        self._open_bytes += z.nbytes
        if self._open_bytes >= self._shard_bytes:
            self.flush()

    def _merge(self) -> set[str]:
        """Rewrite small shards and those with dead rows into large ones.

        Returns:
            Names of the shards that the new ones replace; they stay until the manifest does
            not list them any more.
        """
        alive = self._alive()
        small = [
            name
            for name, shard in self._shards.items()
            if shard.bytes < self._shard_bytes // 2 or not alive[name].all()
        ]
        if len(small) == 1 and alive[small[0]].all():
            return set()
        for name in sorted(small):
            if alive[name].any():
                z = read_latents(self.path / name)[alive[name]]
                # No time limit: that is for work which cannot be read back.
                self._collect(self._index[name][alive[name]], z)
        self.flush()
        return set(small)

    def _alive(self) -> dict[str, NDArray[np.bool_]]:
        """Mark the rows to keep: wanted videos, and of a clip found twice the newest copy."""
        names = sorted(self._index, reverse=True)
        if not names:
            return {}
        wanted = [n for n in self._videos if n not in self._skipped]
        index = np.concatenate([self._index[name] for name in names])
        _, newest = np.unique(index[:, :2], axis=0, return_index=True)
        keep = np.zeros(len(index), dtype=bool)
        keep[newest] = True
        keep &= np.isin(index[:, 0], wanted)
        ends = np.cumsum([len(self._index[name]) for name in names])
        return dict(zip(names, np.split(keep, ends[:-1]), strict=True))

    def _sweep(self) -> None:
        """Delete the journal and every shard that the complete manifest does not list."""
        for path in journals(self.path):
            path.unlink()
        listed = {shard.name for shard in self._manifest.shards}
        for file in self.path.glob("shard-*.safetensors"):
            if file.name not in listed:
                file.unlink()


def discard_cache(path: Path) -> None:
    """Delete a cache folder, for --overwrite; an absent or empty one is left alone.

    Raises:
        DataError: If the folder is not a cache.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MANIFEST).is_file():
        raise DataError(f"{path} is not a cache, so --overwrite leaves it alone; choose another")
    shutil.rmtree(path)
