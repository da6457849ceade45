"""Several cells of a study at the same time, each in a thread.

A cell that can reuse another one's work waits until that work is there. An interrupt or a bug in one thread stops the
others at their next message or piece of work; what they have finished is in their run folders.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from estep.progress import Advance, Reporter

Item = TypeVar("Item")

_POLL_SECONDS = 0.5
_STOPPING_SECONDS = 15.0
"""How long stopped threads are waited for; they end with the process at the latest."""


class StoppedError(BaseException):
    """Ends a thread whose work was stopped. Not an `Exception`, so that no cell records it as its failure."""


class Turns(Generic[Item]):
    """Hands out items to threads, in their order, but for those that must wait for an item under way.

    Args:
        waits_for: whether an item must wait for another one that is under way.
    """

    def __init__(self, items: Sequence[Item], waits_for: Callable[[Item, Item], bool]):
        self._waiting = list(items)
        self._under_way: list[Item] = []
        self._waits_for = waits_for
        self._changed = threading.Condition()
        self._stopped = False

    def __iter__(self) -> Iterator[Item]:
        """The items for one thread. An item is finished when the next one is asked for."""
        while (item := self._take()) is not None:
            try:
                yield item
            finally:
                with self._changed:
                    self._under_way = [one for one in self._under_way if one is not item]
                    self._changed.notify_all()

    def _take(self) -> Item | None:
        with self._changed:
            while self._waiting and not self._stopped:
                for item in self._waiting:
                    if not any(self._waits_for(item, other) for other in self._under_way):
                        self._waiting = [one for one in self._waiting if one is not item]
                        self._under_way.append(item)
                        return item
                self._changed.wait(_POLL_SECONDS)  # not only for an end: a part of an item's work may be enough
        return None

    def stop(self) -> None:
        """Hand out no more items, and end the threads at their next `check`."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def check(self) -> None:
        """Raise `StoppedError` if the work was stopped."""
        if self._stopped:
            raise StoppedError


class Named(Reporter):
    """Prefixes messages with the name of the cell of its thread, and ends the thread if the work was stopped."""

    def __init__(self, reporter: Reporter, check: Callable[[], None]):
        self._reporter = reporter
        self._check = check
        self.name = ""

    def log(self, line: str) -> None:
        self._check()
        self._reporter.log(f"{self.name}: {line.strip()}")

    @contextmanager
    def phase(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        self._check()
        with self._reporter.phase(f"{self.name}: {title}", total, unit, done) as inner:

            def advance(count: int = 1, more: int = 0) -> None:
                self._check()
                inner(count, more)

            yield advance


def run_threads(work: Callable[[], None], count: int, stop: Callable[[], None]) -> None:
    """Run a function in several threads and wait for all of them.

    Args:
        work: raises what stops all threads.
        stop: ends the other threads, when one has raised or this one is interrupted.

    Raises:
        BaseException: what was raised first.
    """
    raised: list[BaseException] = []
    ended = threading.Semaphore(0)  # not `join`, which an interrupt can break

    def guarded() -> None:
        try:
            work()
        except StoppedError:
            pass
        except BaseException as error:
            raised.append(error)
        finally:
            ended.release()

    left = 0
    try:
        for _ in range(count):
            left += 1
            threading.Thread(target=guarded, daemon=True).start()
        while left and not raised:
            left -= ended.acquire(timeout=_POLL_SECONDS)
        if raised:
            raise raised[0]
    except BaseException:
        stop()
        end = time.monotonic() + _STOPPING_SECONDS
        while left and ended.acquire(timeout=max(0.0, end - time.monotonic())):
            left -= 1
        raise
