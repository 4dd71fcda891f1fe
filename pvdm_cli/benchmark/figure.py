"""What a benchmark found: figures, and the rows of numbers by which two results are compared."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from pvdm_cli.benchmark.floor import Floor
from pvdm_cli.benchmark.maximum import Search
from pvdm_cli.benchmark.paper import Published
from pvdm_cli.benchmark.published import TABLE_5, PublishedRow
from pvdm_cli.benchmark.timing import Peak, Timing
from pvdm_cli.environment import environment

FORMAT = 2  # of a result file
MOST = "largest"  # stands for the batch in a row whose batch was searched

BenchName = Literal["sample", "train", "encode", "decode", "io", "rivals"]
COUNTED = "counted, not run"


@dataclass(frozen=True)
class Counted:
    """What a clip costs a system, counted without running it; a multiply-add is two operations.

    Attributes:
        parameters: Of the network that is called at each step.
        weight_bytes: Of it and of what decodes, in the arithmetic of the figure.
        step_flops: Of one call.
        calls: Of a clip.
        decode_flops: Of a clip.
    """

    parameters: int
    weight_bytes: int
    step_flops: int
    calls: int
    decode_flops: int

    @property
    def flops(self) -> int:
        """Operations of a clip."""
        return self.step_flops * self.calls + self.decode_flops


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What one measurement found.

    Attributes:
        bench: Which benchmark.
        subject: What was measured, as it was called.
        settings: What else was chosen: steps, sampler, frames, stage; or what data was moved.
        batch: Videos or clips at a time; 0: not even one fits.
        unit: What a batch is made of: video, clip or pair.
        height: Of a frame.
        width: Of a frame.
        dtype: Arithmetic: fp32, bf16 or fp16.
        state: done, out of memory or out of time (then there are no figures); of a rival also
            "counted, not run" or "not installed".
        weights: trained or random; None where there are none.
        extrapolated: The time follows from a few steps of each kind and one decoding.
        timing: Of one batch.
        peak: Memory while it was done.
        predicted: Bytes of the peak as `footprint` counts them without running it; None where that
            leaves something out, and where no peak was measured.
        floor: What the device needs for it at the least.
        search: How the batch was found; None: it was given.
        step: Time of one network call, where the whole follows from it.
        counted: What it costs, where that was asked for.
    """

    bench: BenchName
    subject: str
    settings: dict[str, Any]
    batch: int
    unit: str
    height: int
    width: int
    device: str
    dtype: str
    threads: int
    state: str
    weights: str | None = None
    extrapolated: bool = False
    timing: Timing | None = None
    peak: Peak | None = None
    predicted: int | None = None
    floor: Floor | None = None
    search: Search | None = None
    step: Timing | None = None
    counted: Counted | None = None
    notes: list[str] = field(default_factory=list)
    torch: str = torch.__version__

    @property
    def share(self) -> float | None:
        """How much of the device is used: the floor's seconds by those it took."""
        if self.floor is None or self.timing is None:
            return None
        return self.floor.seconds / self.timing.median


@dataclass(frozen=True)
class Row:
    """One number of a result, and what it is of.

    Attributes:
        bench: Which benchmark.
        subject: What was measured.
        settings: How: the same in two results means that the numbers can be compared.
        quantity: seconds, seconds per step, peak memory, reserved memory, predicted memory, largest
            batch, operations or weights.
        unit: Of the number.
        median: The number.
        spread: The longest less the shortest of n.
        n: How often it was measured.
        floor: Seconds that the device needs at the least, where that is known.
    """

    bench: str
    subject: str
    settings: str
    quantity: str
    unit: str
    median: float
    spread: float = 0.0
    n: int = 1
    floor: float | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What two results must share to be compared."""
        return self.bench, self.subject, self.settings, self.quantity, self.unit

    @property
    def name(self) -> str:
        """Name the row in a sentence."""
        return f"{self.quantity} of {self.bench} {self.subject} ({self.settings})"


@dataclass(frozen=True)
class Bench:
    """All figures of a run of a benchmark, and the published ones beside it.

    Attributes:
        systems: What is published of systems, also of those that nobody can run.
    """

    bench: str
    figures: list[Figure]
    published: list[PublishedRow] = field(default_factory=lambda: list(TABLE_5))
    environment: dict[str, Any] = field(default_factory=environment)
    notes: list[str] = field(default_factory=list)
    systems: list[Published] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """Every number by itself."""
        return [row for figure in self.figures for row in rows_of(figure)]

    def to_json(self, command: Sequence[str] = ()) -> dict[str, Any]:
        """Return the content of a result file.

        Args:
            command: Words that led to it.
        """
        return {
            "bench": self.bench,
            "format": FORMAT,
            "command": " ".join(command),
            "environment": self.environment,
            "rows": [asdict(row) for row in self.rows],
            "figures": [asdict(figure) for figure in self.figures],
            "published": [asdict(row) for row in self.published],
            "systems": [asdict(each) for each in self.systems],
            "notes": self.notes,
        }


def rows_of(figure: Figure) -> Iterator[Row]:
    """Give the numbers of a figure, and those of every batch tried on the way to it.

    A searched batch may differ from one result to the next, so its time is told per clip.
    """
    searched = figure.search is not None
    places = settings_of(figure, MOST if searched else figure.batch)
    if figure.search is not None and figure.state != "out of time":
        yield Row(*places, "largest batch", f"{figure.unit}s", figure.batch)
    if figure.timing is not None:
        each = figure.batch if searched else 1
        unit = f"s / {figure.unit}" if searched else "s"
        timing, floor = figure.timing, figure.floor.seconds / each if figure.floor else None
        times = timing.median / each, timing.spread / each, timing.repeats
        yield Row(*places, "seconds", unit, *times, floor)
    if figure.step is not None:
        step = figure.step
        yield Row(*places, "seconds per step", "s", step.median, step.spread, step.repeats)
    if figure.counted is not None:
        yield Row(*places, "operations", "TFLOP", figure.counted.flops / 1e12)
        yield Row(*places, "weights", "bytes", figure.counted.weight_bytes)
    yield from _memory(figure.peak, places)
    if figure.predicted is not None:
        yield Row(*places, "predicted memory", "bytes", figure.predicted)
    for tried in figure.search.tries if figure.search else ():
        if tried.fits:
            yield from _memory(tried.peak, settings_of(figure, tried.batch))


def _memory(peak: Peak | None, places: tuple[str, str, str]) -> Iterator[Row]:
    """Give the numbers of a peak."""
    if peak is not None and peak.bytes is not None:
        yield Row(*places, "peak memory", "bytes", peak.bytes)
    if peak is not None and peak.reserved_bytes is not None:
        yield Row(*places, "reserved memory", "bytes", peak.reserved_bytes)


def settings_of(figure: Figure, batch: int | str) -> tuple[str, str, str]:
    """Say what a number is of."""
    chosen = [f"{name} {value}" for name, value in figure.settings.items()]
    size = f"{figure.height} x {figure.width}"
    about = ["extrapolated"] if figure.extrapolated else []
    words = [*chosen, size, f"batch {batch}", figure.dtype, *about]
    return figure.bench, figure.subject, ", ".join(words)
