"""Measuring one thing after another: at a batch size given, or at the largest that fits."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch

from pvdm_cli.benchmark import child
from pvdm_cli.benchmark.floor import Floor, Work, rates
from pvdm_cli.benchmark.maximum import Limit, Search, Try, largest_batch
from pvdm_cli.benchmark.timing import Peak, Timing, device_name
from pvdm_cli.errors import PvdmError
from pvdm_cli.progress import SILENT, Reporter

MOST = {"cpu": 64, "mps": 64, "cuda": 1024}  # where a search stops unless told otherwise
PRECISIONS = ("fp32", "bf16", "fp16")

Batch = int | None  # None: the largest that fits


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement, in words that a child process can be told.

    Attributes:
        batch: Videos or clips at a time.
        repeats: How often it is measured; None: as `timing.repeat` has it.
        limit: Memory it must not exceed, in bytes.
        device: Where it is done.
        threads: Of the CPU.
        seed: Of random weights and noise.
    """

    batch: int = 1
    repeats: int | None = None
    limit: int | None = None
    device: str = "cpu"
    threads: int = 1
    seed: int = 0


JobT = TypeVar("JobT", bound=Job)


class Measured(NamedTuple):
    """What came of a measurement."""

    state: str
    batch: int
    timing: Timing | None
    peak: Peak | None
    search: Search | None
    step: Timing | None = None  # of one network call, where the child timed it


class OutOfTime(Exception):
    """The time for all measurements is over."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the measurements of a command share.

    Attributes:
        device: Where they are done.
        repeats: Of each.
        limit: Memory that the largest batch must fit in; None: no batch is searched.
        max_batch: Where its search stops; None: 64, on CUDA 1024.
        seed: Of random weights and noise.
        deadline: When everything must be over, by `time.monotonic`; None: whenever it is.
        reporter: Told of every step and try.
    """

    device: torch.device
    repeats: int | None = None
    limit: Limit | None = None
    max_batch: int | None = None
    seed: int = 0
    deadline: float | None = None
    reporter: Reporter = SILENT

    @property
    def most(self) -> int:
        """Where a search stops."""
        return self.max_batch or MOST[self.device.type]

    @property
    def common(self) -> dict[str, Any]:
        """What every job is told."""
        return {
            "repeats": self.repeats,
            "limit": self.limit.bytes if self.limit else None,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "seed": self.seed,
        }

    @property
    def left(self) -> float | None:
        """Seconds to the deadline; None: there is none."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    @property
    def over(self) -> bool:
        """Whether the deadline has passed."""
        return self.left is not None and self.left <= 0

    def measure(
        self,
        kind: str,
        name: str,
        job: JobT,
        batch: Batch,
        probe: JobT | None = None,
        guess: int = 1,
    ) -> Measured:
        """Measure a job at a batch size, or search for the largest one and measure there.

        Args:
            kind: Which of the worker's measurements.
            name: What is measured, for the reporter.
            job: What to do; its batch does not count.
            batch: How many at a time; None: as many as fit.
            probe: A shorter job of the same memory that tells whether a batch fits.
            guess: Where the search begins.
        """
        try:
            if batch is not None:
                return self._at(kind, name, replace(job, batch=batch))
            return self._largest(kind, name, job, probe or job, guess)
        except OutOfTime:
            return Measured("out of time", batch or 0, None, None, None)
        finally:
            self.reporter.done()

    def search(self, kind: str, name: str, probe: Job, guess: int = 1) -> Search:
        """Search for the largest batch that fits, from a guess on."""
        assert self.limit is not None
        limit, origin = self.limit
        tries: list[Try] = []

        def fits(batch: int) -> bool:
            found = self._at(kind, name, replace(probe, batch=batch, repeats=1))
            size = found.peak.bytes if found.peak else None
            over = limit is not None and (size or 0) > limit
            tries.append(Try(batch, found.state == "done" and not over, found.peak, found.timing))
            self.reporter.say(f"{name}: batch {batch} {tries[-1]}")
            return tries[-1].fits

        found = largest_batch(fits, self.most, guess)
        return Search(*found, limit, origin, tries)

    def _largest(self, kind: str, name: str, job: Job, probe: Job, guess: int) -> Measured:
        """Search, then measure; take the try of the search if memory was too short now."""
        search = self.search(kind, name, probe, guess)
        if not search.largest:
            return Measured("out of memory", 0, None, None, search)
        found = self._at(kind, name, replace(job, batch=search.largest))
        if found.state != "done" and probe == job:
            best = next(each for each in search.tries if each.batch == search.largest)
            return Measured("done", best.batch, best.timing, best.peak, search)
        return found._replace(search=search)

    def _at(self, kind: str, name: str, job: Job) -> Measured:
        """Let a child do one job."""
        if self.over:
            raise OutOfTime
        self.reporter.start(f"{name}, batch {job.batch}", unit="step")
        state, figures = child.measure(kind, asdict(job), self.reporter.advance, timeout=self.left)
        if state == "out of time":
            raise OutOfTime
        if state != "done":
            return Measured(state, job.batch, None, None, None)
        peak, timing = Peak(**figures["peak"]), Timing(**figures["timing"])
        step = Timing(**figures["step"]) if "step" in figures else None
        return Measured(state, job.batch, timing, peak, None, step)

    def told(
        self, found: Measured, work: Callable[[int], Work] | None, dtype: str
    ) -> dict[str, Any]:
        """Return what a figure says of a measurement, and what the device needs for it at least."""
        floor = None
        if work is not None and found.timing is not None:
            known = rates(str(self.device), dtype, torch.get_num_threads())
            floor = Floor.of(work(found.batch), known)
        return {
            **found._asdict(),
            "floor": floor,
            "dtype": dtype,
            "device": device_name(self.device),
            "threads": torch.get_num_threads(),
        }


def parse_batches(text: str) -> list[Batch]:
    """Read "1,4,max"; None stands for max.

    Raises:
        PvdmError: If it is something else.
    """
    words = text.split(",")
    if not all(word == "max" or (word.isdigit() and int(word)) for word in words):
        raise PvdmError(f"--batch-size {text!r}: expected numbers from 1 up or max, like 1,4,max")
    return [None if word == "max" else int(word) for word in words]


def parse_precisions(text: str) -> list[str]:
    """Read "fp32,bf16".

    Raises:
        PvdmError: If it is something else.
    """
    words = text.split(",")
    if not set(words) <= set(PRECISIONS):
        raise PvdmError(f"--precision {text!r}: choose of {', '.join(PRECISIONS)}, like fp32,bf16")
    return words
