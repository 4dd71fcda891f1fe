"""Filling a triplane latent cache so that a kill at any instant costs at most the open shard.

Axes: k clips, c latent channels, n flat length.
"""

import shutil
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from pvdm_cli import files
from pvdm_cli.data.cache_appender import SHARD_BYTES, SHARD_SECONDS, WRITING, Appender
from pvdm_cli.data.cache_contents import Contents
from pvdm_cli.data.cache_format import (
    MANIFEST,
    SKIPPED,
    VIDEOS,
    Identity,
    Manifest,
    Shard,
    Skipped,
    VideoRow,
    lists_hash,
    read_manifest,
    require_same,
    to_lines,
    whole_hash,
)
from pvdm_cli.data.cache_shard import fp16_loss, moments, read_latents
from pvdm_cli.errors import DataError


class Stamp(NamedTuple):
    """A source video as it is now.

    Another size or mtime means another video; where there is a hash, another hash does.
    """

    path: str  # relative to the folder of videos
    size: int
    mtime: int  # nanoseconds
    sha256: str | None = None  # of its content


class Plan(NamedTuple):
    """What is to be done, and what has changed since the cache was last written."""

    todo: list[VideoRow]
    added: int
    changed: int
    removed: int
    relabelled: int  # videos already there that get another class
    moved: int = 0  # videos already there under another name
    damaged: int = 0  # shards whose clips are encoded anew


