"""How library code tells a caller how far it is; the command line draws it, a notebook may not."""

from typing import Protocol


class Reporter(Protocol):
    """Receives the progress of one piece of work after another."""

    def start(self, what: str, total: int | None = None, unit: str = "it") -> None:
        """Begin a piece of work of `total` units (None: unknown)."""

    def expect(self, total: int | None) -> None:
        """Correct the number of units (None: unknown), where it is only found out on the way."""

    def advance(self, by: int = 1, **figures: object) -> None:
        """Count `by` more units done; figures are shown beside the bar."""

    def say(self, message: str) -> None:
        """Print a line without disturbing the bar."""

    def done(self) -> None:
        """End the piece of work."""


class Silent:
    """A reporter that says nothing."""

    def start(self, what: str, total: int | None = None, unit: str = "it") -> None:
        """Ignore the start."""

    def expect(self, total: int | None) -> None:
        """Ignore the number."""

    def advance(self, by: int = 1, **figures: object) -> None:
        """Ignore the step."""

    def say(self, message: str) -> None:
        """Ignore the line."""

    def done(self) -> None:
        """Ignore the end."""


SILENT = Silent()
