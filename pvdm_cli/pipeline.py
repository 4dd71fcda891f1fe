"""Decode, encode and write side by side, so that the slowest of the three is the only limit.

Axes: b clips of a batch, s frames, H and W pixels, c latent channels, n flat length.
"""

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pvdm_cli.background import Behind, merged
from pvdm_cli.clock import Clock
from pvdm_cli.data.cache_appender import Appender
from pvdm_cli.data.cache_format import Identity, VideoRow
from pvdm_cli.data.cache_shard import Rows
from pvdm_cli.data.catalog import Source
from pvdm_cli.data.feed import Clip, Decoder, Ended, Event, Failed, Job, feed
from pvdm_cli.data.source import original
from pvdm_cli.encoder import Encoder
from pvdm_cli.errors import ModelError, VideoError
from pvdm_cli.progress import Reporter
from pvdm_cli.ranks import PeerLostError, Ranks
from pvdm_cli.together import JointReporter

STAGES = ("decode", "encode", "write")
_PASSES = itertools.count()  # names of passes, the same in all processes


class Batch(NamedTuple):
    """Clips that pass the network together."""

    rows: Rows  # [b, 3]: video, first frame, label
    frames: NDArray[np.uint8]  # [b, s, H, W, 3]


class Work(NamedTuple):
    """What is to be encoded."""

    todo: Sequence[VideoRow]
    sources: Mapping[str, Source]  # each video of todo, by its name
    have: Mapping[int, AbstractSet[int]]  # first frames of the clips on disk, by video

    def order(self, ranks: int) -> list[int]:
        """Return the places of the list as they are taken: large files first, if ranks share it.

        So none is left with a long video when the others have finished.
        """
        places = list(range(len(self.todo)))
        return sorted(places, key=lambda i: -self.todo[i].size) if ranks > 1 else places


@dataclass(frozen=True)
class Speed:
    """What a run has encoded, and which share of the time each stage was busy."""

    clips: int = 0
    frames: int = 0
    seconds: float = 0.0
    workers: int = 0  # decoders, of all processes
    batch_size: int = 0  # at the end
    decode_share: float = 0.0
    encode_share: float = 0.0
    write_share: float = 0.0

    @classmethod
    def joined(cls, parts: Sequence["Speed"]) -> "Speed":
        """Add up what processes have done side by side; shares are means over them."""
        means = {
            f"{name}_share": sum(part.shares[name] for part in parts) / len(parts)
            for name in STAGES
        }
        return cls(
            clips=sum(part.clips for part in parts),
            frames=sum(part.frames for part in parts),
            seconds=max(part.seconds for part in parts),
            workers=sum(part.workers for part in parts),
            batch_size=min(part.batch_size for part in parts),
            **means,
        )

    @property
    def shares(self) -> dict[str, float]:
        """Shares by stage."""
        return {name: getattr(self, f"{name}_share") for name in STAGES}

    @property
    def limit(self) -> str:
        """The stage that the others wait for."""
        return max(self.shares, key=self.shares.__getitem__)


def encode_together(
    ranks: Ranks,
    work: Work,
    identity: Identity,
    encoder: Encoder,
    writer: Appender,
    decoders: Sequence[Decoder],
    *,
    strict: bool,
    reporter: Reporter,
) -> Speed:
    """Encode this process's part of the videos: a process that is free takes the next one.

    All processes call this with the same work, the same number of times.
    """
    name = f"encode/{next(_PASSES)}"
    joint = JointReporter(reporter, ranks, name)
    pipeline = Pipeline(work, identity, encoder, writer, strict=strict, reporter=joint)
    order = work.order(ranks.size)

    def turns() -> Iterator[int]:
        for ticket in ranks.tickets(f"{name}/next", len(order)):
            if ranks.failed:
                raise PeerLostError("another process of this run has failed")
            yield order[ticket]

    joint.start("encoding", unit="clip")
    pipeline.run(turns(), decoders)
    speed = pipeline.speed(len(decoders))
    joint.done()
    return Speed.joined(ranks.gather(speed))


