"""How long work takes and how much memory it needs, on any device.

Memory on the CPU is what the process holds (resident) above what it held before the model was
built, so the interpreter and the libraries are not counted. A process keeps its peak for life and
hands `ru_maxrss` on to its children, even through exec: a child of a process that once held 2 GB
reports 2 GB. The high-water mark of /proc (VmHWM) starts afresh with each program, so it is what
is read on Linux, and every measurement has a process of its own (see `child`).
"""

import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self, TypeVar

import torch

STATUS = Path("/proc/self/status")
BUDGET = 20.0  # seconds after which a measurement of unstated repeats is not repeated again
REPEATS = 3

FoundT = TypeVar("FoundT")


@dataclass(frozen=True)
class Timing:
    """Wall-clock times of the same work.

    Attributes:
        seconds: Each time, in order.
        median: Of these.
        spread: The longest less the shortest.
        repeats: How many there are.
        warm_up: What ran before the clock did.
        processor: Seconds of all threads together, where they were counted: the median. They hardly
            depend on what else the machine does.
    """

    seconds: list[float]
    median: float
    spread: float
    repeats: int
    warm_up: str
    processor: float | None = None

    @classmethod
    def of(cls, seconds: list[float], warm_up: str, processor: Sequence[float] = ()) -> Self:
        """Sum up a list of times."""
        spread = max(seconds) - min(seconds)
        threads = median(processor) if processor else None
        return cls(seconds, median(seconds), spread, len(seconds), warm_up, threads)


@dataclass(frozen=True)
class Peak:
    """The largest memory in use, weights included.

    Attributes:
        counted: What the bytes are: "allocated" by tensors (CUDA), or "resident" (CPU: of the
            process, above what it held before the model was built).
        bytes: None where the system does not tell.
        reserved_bytes: What CUDA's allocator took from the card for it.
    """

    counted: str
    bytes: int | None
    reserved_bytes: int | None = None


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """Name a device as people know it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Time one run of the work, from an idle device to an idle device."""
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def spent(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Time one run of the work: seconds on the wall, and of this process' threads together."""
    began = time.process_time()
    return seconds_of(work, device), time.process_time() - began


def repeat(
    measure: Callable[[], FoundT], repeats: int | None, *, budget: float = BUDGET
) -> list[FoundT]:
    """Call a measurement `repeats` times; None: three times, or until the budget is spent."""
    found: list[FoundT] = []
    began = time.perf_counter()
    for _ in range(repeats or REPEATS):
        found.append(measure())
        if repeats is None and time.perf_counter() - began > budget:
            break
    return found


class PeakMeter:
    """Measures the peak of this process from where it is made: make it before the model."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._baseline = resident()
        self.restart()

    def restart(self) -> None:
        """Forget peaks so far, such as those of loading; what is held now still counts."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.device.type == "cpu":
            _reset_peak_resident()

    def read(self) -> Peak:
        """Return the peak since the last restart."""
        if self.device.type == "cuda":
            return Peak(
                "allocated",
                torch.cuda.max_memory_allocated(self.device),
                torch.cuda.max_memory_reserved(self.device),
            )
        peak = peak_resident() if self.device.type == "cpu" else None
        if peak is None or self._baseline is None:
            return Peak("unknown", None)
        return Peak("resident", max(0, peak - self._baseline))

    def watch(self, limit: int, exceeded: Callable[[], None]) -> None:
        """Call back from a thread as soon as this CPU process holds `limit` above its baseline.

        Looks every 5 ms, in which a core can touch some tens of MB.
        """
        baseline = self._baseline
        if baseline is None:
            return

        def look() -> None:
            while (resident() or 0) - baseline <= limit:
                time.sleep(0.005)
            exceeded()

        threading.Thread(target=look, daemon=True).start()


def resident() -> int | None:
    """Bytes of main memory this process holds; elsewhere than on Linux the most it ever held."""
    return _status("VmRSS")


def peak_resident() -> int | None:
    """The most this process has held since it began or since the peak was reset, in bytes."""
    return _status("VmHWM")


def _status(name: str) -> int | None:
    """Read a figure of the kernel's account of this process."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else _life_peak()


def _life_peak() -> int | None:
    """The most this process has ever held, in bytes, where there is no /proc."""
    if sys.platform == "win32":
        return None
    import resource  # absent on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak_resident() -> None:
    """Let the kernel forget this process' peak, where it can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:  # not Linux, or not allowed: the peak of loading stays counted
        return


def outcome(timing: Timing, meter: PeakMeter) -> dict[str, Any]:
    """Return what a child answers, as JSON values."""
    return {"timing": asdict(timing), "peak": asdict(meter.read())}
