"""Videos -> latent cache.

Axes: b clips of a batch, s frames, H and W pixels, c latent channels, n flat length.
"""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pvdm_cli import files
from pvdm_cli.config import AS_STORED, Policy, parse_config
from pvdm_cli.data.cache_format import Identity, Rounding, Skipped, VideoRow
from pvdm_cli.data.cache_writer import SHARD_BYTES, SHARD_SECONDS, CacheWriter, Plan, Stamp
from pvdm_cli.data.catalog import Source
from pvdm_cli.data.feed import Clip, Ended, Failed, Job, feed
from pvdm_cli.data.labels import Labelled, say_missing
from pvdm_cli.data.source import original
from pvdm_cli.errors import ConfigError, DataError, ModelError, VideoError
from pvdm_cli.latents import flatten
from pvdm_cli.model import Model
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.runtime import autocast
from pvdm_cli.video import pixels


@dataclass(frozen=True)
class EncodeResult:
    """What is in a cache now, and what this run has added."""

    out: Path
    videos: int
    clips: int
    new_clips: int
    bytes: int
    fps: float | None
    seconds: float
    skipped: list[Skipped]
    classes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # listed with a class, but not there

    @property
    def clips_per_second(self) -> float:
        """Speed of this run."""
        return self.new_clips / self.seconds if self.seconds else 0.0


def encode_videos(
    model: Model,
    sources: Sequence[Source],
    out: Path,
    *,
    window_stride: int | None = None,
    frame_stride: int | None = None,
    policy: Policy = AS_STORED,
    batch_size: int = 8,
    precision: str = "fp32",
    strict: bool = False,
    keep_partial: bool = False,
    by_hash: bool = False,
    reporter: Reporter = SILENT,
    shard_bytes: int = SHARD_BYTES,
    shard_seconds: float = SHARD_SECONDS,
    hints: tuple[str, str] | None = None,
    origin: Mapping[str, Any] | None = None,
    labelled: Labelled | None = None,
    command: Sequence[str] = (),
) -> EncodeResult:
    """Encode videos into a latent cache; the same call again continues or does nothing.

    Args:
        model: Its autoencoder encodes, on the device it is on.
        sources: The videos.
        out: The cache folder.
        window_stride: Frames between the starts of two clips; None: clips touch.
        frame_stride: Take every so-many-th frame; None: as the model has it.
        policy: What else decides how clips are cut out of the videos.
        batch_size: Clips per forward pass, of one or several videos.
        precision: fp32 | bf16 | fp16 arithmetic; the cache is fp16 anyway.
        strict: Stop at the first video that cannot be used.
        keep_partial: Keep the frames before a decode error instead of skipping the video.
        by_hash: Know a video by the hash of its content, not by its name, size and time.
        reporter: Told about progress and skipped videos.
        shard_bytes: A shard closes at this size ...
        shard_seconds: ... or after this time.
        hints: Where the model and the videos are, for the manifest.
        origin: How the videos were chosen, for the manifest.
        labelled: Classes of the videos; None: they have none.
        command: Words of the command that does this, for the manifest.

    Raises:
        DataError: If the cache cannot be continued, no video can be used, or (strict) one.
    """
    began = time.monotonic()
    missing = labelled.missing if labelled else []
    if missing:
        reporter.say(say_missing(missing))
    identity = identity_of(
        model,
        window_stride,
        frame_stride=frame_stride,
        policy=policy,
        precision=precision,
        keep_partial=keep_partial,
    )
    autoencoder, source = hints or (None, None)
    with CacheWriter(
        out,
        identity,
        shard_bytes=shard_bytes,
        shard_seconds=shard_seconds,
        autoencoder=autoencoder,
        source=source,
        command=command,
        **(origin or {}),
    ) as writer:
        classes = (labelled.names, labelled.of) if labelled and labelled.names else ()
        plan = writer.plan(_stamps(sources, by_hash, reporter), *classes)
        _say_changes(plan, reporter)
        run = _Run(model, identity, writer, batch_size, strict, reporter)
        if not writer.complete:
            run.encode(plan.todo, {source.name: source for source in sources})
            writer.finish()
        manifest, skipped = writer.manifest, writer.skipped
    if not manifest.clips:
        raise DataError(
            f"none of the {len(sources)} videos could be encoded; {out}/skipped.jsonl says why "
            f"(the first: {skipped[0].path}: {skipped[0].reason})"
        )
    return EncodeResult(
        out=out,
        videos=manifest.videos,
        clips=manifest.clips,
        new_clips=run.clips,
        bytes=manifest.bytes,
        fps=manifest.fps,
        seconds=time.monotonic() - began,
        skipped=skipped,
        classes=list(manifest.labels),
        missing=missing,
    )


