"""The largest batch that fits: strides, then bisection; and how much memory there is to fit in.

Whether a batch fits is tried in a child process. On the CPU the judge is measured resident memory:
the child watches itself, gives up at the limit, and its high-water mark must stay below it.
(RLIMIT_AS is no judge: torch maps gigabytes that it never touches.) On CUDA the card says so, or
an allocator that may use only the limit's share of it.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from pvdm_cli.benchmark.timing import Peak, PeakMeter, Timing
from pvdm_cli.errors import PvdmError

UNITS = {"": 30, "G": 30, "GB": 30, "GIB": 30, "M": 20, "MB": 20, "MIB": 20}
FREE_SHARE = 0.8  # of free main memory, when no limit is given


class Limit(NamedTuple):
    """Bytes to fit in (None: what the device has), and who said so."""

    bytes: int | None
    origin: str


@dataclass(frozen=True)
class Try:
    """One batch size tried."""

    batch: int
    fits: bool
    peak: Peak | None
    timing: Timing | None

    def __str__(self) -> str:
        if not self.fits or self.timing is None:
            return "does not fit"
        size = self.peak.bytes if self.peak else None
        memory = f", {size / 2**30:.2f} GB" if size is not None else ""
        return f"fits: {self.timing.median:.3g} s{memory}"


@dataclass(frozen=True)
class Search:
    """How the largest batch was found.

    Attributes:
        largest: 0: not even one fits.
        capped: The search stopped there, more may fit.
        limit_bytes: Memory to fit in, None: the device.
        limit_from: Who said so.
        tries: In order.
    """

    largest: int
    capped: bool
    limit_bytes: int | None
    limit_from: str
    tries: list[Try]


class Largest(NamedTuple):
    """The largest batch found: 0 if not even one fits; capped if the search stopped there."""

    batch: int
    capped: bool


def largest_batch(fits: Callable[[int], bool], most: int, guess: int = 1) -> Largest:
    """Find the largest batch in 1..most that fits, if all smaller ones fit too.

    Goes up or down from a guess in strides that double, the first an eighth of it, until one fits
    and another does not; then halves the gap.
    """
    good, bad = 0, most + 1
    batch = min(max(guess, 1), most)
    stride = max(1, batch // 8)
    while good < bad - 1:
        if fits(batch):
            good = batch
        else:
            bad = batch
        if good and bad <= most:
            batch = (good + bad) // 2
        else:
            batch = min(good + stride, most) if good else max(1, bad - stride)
            stride *= 2
    return Largest(good, capped=good == most)


def limit_of(given: int | None, device: torch.device) -> Limit:
    """Bytes to fit in, and where the number comes from.

    Raises:
        PvdmError: If none is given and the system does not tell its free memory.
    """
    if given is not None:
        return Limit(given, "given")
    if device.type != "cpu":
        return Limit(None, "the device's own")
    free = free_memory()
    if free is None:
        raise PvdmError("this system does not tell its free memory; give --memory-limit")
    return Limit(int(FREE_SHARE * free), f"{FREE_SHARE:.0%} of the free memory")


def enforce(
    limit: int, device: torch.device, meter: PeakMeter, on_excess: Callable[[], None]
) -> None:
    """Make a process that takes more memory than the limit fail.

    Args:
        limit: In bytes.
        device: Whose memory.
        meter: Of this process.
        on_excess: Called from another thread once memory on the CPU passes the limit.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    elif device.type == "cpu":
        meter.watch(limit, on_excess)
    else:
        raise PvdmError(f"--memory-limit works on cpu and cuda, not on {device.type}")


def parse_memory(text: str) -> int:
    """Read a size: 24, 24GB and 24GiB are the same, 2^30 bytes each, as memory is sold.

    Raises:
        PvdmError: If it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([GM]?(?:I?B)?)\s*", text.upper())
    size = int(float(found[1]) * (1 << UNITS.get(found[2], 0))) if found else 0
    if not found or found[2] not in UNITS or not size:
        raise PvdmError(f"--memory-limit {text!r}: expected a size like 24, 24GiB or 500MiB")
    return size


def memory_of(limit: Limit, device: torch.device) -> int | None:
    """Bytes there are to fit in; None where the device does not tell."""
    if limit.bytes is None and device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return limit.bytes


def free_memory() -> int | None:
    """Bytes of main memory that this process may still take, None where the system is mum."""
    found = [_meminfo(), _cgroup()]
    known = [size for size in found if size is not None]
    if known:
        return min(known)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on every system
        return None


def _meminfo(path: Path = Path("/proc/meminfo")) -> int | None:
    """What the kernel believes to be available."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _cgroup(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's limit leaves."""
    try:
        limit = (folder / "memory.max").read_text(encoding="utf-8").strip()
        used = (folder / "memory.current").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return max(0, int(limit) - int(used)) if limit.isdigit() else None
