"""Clips of many videos, decoded in the background while the network works on the ones before.

Axes: s frames of a clip, H and W pixels.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pvdm_cli.background import merged
from pvdm_cli.clock import Clock
from pvdm_cli.data.cache_format import Identity
from pvdm_cli.data.framing import geometry_of, lengthened, mirrored
from pvdm_cli.errors import VideoError
from pvdm_cli.video import read

Frame = NDArray[np.uint8]


class Job(NamedTuple):
    """A video to cut into clips, but for those at the given first frames."""

    video: int
    path: read.Readable
    have: AbstractSet[int] = frozenset()
    name: str = ""  # a random crop goes by it
    mirror: bool = False


class Clip(NamedTuple):
    """One window of a video."""

    video: int
    first: int  # frame of the source
    frames: Frame  # uint8 [s, H, W, 3]


class Ended(NamedTuple):
    """A video has given all its clips."""

    video: int
    frames: int  # at the frame stride or rate
    fps: float | None  # of the source
    note: str | None  # the decode error that --keep-partial has let pass


class Failed(NamedTuple):
    """A video cannot be used; clips it has given before do not count."""

    video: int
    reason: str


Event = Clip | Ended | Failed


def clips_of(job: Job, identity: Identity) -> Iterator[Event]:
    """Decode one video into clips, holding no more than one clip's frames at a time."""
    clip, policy = identity.clip, identity.policy
    path = read.file_of(job.path)
    finished: Callable[[Frame], Frame] = mirrored if job.mirror else _as_is
    count, fps, note = 0, None, None
    window: list[Frame] = []
    try:
        fps = read.probe(job.path).fps or policy.fps
        geometry = geometry_of(clip, policy, job.name)
        frames = read.stream(
            job.path, geometry, stride=clip.frame_stride, rate=policy.rate, fps=policy.fps
        )
        for frame in frames:
            if _in_a_window(count, clip.frames, identity.window_stride):
                window.append(frame)
            count += 1
            if len(window) == clip.frames:
                first = (count - clip.frames) * clip.frame_stride
                if first not in job.have:
                    yield Clip(job.video, first, finished(np.stack(window)))
                window = window[identity.window_stride :]
    except VideoError as error:
        reason = str(error).removeprefix(f"{path}: ")  # the list says of which video
        if not identity.keep_partial or count < clip.frames:
            yield Failed(job.video, reason)
            return
        note = f"kept {count} frames: {reason}"
    if 0 < count < clip.frames and policy.short != "skip":
        if 0 not in job.have:
            longer = lengthened(np.stack(window), clip.frames, policy.short)
            yield Clip(job.video, 0, finished(longer))
        yield Ended(job.video, count, fps, f"{count} frames made {clip.frames}: {policy.short}")
    elif count < clip.frames:
        at = f" at frame stride {clip.frame_stride}" if clip.frame_stride > 1 else ""
        at = at if policy.rate is None else f" at {policy.rate:g} a second"
        yield Failed(job.video, f"only {count} frames{at}, a clip needs {clip.frames}")
    else:
        yield Ended(job.video, count, fps, note)


def _as_is(frames: Frame) -> Frame:
    """Leave a clip as it is."""
    return frames


def _in_a_window(number: int, frames: int, stride: int) -> bool:
    """Whether a frame belongs to any window: with stride > frames some lie between two."""
    return number % stride < frames


class Decoder(Protocol):
    """Something that decodes one video at a time."""

    def decode(self, job: Job) -> Iterator[tuple[Event, float]]:
        """Yield the events of a video, each with the seconds that it took to make."""

    def close(self) -> None:
        """Let go of what is held; may be called twice."""


class Here:
    """Decodes in the thread that asks (the decoder releases Python's lock)."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def decode(self, job: Job) -> Iterator[tuple[Event, float]]:
        """Yield the events of a video, each with the seconds that it took to make."""
        return timed(clips_of(job, self._identity))

    def close(self) -> None:
        """Nothing is held."""


def timed(events: Iterator[Event]) -> Iterator[tuple[Event, float]]:
    """Measure how long each event takes to make."""
    began = time.perf_counter()
    for event in events:
        yield event, time.perf_counter() - began
        began = time.perf_counter()


def feed(
    jobs: Iterable[Job],
    decoders: Sequence[Decoder],
    *,
    ahead: int = 32,
    clock: Clock | None = None,
) -> Generator[Event, None, None]:
    """Decode videos in the background, one at a time by each decoder.

    The events of one video come in order; with several decoders those of different videos mix.

    Args:
        jobs: What to decode; a decoder that is free takes the next one.
        decoders: Where it is decoded: `Here`, or in processes (`decoder.Process`). Closed at the end.
        ahead: Clips held ready, which bounds the memory.
        clock: Told how long decoders are busy.
    """
    waiting, taking = iter(jobs), threading.Lock()
    clock = clock or Clock()

    def events(decoder: Decoder) -> Generator[Event, None, None]:
        with closing(decoder):
            while True:
                with taking:
                    job = next(waiting, None)
                if job is None:
                    return
                for event, seconds in decoder.decode(job):
                    clock.add("decode", seconds)
                    yield event

    return merged([events(decoder) for decoder in decoders], ahead=ahead)
