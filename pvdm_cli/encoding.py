"""Videos -> latent cache.

Axes: b clips of a batch, s frames, H and W pixels, c latent channels, n flat length.
"""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pvdm_cli import files
from pvdm_cli.config import AS_STORED, Policy, parse_config
from pvdm_cli.data.cache_appender import SHARD_BYTES, SHARD_SECONDS, Appender
from pvdm_cli.data.cache_format import Identity, Manifest, Skipped
from pvdm_cli.data.cache_writer import CacheWriter, Plan, Stamp
from pvdm_cli.data.catalog import Source
from pvdm_cli.data.decoder import POSSIBLE, Process
from pvdm_cli.data.feed import Decoder, Here
from pvdm_cli.data.labels import Labelled, say_missing
from pvdm_cli.encoder import Encoder
from pvdm_cli.errors import ConfigError, DataError
from pvdm_cli.model import Model
from pvdm_cli.pipeline import Speed, Work, encode_together
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.ranks import here

MAX_DECODERS = 4  # by default, for one accelerator
LAST_WORDS = 15.0  # seconds that processes without their launcher have to save what they hold


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
    speed: Speed = field(default_factory=Speed)

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
    batch_size: int | None = None,
    workers: int | None = 0,
    precision: str = "fp32",
    compiled: bool = False,
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
        batch_size: Clips per forward pass, of one or several videos; None: what suits the device.
            It is halved where memory runs out.
        workers: Decoding processes; 0: threads of this one; None: as many as the device needs.
        precision: fp32 | bf16 | fp16 arithmetic; the cache is fp16 anyway.
        compiled: The encoder is compiled, so that all batches have to be of one size.
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
    ranks = here()
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
    with ExitStack() as stack:
        writer = CacheWriter(
            out,
            identity,
            shard_bytes=shard_bytes,
            shard_seconds=shard_seconds,
            autoencoder=autoencoder,
            source=source,
            command=command,
            patience=LAST_WORDS if ranks.size > 1 else 0.0,
            **(origin or {}),
        )

        def prepare() -> tuple[Work, list[int]]:
            stack.enter_context(writer)
            classes = (labelled.names, labelled.of) if labelled and labelled.names else ()
            plan = writer.plan(_stamps(sources, by_hash, reporter), *classes)
            _say_changes(plan, reporter)
            named = {source.name: source for source in sources}
            have = {row.video: writer.present(row.video) for row in plan.todo}
            work = Work(plan.todo, {row.path: named[row.path] for row in plan.todo}, have)
            return work, [writer.next_shard(rank) for rank in range(ranks.size)]

        def finish() -> tuple[Manifest, list[Skipped]]:
            return writer.manifest if writer.complete else writer.finish(), writer.skipped

        work, next_shards = ranks.first(prepare)
        speed = Speed()
        if work.todo:
            appender: Appender = writer
            if not ranks.main:
                number = next_shards[ranks.rank]
                appender = Appender(
                    out,
                    identity.shape,
                    shard_bytes=shard_bytes,
                    shard_seconds=shard_seconds,
                    rank=ranks.rank,
                    next_shard=number,
                )
                stack.enter_context(appender)
            encoder = Encoder(
                model,
                batch_size=batch_size,
                precision=precision,
                compiled=compiled,
                reporter=reporter,
            )
            decoders = decoders_for(identity, model.device, workers)
            speed = encode_together(
                ranks, work, identity, encoder, appender, decoders, strict=strict, reporter=reporter
            )
        manifest, skipped = ranks.first(finish)
    if not manifest.clips:
        raise DataError(
            f"none of the {len(sources)} videos could be encoded; {out}/skipped.jsonl says why "
            f"(the first: {skipped[0].path}: {skipped[0].reason})"
        )
    return EncodeResult(
        out=out,
        videos=manifest.videos,
        clips=manifest.clips,
        new_clips=speed.clips,
        bytes=manifest.bytes,
        fps=manifest.fps,
        seconds=time.monotonic() - began,
        skipped=skipped,
        classes=list(manifest.labels),
        missing=missing,
        speed=speed,
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


def decoders_for(identity: Identity, device: torch.device, workers: int | None) -> list[Decoder]:
    """Make what decodes.

    Args:
        identity: Clip geometry and policy.
        device: Where the network is: one decoder keeps a CPU's busy, an accelerator needs more.
        workers: Decoding processes; 0: threads of this one; None: as many as the device needs.
    """
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed = 1 if device.type == "cpu" else max(1, min(MAX_DECODERS, cores))
    if workers is None:
        workers = needed if POSSIBLE else 0
    return [Process(identity) for _ in range(workers)] or [Here(identity) for _ in range(needed)]


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
