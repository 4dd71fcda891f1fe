"""One bar for the work of several processes."""

import time

from pvdm_cli.progress import Reporter
from pvdm_cli.ranks import PeerLostError, Ranks

LOOK_AGAIN = 0.2  # seconds


class JointReporter:
    """Tells the first process's reporter what all of them do, through what they share.

    Attributes:
        total: Units done by all processes, as far as this one knows.
    """

    def __init__(self, reporter: Reporter, ranks: Ranks, name: str) -> None:
        """Make the reporter of one piece of work.

        Args:
            reporter: That of this process.
            ranks: The processes.
            name: Of this piece of work, the same in all processes and never used before.
        """
        self.total = 0
        self._reporter, self._ranks, self._name = reporter, ranks, name
        self._relayed = 0

    def start(self, what: str, total: int | None = None, unit: str = "it") -> None:
        """Begin the work."""
        if self._ranks.main:
            self._reporter.start(what, total, unit)

    def expect(self, total: int | None) -> None:
        """Correct the number of units of all processes together."""
        if self._ranks.main:
            self._reporter.expect(total)

    def advance(self, by: int = 1, **figures: object) -> None:
        """Count units of this process; the first one also shows what the others have done."""
        before = self.total
        self.total = self._count("done", by) if self._ranks.store else before + by
        if self._ranks.main:
            self._relay()
            self._reporter.advance(self.total - before, **figures)

    def say(self, message: str) -> None:
        """Print a line, in the first process."""
        store = self._ranks.store
        if store is None or self._ranks.main:
            self._reporter.say(message)
        else:
            store.set(f"{self._name}/line/{self._count('lines', 1)}", message)

    def done(self) -> None:
        """End the work; the first process goes on showing what the others do until all have.

        Raises:
            PeerLostError: If one of them has failed.
        """
        if self._ranks.store is not None:
            ended = self._count("ended", 1)
            while self._ranks.main and ended < self._ranks.size:
                if self._ranks.failed:
                    raise PeerLostError("another process of this run has failed")
                time.sleep(LOOK_AGAIN)
                self.advance(0)
                ended = self._count("ended", 0)
        if self._ranks.main:
            self._relay()
            self._reporter.done()

    def _relay(self) -> None:
        """Say what the others have to say."""
        store = self._ranks.store
        if store is None:
            return
        lines = self._count("lines", 0)
        while self._relayed < lines:
            self._relayed += 1
            self._reporter.say(store.get(f"{self._name}/line/{self._relayed}").decode())

    def _count(self, key: str, more: int) -> int:
        """Add to a shared count."""
        assert self._ranks.store is not None
        return int(self._ranks.store.add(f"{self._name}/{key}", more))
