"""What a cache has gained since its manifest was written, in a form that a kill cannot spoil.

One JSON line per fact: a shard about to become visible, a video decoded to its end, a video
skipped. A torn last line is no fact, and neither is a shard whose file never appeared.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pvdm_cli.errors import PvdmError


class Journal:
    """Appends facts to `journal-RRR.jsonl`, one file for each writing process."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / f"journal-{rank:03d}.jsonl"

    def append(self, fact: dict[str, Any], *, durable: bool = False) -> None:
        """Add one fact; durable ones survive a power cut, the others a kill.

        Raises:
            PvdmError: If the disk does not take it.
        """
        line = json.dumps(fact, ensure_ascii=False).encode() + b"\n"
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                size = os.fstat(handle).st_size
                torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
                os.write(handle, b"\n" + line if torn else line)
                if durable:
                    os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise PvdmError(f"cannot write {self.path}: {error.strerror}; free the disk") from error


def journals(folder: Path) -> list[Path]:
    """All journals of a cache folder, whichever process wrote them."""
    return sorted(folder.glob("journal-*.jsonl"))


def facts(folder: Path) -> Iterator[dict[str, Any]]:
    """Read the facts of all journals, leaving out torn lines."""
    for path in journals(folder):
        for line in path.read_bytes().split(b"\n"):
            try:
                fact = json.loads(line)
            except ValueError:  # torn by a kill, or empty
                continue
            if isinstance(fact, dict):
                yield fact
