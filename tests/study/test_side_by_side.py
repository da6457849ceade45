"""Threads that share a study's cells."""

import signal
import threading
from collections.abc import Callable

import pytest

from conftest import Listen
from estep.progress import Silent
from estep.study.side_by_side import Named, StoppedError, Turns, run_threads


def test_an_item_waits_for_one_under_way_that_it_depends_on() -> None:
    turns = Turns(["a1", "a2", "b1"], lambda one, other: one[0] == other[0])
    first, second = iter(turns), iter(turns)
    assert next(first) == "a1"
    assert next(second) == "b1"  # a2 waits for a1
    assert next(first) == "a2"
    assert list(second) == []
    assert list(first) == []


def test_an_item_starts_once_the_part_that_it_waits_for_is_there() -> None:
    there: list[str] = []
    turns = Turns(["a", "b"], lambda one, other: not there)
    first = iter(turns)
    assert next(first) == "a"
    threading.Timer(0.1, lambda: there.append("part")).start()
    assert next(iter(turns)) == "b"


def test_every_item_is_handed_out_once_in_order() -> None:
    turns = Turns(list(range(50)), lambda one, other: False)
    taken: list[int] = []
    run_threads(lambda: taken.extend(turns), 4, turns.stop)
    assert sorted(taken) == list(range(50))


def endless(turns: Turns[int], started: Callable[[], object], ended: list[int]) -> Callable[[], None]:
    """Work that reports without an end."""

    def work() -> None:
        named = Named(Silent(), turns.check)
        for item in turns:
            try:
                started()
                while True:
                    named.log("still here")
            finally:
                ended.append(item)

    return work


def test_an_interrupt_stops_all_threads() -> None:
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    turns = Turns([1, 2, 3], lambda one, other: False)
    ended: list[int] = []
    both = threading.Barrier(2, lambda: signal.raise_signal(signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            run_threads(endless(turns, both.wait, ended), 2, turns.stop)
    finally:
        signal.signal(signal.SIGINT, former)
    assert sorted(ended) == [1, 2]
    assert list(turns) == []  # the third item was never handed out


def test_what_a_thread_raises_stops_the_others_and_is_raised() -> None:
    turns = Turns([1, 2, 3], lambda one, other: False)
    ended: list[int] = []

    def fail() -> None:
        raise AssertionError("a bug")

    def start() -> None:
        if both.wait() == 0:
            fail()

    both = threading.Barrier(2)
    with pytest.raises(AssertionError, match="a bug"):
        run_threads(endless(turns, start, ended), 2, turns.stop)
    assert len(ended) >= 2


def test_messages_carry_the_name_and_end_a_stopped_thread() -> None:
    listen = Listen()
    turns: Turns[int] = Turns([], lambda one, other: False)
    named = Named(listen, turns.check)
    named.name = "pps-s1"
    named.log("  iteration 1")
    turns.stop()
    with pytest.raises(StoppedError):
        named.log("more")
    with pytest.raises(StoppedError), named.phase("E-step", 3, "draws"):
        pass
    assert listen.lines == ["pps-s1: iteration 1"]
