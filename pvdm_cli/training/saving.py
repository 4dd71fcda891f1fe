"""Checkpoints beside training, and what becomes of a run whose disk does not take what it writes.

A checkpoint is copied between two steps; a thread writes the copy while training goes on.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch.optim.swa_utils import AveragedModel

from pvdm_cli.config import RunConfig, dump_yaml
from pvdm_cli.errors import PvdmError, WriteError
from pvdm_cli.files import Hold, room, write_text
from pvdm_cli.model import Model
from pvdm_cli.training.checkpoint import (
    Buffers,
    Snapshot,
    Trained,
    settle,
    take_snapshot,
    write_snapshot,
)


class Unsaved(NamedTuple):
    """A checkpoint that could not be written, and why."""

    step: int
    reason: str  # "in FOLDER: ..."


class Saver:
    """Writes the checkpoints of a run in a thread, one at a time.

    Its copies stay in memory from one checkpoint to the next: as much again as a checkpoint.
    """

    def __init__(self, run: Path, keep_last: int, keep_every: int) -> None:
        self.run, self._keep = run, (keep_last, keep_every)
        self._buffers: Buffers = {}
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Unsaved | None] | None = None

    def save(
        self,
        step: int,
        model: Model,
        trained: Trained,
        average: AveragedModel | None,
        extra: dict[str, Any],
        best: int | None,
    ) -> None:
        """Copy a checkpoint and have it written; `outcome` of the one before has been asked for.

        Args:
            step: Optimizer steps done.
            model: What to publish.
            trained: What is in training.
            average: The average of its first network, or None.
            extra: Further JSON state.
            best: Step of the checkpoint that did best when validated.
        """
        assert self._writing is None, "the buffers are still being written"
        snapshot = take_snapshot(step, model, trained, average, extra, self._buffers)
        self._writing = self._thread.submit(self._write, snapshot, best)

    def outcome(self, *, wait: bool) -> Unsaved | None:
        """Tell once of a checkpoint that could not be written; None as long as it is not known.

        Args:
            wait: Until what is being written is on disk.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return None
        writing, self._writing = self._writing, None
        return writing.result()

    def _write(self, snapshot: Snapshot, best: int | None) -> Unsaved | None:
        """Write a snapshot, then remove checkpoints that are not to be kept."""
        try:
            write_snapshot(self.run, snapshot)
            settle(self.run, *self._keep, best)
        except (WriteError, OSError) as error:
            needed = f"it takes {snapshot.num_bytes / 1e6:.1f} MB"
            why = f"{reason(error)} ({needed}, {room(self.run)})"
            return Unsaved(snapshot.step, f"in {self.run}/checkpoints: {why}")
        return None

    def close(self) -> None:
        """Wait for the thread."""
        self._thread.shutdown()


class Troubles:
    """Says what cannot be written once, and again only if it had been possible in between."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._known: set[str] = set()

    @contextmanager
    def survive(self, kind: str, path: Path, then: str) -> Iterator[None]:
        """Go on if the block cannot write.

        Args:
            kind: What is said once.
            path: What it writes.
            then: What happens instead.
        """
        try:
            yield
        except (WriteError, OSError) as error:
            if kind not in self._known:
                self._say(f"warning: cannot write {path}: {reason(error)}; {then}")
            self._known.add(kind)
        else:
            self._known.discard(kind)


def reason(error: Exception) -> str:
    """The system's words for what went wrong."""
    if isinstance(error, WriteError):
        return error.reason
    return getattr(error, "strerror", None) or str(error)


def keep_folder(hold: Hold, config: RunConfig, say: Callable[[str], None]) -> None:
    """Make a run folder anew if it was removed while training: hours of work outlive it.

    Raises:
        WriteError: If it cannot be made.
        PvdmError: If another run has taken its place.
    """
    path, anew = hold.folder / "config.yaml", hold.regain()
    if path.exists():
        if anew and path.read_text(encoding="utf-8") != dump_yaml(config):
            raise PvdmError(
                f"{hold.folder} was removed while training and holds another run now; choose "
                "another --out"
            )
        return
    write_text(path, dump_yaml(config))
    say(
        f"warning: {hold.folder} was removed while training; it is made anew with the next "
        "checkpoint, what it held is lost"
    )
