"""Seconds and memory to synthesise one video: Algorithm 1 and decoding, without writing a file.

Axes: c latent channels, n flat latent length, s frames of a clip, H x W pixels.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Self

import torch

from pvdm_cli.acceleration import accelerate
from pvdm_cli.benchmark.figure import Bench, Figure
from pvdm_cli.benchmark.floor import sampling_work
from pvdm_cli.benchmark.maximum import limit_of
from pvdm_cli.benchmark.run import Batch, Job, Run
from pvdm_cli.benchmark.subjects import Subject, build, find_subject
from pvdm_cli.benchmark.timing import Timing, outcome, repeat, seconds_of
from pvdm_cli.benchmark.work import begin, nothing
from pvdm_cli.config import ModelConfig, parse_config
from pvdm_cli.errors import PvdmError
from pvdm_cli.latents import unflatten
from pvdm_cli.model import Model
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.rollout import rollout, rollout_latents
from pvdm_cli.runtime import generator, resolve_device
from pvdm_cli.sampling import Sampler, Sampling, Steps
from pvdm_cli.video.pixels import to_uint8

FEW = 3  # steps of each kind that an extrapolation measures
FRAMES, STEPS = (16, 128), "100/20"


@dataclass(frozen=True, kw_only=True)
class SampleJob(Job):
    """One measurement: videos of so many frames from one subject."""

    subject: Subject
    steps: Steps
    frames: int
    sampler: Sampler = "ddim"
    precision: str = "fp32"
    extrapolate: bool = False

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """Read a job that went through JSON."""
        subject, steps = Subject(**values["subject"]), Steps(*values["steps"])
        return cls(**{**values, "subject": subject, "steps": steps})

    @property
    def config(self) -> ModelConfig:
        """Sizes of the subject's networks."""
        return parse_config(ModelConfig, self.subject.config, where=self.subject.name)

    @property
    def sampling(self) -> Sampling:
        """How clips are drawn."""
        return Sampling(steps=self.steps, sampler=self.sampler)


def bench_sample(
    names: Sequence[str] = ("demo",),
    *,
    steps: str = STEPS,
    frames: Sequence[int] = FRAMES,
    samplers: Sequence[Sampler] = ("ddim",),
    precisions: Sequence[str] = ("fp32",),
    batches: Sequence[Batch] = (1,),
    memory_limit: int | None = None,
    max_batch: int | None = None,
    repeats: int | None = None,
    extrapolate: bool = False,
    seed: int = 0,
    device: str = "auto",
    deadline: float | None = None,
    reporter: Reporter = SILENT,
) -> Bench:
    """Measure how long videos take and what memory they need, each in its own process.

    Args:
        names: Models (folder, run, `demo`) and diffusion presets (random weights, full size).
        steps: N/M, or several with commas between: each is measured.
        frames: Lengths of the video.
        samplers: Each is measured.
        precisions: fp32 | bf16 | fp16 arithmetic; each is measured.
        batches: Videos at a time; None is the most that fit.
        memory_limit: Bytes that they must fit in; None: the card, or 80 % of the free memory.
        max_batch: Where the search for the most stops; None: 64, on CUDA 1024.
        repeats: Of each measurement; None: 3, fewer once 20 s are spent.
        extrapolate: Measure a few steps and one decoding and multiply out.
        seed: Of random weights and noise.
        device: cpu | cuda | mps | auto.
        deadline: When everything must be over, by `time.monotonic`.
        reporter: Told of every network step.

    Raises:
        PvdmError: If something named is not there or cannot sample so.
    """
    if min(frames) < 1:
        raise PvdmError(f"--frames {min(frames)}: expected 1 or more")
    subjects = [find_subject(name) for name in names]
    target = resolve_device(device)
    run = Run(
        device=target,
        repeats=repeats,
        limit=limit_of(memory_limit, target) if None in batches else None,
        max_batch=max_batch,
        seed=seed,
        deadline=deadline,
        reporter=reporter,
    )
    runs = [Steps.parse(text) for text in steps.split(",")]
    jobs = [
        SampleJob(
            subject=subject,
            steps=each,
            frames=count,
            sampler=sampler,
            precision=precision,
            extrapolate=extrapolate,
            **run.common,
        )
        for subject, sampler, precision, each, count in product(
            subjects, samplers, precisions, runs, frames
        )
    ]
    for job in jobs:
        diffusion = job.config.diffusion
        assert diffusion is not None
        job.sampling.check(diffusion)
    for note in (note for subject in subjects for note in subject.notes):
        reporter.say(note)
    return Bench(
        "sample",
        [_figure(run, job, batch) for batch in batches for job in jobs],
        notes=[note for subject in subjects for note in subject.notes],
    )


