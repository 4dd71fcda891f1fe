"""What a data set holds, and what it would make of a cache: `pvdm data ls`."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pvdm_cli.data.cache_format import Identity
from pvdm_cli.data.feed import Clip, Here, Job, feed
from pvdm_cli.data.framing import geometry_of
from pvdm_cli.data.labels import Labelled
from pvdm_cli.data.source import Source, original
from pvdm_cli.encoder import encode_clips
from pvdm_cli.errors import VideoError
from pvdm_cli.model import Model
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.video.read import VideoInfo, probe, stream

INDEX_BYTES = 24  # video, first frame and label of a clip
TRIED_VIDEOS, TRIED_CLIPS = 6, 4  # videos that the speed is measured on, and clips of each

Counted = Literal["header", "estimate", "decoding"]


class Look(NamedTuple):
    """What is known about one video.

    Attributes:
        name: As in a cache.
        info: Size, rate, codec.
        frames: As stored.
        counted: Who counted them: a header that can be trusted, one that may err, or decoding.
        length: Frames at the frame stride or rate.
        clips: That it gives.
    """

    name: str
    info: VideoInfo
    frames: int
    counted: Counted
    length: int
    clips: int


@dataclass
class Survey:
    """A data set, and the cache that `pvdm encode` would make of it with the same options.

    Attributes:
        root: Where it is.
        identity: Of that cache.
        looks: The videos that can be read.
        broken: Reason by name, of those that cannot.
        short: Reason by name, of those too short for a clip.
        missing: Named in a table or list, but not there.
        labels: Videos by class, of those that can be read.
        full: Every video was decoded to its end.
        seconds: Time that encoding takes here; None: not measured.
        tried: Clips that it was measured on.
        device: Where.
    """

    root: Path
    identity: Identity
    looks: list[Look] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    short: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    full: bool = False
    seconds: float | None = None
    tried: int = 0
    device: str = "cpu"

    @property
    def clips(self) -> int:
        """Clips of all videos."""
        return sum(look.clips for look in self.looks)

    @property
    def bytes(self) -> int:
        """Size of the cache."""
        shape = self.identity.shape
        itemsize = np.dtype(self.identity.dtype).itemsize
        return self.clips * (shape.c * shape.flat * itemsize + INDEX_BYTES)

    @property
    def hours(self) -> float:
        """Running time of the videos whose rate is known."""
        assumed = self.identity.policy.fps
        rates = [(look.frames, look.info.fps or assumed) for look in self.looks]
        return sum(frames / rate for frames, rate in rates if rate) / 3600

    def counts(self) -> dict[str, dict[str, int]]:
        """Videos by resolution, rate, codec and class, the most frequent first."""
        infos = [look.info for look in self.looks]
        found = {
            "resolution": Counter(f"{info.width}x{info.height}" for info in infos),
            "rate": Counter("unknown" if i.fps is None else f"{i.fps:.5g} fps" for i in infos),
            "codec": Counter(info.codec for info in infos),
            "label": Counter(self.labels),
        }
        return {what: dict(counts.most_common()) for what, counts in found.items()}

    def facts(self) -> dict[str, Any]:
        """All of it for machines."""
        return {
            "root": str(self.root),
            "videos": len(self.looks) + len(self.broken),
            "usable": sum(look.clips > 0 for look in self.looks),
            "frames": sum(look.frames for look in self.looks),
            "frames_counted_by": dict(Counter(look.counted for look in self.looks)),
            "hours": self.hours,
            **{f"{what}s": counts for what, counts in self.counts().items()},
            "broken": [{"path": path, "reason": why} for path, why in self.broken.items()],
            "short": [{"path": path, "reason": why} for path, why in self.short.items()],
            "missing": self.missing,
            "full": self.full,
            "clips": self.clips,
            "cache_bytes": self.bytes,
            "encode_seconds": self.seconds,
            "measured_clips": self.tried,
            "device": self.device,
            "clip": self.identity.clip.model_dump(),
            "window_stride": self.identity.window_stride,
            "policy": self.identity.policy.model_dump(),
        }


def survey(
    root: Path,
    found: Labelled,
    model: Model,
    identity: Identity,
    *,
    full: bool = False,
    timed: bool = True,
    reporter: Reporter = SILENT,
) -> Survey:
    """Look at every video of a data set.

    Args:
        root: Where it is.
        found: Its videos and their classes.
        model: Its autoencoder makes the cache.
        identity: Of that cache.
        full: Decode every video to its end: finds damage inside, and counts frames for certain.
        timed: Measure how long encoding takes, on a few clips.
        reporter: Told of progress.
    """
    seen = Survey(root, identity, missing=found.missing, full=full, device=str(model.device))
    looks: dict[str, Look | VideoError] = {}  # a mirrored copy is not read again
    labels: Counter[str] = Counter()
    reporter.start("reading" if full else "looking", len(found.sources), "video")
    for source in found.sources:
        name = original(source.name)
        if name not in looks:
            looks[name] = _try(source, identity, full)
        look = looks[name]
        if isinstance(look, VideoError):
            seen.broken[source.name] = str(look).removeprefix(f"{source.path}: ")
        else:
            seen.looks.append(look._replace(name=source.name))
            if not look.clips:
                seen.short[source.name] = (
                    f"{look.length} frames, a clip needs {identity.clip.frames}"
                )
            if source.name in found.of:
                labels[found.of[source.name]] += 1
        reporter.advance()
    reporter.done()
    seen.labels = dict(labels)
    if timed and seen.clips:
        clips = {look.name: look.clips for look in seen.looks if look.clips}
        usable = [source for source in found.sources if source.name in clips]
        per_clip, seen.tried = seconds_per_clip(model, usable, identity, reporter)
        seen.seconds = per_clip * seen.clips if seen.tried else None
    return seen


def _try(source: Source, identity: Identity, full: bool) -> Look | VideoError:
    """Look at one video; an error is a result."""
    try:
        return _look(source, identity, full)
    except VideoError as error:
        return error


def _look(source: Source, identity: Identity, full: bool) -> Look:
    """Look at one video.

    Raises:
        VideoError: If it is damaged, as far as that is looked for.
    """
    policy, stride = identity.policy, identity.clip.frame_stride
    info = probe(source.piece, fps=policy.fps)
    if info.truncated:
        raise VideoError(f"{source.path}: truncated: the file is shorter than it says")
    if policy.rate is not None and not (info.fps or policy.fps):
        raise VideoError(
            f"{source.path}: has no frame rate of its own; give one by --fps (data.fps in training)"
        )
    counted: Counted = "header" if info.num_frames is not None else "estimate"
    length = info.about(rate=policy.rate, fps=policy.fps)
    if full or length is None:
        geometry = geometry_of(identity.clip, policy, source.name)
        length = sum(1 for _ in stream(source.piece, geometry, rate=policy.rate, fps=policy.fps))
        counted = "decoding"
    frames = info.estimate
    if frames is None or (full and policy.rate is None):
        frames = length
    length = -(-length // stride)
    return Look(source.name, info, frames, counted, length, identity.num_windows(length))


def seconds_per_clip(
    model: Model, sources: Sequence[Source], identity: Identity, reporter: Reporter = SILENT
) -> tuple[float, int]:
    """Measure decoding and encoding on a few clips of videos from all over a list.

    Returns:
        Seconds for one clip, and how many it was measured on.
    """
    step = max(1, len(sources) // TRIED_VIDEOS)
    chosen = sources[::step][:TRIED_VIDEOS]
    reporter.start("measuring", len(chosen), "video")
    spent, clips = 0.0, 0
    for number, source in enumerate(chosen):
        for again in range(2 if number == 0 else 1):  # the very first pass warms up
            began = time.perf_counter()
            job = Job(0, source.piece, name=source.name, mirror=source.mirrored)
            with closing(feed([job], [Here(identity)])) as events:
                windows = (event.frames for event in events if isinstance(event, Clip))
                batch = list(islice(windows, TRIED_CLIPS))
            if batch:
                encode_clips(model, np.stack(batch), identity.precision)
            if again or number:
                spent += time.perf_counter() - began
                clips += len(batch)
        reporter.advance()
    reporter.done()
    return (spent / clips if clips else 0.0), clips
