"""Adding clips to a cache: what each process that encodes does, whichever of them finishes it.

Axes: k clips, c latent channels, n flat length.
"""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from pvdm_cli import files
from pvdm_cli.config import LatentShape
from pvdm_cli.data.cache_format import Rounding, Shard
from pvdm_cli.data.cache_journal import Journal
from pvdm_cli.data.cache_shard import Latents, Rows, joined_rounding, write_shard

SHARD_BYTES = 256 << 20
SHARD_SECONDS = 60.0
WRITING = "encoding into"


class Appender:
    """Writes the shards and the journal of one process, and nothing else.

    Use as a context manager: leaving it, also by an error, writes the open shard.
    """

    def __init__(
        self,
        path: Path,
        shape: LatentShape,
        *,
        shard_bytes: int = SHARD_BYTES,
        shard_seconds: float = SHARD_SECONDS,
        rank: int = 0,
        next_shard: int = 0,
    ) -> None:
        self.path = path
        self._shape = shape
        self._shard_bytes, self._shard_seconds = shard_bytes, shard_seconds
        self._rank, self._next_shard = rank, next_shard
        self._journal = Journal(path, rank)
        self._open_z: list[Latents] = []
        self._open_index: list[Rows] = []
        self._open_rounding: list[Rounding | None] = []
        self._open_bytes, self._opened_at = 0, 0.0

    def __enter__(self) -> Self:
        """Let those who want the whole folder know that it is in use.

        Raises:
            PvdmError: If another process of this number is writing into it.
        """
        with ExitStack() as stack:
            lock = files.only_writer(self.path, WRITING, name=f".lock-{self._rank:03d}")
            stack.enter_context(lock)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with self._stack:
            self.flush()

    def add(self, index: Rows, z: Latents, rounding: Rounding | None = None) -> None:
        """Take k clips: index [k, 3] (video, first frame, label) and z [k, c, n].

        Args:
            index: int64.
            z: fp16.
            rounding: What fp16 has cost them, if that was measured.
        """
        if not self._open_z:
            self._opened_at = time.monotonic()
        self._collect(index, z, rounding)
        self.flush_if_due()

    def end_video(
        self, video: int, *, frames: int, fps: float | None, note: str | None = None
    ) -> None:
        """Record that a video was decoded to its end (or as far as it is kept: the note)."""
        self._journal.append({"video": video, "frames": frames, "fps": fps, "note": note})

    def skip_video(self, video: int, reason: str) -> None:
        """Record that a video gives no clips; those it gave are dropped at the end."""
        self._journal.append({"video": video, "skipped": reason}, durable=True)

    def flush_if_due(self) -> None:
        """Close the open shard if it has been open for long enough."""
        if self._open_z and time.monotonic() - self._opened_at >= self._shard_seconds:
            self.flush()

    def flush(self) -> None:
        """Close the open shard: it becomes visible, whole, with its hash in the journal."""
        if not self._open_z:
            return
        z, index = np.concatenate(self._open_z), np.concatenate(self._open_index)
        rounding = joined_rounding(self._open_rounding)
        self._open_z, self._open_index, self._open_rounding, self._open_bytes = [], [], [], 0
        name = f"shard-{self._rank:03d}-{self._next_shard:05d}.safetensors"
        self._next_shard += 1
        with files.atomic_file(self.path / name) as temporary:
            shard = write_shard(temporary, name, index, z, self._shape, rounding)
            self._journal.append({"shard": shard.model_dump()}, durable=True)
        self._written(shard)

    def _collect(self, index: Rows, z: Latents, rounding: Rounding | None) -> None:
        """Put rows into the open shard; a full one is closed."""
        self._open_rounding.append(rounding)
        self._open_z.append(z)
        self._open_index.append(index)
        self._open_bytes += z.nbytes
        if self._open_bytes >= self._shard_bytes:
            self.flush()

    def _written(self, shard: Shard) -> None:
        """Hear that a shard has become visible."""
