"""What can be expected to go wrong, each said in one sentence a user can act on."""

from collections.abc import Iterable
from difflib import get_close_matches


class PvdmError(Exception):
    """An expected failure: what, where, and what to do next. The command line exits with 1."""


class ConfigError(PvdmError):
    """A configuration that cannot be used: unknown key, value out of range, sizes that clash."""


class DataError(PvdmError):
    """A video, data folder or cache that cannot be read."""


class VideoError(DataError):
    """One video that cannot be read; many-video commands skip it and say so."""


class ModelError(PvdmError):
    """A model folder, run folder or weight file that is missing, truncated or of another shape."""


class DamagedError(ModelError):
    """A model or checkpoint whose files are not what was written: missing, cut short, changed.

    Attributes:
        problem: The sentence without what to do next.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem


class WriteError(PvdmError):
    """A file or folder that cannot be written: no room, no rights, gone.

    Attributes:
        path: Where.
        reason: The system's words.
    """

    def __init__(self, path: object, reason: str, remedy: str = "choose another --out") -> None:
        super().__init__(f"cannot write {path}: {reason}; {remedy}")
        self.path, self.reason = path, reason


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest known name, or nothing."""
    close = get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
