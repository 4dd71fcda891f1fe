"""Where the time of a run goes: seconds by name, from any thread."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Timer = Callable[[str], AbstractContextManager[None]]


class Stopwatch:
    """Adds up the seconds spent in named parts of a run.

    Args:
        wait: Called before each reading: waits for a device that works behind the host's back.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._wait = wait
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time inside the block to a name."""
        self._wait()
        began = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            spent = time.perf_counter() - began
            with self._lock:
                self.seconds[name] = self.seconds.get(name, 0.0) + spent


def untimed(name: str) -> AbstractContextManager[None]:
    """Measure nothing, and wait for nothing."""
    del name
    return nullcontext()
