"""Other people's systems beside ours: on the same machine, in the same run, measured alike.

Of a clip the steps are timed one by one and multiplied out, and one decoding is added. What is too
large to run is counted: operations and weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pvdm_cli.benchmark.figure import COUNTED, Bench, Counted, Figure
from pvdm_cli.benchmark.floor import SIZES, Call, Work, sampling_work
from pvdm_cli.benchmark.maximum import limit_of
from pvdm_cli.benchmark.paper import published_systems
from pvdm_cli.benchmark.run import Job, Measured, Run
from pvdm_cli.benchmark.sample import SampleJob
from pvdm_cli.benchmark.subjects import Subject, find_subject
from pvdm_cli.benchmark.systems import SYSTEMS, System, find_systems
from pvdm_cli.benchmark.timing import Timing, device_name, outcome, repeat, spent
from pvdm_cli.benchmark.work import begin, nothing
from pvdm_cli.config import ModelConfig
from pvdm_cli.models.cost import forward_cost
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.runtime import autocast, resolve_device
from pvdm_cli.sampling import Steps

OURS = ("sky/diffusion-s",)


@dataclass(frozen=True, kw_only=True)
class RivalJob(Job):
    """A clip of somebody else's system."""

    system: str
    precision: str = "fp32"


def bench_rivals(
    names: Sequence[str] = OURS,
    *,
    systems: str = "all",
    steps: int = 100,
    precision: str = "fp32",
    memory_limit: int | None = None,
    repeats: int | None = None,
    seed: int = 0,
    device: str = "auto",
    deadline: float | None = None,
    reporter: Reporter = SILENT,
) -> Bench:
    """Measure one clip of ours and of other systems, each in its own process, or count it.

    Args:
        names: Our models and diffusion presets.
        systems: Names with commas between, or all.
        steps: Of a clip of ours.
        precision: fp32 | bf16 | fp16 arithmetic.
        memory_limit: Bytes that each must fit in; None: the card, or 80 % of the free memory.
        repeats: Steps timed; None: 3, fewer once 20 s are spent.
        seed: Of our random weights and noise.
        device: cpu | cuda | mps | auto.
        deadline: When everything must be over, by `time.monotonic`; a count that has begun by then
            (3 s at most on one core) is ended.
        reporter: Told of every step.

    Raises:
        PvdmError: If something named is not known.
    """
    chosen = find_systems(systems)
    subjects = [find_subject(name) for name in names]
    target = resolve_device(device)
    run = Run(
        device=target,
        repeats=repeats,
        limit=limit_of(memory_limit, target),
        seed=seed,
        deadline=deadline,
        reporter=reporter,
    )
    figures = [_ours(run, subject, Steps(steps, steps), precision) for subject in subjects]
    costs = [_count(run, system, precision) for system in chosen]  # seconds, so before the runs
    figures += [
        _theirs(run, system, cost, precision) for system, cost in zip(chosen, costs, strict=True)
    ]
    notes = [note for subject in subjects for note in subject.notes]
    notes += [note for figure in figures for note in figure.notes]
    return Bench("rivals", figures, notes=notes, systems=published_systems())


def _ours(run: Run, subject: Subject, steps: Steps, precision: str) -> Figure:
    """Measure the first clip of a roll-out."""
    job = SampleJob(
        subject=subject,
        steps=steps,
        frames=1,  # of any clip the first is drawn whole
        precision=precision,
        extrapolate=True,
        **run.common,
    )
    config = job.config
    found = run.measure("sample", f"{subject.name}, one clip", job, 1)
    return Figure(
        bench="rivals",
        subject=subject.name,
        settings={"steps": steps.first, "frames": config.clip.frames},
        unit="clip",
        height=config.clip.height,
        width=config.clip.width,
        weights=subject.weights,
        extrapolated=True,
        counted=_count_ours(config, steps.first, precision),
        **run.told(
            found, lambda batch: sampling_work(config, job.sampling, 1, batch, precision), precision
        ),
    )


def _count_ours(config: ModelConfig, steps: int, precision: str) -> Counted:
    """Count one clip of ours."""
    step, encode, decode = (forward_cost(config, part) for part in ("step", "encode", "decode"))
    weights = step.weights + encode.weights + decode.weights
    return Counted(step.weights, SIZES[precision] * weights, step.flops, steps, decode.flops)


def _theirs(run: Run, system: System, cost: Counted | None, precision: str) -> Figure:
    """Run a system where that is possible; else say why not."""
    about: dict[str, Any] = {
        "bench": "rivals",
        "subject": system.title,
        "settings": {"steps": system.step.calls, "frames": system.frames},
        "unit": "clip",
        "height": system.pixels,
        "width": system.pixels,
        "weights": "random",
        "extrapolated": True,
        "counted": cost,
    }
    named = f"{system.name}: "
    if lacks := system.lacks:
        found = Measured("not installed", 1, None, None, None)
        return Figure(**about, notes=[named + lacks], **run.told(found, None, precision))
    if cost is None or not system.live:
        found = Measured("out of time" if cost is None else COUNTED, 1, None, None, None)
        return Figure(**about, **run.told(found, None, precision))
    job = RivalJob(system=system.name, precision=precision, **run.common)
    found = run.measure("rival", f"{system.title}, one clip", job, 1)
    notes = []
    if found.state == "out of memory":
        notes = [f"{named}one clip does not fit in the memory of {device_name(run.device)} here"]
    told = run.told(found, lambda batch: clip_work(system, precision), precision)
    return Figure(**about, notes=notes, **told)


def _count(run: Run, system: System, precision: str) -> Counted | None:
    """Count one clip of a system, if it is there and while there is time."""
    if system.lacks or run.over:
        return None
    run.reporter.start(f"{system.title}, counting")
    found = count_clip(system, precision)
    run.reporter.done()
    return found


def count_clip(system: System, precision: str) -> Counted:
    """Count one clip of a system."""
    step, decode = system.step, system.decode
    weights, flops = step.cost().weights, 0
    if decode is not None:
        weights += decode.cost().weights
        flops = decode.calls * decode.cost().flops
    size = SIZES[precision] * weights
    return Counted(step.cost().weights, size, step.cost().flops, step.calls, flops)


def clip_work(system: System, precision: str) -> Work:
    """Count what one clip of a system needs at the least."""
    parts = [part for part in (system.step, system.decode) if part is not None]
    return Work.of([Call(part.cost(), part.calls) for part in parts], 1, precision)


def measure(
    job: RivalJob,
    on_step: Callable[[], None] = nothing,
    on_excess: Callable[[], None] = nothing,
) -> dict[str, Any]:
    """Do the job in this process: build, warm up, time; JSON values."""
    device, meter = begin(job, on_excess)
    system = SYSTEMS[job.system]
    _, step = system.step.build(device)
    _, decode = system.decode.build(device) if system.decode else (None, nothing)
    meter.restart()

    def once(call: Callable[[], Any]) -> tuple[float, float]:
        found = spent(call, device)
        on_step()
        return found

    with torch.inference_mode(), autocast(device, job.precision):
        once(step)
        steps = repeat(lambda: once(step), job.repeats)
        decoding = 0.0
        if system.decode is not None:
            once(decode)
            decoding = system.decode.calls * once(decode)[0]
    seconds, processor = map(list, zip(*steps, strict=True))
    clips = [system.step.calls * each + decoding for each in seconds]
    warm_up = "1 step and 1 decoding"
    found = outcome(Timing.of(clips, warm_up), meter)
    return found | {"step": asdict(Timing.of(seconds, warm_up, processor))}