class CacheWriter(Appender):
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
        autoencoder: str | None = None,
        source: str | None = None,
        command: Sequence[str] = (),
        patience: float = 0.0,
        **origin: object,
    ) -> None:
        """Take keys of the manifest about where the videos came from as `origin`."""
        super().__init__(path, identity.shape, shard_bytes=shard_bytes, shard_seconds=shard_seconds)
        self._identity = identity
        own = {"autoencoder": autoencoder, "source": source, "command": tuple(command)}
        self._hints: dict[str, object] = {**own, **origin}
        self._held = Contents(path, identity)
        self._patience = patience  # seconds to wait for another process to let go of the folder

    def __enter__(self) -> Self:
        """Take hold of the folder and find out what is already there.

        Raises:
            DataError: If the folder holds something else, or a cache of another autoencoder,
                geometry or policy.
            PvdmError: If another process is writing into it.
        """
        with ExitStack() as stack:
            self._manifest = self._claim(stack)
            self._held.recover(self._manifest)
            self._next_shard = self._held.next_shard(self._rank)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with self._stack:
            self.flush()

    @property
    def complete(self) -> bool:
        """Whether the cache on disk is complete as it is, with its hash."""
        return self._manifest.complete and self._manifest.sha256 is not None

    @property
    def manifest(self) -> Manifest:
        """The manifest on disk."""
        return self._manifest

    @property
    def skipped(self) -> list[Skipped]:
        """The videos without clips, so far."""
        return self._held.skipped_rows()

    def plan(
        self,
        sources: Sequence[Stamp],
        classes: Sequence[str] | None = None,
        class_of: Mapping[str, str] | None = None,
    ) -> Plan:
        """Give every source its number and its label, and say which videos lack clips.

        Sources that changed are encoded anew under a new number; clips of changed and of
        removed sources go at the end. A source that is known by its hash keeps its clips under
        any name. A class keeps its label; new ones come behind the others.

        Args:
            sources: The videos.
            classes: Names of classes in the order of their labels; None: the cache has none.
            class_of: Class by the path of a video; those that are not in it have none.

        Raises:
            DataError: If the cache holds videos and none of the sources is among them, or if it
                has classes and none are given.
        """
        labels = self._labels(classes)
        ids: dict[str | None, int] = {name: label for label, name in enumerate(labels)}
        known = {row.path: row for row in self._held.videos.values()}
        kept = self._kept(known, sources)
        if known and not kept and not any(source.path in known for source in sources):
            raise DataError(
                f"cache {self.path} is of other videos (such as {next(iter(known))}): "
                "choose another --out or encode afresh with --overwrite"
            )
        number = self._held.next_video()
        rows = []
        for source in sources:
            row = kept.get(source.path) or VideoRow(number, *source[:3])
            number += source.path not in kept
            label = ids.get((class_of or {}).get(source.path), -1)
            hashed = source.sha256 or row.sha256
            rows.append(row._replace(**source._asdict(), label=label)._replace(sha256=hashed))
        old = [(kept[row.path], row) for row in rows if row.path in kept]
        relabelled = sum(before.label != row.label for before, row in old)
        moved = sum(before.path != row.path for before, row in old)
        changed = sum(source.path in known and source.path not in kept for source in sources)
        stay = {before.path for before, _ in old} | {source.path for source in sources}
        removed = sum(path not in stay for path in known)
        self._held.keep_videos(rows)
        todo = [row for row in rows if not self._held.is_done(row)]
        new = labels != self._manifest.labels or any(before != row for before, row in old)
        damaged = len(self._held.damaged)
        if todo or changed or removed or new or damaged or not self.complete:
            self._reopen(labels)
        added = len(rows) - len(kept) - changed
        return Plan(todo, added, changed, removed, relabelled, moved, damaged)

    def present(self, video: int) -> AbstractSet[int]:
        """First frames of the clips of one video that are safe on disk."""
        return self._held.present(video)

    def end_video(
        self, video: int, *, frames: int, fps: float | None, note: str | None = None
    ) -> None:
        """Record that a video was decoded to its end (or as far as it is kept: the note)."""
        self._held.end_video(video, frames, fps, note)
        super().end_video(video, frames=frames, fps=fps, note=note)

    def skip_video(self, video: int, reason: str) -> None:
        """Record that a video gives no clips; those it gave are dropped at the end."""
        self._held.skipped[video] = reason
        super().skip_video(video, reason)

    def next_shard(self, rank: int) -> int:
        """A number that no shard of this rank ever had, for its `Appender`."""
        return self._held.next_shard(rank)

    def finish(self) -> Manifest:
        """Merge small shards, drop rows of videos that are gone, write the final manifest.

        What other processes have added to the folder (by an `Appender`) is part of it.

        Raises:
            DataError: If a video has neither all of its clips nor a reason to be skipped.
        """
        self.flush()
        held = self._held
        held.replay()
        rows = list(held.videos.values())
        for row in rows:
            if not held.is_done(row):
                raise DataError(f"cache {self.path}: {row.path} is not fully encoded; run again")
        replaced = self._merge()
        shards = [shard for name, shard in sorted(held.shards.items()) if name not in replaced]
        rates = [row.fps for row in rows if row.fps and row.video not in held.skipped]
        self._write_lists()
        mean, std = moments(shards, self._identity.shape)
        self._write_manifest(
            complete=True,
            fps=self._identity.clip_rate(rates),
            mean=mean.tolist(),
            std=std.tolist(),
            fp16_loss=fp16_loss(shards, self._identity.shape),
            videos=len(rows) - len(self.skipped),
            clips=sum(shard.clips for shard in shards),
            skipped=len(self.skipped),
            shards=[shard.model_dump() for shard in shards],
        )
        held.sweep(self._manifest)
        for lock in self.path.glob(".lock-*"):  # the others have written what they had
            lock.unlink()
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
        stack.enter_context(files.only_writer(self.path, WRITING, patience=self._patience))
        for lock in self.path.glob(".lock-*"):  # other processes of a run that was killed
            with files.only_writer(self.path, WRITING, name=lock.name, patience=self._patience):
                lock.unlink()
        if (self.path / MANIFEST).exists():
            return read_manifest(self.path)
        return self._write_manifest(complete=False, **self._hints)

    def _kept(self, known: Mapping[str, VideoRow], sources: Sequence[Stamp]) -> dict[str, VideoRow]:
        """Find the sources that are in the cache already: rows as they were, by present path."""
        kept: dict[str, VideoRow] = {}
        for source in sources:
            row = known.get(source.path)
            if row is None:
                continue
            if source.sha256 and row.sha256:
                same = source.sha256 == row.sha256
            else:
                same = (row.size, row.mtime) == (source.size, source.mtime)
            if same:
                kept[source.path] = row
        taken = {row.video for row in kept.values()}
        by_hash = {row.sha256: row for row in known.values() if row.video not in taken}
        for source in sources:
            if source.path not in kept and source.sha256 in by_hash and source.sha256:
                kept[source.path] = by_hash.pop(source.sha256)
        return kept

    def _labels(self, classes: Sequence[str] | None) -> tuple[str, ...]:
        """Names by label: those of the cache, then the new ones."""
        held = self._manifest.labels
        if held and classes is None:
            raise DataError(
                f"cache {self.path} has classes (such as {held[0]}): say by --labels where they "
                "come from, choose another --out or encode afresh with --overwrite"
            )
        return held + tuple(name for name in classes or () if name not in held)

    def _reopen(self, labels: tuple[str, ...]) -> None:
        """Mark the cache unfinished, then write the list of videos to be in it."""
        # Names come before the first row that refers to them, and stay for good.
        self._write_manifest(complete=False, labels=labels, **self._hints)
        self._write_lists()

    def _write_lists(self) -> None:
        """Write `videos.jsonl` and `skipped.jsonl`."""
        files.write_text(self.path / VIDEOS, to_lines(list(self._held.videos.values())))
        files.write_text(self.path / SKIPPED, to_lines(self.skipped))

    def _write_manifest(self, **changes: object) -> Manifest:
        """Write the manifest with some keys changed."""
        before = self._manifest.model_dump() if hasattr(self, "_manifest") else {}
        hashes = {"sha256": None, "lists": None}
        values = {**self._identity.model_dump(), **before, **changes, **hashes}
        self._manifest = Manifest.model_validate(values)
        if self._manifest.complete:
            self._manifest = self._manifest.model_copy(update={"lists": lists_hash(self.path)})
            whole = whole_hash(self._manifest.model_dump(mode="json"))
            self._manifest = self._manifest.model_copy(update={"sha256": whole})
        files.write_json(self.path / MANIFEST, self._manifest.model_dump(mode="json"))
        return self._manifest

    # Finishing ----------------------------------------------------------------------------

    def _written(self, shard: Shard) -> None:
        """Count a shard of this process in."""
        self._held.take(shard)

    def _merge(self) -> set[str]:
        """Rewrite small shards and those with dead or mislabelled rows into large ones.

        Returns:
            Names of the shards that the new ones replace; they stay until the manifest does
            not list them any more.
        """
        alive = self._held.alive()
        rows = {name: self._held.relabelled(name) for name in alive}
        right = {
            name: alive[name].all() and np.array_equal(rows[name], self._held.index[name])
            for name in alive
        }
        small = [
            name
            for name, shard in self._held.shards.items()
            if shard.bytes < self._shard_bytes // 2 or not right[name]
        ]
        if len(small) == 1 and right[small[0]]:
            return set()
        for name in sorted(small):
            if alive[name].any():
                z = read_latents(self.path / name)[alive[name]]
                rounding = self._held.shards[name].rounding
                if rounding:  # of the rows that stay: their share, and at most the largest
                    rounding = rounding._replace(squares=rounding.squares * alive[name].mean())
                # No time limit: that is for work which cannot be read back.
                self._collect(rows[name][alive[name]], z, rounding)
        self.flush()
        return set(small)


def discard_cache(path: Path) -> None:
    """Delete a cache folder, for --overwrite; an absent or empty one is left alone.

    Raises:
        DataError: If the folder is not a cache.
        PvdmError: If another process is writing into it.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MANIFEST).is_file():
        raise DataError(f"{path} is not a cache, so --overwrite leaves it alone; choose another")
    with files.only_writer(path, WRITING):
        for item in path.iterdir():
            if item.is_file() and item.name != MANIFEST:  # last, so that a kill leaves a cache
                item.unlink()
        shutil.rmtree(path)
