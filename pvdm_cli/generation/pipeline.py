"""One batch of videos: clip l is decoded and written while clip l + 1 is drawn.

On the CPU, where decoding and drawing would take each other's cores, only writing goes on beside.

The frames of a batch's clips form a *sequence*: clip k (from 0, the one that is continued included)
begins at k (s - o), where o is the overlap. A file holds the sequence from its frame `first` to
before `end`. What lies before clips * (s - o) is settled: no later clip changes it.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvdm_cli.background import Errands
from pvdm_cli.latents import Planes
from pvdm_cli.model import Model
from pvdm_cli.rollout import Position, decoded, latents_at
from pvdm_cli.runtime import make_current, single_threaded
from pvdm_cli.stopwatch import Timer
from pvdm_cli.video import pixels
from pvdm_cli.video.write import Writer

AHEAD = 1  # clips that may wait to be decoded: more would only cost memory


class Stretch(NamedTuple):
    """Which part of its sequence a file holds, and how much of that is there already."""

    first: int
    end: int
    step: int  # s - o
    clips: int  # decoded so far
    there: int = 0  # frames in the file

    def settled(self, clips: int) -> int:
        """Frames of the file that are as they stay after so many clips."""
        return max(0, min(self.end, clips * self.step) - self.first)


class Clip(NamedTuple):
    """One decoded clip of a batch, as far as it is new."""

    number: int  # from 0
    z0: Tensor  # [b, c, n]
    frames: NDArray[np.uint8]  # [b, s, H, W, 3]


class Scribe:
    """Decodes and writes clips in a thread of its own; on the CPU the caller's thread decodes.

    Args:
        model: What decodes.
        writers: One per video.
        stretch: What is written.
        base: Latents [b, c, n] of the clip before the first one that is drawn, if there is one.
        timer: Measures "decoding", "pixels" and "writing".
        watch: Shown each clip after it is written.
    """

    def __init__(
        self,
        model: Model,
        writers: Sequence[Writer],
        stretch: Stretch,
        base: Tensor | None,
        timer: Timer,
        watch: Callable[[Clip], None] | None = None,
    ) -> None:
        self.clips = stretch.clips
        self.last: Position | None = None  # of the last clip decoded
        self._model, self._writers, self._stretch = model, writers, stretch
        self._base, self._timer, self._watch = base, timer, watch
        self._waiting: queue.Queue[Position | None] = queue.Queue(AHEAD)
        self._errands = Errands() if model.device.type == "cpu" else None
        self._owed = 0 if base is None else 1  # clips that are to be decoded
        self._error: BaseException | None = None
        self._cut_short = False
        self._z0: Tensor | None = None
        self.dropped = False  # what is in the files is of no use
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="scribe", daemon=True)
        self._thread.start()

    def take(self, position: Position) -> None:
        """Hand over a clip; waits while the one before it still waits to be decoded.

        On the CPU the clip is decoded when this returns.
        """
        with self._timer("waiting for the writer"):
            self._put(position)
        self._owed += 1
        while self._errands and self._thread.is_alive() and not self._errands.made(self._owed):
            self._errands.make(0.1)

    def finish(self, *, cut_short: bool = False) -> None:
        """Wait until everything handed over is written.

        Args:
            cut_short: No more clips come although some were to: keep to what is settled.

        Raises:
            KeyboardInterrupt: If it comes while waiting: all is dropped. So is SystemExit.
        """
        self._cut_short = cut_short
        try:
            with self._timer("waiting for the writer"):
                self._put(None)
                while self._errands and self._thread.is_alive():
                    self._errands.make(0.1)
                self._thread.join()
        except (KeyboardInterrupt, SystemExit):
            self._drop()
            raise
        self._reraise()

    def abandon(self) -> None:
        """End the thread; what it has written is of no use."""
        self._cut_short = True
        if self._errands:
            self._errands.end()
        with suppress(queue.Empty):
            self._waiting.get_nowait()
        with suppress(Exception):  # there is a failure already
            self._put(None)
        self._thread.join()

    def _drop(self) -> None:
        """Write nothing from now on, so that the files can be closed while the thread still decodes."""
        with self._writing:
            self.dropped = True
        if self._errands:
            self._errands.end()
        with suppress(queue.Full):
            self._waiting.put_nowait(None)

    def _put(self, item: Position | None) -> None:
        """Hand something over, unless the thread has failed."""
        while self._thread.is_alive():
            try:
                self._waiting.put(item, timeout=0.1)
                return
            except queue.Full:
                if self._errands:  # it may wait for one before it looks at what waits
                    self._errands.make(0)
        self._reraise()

    def _reraise(self) -> None:
        """Fail as the thread did."""
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            make_current(self._model.device)
            with single_threaded() if self._errands else nullcontext():
                self._write_all()
        except BaseException as error:  # noqa: BLE001  (raised again by the one who hands over)
            self._error = error
        finally:
            if self._errands:
                self._errands.wake()

    def _write_all(self) -> None:
        """Write the sequence from where the file ends."""
        stretch = self._stretch
        at = (stretch.clips - 1) * stretch.step if self._base is not None else 0
        written = stretch.first + stretch.there
        for x in decoded(self._model, self._latents(), self._decode):
            tail = at == self.clips * stretch.step  # what the next clip would share
            if tail and self._cut_short:
                break
            piece = x[:, :, max(0, written - at) : max(0, stretch.end - at)]
            at += x.shape[2]
            if piece.shape[2]:
                written += piece.shape[2]
                self._write(piece, tail)

    def _decode(self, z: Planes) -> Tensor:
        """Decode, or have it done."""

        def decode() -> Tensor:
            with self._timer("decoding"), torch.inference_mode():  # in whichever thread it is
                return self._model.autoencoder.decode(z)

        return self._errands.ask(decode) if self._errands else decode()

    def _write(self, x: Tensor, tail: bool) -> None:
        """Write pixels [b, 3, s, H, W]."""
        with self._timer("pixels"):
            frames = pixels.to_uint8(x).cpu().numpy()
        with self._timer("writing"):
            for writer, piece in zip(self._writers, frames, strict=True):
                with self._writing:
                    if self.dropped:
                        return
                    if tail:
                        writer.cut()
                    writer.write(piece)
        if self._watch is not None and self._z0 is not None and not tail:
            self._watch(Clip(self.clips - 1, self._z0, frames))

    def _latents(self) -> Iterator[Tensor]:
        """Yield the base, then what is handed over, noting how far we are."""
        if self._base is not None:
            self._z0 = self._base
            yield self._base
        while (position := self._waiting.get()) is not None and not self.dropped:
            self._z0 = latents_at(self._model, position)
            self.last, self.clips = position, self.clips + 1
            yield self._z0


def run(
    positions: Iterator[Position],
    scribe: Scribe,
    timer: Timer,
) -> None:
    """Draw clips and hand them over.

    Raises:
        KeyboardInterrupt: After what was drawn is written, or, if it comes again meanwhile, at once
            (`Scribe.dropped`); so is SystemExit.
    """
    try:
        while True:
            with timer("drawing"):
                position = next(positions, None)
            if position is None:
                break
            scribe.take(position)
        scribe.finish()
    except (KeyboardInterrupt, SystemExit):
        scribe.finish(cut_short=True)
        raise
    except BaseException:
        scribe.abandon()
        raise
