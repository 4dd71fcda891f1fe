"""Decoding in a process of its own: a codec that crashes costs one video, not the run.

The child is `python -m pvdm_cli.data.decoder`. Jobs and events go through a socket, frames
through a piece of memory that has no name: it is gone with the last process that holds it, and
the child ends when the socket closes, however its parent has died.
"""

import math
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import BinaryIO, NoReturn, cast

import numpy as np
import torch
from numpy.typing import NDArray

from pvdm_cli.data.cache_format import Identity
from pvdm_cli.data.feed import Clip, Ended, Event, Failed, Job, clips_of, timed
from pvdm_cli.errors import PvdmError

SLOTS = 2  # clips in shared memory: one is decoded while the other is taken
ATTEMPTS = 2  # a decoder may also die of something else, such as want of memory

NO_FRAMES = np.empty(0, np.uint8)  # in the place of those that go through shared memory

# Posix alone hands open files to a child by their numbers.
POSSIBLE = os.name == "posix"


class Died(Exception):
    """A decoding process is gone; the message says by what."""


class Process:
    """A decoding process, started when it is first needed and again after it has died."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """Number of the process, if it runs."""
        return self._child.process.pid if self._child else None

    def decode(self, job: Job) -> Iterator[tuple[Event, float]]:
        """Yield the events of a video, each with the seconds that it took to make.

        If the process dies the video is tried once more in a fresh one, then given up.

        Raises:
            PvdmError: If the process does not even start.
        """
        given = set(job.have)
        why = ""
        for _ in range(ATTEMPTS):
            self._child = self._child or self._start()
            try:
                for event, seconds in self._child.decode(job._replace(have=given)):
                    if isinstance(event, Clip):
                        given.add(event.first)
                    yield event, seconds
                return
            except Died as death:
                why = str(death)
                self.close()
        yield Failed(job.video, f"the decoder died ({why})"), 0.0

    def _start(self) -> "_Child":
        """Start a process, again if it dies while it starts.

        Raises:
            PvdmError: If it does so each time.
        """
        why = ""
        for _ in range(ATTEMPTS):
            try:
                return _Child(self._identity)
            except Died as death:
                why = str(death)
        raise PvdmError(f"a decoding process does not start ({why}); --workers 0 decodes without")

    def close(self) -> None:
        """End the process."""
        if self._child:
            self._child.close()
            self._child = None


class _Child:
    """The parent's end of one process."""

    def __init__(self, identity: Identity) -> None:
        self._pipe, theirs = Pipe()
        with theirs, _nameless_memory() as memory:
            os.ftruncate(memory.fileno(), math.prod(_slots_shape(identity)))
            self._slots = _slots(memory.fileno(), identity)
            handles = (theirs.fileno(), memory.fileno())
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pvdm_cli.data.decoder", *map(str, handles)],
                pass_fds=handles,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # that of the command is for data
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._taken = 0
        try:
            self._send(identity)
            self._receive()  # it says that it is there
        except Died:
            self.close()
            raise

    def decode(self, job: Job) -> Iterator[tuple[Event, float]]:
        """Have a video decoded.

        Raises:
            Died: If the process is gone.
        """
        self._send(job)
        while True:
            event, seconds = self._receive()
            if isinstance(event, Clip):
                event = event._replace(frames=self._slots[self._taken % SLOTS].copy())
                self._taken += 1
                self._send(None)  # the slot is free again
            yield event, seconds
            if isinstance(event, Ended | Failed):
                return

    def close(self) -> None:
        """Kill the process; nothing that it holds is worth saving."""
        self.process.kill()
        self.process.wait()
        self._pipe.close()

    def _send(self, message: Identity | Job | None) -> None:
        """Send a message."""
        try:
            self._pipe.send(message)
        except OSError:
            self._say_death()

    def _receive(self) -> tuple[Event, float]:
        """Wait for an event, or raise the error that the process has met."""
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            self._say_death()
        if isinstance(message, BaseException):
            raise message
        return message

    def _say_death(self) -> NoReturn:
        """Say what the process has died of.

        Raises:
            Died: Always.
        """
        code = self.process.wait()
        raise Died(f"signal {-code}" if code < 0 else f"exit code {code}") from None


class _Parent:
    """The child's end."""

    def __init__(self, pipe: Connection, memory: int) -> None:
        self._pipe = pipe
        self._identity: Identity = pipe.recv()
        self._slots = _slots(memory, self._identity)
        self._sent, self._free = 0, SLOTS

    def serve(self) -> None:
        """Decode one video after the other until the parent is gone."""
        self._pipe.send(None)
        while True:
            job: Job | None = self._pipe.recv()
            if job is None:
                self._free += 1
                continue
            for event, seconds in timed(clips_of(job, self._identity)):
                self._send(event, seconds)

    def _send(self, event: Event, seconds: float) -> None:
        """Send an event, its frames by a slot as soon as one is free."""
        if isinstance(event, Clip):
            while not self._free:
                self._pipe.recv()  # jobs come between videos only, so it is a slot
                self._free += 1
            self._slots[self._sent % SLOTS] = event.frames
            self._sent, self._free = self._sent + 1, self._free - 1
            event = event._replace(frames=NO_FRAMES)
        self._pipe.send((event, seconds))


def _nameless_memory() -> BinaryIO:
    """Open a file in memory, or on disk where the system has none there, without a name."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("pvdm-clips"), "r+b")
    return cast(BinaryIO, tempfile.TemporaryFile())


def _slots(memory: int, identity: Identity) -> NDArray[np.uint8]:
    """Map the memory as clips [SLOTS, s, H, W, 3]."""
    shape = _slots_shape(identity)
    return np.frombuffer(mmap.mmap(memory, math.prod(shape)), np.uint8).reshape(shape)


def _slots_shape(identity: Identity) -> tuple[int, ...]:
    """Return [SLOTS, s, H, W, 3]."""
    clip = identity.clip
    return (SLOTS, clip.frames, clip.height, clip.width, 3)


def main() -> None:
    """Be the decoding process whose socket and memory are the files of the given numbers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on
    torch.set_num_threads(1)  # the other cores are the encoder's, or other decoders'
    pipe = Connection(int(sys.argv[1]))
    with suppress(EOFError, OSError):  # the parent is gone
        try:
            _Parent(pipe, int(sys.argv[2])).serve()
        except (EOFError, OSError):
            raise
        except Exception as error:  # noqa: BLE001  (raised again by the parent)
            pipe.send(error)


if __name__ == "__main__":
    main()
