"""How long each stage of a pipeline is busy: the one that always is limits the rest."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up the busy time of stages that run side by side, in threads or processes."""

    def __init__(self) -> None:
        self._busy: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._began = time.perf_counter()

    def add(self, stage: str, seconds: float) -> None:
        """Count busy seconds of a stage."""
        with self._lock:
            self._busy[stage] += seconds

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Count the time of a block to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - began)

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._began

    def share(self, stage: str, workers: int = 1) -> float:
        """Which share of the time so far a stage was busy, on average over its workers."""
        with self._lock:
            return self._busy[stage] / (self.elapsed * workers)
