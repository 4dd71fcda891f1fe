"""Seconds and memory of the autoencoder alone: clips to latents and back.

What `pvdm encode` and `pvdm decode` do with a batch, between the decoder of video files and the
cache: to the device, through the network, and back. Weights and clips are random.

Axes: b clips, s frames, H x W pixels, c latent channels, n flat length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, Self

import numpy as np
import torch

from pvdm_cli.acceleration import accelerate
from pvdm_cli.benchmark.figure import Bench, Figure
from pvdm_cli.benchmark.floor import coding_work
from pvdm_cli.benchmark.maximum import limit_of
from pvdm_cli.benchmark.run import Batch, Job, Run
from pvdm_cli.benchmark.subjects import Subject, build_autoencoder, find_subject
from pvdm_cli.benchmark.work import begin, nothing, timed
from pvdm_cli.config import ModelConfig, parse_config
from pvdm_cli.decoding import decode_clips
from pvdm_cli.encoder import encode_clips
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.runtime import generator, resolve_device

Way = Literal["encode", "decode"]

BATCHES = (1, 4)


@dataclass(frozen=True, kw_only=True)
class CodingJob(Job):
    """Batches of clips encoded or decoded."""

    subject: Subject
    way: Way
    precision: str = "fp32"

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """Read a job that went through JSON."""
        return cls(**{**values, "subject": Subject(**values["subject"])})


def bench_coding(
    way: Way,
    names: Sequence[str] = ("demo",),
    *,
    precisions: Sequence[str] = ("fp32",),
    batches: Sequence[Batch] = BATCHES,
    memory_limit: int | None = None,
    max_batch: int | None = None,
    repeats: int | None = None,
    seed: int = 0,
    device: str = "auto",
    deadline: float | None = None,
    reporter: Reporter = SILENT,
) -> Bench:
    """Measure how long encoding or decoding takes and what memory it needs.

    Args:
        way: encode | decode.
        names: Models and presets of either stage; their autoencoders are measured.
        precisions: fp32 | bf16 | fp16 arithmetic; each is measured.
        batches: Clips of one pass, each is measured; None is the most that fit.
        memory_limit: Bytes that they must fit in; None: the card, or 80 % of the free memory.
        max_batch: Where the search for the most stops; None: 64, on CUDA 1024.
        repeats: Of each; None: 3, fewer once 20 s are spent.
        seed: Of random weights and clips.
        device: cpu | cuda | mps | auto.
        deadline: When everything must be over, by `time.monotonic`.
        reporter: Told of every pass.

    Raises:
        PvdmError: If something named is not there.
    """
    subjects = [find_subject(name, samples=False) for name in names]
    target = resolve_device(device)
    run = Run(
        device=target,
        repeats=repeats,
        limit=limit_of(memory_limit, target) if None in batches or memory_limit else None,
        max_batch=max_batch,
        seed=seed,
        deadline=deadline,
        reporter=reporter,
    )
    return Bench(
        way,
        [
            _figure(run, CodingJob(subject=subject, way=way, precision=each, **run.common), batch)
            for subject, each, batch in product(subjects, precisions, batches)
        ],
        published=[],
        notes=[note for subject in subjects for note in subject.notes],
    )


def _figure(run: Run, job: CodingJob, batch: Batch) -> Figure:
    """Let a child do one job."""
    config = parse_config(ModelConfig, job.subject.config, where=job.subject.name)
    found = run.measure("coding", f"{job.way} {job.subject.name}", job, batch)
    clip = config.clip
    return Figure(
        bench=job.way,
        subject=job.subject.name,
        settings={"frames": clip.frames},
        unit="clip",
        height=clip.height,
        width=clip.width,
        weights="random",
        **run.told(
            found,
            lambda batch: coding_work(config, job.way, batch, job.precision),
            job.precision,
        ),
    )


def measure(
    job: CodingJob,
    on_step: Callable[[], None] = nothing,
    on_excess: Callable[[], None] = nothing,
) -> dict[str, Any]:
    """Do the job in this process: build, warm up, time; JSON values."""
    device, meter = begin(job, on_excess)
    model = accelerate(build_autoencoder(job.subject, device, job.seed), job.precision)
    clip, latent = model.config.clip, model.config.latent
    shape = (job.batch, clip.frames, clip.height, clip.width, 3)
    frames = np.random.default_rng(job.seed).integers(256, size=shape, dtype=np.uint8)
    z = torch.empty(job.batch, latent.c, latent.flat).uniform_(
        -1, 1, generator=generator("cpu", job.seed)
    )
    meter.restart()

    def work() -> None:
        if job.way == "encode":
            encode_clips(model, frames)
        else:
            decode_clips(model, z)

    return timed(work, job, device, meter, on_step, "batch")
