"""Files: video files to clips, clips to a latent cache, and pairs of clips out of it.

Everything is drawn first and lies in the system's cache of files, so disks are not measured but
for what writing waits for. Axes: k clips, c latent channels, n flat latent length.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch

from pvdm_cli.benchmark.figure import Bench, Figure
from pvdm_cli.benchmark.floor import Work
from pvdm_cli.benchmark.noise import write_cache
from pvdm_cli.benchmark.run import Job, Run
from pvdm_cli.benchmark.subjects import Subject, find_subject
from pvdm_cli.benchmark.work import begin, nothing, timed
from pvdm_cli.config import ModelConfig, parse_config
from pvdm_cli.data.cache import Cache
from pvdm_cli.data.cache_format import Identity
from pvdm_cli.data.feed import Clip, Here, feed
from pvdm_cli.data.feed import Job as Video
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.runtime import resolve_device
from pvdm_cli.video.synthetic import write_skies

Moved = Literal["video files", "cache writing", "cache reading", "cache in memory"]

HEIGHT, WIDTH = 240, 320  # of the video files, as those of UCF-101
VIDEOS, CLIPS_EACH = 4, 3  # read each time; all are the same file
PAIRS, TOGETHER = 512, 16  # pairs of clips read, so many at a time
UNITS = {"video files": "clip", "cache writing": "clip"}  # else pair


@dataclass(frozen=True, kw_only=True)
class IoJob(Job):
    """Data moved between files and memory."""

    subject: Subject
    moved: Moved

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """Read a job that went through JSON."""
        return cls(**{**values, "subject": Subject(**values["subject"])})


def bench_io(
    names: Sequence[str] = ("demo",),
    *,
    repeats: int | None = None,
    seed: int = 0,
    deadline: float | None = None,
    reporter: Reporter = SILENT,
) -> Bench:
    """Measure how fast clips come out of video files, go into a latent cache and come out of it.

    Args:
        names: Models and presets; the sizes of their clips and latents count.
        repeats: Of each; None: 3, fewer once 20 s are spent.
        seed: Of the video, the latents and the order of reading.
        deadline: When everything must be over, by `time.monotonic`.
        reporter: Told of every repeat.

    Raises:
        PvdmError: If something named is not there.
    """
    subjects = [find_subject(name, samples=False) for name in names]
    cpu = resolve_device("cpu")
    run = Run(device=cpu, repeats=repeats, seed=seed, deadline=deadline, reporter=reporter)
    figures = [
        _figure(run, IoJob(subject=subject, moved=moved, **run.common))
        for subject in subjects
        for moved in get_args(Moved)
    ]
    notes = [note for subject in subjects for note in subject.notes]
    return Bench("io", figures, published=[], notes=notes)


def _figure(run: Run, job: IoJob) -> Figure:
    """Let a child do one job."""
    config = parse_config(ModelConfig, job.subject.config, where=job.subject.name)
    reads = job.moved in ("cache reading", "cache in memory")
    count = VIDEOS * CLIPS_EACH if job.moved == "video files" else PAIRS
    found = run.measure("io", f"{job.moved} for {job.subject.name}", job, count)
    settings: dict[str, Any] = {"moved": job.moved, "frames": config.clip.frames}
    if job.moved == "video files":
        settings["from"] = f"{HEIGHT} x {WIDTH} mp4"

    def copied(pairs: int) -> Work:
        """Count both clips of each pair, once read and once written."""
        size = pairs * 2 * 2 * config.latent.c * config.latent.flat * np.dtype(np.float16).itemsize
        return Work(0, size, 0)

    return Figure(
        bench="io",
        subject=job.subject.name,
        settings=settings,
        unit=UNITS.get(job.moved, "pair"),
        height=config.clip.height,
        width=config.clip.width,
        **run.told(found, copied if reads else None, "uint8" if settings.get("from") else "fp16"),
    )


def measure(
    job: IoJob,
    on_step: Callable[[], None] = nothing,
    on_excess: Callable[[], None] = nothing,
) -> dict[str, Any]:
    """Draw the data, then move it, in this process; JSON values."""
    device, meter = begin(job, on_excess)
    config = parse_config(ModelConfig, job.subject.config, where=job.subject.name)
    with tempfile.TemporaryDirectory(prefix="pvdm-bench-") as folder:
        works = {
            "video files": _reading_videos,
            "cache writing": _writing,
            "cache reading": _reading,
            "cache in memory": _in_memory,
        }
        work = works[job.moved](config, job, Path(folder))
        meter.restart()
        return timed(work, job, device, meter, on_step, "time")


def _reading_videos(config: ModelConfig, job: IoJob, folder: Path) -> Callable[[], None]:
    """Cut one video file into clips, again and again, as `pvdm encode` does on a CPU."""
    clip = config.clip
    frames = CLIPS_EACH * clip.frames * clip.frame_stride
    (path,) = write_skies(folder, 1, frames=frames, seed=job.seed, height=HEIGHT, width=WIDTH)
    identity = Identity(
        fingerprint="0" * 64,
        clip=clip,
        patch=config.autoencoder.patch,
        channels=config.latent.c,
        window_stride=clip.frames,
    )

    def work() -> None:
        with closing(feed([Video(k, path) for k in range(VIDEOS)], [Here(identity)])) as events:
            clips = sum(isinstance(event, Clip) for event in events)
        assert clips == job.batch, clips

    return work


def _writing(config: ModelConfig, job: IoJob, folder: Path) -> Callable[[], None]:
    """Write a cache and take it away again."""
    z = _latents(config, job)

    def work() -> None:
        write_cache(config, folder / "cache", z)
        shutil.rmtree(folder / "cache")

    return work


def _reading(config: ModelConfig, job: IoJob, folder: Path) -> Callable[[], None]:
    """Read pairs in any order from the files of a cache."""
    return _pairs(config, job, folder, in_memory=False)


def _in_memory(config: ModelConfig, job: IoJob, folder: Path) -> Callable[[], None]:
    """Read pairs in any order from a cache in memory."""
    return _pairs(config, job, folder, in_memory=True)


def _pairs(config: ModelConfig, job: IoJob, folder: Path, *, in_memory: bool) -> Callable[[], None]:
    write_cache(config, folder / "cache", _latents(config, job))
    cache = Cache.open(folder / "cache", in_memory=in_memory)
    pairs = cache.pairs(config.diffusion.overlap if config.diffusion else 0)
    chosen = np.random.default_rng(job.seed).integers(len(pairs.first), size=job.batch)
    order = torch.from_numpy(chosen)

    def work() -> None:
        for rows in order.split(TOGETHER):
            cache.read(pairs.first[rows])
            cache.read(pairs.next[rows])

    return work


def _latents(config: ModelConfig, job: IoJob) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Draw as many latents [k, c, n] as there are pairs."""
    latent = config.latent
    draw = np.random.default_rng(job.seed)
    return draw.uniform(-1, 1, (job.batch, latent.c, latent.flat)).astype(np.float16)
