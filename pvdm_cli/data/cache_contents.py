"""What a cache folder holds while it is being filled: shards, videos, what is done, what is dead."""

from collections import defaultdict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pvdm_cli.data.cache_format import (
    Identity,
    Manifest,
    Shard,
    Skipped,
    VideoRow,
    read_skipped,
    read_videos,
    require_lists,
)
from pvdm_cli.data.cache_journal import facts, journals
from pvdm_cli.data.cache_shard import Rows, read_layout, require_hash
from pvdm_cli.errors import DataError


class Contents:
    """The state of a folder, found out from its files alone.

    Attributes:
        shards: Visible shards by file name.
        index: Their rows [k, 3] of video, first frame, label.
        videos: The source videos by number.
        skipped: Reasons of the videos without clips, by number.
        damaged: Names of listed shards that are missing or damaged: their clips are not there.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = path
        self.shards: dict[str, Shard] = {}
        self.index: dict[str, Rows] = {}
        self.videos: dict[int, VideoRow] = {}
        self.skipped: dict[int, str] = {}
        self.damaged: list[str] = []
        self._identity = identity
        self._present: defaultdict[int, set[int]] = defaultdict(set)
        self._numbers = {-1}  # videos ever named: their numbers are never given again
        self._names: set[str] = set()  # the same of shards

    def recover(self, manifest: Manifest) -> None:
        """Learn what is on disk: from the manifest, and from the journal if that is newer.

        Every byte of every shard is checked; a damaged one does not count, and stays until the
        next complete manifest. What a kill has left behind (temporary files, shards never
        recorded) is deleted.

        Raises:
            DataError: If the manifest does not belong to the lists of videos.
        """
        require_lists(self.path, manifest)
        self.videos = {row.video: row for row in read_videos(self.path)}
        self._numbers.update(self.videos)
        self.skipped = {entry.video: entry.reason for entry in read_skipped(self.path)}
        for shard in manifest.shards:
            if not self._take_if_whole(shard):
                self.damaged.append(shard.name)
        if manifest.complete:
            self.sweep(manifest)
        else:
            self.replay()
        for leftover in self.path.glob(".*.partial"):
            leftover.unlink()
        for file in self.path.glob("shard-*.safetensors"):
            if file.name not in self._names:
                file.unlink()

    def take(self, shard: Shard) -> None:
        """Count a visible shard in.

        Raises:
            DataError: If its file is absent or damaged.
        """
        self._names.add(shard.name)
        layout = read_layout(self.path / shard.name, shard, self._identity.shape)
        self.shards[shard.name] = shard
        self.index[shard.name] = layout.rows
        for video, first, _ in layout.rows.tolist():
            self._present[video].add(first)
        self._numbers.update(self._present)

    def next_shard(self, rank: int) -> int:
        """A number that no shard of this process ever had: a record always means one file."""
        mine = [name for name in self._names if name.startswith(f"shard-{rank:03d}-")]
        return max((int(name[10:].split(".")[0]) + 1 for name in mine), default=0)

    def next_video(self) -> int:
        """A number that no video ever had."""
        return max(self._numbers) + 1

    def keep_videos(self, rows: Sequence[VideoRow]) -> None:
        """Let exactly these videos belong to the cache; clips of others are dead."""
        self.videos = {row.video: row for row in rows}
        self._numbers.update(self.videos)
        self.skipped = {n: why for n, why in self.skipped.items() if n in self.videos}

    def end_video(self, video: int, frames: int, fps: float | None, note: str | None) -> None:
        """Note what decoding a video to its end has told."""
        self._numbers.add(video)
        if video in self.videos:
            row = self.videos[video]
            self.videos[video] = row._replace(frames=frames, fps=fps, note=note)

    def present(self, video: int) -> AbstractSet[int]:
        """First frames of the clips of one video that are safe on disk."""
        return self._present.get(video, frozenset())

    def is_done(self, row: VideoRow) -> bool:
        """Whether a video is skipped, or decoded to its end with every clip on disk."""
        if row.video in self.skipped:
            return True
        if row.frames is None:
            return False
        expected = self._identity.num_windows(row.frames)
        return expected > 0 and len(self.present(row.video)) == expected

    def skipped_rows(self) -> list[Skipped]:
        """The videos without clips, in order."""
        return [
            Skipped(row.video, row.path, self.skipped[row.video])
            for row in self.videos.values()
            if row.video in self.skipped
        ]

    def relabelled(self, name: str) -> Rows:
        """Rows of a shard with the labels that its videos have now; dead rows have none."""
        rows = self.index[name].copy()
        labels = {number: row.label for number, row in self.videos.items()}
        rows[:, 2] = [labels.get(video, -1) for video in rows[:, 0].tolist()]
        return rows

    def alive(self) -> dict[str, NDArray[np.bool_]]:
        """Mark the rows to keep: wanted videos, and of a clip found twice the newest copy."""
        names = sorted(self.index, reverse=True)
        if not names:
            return {}
        wanted = [n for n in self.videos if n not in self.skipped]
        index = np.concatenate([self.index[name] for name in names])
        _, newest = np.unique(index[:, :2], axis=0, return_index=True)
        keep = np.zeros(len(index), dtype=bool)
        keep[newest] = True
        keep &= np.isin(index[:, 0], wanted)
        ends = np.cumsum([len(self.index[name]) for name in names])
        return dict(zip(names, np.split(keep, ends[:-1]), strict=True))

    def sweep(self, manifest: Manifest) -> None:
        """Delete the journal and every shard that the complete manifest does not list."""
        for path in journals(self.path):
            path.unlink()
        listed = {shard.name for shard in manifest.shards}
        for file in self.path.glob("shard-*.safetensors"):
            if file.name not in listed:
                file.unlink()

    def replay(self) -> None:
        """Take the facts of the journals, those of all processes; known ones change nothing."""
        for fact in facts(self.path):
            if "shard" in fact and fact["shard"]["name"] in self.shards:
                continue
            if "shard" in fact:
                self._take_if_whole(Shard.model_validate(fact["shard"]))
            elif "skipped" in fact:
                self._numbers.add(fact["video"])
                self.skipped[fact["video"]] = fact["skipped"]
            else:
                self.end_video(**fact)

    def _take_if_whole(self, shard: Shard) -> bool:
        """Count a recorded shard in, unless its file is absent or damaged."""
        self._names.add(shard.name)
        try:
            require_hash(self.path / shard.name, shard)
            self.take(shard)
        except DataError:
            return False
        return True
