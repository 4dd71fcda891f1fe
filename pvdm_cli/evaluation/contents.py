"""What videos hold, by sha256: so that touched, renamed and moved files are known again.

A file is hashed once and remembered by its place, for as long as its size and time of change stay.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pvdm_cli.errors import PvdmError
from pvdm_cli.evaluation.footage import Footage
from pvdm_cli.files import sha256, write_json
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.video.stills import image_files

Digest = tuple[str, str]  # sha256 of the files, which part of them
Stamp = list[int]  # number of files, bytes, time of the last change in ns
UNREADABLE = ""  # in place of a sha256: the reel leaves such a video out


class Contents:
    """Digests of videos."""

    def __init__(self, path: Path, *, again: bool = False, reporter: Reporter = SILENT) -> None:
        """Remember in a file what is hashed.

        Args:
            path: The file; JSON.
            again: Hash everything anew.
            reporter: Told of every file that is hashed.
        """
        self._path, self._reporter = path, reporter
        self._kept = {} if again else _read(path)
        self._found: dict[Path, str] = {}

    def of(self, videos: Sequence[Footage]) -> list[Digest]:
        """Digests of videos; their files are looked at once in the life of this object."""
        stamps = {path: _stamp(path) for path in {v.path for v in videos} - self._found.keys()}
        for path, stamp in stamps.items():
            before, digest = self._kept.get(str(path.resolve()), ([], ""))
            if stamp == before:
                self._found[path] = digest
        new = [path for path in stamps if path not in self._found]
        if new:
            self._reporter.start("hashing real videos", len(new), "video")
            for path in new:
                self._found[path] = _digest(path)
                self._reporter.advance()
            self._reporter.done()
            self._keep({str(path.resolve()): (stamps[path], self._found[path]) for path in new})
        return [(self._found[video.path], f"{video.part}{video.cut}") for video in videos]

    def _keep(self, new: dict[str, tuple[Stamp, str]]) -> None:
        """Add to the file; one that cannot be written costs time, no more."""
        with suppress(PvdmError):
            write_json(self._path, _read(self._path) | new)


def _read(path: Path) -> dict[str, tuple[Stamp, str]]:
    """Read what is remembered; a file that is missing or damaged is as good as none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {place: (list(stamp), str(digest)) for place, (stamp, digest) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _files(path: Path) -> list[Path]:
    """Files of a video, in the order of its frames."""
    return list(image_files(path)) if path.is_dir() else [path]


def _stamp(path: Path) -> Stamp:
    """Tell what changes when a video changes; empty if it cannot be looked at."""
    try:
        stats = [file.stat() for file in _files(path)]
    except OSError:
        return [0]
    newest = max((stat.st_mtime_ns for stat in stats), default=0)
    return [len(stats), sum(stat.st_size for stat in stats), newest]


def _digest(path: Path) -> str:
    """Hash a video."""
    try:
        digests = [sha256(file) for file in _files(path)]
    except OSError:
        return UNREADABLE
    return digests[0] if path.is_file() else hashlib.sha256("".join(digests).encode()).hexdigest()
