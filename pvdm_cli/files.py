"""Files and folders that are either whole or absent; hashes; one writer at a time."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pvdm_cli.errors import PvdmError, WriteError

LEFTOVER = re.compile(r"\.(?P<name>.+)\.\d+\.(?P<kind>partial|old)")


def cache_folder() -> Path:
    """Folder of what can be had again: XDG_CACHE_HOME/pvdm, by default ~/.cache/pvdm.

    Raises:
        PvdmError: If this user has no home.
    """
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "pvdm"
    try:
        return Path.home() / ".cache" / "pvdm"
    except RuntimeError:
        raise PvdmError("this user has no home folder: let XDG_CACHE_HOME name one") from None


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success sync it and rename it into place.

    Raises:
        PvdmError: If the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    make_folder(path.parent)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; on success sync it and rename it into place.

    An existing folder at `path` is replaced only once the new one is whole.

    Raises:
        PvdmError: If the parent cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    make_folder(path.parent)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for item in [*temporary.rglob("*"), temporary]:
            sync(item)
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.replace(old)
            temporary.replace(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder at once: a kill midway leaves it whole, or gone and its rest to `tidy`."""
    going = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.replace(going)
    except OSError as error:
        raise _unwritable(path, error) from error
    shutil.rmtree(going, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove what killed writers left in a folder, and put back what they were about to replace.

    Only for a folder that no other process is writing into.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        found = LEFTOVER.fullmatch(path.name)
        if not found:
            continue
        place = path.with_name(found["name"])
        if found["kind"] == "old" and not place.exists():
            path.replace(place)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class Hold:
    """A folder that only this process writes into; the system lets go when the process dies."""

    def __init__(
        self, folder: Path, doing: str, name: str = ".lock", patience: float = 0.0
    ) -> None:
        """Take the folder, as `only_writer` does."""
        self.folder, self.doing = folder, doing
        self._path = folder / name
        self._handle = self._take(patience)

    def _take(self, patience: float = 0.0) -> int:
        """Open and lock the file that stands for the folder."""
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        try:
            _lock(handle, self.folder, self.doing, patience)
        except PvdmError:
            os.close(handle)
            raise
        return handle

    def regain(self) -> bool:
        """Make and take the folder anew if it has been removed; return whether it had been.

        Raises:
            WriteError: If it cannot be made.
            PvdmError: If somebody else has taken a folder of this name since.
        """
        try:
            ours = os.path.samestat(os.fstat(self._handle), self._path.stat())
        except OSError:
            make_folder(self.folder)
            before, self._handle = self._handle, self._take()
            os.close(before)
            return True
        if not ours:
            raise PvdmError(
                f"{self.folder} was removed while this process was {self.doing} it, and another "
                "one has taken it since; choose another --out"
            )
        return False

    def let_go(self) -> None:
        """End it."""
        os.close(self._handle)


@contextmanager
def only_writer(
    folder: Path, doing: str, *, name: str = ".lock", patience: float = 0.0
) -> Iterator[Hold]:
    """Hold the folder for this process; the system lets go when the process dies.

    Args:
        folder: Exists.
        doing: What the other process would be doing, like "encoding into".
        name: Of the lock; processes with different locks do not exclude each other.
        patience: Seconds to wait for a process that is about to end.

    Raises:
        PvdmError: If another process is writing into it, or the folder is read-only.
    """
    hold = Hold(folder, doing, name, patience)
    try:
        yield hold
    finally:
        hold.let_go()


def _lock(handle: int, folder: Path, doing: str, patience: float) -> None:
    """Lock an open file for this process."""
    try:
        import fcntl
    except ImportError:  # not POSIX: two writers are the user's to avoid
        return
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise PvdmError(
                    f"another process is {doing} {folder}: wait for it to end"
                ) from None
            time.sleep(0.1)
        else:
            return


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        PvdmError: If that is not possible, e.g. a file is in the way or rights are missing.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_run(path: Path) -> bool:
    """Whether a folder is that of a training run."""
    return (path / "config.yaml").is_file() and (path / "checkpoints").is_dir()


def sha256(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def room(folder: Path) -> str:
    """Say how much may still be written below a folder; its nearest parent that exists counts."""
    while not folder.exists():
        folder = folder.parent
    free = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB free"
    if hasattr(os, "statvfs") and not os.statvfs(folder).f_favail:  # not on Windows
        free += ", no more files (inodes)"
    return free


def _unwritable(path: Path, error: OSError) -> WriteError:
    """Say that a path cannot be written, with the system's reason."""
    return WriteError(path, error.strerror or str(error))
