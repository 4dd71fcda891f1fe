"""Threads that run ahead and behind."""

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pvdm_cli.background import Behind, Errands, merged


def counting(upto: int, closed: list[int]) -> Generator[int, None, None]:
    try:
        yield from range(upto)
    finally:
        closed.append(upto)


def test_all_items_of_all_sources_come_each_source_in_order() -> None:
    closed: list[int] = []
    found = list(merged([counting(5, closed), counting(3, closed)], ahead=1))
    assert sorted(found) == [0, 0, 1, 1, 2, 2, 3, 4]
    assert sorted(closed) == [3, 5]


def test_closing_early_closes_the_sources() -> None:
    closed: list[int] = []
    before = threading.active_count()
    stream = merged([counting(10**9, closed)], ahead=2)
    assert next(stream) == 0
    stream.close()
    assert closed == [10**9]
    assert threading.active_count() == before


def test_no_more_than_asked_for_is_made_ahead() -> None:
    made: list[int] = []

    def source() -> Generator[int, None, None]:
        for number in range(100):
            made.append(number)
            yield number

    stream = merged([source()], ahead=3)
    next(stream)
    time.sleep(0.1)
    assert len(made) <= 6  # one is taken, three wait, one is about to be put
    stream.close()


def test_an_error_of_a_source_is_raised_where_its_items_are_taken() -> None:
    def source() -> Generator[int, None, None]:
        yield 1
        raise ZeroDivisionError

    stream = merged([source()], ahead=1)
    assert next(stream) == 1
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_calls_are_made_in_order_and_all_of_them() -> None:
    made: list[int] = []
    with Behind(waiting=2) as behind:
        for number in range(20):
            behind.call(lambda number=number: made.append(number))  # type: ignore[misc]
    assert made == list(range(20))


def test_calls_given_before_an_error_of_the_caller_are_made() -> None:
    made: list[int] = []
    with pytest.raises(KeyError), Behind(waiting=4) as behind:  # noqa: PT012
        behind.call(lambda: made.append(1))
        raise KeyError
    assert made == [1]


def test_an_error_of_a_call_stops_the_caller_though_it_only_adds_more() -> None:
    made: list[int] = []

    def fail() -> None:
        raise OSError("the disk is full")

    def add_for_ever() -> None:
        with Behind(waiting=1) as behind:
            behind.call(fail)
            while True:
                behind.call(lambda: made.append(1))

    with pytest.raises(OSError, match="disk is full"):
        add_for_ever()
    assert not made


def test_an_error_of_the_last_call_is_not_lost() -> None:
    with pytest.raises(ZeroDivisionError), Behind(waiting=1) as behind:
        behind.call(lambda: 1 // 0)


def test_idle_time_is_used() -> None:
    used = threading.Event()
    with Behind(waiting=1, idle=used.set):
        assert used.wait(5)


def test_calls_are_made_by_the_thread_that_lends_itself() -> None:
    errands, me = Errands(), threading.current_thread()
    with ThreadPoolExecutor(1) as other:
        answers = [other.submit(errands.ask, threading.current_thread) for _ in range(3)]
        while not errands.made(3):
            errands.make(0.1)
        assert [answer.result() for answer in answers] == [me] * 3
        errands.make(0)  # none is made twice
        assert errands.made(3)
        assert not errands.made(4)


def test_an_error_of_a_call_is_raised_where_it_was_asked_for() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    errands = Errands()
    with ThreadPoolExecutor(1) as other:
        answer = other.submit(errands.ask, fail)
        while not errands.made(1):
            errands.make(0.1)
        with pytest.raises(ZeroDivisionError):
            answer.result()


def test_an_interrupted_call_is_made_by_the_next_who_makes_calls() -> None:
    tries: list[int] = []

    def interrupted_once() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise KeyboardInterrupt
        return 7

    errands = Errands()
    with ThreadPoolExecutor(1) as other:
        answer = other.submit(errands.ask, interrupted_once)
        with pytest.raises(KeyboardInterrupt):
            errands.make(10)
        assert not answer.done()
        while not errands.made(1):
            errands.make(0.1)
        assert answer.result() == 7


@pytest.mark.parametrize("first", ["ask", "end"])
def test_who_waits_for_nobody_is_told_so(first: str) -> None:
    errands = Errands()
    steps: list[Callable[[], object]] = [lambda: errands.ask(int), errands.end]
    with ThreadPoolExecutor(2) as others:
        answers = [others.submit(step) for step in (steps if first == "ask" else steps[::-1])]
        with pytest.raises(RuntimeError, match="nobody"):
            answers[0 if first == "ask" else 1].result(timeout=10)


def test_waiting_for_a_call_ends_when_woken() -> None:
    errands = Errands()
    began = time.monotonic()
    threading.Timer(0.05, errands.wake).start()
    errands.make(30)
    assert time.monotonic() - began < 10