class Pipeline:
    """One pass over videos that lack clips.

    Attributes:
        clips: Encoded so far.
        clock: Busy seconds of each stage.
    """

    def __init__(
        self,
        work: Work,
        identity: Identity,
        encoder: Encoder,
        writer: Appender,
        *,
        strict: bool = False,
        reporter: JointReporter,
    ) -> None:
        self.clips = 0
        self.clock = Clock()
        self._work, self._identity = work, identity
        self._encoder, self._writer = encoder, writer
        self._strict, self._reporter = strict, reporter
        self._rows = {row.video: row for row in work.todo}
        self._outlook = Outlook(work, identity)

    def run(self, order: Iterable[int], decoders: Sequence[Decoder]) -> None:
        """Encode the videos at the given places of the list; the last batch may be small.

        Raises:
            ModelError: If latents are not finite, or not one clip fits into memory.
            VideoError: If a video cannot be used (strict).
            PvdmError: If the cache cannot be written.
        """
        ahead = max(4, 2 * self._encoder.batch_size)
        events = feed(map(self._job, order), decoders, ahead=ahead, clock=self.clock)
        with (
            Behind(waiting=4, idle=self._writer.flush_if_due) as writing,
            closing(merged([self._batches(events)], ahead=1)) as batches,
        ):
            for batch in batches:
                if isinstance(batch, Batch):
                    self._encode(batch, writing.call)
                else:
                    self._note(batch, writing.call)
            writing.call(self._timed(self._writer.flush))

    def speed(self, decoders: int) -> Speed:
        """Return how fast it was, with that many decoders."""
        seconds = self.clock.elapsed
        return Speed(
            clips=self.clips,
            frames=self.clips * self._identity.clip.frames,
            seconds=seconds,
            workers=decoders,
            batch_size=self._encoder.batch_size,
            decode_share=self.clock.share("decode", decoders),
            encode_share=self.clock.share("encode"),
            write_share=self.clock.share("write"),
        )

    def _job(self, place: int) -> Job:
        """Say how the video at a place of the list is decoded."""
        row = self._work.todo[place]
        have = self._work.have.get(row.video, frozenset())
        source = self._work.sources[row.path]
        return Job(row.video, source.piece, have, original(row.path), source.mirrored)

    def _batches(
        self, events: Generator[Event, None, None]
    ) -> Generator[Batch | Ended | Failed, None, None]:
        """Gather clips of one or several videos to batches."""
        clips: list[Clip] = []
        with closing(events):
            for event in events:
                if not isinstance(event, Clip):
                    yield event
                    continue
                clips.append(event)
                if len(clips) >= self._encoder.batch_size:
                    yield self._batch(clips)
                    clips = []
        if clips:
            yield self._batch(clips)

    def _batch(self, clips: Sequence[Clip]) -> Batch:
        """Stack clips."""
        rows = [(clip.video, clip.first, self._rows[clip.video].label) for clip in clips]
        return Batch(np.array(rows, dtype=np.int64), np.stack([clip.frames for clip in clips]))

    def _encode(self, batch: Batch, later: Callable[[Callable[[], object]], None]) -> None:
        """Pass one batch through the network and on to the writer."""
        rows = batch.rows
        encoded = self._encoder.encode(batch.frames)
        while len(rows):
            with self.clock.time("encode"):
                z, rounding = next(encoded)
            if not np.isfinite(z).all():
                raise ModelError(
                    f"the autoencoder gives no finite latents for {self._rows[rows[0, 0]].path} "
                    f"with precision {self._identity.precision}; use fp32, or train it further"
                )
            add = partial(self._writer.add, rows[: len(z)], z, rounding)
            later(self._timed(add))
            rows = rows[len(z) :]
            self.clips += len(z)
            self._reporter.expect(self._outlook.clips)
            self._reporter.advance(len(z), **self._figures())

    def _note(self, event: Ended | Failed, later: Callable[[Callable[[], object]], None]) -> None:
        """Record the end of a video, good or bad."""
        name = self._rows[event.video].path
        frames = None if isinstance(event, Failed) else event.frames
        self._outlook.end(event.video, frames)
        if isinstance(event, Failed):
            if self._strict:
                raise VideoError(f"{name}: {event.reason}; leave out --strict to skip such videos")
            later(partial(self._writer.skip_video, event.video, event.reason))
            self._reporter.say(f"skipped {name}: {event.reason}")
            return
        end = partial(self._writer.end_video, event.video)
        later(partial(end, frames=event.frames, fps=event.fps, note=event.note))
        if event.note:
            self._reporter.say(f"{name}: {event.note}")

    def _timed(self, function: Callable[[], object]) -> Callable[[], None]:
        """Count the time of a call as that of writing."""

        def call() -> None:
            with self.clock.time("write"):
                function()

        return call

    def _figures(self) -> dict[str, str]:
        """Return what is shown beside the bar."""
        rate = self._reporter.total * self._identity.clip.frames / self.clock.elapsed
        return {"frames/s": f"{rate:.4g}", "encoding": f"{self.clock.share('encode'):.0%}"}


class Outlook:
    """Estimates how many clips there will be, from the sizes of the files not yet decoded."""

    def __init__(self, work: Work, identity: Identity) -> None:
        self._identity = identity
        self._sizes = {row.video: row.size for row in work.todo}
        self._have = sum(len(firsts) for firsts in work.have.values())
        self._windows = self._bytes = 0

    def end(self, video: int, frames: int | None) -> None:
        """Hear how many frames a video has; None: it is skipped."""
        self._windows += self._identity.num_windows(frames or 0)
        self._bytes += self._sizes[video]

    @property
    def clips(self) -> int | None:
        """Clips to encode in all; None before the first video has ended."""
        if not self._bytes or not self._windows:
            return None
        total = self._windows / self._bytes * sum(self._sizes.values())
        return max(1, round(total) - self._have)
