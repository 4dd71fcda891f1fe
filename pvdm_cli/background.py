"""Threads beside the main one: producers that run ahead, a worker behind, one that borrows it."""

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import closing, suppress
from typing import Any, Generic, NamedTuple, Self, TypeVar

T = TypeVar("T")

PATIENCE = 0.1  # seconds between two looks at whether the other side is still there


class _Raised(NamedTuple):
    """An error of a thread, to be raised again by whoever takes its results."""

    error: BaseException


class _Item(NamedTuple, Generic[T]):
    """Something a producer has made."""

    value: T


def merged(sources: Sequence[Generator[T, None, None]], *, ahead: int) -> Generator[T, None, None]:
    """Run each generator in a thread of its own and yield what they give, as it comes.

    Closing the generator closes theirs; an error of one of them is raised here.

    Args:
        sources: The generators.
        ahead: Items held ready, which bounds the memory.
    """
    ready: queue.Queue[_Item[T] | _Raised | None] = queue.Queue(ahead)
    stop = threading.Event()

    def put(item: _Item[T] | _Raised | None) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=PATIENCE)
                return

    def work(source: Generator[T, None, None]) -> None:
        try:
            with closing(source):
                for value in source:
                    put(_Item(value))
                    if stop.is_set():
                        break
        except BaseException as error:  # noqa: BLE001  (raised again by the taker)
            put(_Raised(error))
        put(None)

    threads = [threading.Thread(target=work, args=(one,), daemon=True) for one in sources]
    for thread in threads:
        thread.start()
    try:
        left = len(threads)
        while left:
            item = ready.get()
            if item is None:
                left -= 1
            elif isinstance(item, _Raised):
                raise item.error
            else:
                yield item.value
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class Behind:
    """A thread that makes calls one after the other, so that the caller need not wait for them.

    Use as a context manager: leaving it waits until all calls are made, also after an error of
    the caller. The error of a call is raised by the next `call`, or on leaving; the calls after
    it are not made.
    """

    def __init__(self, waiting: int, idle: Callable[[], None] = lambda: None) -> None:
        """Prepare the thread.

        Args:
            waiting: Calls that may wait; with more of them `call` blocks.
            idle: Called about once a second while there is nothing to do.
        """
        self._calls: queue.Queue[Callable[[], object] | None] = queue.Queue(waiting)
        self._idle = idle
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        while self._thread.is_alive():
            with suppress(queue.Full):
                self._calls.put(None, timeout=PATIENCE)
                break
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def call(self, function: Callable[[], object]) -> None:
        """Have a function called, after all those given before."""
        while self._error is None:
            with suppress(queue.Full):
                self._calls.put(function, timeout=PATIENCE)
                return
        raise self._error

    def _work(self) -> None:
        """Make the calls until the end or an error."""
        try:
            while True:
                try:
                    function = self._calls.get(timeout=1.0)
                except queue.Empty:
                    function = self._idle
                if function is None:
                    return
                function()
        except BaseException as error:  # noqa: BLE001  (raised again by the caller)
            self._error = error


class Errands:
    """Calls that one thread has another one make.

    What computes on a CPU brings a team of threads along for every thread that asks it to. Two
    teams on the same cores slow each other (`runtime.single_threaded`), so that all of it had
    better be asked for by one thread.
    """

    def __init__(self) -> None:
        self._latest: tuple[Callable[[], Any], Future[Any]] | None = None
        self._asked = 0
        self._changed = threading.Event()
        self._over = False

    def ask(self, call: Callable[[], T]) -> T:
        """Have the other thread make a call, wait, and return its result or raise its error.

        Raises:
            RuntimeError: If there will be nobody to make it.
        """
        answer: Future[T] = Future()
        self._latest = call, answer
        self._asked += 1
        self._changed.set()
        if self._over:
            self._refuse()
        return answer.result()

    def make(self, timeout: float) -> None:
        """Make the call that is asked for, or will be within some seconds.

        It may be interrupted at any point: then the call is made by the next `make`.
        """
        self._changed.wait(timeout)
        self._changed.clear()
        if self._latest is None or self._latest[1].done():
            return
        call, answer = self._latest
        try:
            result = call()
        except Exception as error:  # noqa: BLE001  (raised again by who asked)
            answer.set_exception(error)
        else:
            answer.set_result(result)

    def made(self, count: int) -> bool:
        """Tell whether so many calls have been asked for, and all are made."""
        return self._latest is not None and self._asked >= count and self._latest[1].done()

    def end(self) -> None:
        """Make no more calls: who waits for one, or asks from now on, is told so by an error."""
        self._over = True
        self._refuse()

    def wake(self) -> None:
        """Let a `make` that waits return."""
        self._changed.set()

    def _refuse(self) -> None:
        """Answer a call that will not be made."""
        if self._latest is not None:
            with suppress(InvalidStateError):
                self._latest[1].set_exception(RuntimeError("nobody makes calls any more"))