def identity_of(
    model: Model,
    window_stride: int | None = None,
    *,
    frame_stride: int | None = None,
    policy: Policy = AS_STORED,
    precision: str = "fp32",
    keep_partial: bool = False,
) -> Identity:
    """What all clips of a cache made by this model share; a rate takes the place of a stride.

    Raises:
        ConfigError: If a stride is below 1, stride and rate are given, or the precision unknown.
    """
    if policy.rate is not None:
        if frame_stride is not None:
            raise ConfigError("--rate picks frames by time, --frame-stride by number; give one")
        frame_stride = 1
    clip = model.config.clip.model_dump()
    return parse_config(
        Identity,
        {
            "fingerprint": model.fingerprint,
            "clip": clip if frame_stride is None else {**clip, "frame_stride": frame_stride},
            "patch": model.config.autoencoder.patch,
            "channels": model.config.autoencoder.latent_channels,
            "window_stride": model.config.clip.frames if window_stride is None else window_stride,
            "precision": precision,
            "keep_partial": keep_partial,
            "policy": policy,
        },
        where="encode",
    )


def stamp(source: Source, *, by_hash: bool = False) -> Stamp:
    """Note size and mtime of a video file, or of all frames of a folder.

    Args:
        source: The video.
        by_hash: Also hash its content.

    Raises:
        DataError: If it is gone.
    """
    digest = None
    try:
        inside = sorted(source.path.iterdir()) if source.path.is_dir() else [source.path]
        stats = [path.stat() for path in inside]
        if by_hash:
            hashes = [files.sha256(path) for path in inside if path.is_file()]
            # A file's own hash, and that of the hashes for a folder of frames.
            joined = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
            digest = joined if source.path.is_dir() else hashes[0]
    except OSError as error:
        raise DataError(f"{source.path}: {error.strerror}") from error
    newest = max((stat.st_mtime_ns for stat in stats), default=0)
    return Stamp(source.name, sum(stat.st_size for stat in stats), newest, digest)


def _stamps(sources: Sequence[Source], by_hash: bool, reporter: Reporter) -> list[Stamp]:
    """Note what the videos are; hashing shows its progress."""
    if not by_hash:
        return [stamp(source) for source in sources]
    reporter.start("hashing", total=len(sources), unit="video")
    found = []
    for source in sources:
        found.append(stamp(source, by_hash=True))
        reporter.advance(1)
    reporter.done()
    return found