def _figure(run: Run, job: SampleJob, batch: Batch) -> Figure:
    """Let a child do one job."""
    config, subject = job.config, job.subject
    name = f"{subject.name} {job.steps}, {job.frames} frames"
    found = run.measure("sample", name, job, batch, replace(job, extrapolate=True))
    clips = config.num_clips(job.frames)
    return Figure(
        bench="sample",
        subject=subject.name,
        settings={"steps": str(job.steps), "sampler": job.sampler, "frames": job.frames},
        unit="video",
        height=config.clip.height,
        width=config.clip.width,
        weights=subject.weights,
        extrapolated=job.extrapolate,
        **run.told(
            found,
            lambda batch: sampling_work(config, job.sampling, clips, batch, job.precision),
            job.precision,
        ),
    )


def measure(
    job: SampleJob,
    on_step: Callable[[], None] = nothing,
    on_excess: Callable[[], None] = nothing,
) -> dict[str, Any]:
    """Do the job in this process: build, warm up, time; JSON values."""
    device, meter = begin(job, on_excess)
    model = accelerate(build(job.subject, device, job.seed), job.precision)
    meter.restart()
    steps: list[tuple[float, float]] = []
    once = partial(_extrapolated, steps=steps) if job.extrapolate else _whole
    few = Steps(min(2, job.steps.first), min(2, job.steps.following))
    _synthesise(model, 2, replace(job, steps=few), on_step)
    timing = Timing.of(
        repeat(lambda: once(model, job, on_step), job.repeats),
        warm_up=f"2 clips of {few.first} and {few.following} steps",
    )
    found = outcome(timing, meter)
    if steps:
        seconds, processor = map(list, zip(*steps, strict=True))
        found["step"] = asdict(Timing.of(seconds, timing.warm_up, processor))
    return found


def _whole(model: Model, job: SampleJob, on_step: Callable[[], None]) -> float:
    """Time the whole video."""
    clips = model.config.num_clips(job.frames)
    return seconds_of(lambda: _synthesise(model, clips, job, on_step), model.device)


def _synthesise(model: Model, num_clips: int, job: SampleJob, on_step: Callable[[], None]) -> None:
    """Draw a batch of videos, frames leaving the device as each clip is ready."""
    draws = [generator(model.device, job.seed, i) for i in range(job.batch)]
    clips = rollout(
        model,
        num_clips,
        generators=draws,
        sampling=job.sampling,
        on_step=lambda k, num_steps: on_step(),
    )
    for x in clips:
        to_uint8(x).cpu()


def _extrapolated(
    model: Model, job: SampleJob, on_step: Callable[[], None], steps: list[tuple[float, float]]
) -> float:
    """Time a few steps without and with prefix and one decoding; multiply out.

    Args:
        model: Ready to sample.
        job: What whole video the time is wanted of.
        on_step: Called after each step.
        steps: Gets the seconds of a step of the first clip, on the wall and of the processor.
    """
    few = min(FEW, *job.steps)
    latent, device = model.config.latent, model.device
    draws = [generator(device, job.seed, i) for i in range(job.batch)]
    size = (job.batch, latent.c, latent.flat)
    z_prefix = torch.randn(size, generator=draws[0], device=device)
    sampling = replace(job.sampling, steps=Steps(few, few))
    _, schedule = model.require_denoiser(job.subject.name)

    def drawing(prefix: torch.Tensor | None) -> float:
        clip = rollout_latents(
            model,
            1,
            generators=draws,
            sampling=sampling,
            z_prefix=prefix,
            on_step=lambda k, num_steps: on_step(),
        )
        seconds, first = seconds_of(lambda: list(clip), device), prefix is None
        counts = [len(each.asked(schedule, first=first)) for each in (job.sampling, sampling)]
        return seconds * counts[0] / counts[1]

    def decode() -> None:
        with torch.inference_mode():
            to_uint8(model.autoencoder.decode(unflatten(z_prefix, latent))).cpu()

    began = time.process_time()
    first = drawing(None)
    processor = time.process_time() - began
    steps.append((first / len(job.sampling.asked(schedule, first=True)), processor / few))
    following, decoding = drawing(z_prefix), seconds_of(decode, device)
    more = model.config.num_clips(job.frames) - 1
    return first + decoding + more * (following + decoding)
