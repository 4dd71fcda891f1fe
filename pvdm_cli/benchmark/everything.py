"""All benchmarks of some models one after the other, within a given time."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from pvdm_cli.benchmark.coding import bench_coding
from pvdm_cli.benchmark.figure import Bench
from pvdm_cli.benchmark.io import bench_io
from pvdm_cli.benchmark.rivals import bench_rivals
from pvdm_cli.benchmark.sample import FRAMES, STEPS, bench_sample
from pvdm_cli.benchmark.subjects import find_subject
from pvdm_cli.benchmark.systems import find_systems
from pvdm_cli.benchmark.train import DEFAULT_PRESETS, bench_train
from pvdm_cli.errors import ConfigError
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.sampling import Steps
from pvdm_cli.shipped import preset_path

MINUTES = 10.0
# Of the time; rivals come last and also have what the others save.
SHARES = {"sample": 4, "train": 3, "encode": 1, "decode": 1, "io": 1, "rivals": 1}


def bench_all(
    names: Sequence[str] = ("demo",),
    *,
    steps: str = STEPS,
    frames: Sequence[int] = FRAMES,
    extrapolate: bool = False,
    systems: str = "all",
    minutes: float = MINUTES,
    memory_limit: int | None = None,
    max_batch: int = 4,
    repeats: int | None = None,
    seed: int = 0,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> Bench:
    """Measure sampling, training, encoding, decoding, files and other systems, in this order.

    Training is measured for presets: for `demo` it is its preset, and other models are left out.

    Args:
        names: Models and diffusion presets.
        steps: N/M, or several with commas between.
        frames: Lengths of the sampled video.
        extrapolate: Sample a few steps and one clip and multiply out.
        systems: Other people's, names with commas between, or all; ours beside them takes the first
            of the steps.
        minutes: For all of it, in shares; what is not done by then is left out, and its figures
            say so.
        memory_limit: Bytes for the largest training batch; None: the card, or 80 % of the free
            main memory.
        max_batch: Where the search for it stops.
        repeats: Of each measurement; None: 3, fewer once 20 s are spent.
        seed: Of random weights and noise.
        device: cpu | cuda | mps | auto.
        reporter: Told of everything.

    Raises:
        PvdmError: If something named is not there or cannot sample.
    """
    for name in names:
        find_subject(name)  # before anything is measured
    find_systems(systems)
    first = Steps.parse(steps.split(",")[0]).first
    trained, others = _trainable(names)
    notes = [f"{name}: a model tells no training settings; give its preset" for name in others]
    for note in notes:
        reporter.say(note)
    shared: dict[str, Any] = {"repeats": repeats, "reporter": reporter}
    drawn: dict[str, Any] = {"seed": seed, "device": device}
    parts: dict[str, Callable[[], Bench]] = {
        "sample": lambda: bench_sample(
            names, steps=steps, frames=frames, extrapolate=extrapolate, **drawn, **shared
        ),
        "train": lambda: bench_train(
            trained, memory_limit=memory_limit, max_batch=max_batch, device=device, **shared
        ),
        "encode": lambda: bench_coding("encode", names, **drawn, **shared),
        "decode": lambda: bench_coding("decode", names, **drawn, **shared),
        "io": lambda: bench_io(names, seed=seed, **shared),
        "rivals": lambda: bench_rivals(names, systems=systems, steps=first, **drawn, **shared),
    }
    end, left = time.monotonic() + 60 * minutes, sum(SHARES.values())
    found = []
    for part, share in SHARES.items():
        now = time.monotonic()
        shared["deadline"] = now + (end - now) * share / left  # what one part saves, others may use
        left -= share
        found.append(parts[part]())
    figures = [figure for each in found for figure in each.figures]
    notes += dict.fromkeys(note for each in found for note in each.notes)
    if late := sum(figure.state == "out of time" for figure in figures):
        notes.append(f"{late} of {len(figures)} figures are missing: {minutes:g} minutes were over")
    return Bench("all", figures, notes=notes, systems=found[-1].systems)


def _trainable(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell presets, and those of the demo model, from models that are no preset."""
    presets: list[str] = []
    others: list[str] = []
    for name in names:
        if name == "demo":
            presets += DEFAULT_PRESETS
            continue
        try:
            preset_path(name)
        except ConfigError:
            others.append(name)
        else:
            presets.append(name)
    return presets, others
