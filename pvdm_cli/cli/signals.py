"""SIGINT and SIGTERM: the first ends the work in order, a second one ends the process at once."""

import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from types import FrameType
from typing import ParamSpec, TypeVar

from pvdm_cli.ranks import launched

ECHO = 5.0  # seconds in which a second signal is the first one, passed on

P = ParamSpec("P")
R = TypeVar("R")
Handler = Callable[[int, FrameType | None], object]
BOTH = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def heeded(first: Handler, numbers: Collection[signal.Signals] = BOTH) -> Iterator[None]:
    """Call `first` for the first of these signals; a second one acts as if nobody caught it.

    A process of several may get one signal twice: from outside, and passed on by its launcher.
    """
    same = ECHO if launched() else 0.0
    began: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal began
        if began is None:
            began = time.monotonic()
            first(number, frame)
        elif time.monotonic() - began >= same:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stoppable(work: Callable[P, R], say: Callable[[str], None]) -> Callable[P, R]:
    """Have the first signal raise in `work`, as ever, and say that what is done will be kept.

    A signal that is ignored, as by what a script starts in the background, goes on being ignored.
    """

    @wraps(work)
    def stopped(*args: P.args, **kwargs: P.kwargs) -> R:
        found = {number: signal.getsignal(number) for number in BOTH}
        usual = {number: handler for number, handler in found.items() if callable(handler)}

        def first(number: int, frame: FrameType | None) -> None:
            with suppress(RuntimeError):  # it may have come in the middle of another line
                say("keeping what is done; once more quits at once")
            usual[signal.Signals(number)](number, frame)

        with heeded(first, usual):
            return work(*args, **kwargs)

    return stopped