class _Run:
    """One pass over the videos that lack clips."""

    def __init__(
        self,
        model: Model,
        identity: Identity,
        writer: CacheWriter,
        batch_size: int,
        strict: bool,
        reporter: Reporter,
    ) -> None:
        self.clips = 0
        self._model, self._identity, self._writer = model, identity, writer
        self._batch_size, self._strict, self._reporter = batch_size, strict, reporter
        self._names: dict[int, str] = {}
        self._labels: dict[int, int] = {}

    def encode(self, todo: Sequence[VideoRow], sources: dict[str, Source]) -> None:
        """Decode, batch, encode, write. The last batch may be small."""
        jobs = [
            Job(
                row.video,
                sources[row.path].piece,
                self._writer.present(row.video),
                original(row.path),
                sources[row.path].mirrored,
            )
            for row in todo
        ]
        self._names = {row.video: row.path for row in todo}
        self._labels = {row.video: row.label for row in todo}
        batch: list[Clip] = []
        ahead = max(4, 2 * self._batch_size)
        self._reporter.start("encoding", total=len(jobs), unit="video")
        threads = _decoding_threads(self._model.device)
        with closing(feed(jobs, self._identity, threads=threads, ahead=ahead)) as events:
            for event in events:
                if isinstance(event, Clip):
                    batch.append(event)
                else:
                    self._note(event)
                if len(batch) == self._batch_size:
                    self._encode(batch)
                    batch = []
        if batch:
            self._encode(batch)
        self._reporter.done()

    def _encode(self, batch: list[Clip]) -> None:
        """Pass one batch through the network and on to the writer."""
        z, rounding = encode_measured(
            self._model, np.stack([clip.frames for clip in batch]), self._identity.precision
        )
        if not np.isfinite(z).all():
            raise ModelError(
                f"the autoencoder gives no finite latents for {self._names[batch[0].video]} with "
                f"precision {self._identity.precision}; use fp32, or train it further"
            )
        rows = [(clip.video, clip.first, self._labels[clip.video]) for clip in batch]
        self._writer.add(np.array(rows, dtype=np.int64), z, rounding)
        self.clips += len(batch)
        self._reporter.advance(0, clips=self.clips)

    def _note(self, event: Ended | Failed) -> None:
        """Record the end of a video, good or bad."""
        name = self._names[event.video]
        if isinstance(event, Failed):
            if self._strict:
                raise VideoError(f"{name}: {event.reason}; leave out --strict to skip such videos")
            self._writer.skip_video(event.video, event.reason)
            self._reporter.say(f"skipped {name}: {event.reason}")
        else:
            self._writer.end_video(event.video, frames=event.frames, fps=event.fps, note=event.note)
            if event.note:
                self._reporter.say(f"{name}: {event.note}")
        self._reporter.advance(1)


def encode_clips(
    model: Model, frames: NDArray[np.uint8], precision: str = "fp32"
) -> NDArray[np.float16]:
    """Encode clips uint8 [b, s, H, W, 3] to flat latents fp16 [b, c, n]."""
    return encode_measured(model, frames, precision)[0]


def encode_measured(
    model: Model, frames: NDArray[np.uint8], precision: str = "fp32"
) -> tuple[NDArray[np.float16], Rounding]:
    """Encode clips as `encode_clips` does, and tell what rounding to fp16 has cost."""
    with torch.inference_mode(), autocast(model.device, precision):
        x = pixels.to_float(torch.from_numpy(frames).to(model.device))
        z = flatten(model.autoencoder.encode(x))
        cached = z.to(torch.float16)
        error = cached.float() - z.float()
        largest, squares = torch.stack([error.abs().amax(), error.square().sum()]).tolist()
        return cached.cpu().numpy(), Rounding(largest, squares)


def _decoding_threads(device: torch.device) -> int:
    """One thread keeps a CPU's network busy; an accelerator needs more."""
    return 1 if device.type == "cpu" else min(4, os.cpu_count() or 1)


def _say_changes(plan: Plan, reporter: Reporter) -> None:
    """Tell what differs from the last time, if there was one."""
    if plan.relabelled:
        reporter.say(f"{plan.relabelled} videos that are encoded already get another class")
    if plan.damaged:
        reporter.say(f"damaged or missing shards: {plan.damaged}; their clips are encoded anew")
    if plan.moved:
        reporter.say(f"{plan.moved} videos are known under another name: not encoded again")
    if plan.changed or plan.removed:
        reporter.say(
            f"since the last time {plan.added} videos are new, {plan.changed} changed (encoded "
            f"anew) and {plan.removed} gone (their clips are dropped)"
        )
