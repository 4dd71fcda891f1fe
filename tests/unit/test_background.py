"""Threads that run ahead and behind."""

import threading
import time
from collections.abc import Generator

import pytest

from pvdm_cli.background import Behind, merged


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
