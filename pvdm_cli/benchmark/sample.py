"""Seconds and memory to synthesise one video: Algorithm 1 and decoding, without writing a file.

Axes: c latent channels, n flat latent length, s frames of a clip, H x W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch

from pvdm_cli.benchmark import child
from pvdm_cli.benchmark.published import TABLE_5, PublishedRow
from pvdm_cli.benchmark.subjects import Subject, build, find_subject
from pvdm_cli.benchmark.timing import Peak, PeakMeter, Timing, device_name, repeat, seconds_of
from pvdm_cli.config import DiffusionConfig
from pvdm_cli.environment import environment
from pvdm_cli.errors import PvdmError
from pvdm_cli.latents import unflatten
from pvdm_cli.model import Model
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.rollout import rollout, rollout_latents
from pvdm_cli.runtime import generator, resolve_device
from pvdm_cli.sampling import Sampling, Steps
from pvdm_cli.video.pixels import to_uint8

FEW = 3  # steps of each kind that an extrapolation measures
PRECISION = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class SampleJob:
    """One measurement: a video of so many frames from one subject."""

    subject: Subject
    steps: Steps
    frames: int
    repeats: int | None
    extrapolate: bool
    device: str
    threads: int
    seed: int

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """Read a job that went through JSON."""
        subject, steps = Subject(**values["subject"]), Steps(*values["steps"])
        return cls(**{**values, "subject": subject, "steps": steps})


@dataclass(frozen=True)
class SampleFigure:
    """What one video took.

    Attributes:
        model: As it was called.
        weights: trained or random.
        state: done, or out of memory (then there are no figures).
        extrapolated: The time follows from a few steps of each kind and one decoding.
    """

    model: str
    weights: str
    steps: str
    frames: int
    height: int
    width: int
    device: str
    dtype: str
    threads: int
    torch: str
    state: str
    extrapolated: bool
    timing: Timing | None
    peak: Peak | None


@dataclass(frozen=True)
class SampleBench:
    """All figures of a run of `bench sample`, and the published ones."""

    figures: list[SampleFigure]
    published: list[PublishedRow]
    environment: dict[str, Any]
    notes: list[str]


def bench_sample(
    names: Sequence[str] = ("demo",),
    *,
    steps: str = "100/20",
    frames: Sequence[int] = (16, 128),
    repeats: int | None = None,
    extrapolate: bool = False,
    seed: int = 0,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> SampleBench:
    """Measure how long one video takes and what memory it needs, each in its own process.

    Args:
        names: Models (folder, run, `demo`) and diffusion presets (random weights, full size).
        steps: N/M, or several with commas between: each is measured.
        frames: Lengths of the video.
        repeats: Of each measurement; None: 3, fewer once 20 s are spent.
        extrapolate: Measure a few steps and one decoding and multiply out.
        seed: Of random weights and noise.
        device: cpu | cuda | mps | auto.
        reporter: Told of every network step.

    Raises:
        PvdmError: If something named is not there or cannot sample so.
    """
    if min(frames) < 1:
        raise PvdmError(f"--frames {min(frames)}: expected 1 or more")
    subjects = [find_subject(name) for name in names]
    target, runs = resolve_device(device), [Steps.parse(text) for text in steps.split(",")]
    for subject in subjects:
        for run in runs:
            Sampling(steps=run).check(DiffusionConfig(**subject.config["diffusion"]))
        for note in subject.notes:
            reporter.say(note)
    jobs = [
        SampleJob(
            subject, run, count, repeats, extrapolate, str(target), torch.get_num_threads(), seed
        )
        for subject in subjects
        for run in runs
        for count in frames
    ]
    return SampleBench(
        figures=[_figure(job, reporter) for job in jobs],
        published=list(TABLE_5),
        environment=environment(),
        notes=[note for subject in subjects for note in subject.notes],
    )


def _figure(job: SampleJob, reporter: Reporter) -> SampleFigure:
    """Let a child do one job."""
    clip = job.subject.config["clip"]
    reporter.start(f"{job.subject.name} {job.steps}, {job.frames} frames", unit="step")
    found = child.measure("sample", asdict(job), reporter.advance)
    reporter.done()
    timing, peak = found.figures.get("timing"), found.figures.get("peak")
    return SampleFigure(
        model=job.subject.name,
        weights=job.subject.weights,
        steps=str(job.steps),
        frames=job.frames,
        height=clip["height"],
        width=clip["width"],
        device=device_name(torch.device(job.device)),
        dtype=found.figures.get("dtype", "fp32"),
        threads=job.threads,
        torch=torch.__version__,
        state=found.state,
        extrapolated=job.extrapolate,
        timing=Timing(**timing) if timing else None,
        peak=Peak(**peak) if peak else None,
    )


def measure(job: SampleJob, on_step: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Do the job in this process: build, warm up, time; JSON values."""
    device = resolve_device(job.device)
    meter = PeakMeter(device)
    model = build(job.subject, device, job.seed)
    meter.restart()
    once = _extrapolated if job.extrapolate else _whole
    few = Steps(min(2, job.steps.first), min(2, job.steps.following))
    _synthesise(model, 2, few, job.seed, on_step)
    timing = Timing.of(
        repeat(lambda: once(model, job, on_step), job.repeats),
        warm_up=f"2 clips of {few.first} and {few.following} steps",
    )
    dtype = next(model.autoencoder.parameters()).dtype
    return {
        "timing": asdict(timing),
        "peak": asdict(meter.read()),
        "dtype": PRECISION.get(dtype, str(dtype)),
    }


def _whole(model: Model, job: SampleJob, on_step: Callable[[], None]) -> float:
    """Time the whole video."""
    clips = model.config.num_clips(job.frames)
    return seconds_of(lambda: _synthesise(model, clips, job.steps, job.seed, on_step), model.device)


def _synthesise(
    model: Model, num_clips: int, steps: Steps, seed: int, on_step: Callable[[], None]
) -> None:
    """Draw one video, frames leaving the device as each clip is ready."""
    draws = [generator(model.device, seed, 0)]
    clips = rollout(
        model,
        num_clips,
        generators=draws,
        sampling=Sampling(steps=steps),
        on_step=lambda k, num_steps: on_step(),
    )
    for x in clips:
        to_uint8(x).cpu()


def _extrapolated(model: Model, job: SampleJob, on_step: Callable[[], None]) -> float:
    """Time a few steps without and with prefix and one decoding; multiply out."""
    few = min(FEW, *job.steps)
    latent, device = model.config.latent, model.device
    draws = [generator(device, job.seed, 0)]
    z_prefix = torch.randn(1, latent.c, latent.flat, generator=draws[0], device=device)

    def step(prefix: torch.Tensor | None) -> float:
        clip = rollout_latents(
            model,
            1,
            generators=draws,
            sampling=Sampling(steps=Steps(few, few)),
            z_prefix=prefix,
            on_step=lambda k, num_steps: on_step(),
        )
        return seconds_of(lambda: list(clip), device) / few

    def decode() -> None:
        with torch.inference_mode():
            to_uint8(model.autoencoder.decode(unflatten(z_prefix, latent))).cpu()

    first, following, decoding = step(None), step(z_prefix), seconds_of(decode, device)
    more = model.config.num_clips(job.frames) - 1
    return job.steps.first * first + decoding + more * (job.steps.following * following + decoding)
