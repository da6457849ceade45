"""Progress of a run: live bars in a terminal, plain lines elsewhere, nothing in tests."""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Advance(Protocol):
    """Called when `count` units of work are finished and `more` units were added to the total."""

    def __call__(self, count: int = 1, more: int = 0) -> None: ...


class Reporter(Protocol):
    """Receives a run's messages and progress."""

    def log(self, line: str) -> None:
        """Print one line."""

    def phase(self, title: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Advance]:
        """A context that yields an `Advance`; `done` of `total` units were finished in an earlier session."""


class Silent(Reporter):
    """Prints nothing."""

    def log(self, line: str) -> None:
        pass

    @contextmanager
    def phase(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        def advance(count: int = 1, more: int = 0) -> None:
            pass

        yield advance


class Plain(Reporter):
    """Lines with rate and remaining time, for logs and pipes; each phase prints at most one per `interval` seconds."""

    def __init__(self, out: TextIO | None = None, interval: float = 15.0):
        self.out = out or sys.stderr
        self.interval = interval

    def log(self, line: str) -> None:
        print(line, file=self.out, flush=True)

    @contextmanager
    def phase(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        started = last = time.monotonic()
        finished = done

        def advance(count: int = 1, more: int = 0) -> None:
            nonlocal finished, last, total
            total += more
            finished = min(finished + count, total)
            now = time.monotonic()
            if now - last >= self.interval and done < finished < total:
                last = now
                rate = (finished - done) / (now - started)
                self.log(
                    f"  {title}: {finished}/{total} {unit}, {_rate(rate, unit)}, {(total - finished) / rate:.0f} s left"
                )

        yield advance
        seconds = time.monotonic() - started
        if finished == done:
            self.log(f"  {title}: {finished}/{total} {unit}, finished before")
            return
        rate = (finished - done) / max(seconds, 1e-9)
        self.log(f"  {title}: {finished}/{total} {unit} in {seconds:.1f} s ({_rate(rate, unit)})")


class Live(Reporter):
    """One bar per phase, with rate and remaining time."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True)

    def log(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False)

    @contextmanager
    def phase(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as bars:
            bar = bars.add_task(title, total=total, completed=done, rate="")
            started = time.monotonic()
            finished = done

            def advance(count: int = 1, more: int = 0) -> None:
                nonlocal finished, total
                total += more
                finished = min(finished + count, total)
                seconds = time.monotonic() - started
                bars.update(
                    bar, completed=finished, total=total, rate=_rate((finished - done) / max(seconds, 1e-9), unit)
                )

            yield advance


class PhaseTimer:
    """Wall-clock seconds by phase."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to a phase; a phase may be entered several times."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - started

    def take(self) -> dict[str, float]:
        """The seconds of each phase, to the millisecond; resets the timer."""
        taken, self._seconds = self._seconds, {}
        return {phase: round(seconds, 3) for phase, seconds in taken.items()}


def _rate(rate: float, unit: str) -> str:
    return f"{rate:.1f} {unit}/s" if rate >= 1 or rate == 0 else f"{1 / rate:.1f} s/{unit.removesuffix('s')}"


def reporter() -> Live | Plain:
    """Bars if standard error is a terminal, else lines."""
    console = Console(stderr=True)
    return Live(console) if console.is_terminal else Plain()
