"""Clips of many videos, decoded in the background while the network works on the ones before.

Axes: s frames of a clip, H and W pixels.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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


def feed(
    jobs: Sequence[Job], identity: Identity, *, threads: int = 1, ahead: int = 32
) -> Generator[Event, None, None]:
    """Decode videos in background threads (the decoder releases Python's lock).

    The events of one video come in order; with several threads those of different videos mix.

    Args:
        jobs: What to decode.
        identity: Clip geometry and policy.
        threads: Videos decoded at a time.
        ahead: Clips held ready, which bounds the memory.
    """
    waiting = iter(jobs)
    taking = threading.Lock()
    ready: queue.Queue[Event | BaseException | None] = queue.Queue(ahead)
    stop = threading.Event()

    def put(item: Event | BaseException | None) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            while not stop.is_set():
                with taking:
                    job = next(waiting, None)
                if job is None:
                    break
                for event in clips_of(job, identity):
                    put(event)
                    if stop.is_set():
                        break
        except BaseException as error:  # noqa: BLE001  (raised again by the taker)
            put(error)
        put(None)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield from _taken(ready, threads)
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def _taken(ready: "queue.Queue[Event | BaseException | None]", threads: int) -> Iterator[Event]:
    """Pass events on until every thread has said that it is through."""
    while threads:
        item = ready.get()
        if item is None:
            threads -= 1
        elif isinstance(item, BaseException):
            raise item
        else:
            yield item
