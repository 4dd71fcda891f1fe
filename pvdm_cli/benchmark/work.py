"""What every measurement in a child process has in common: it warms up, is timed, and is metered."""

from collections.abc import Callable
from typing import Any

import torch

from pvdm_cli.benchmark.maximum import enforce
from pvdm_cli.benchmark.run import Job
from pvdm_cli.benchmark.timing import PeakMeter, Timing, outcome, repeat, seconds_of
from pvdm_cli.runtime import resolve_device


def nothing() -> None:
    """Do nothing: for a callback that is not wanted."""


def begin(job: Job, on_excess: Callable[[], None]) -> tuple[torch.device, PeakMeter]:
    """Choose the device and watch memory, before anything is built.

    Args:
        job: Says where, and how much memory may be taken.
        on_excess: Called from another thread once memory on the CPU passes the limit.
    """
    device = resolve_device(job.device)
    meter = PeakMeter(device)
    if job.limit is not None:
        enforce(job.limit, device, meter, on_excess)
    return device, meter


def timed(
    work: Callable[[], object],
    job: Job,
    device: torch.device,
    meter: PeakMeter,
    on_step: Callable[[], None],
    unit: str,
) -> dict[str, Any]:
    """Do the same work once to warm up and then as often as asked; what the child answers."""

    def once() -> float:
        seconds = seconds_of(work, device)
        on_step()
        return seconds

    once()
    return outcome(Timing.of(repeat(once, job.repeats), warm_up=f"1 {unit}"), meter)
