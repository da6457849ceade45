"""The trackers of a session: what has been reported, and what happens when one fails.

`trackers.json` in the run folder has, for each tracker, the id of its run, the last iteration that it was given, and
whether its last session was closed without an error, so that a resumed run continues the run of the tracker. A kill
between a report and its entry repeats one iteration.
"""

import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from estep.config import RunConfig, TrackerName
from estep.errors import ConfigError
from estep.m_step.base import read_m_step
from estep.store.files import write_whole
from estep.store.run import IterationStore, RunStore
from estep.tracking.figures import figures
from estep.tracking.trackers import TRACKERS, Target, Tracker

Log = Callable[[str], None]


def check_installed(names: Sequence[TrackerName]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        found = importlib.util.find_spec(name)
        # A folder of results in the working directory, such as wandb/, looks like a package without an origin.
        if found is None or found.origin is None:
            raise ConfigError(
                f"report_to={name} needs the package {name}: pip install 'estep[{name}]', or set report_to=null"
            )


@contextmanager
def tracked(store: RunStore, config: RunConfig, study: str | None, log: Log) -> Iterator[None]:
    """Report a run's committed iterations to its trackers: first those of earlier sessions that a tracker lacks, then
    each one as it is committed within the block. A tracker that fails is left out for the rest of the session.

    Args:
        store: the run; its `on_commit` is set.
        config: its resolved configuration; `report_to` names the trackers.
        study: the name of its study, if it belongs to one.
        log: receives a line for each tracker that fails.
    """
    session = _Session(store, config, study, log)
    store.on_commit = session.report
    finished = False
    try:
        session.open()
        yield
        finished = True
    finally:
        session.close(finished)


class _Session:
    """The trackers that are open."""

    def __init__(self, store: RunStore, config: RunConfig, study: str | None, log: Log):
        self.store = store
        self.config = config
        self.study = study
        self.log = log
        self.trackers: dict[TrackerName, Tracker] = {}
        self.state_path = store.folder / "trackers.json"

    def open(self) -> None:
        """Open the trackers, except those that have all of a finished run, and report what they lack."""
        committed = self.store.committed()
        complete = len(committed) > self.config.iterations
        for name in self.config.report_to:
            with self._left_out_if_it_fails(name):
                if not (complete and self._state().get(name, {}).get("closed", False)):
                    self._open(name)
                    for step in committed[self._reported(name) + 1 :]:
                        self._report(name, step)

    def report(self, step: IterationStore) -> None:
        """Report an iteration that has just been committed."""
        for name in list(self.trackers):
            with self._left_out_if_it_fails(name):
                self._report(name, step)

    def close(self, finished: bool) -> None:
        """Close all trackers. One that fails now is opened again by the next session, also if the run is complete."""
        for name, tracker in list(self.trackers.items()):
            with self._left_out_if_it_fails(name):
                del self.trackers[name]
                tracker.close(finished)
                self._note(name, tracker.run, self._reported(name), closed=True)

    def _open(self, name: TrackerName) -> None:
        config = self.config.model_dump(mode="json", exclude={"run_dir", "report_to"})
        target = Target(self.store.folder, self.study, config, self._state().get(name, {}).get("run"))
        self.trackers[name] = TRACKERS[name](target)
        self._note(name, self.trackers[name].run, self._reported(name))

    def _report(self, name: TrackerName, step: IterationStore) -> None:
        metrics = step.metrics()
        tracker = self.trackers[name]
        trained = read_m_step(step.weights) if metrics.m_step is not None else None
        if trained is not None:  # otherwise nothing was trained, or the weights were removed
            earlier = [self.store.iteration(k).metrics().m_step for k in range(step.number)]
            tracker.log_losses(1 + sum(one.steps for one in earlier if one is not None), trained.losses)
        tracker.log(step.number, figures(metrics))
        self._note(name, tracker.run, step.number)

    @contextmanager
    def _left_out_if_it_fails(self, name: TrackerName) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if (failed := self.trackers.pop(name, None)) is not None:
                with suppress(Exception):
                    failed.close(False)
            self.log(f"  warning: {name} failed, and the run goes on without it: {_reason(error)}")

    def _state(self) -> dict[str, Any]:
        if not self.state_path.is_file():
            return {}
        state: dict[str, Any] = json.loads(self.state_path.read_text(encoding="utf-8"))
        return state

    def _reported(self, name: TrackerName) -> int:
        """The last iteration that a tracker was given; -1 for none."""
        return int(self._state().get(name, {}).get("reported", -1))

    def _note(self, name: TrackerName, run: str, reported: int, closed: bool = False) -> None:
        state = {**self._state(), name: {"run": run, "reported": reported, "closed": closed}}
        write_whole(self.state_path, json.dumps(state, indent=1) + "\n")


_SECRET = re.compile(r"KEY|TOKEN|PASSWORD|SECRET")


def _reason(error: Exception) -> str:
    """An error on one line, without passwords: those in an address, and those of environment variables."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    words = re.sub(r"://[^/@\s]+@", "://***@", words)
    words = re.sub(r"((?:token|key|password)=)[^&\s'\"]+", r"\1***", words, flags=re.IGNORECASE)
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 8:
            words = words.replace(value, "***")
    return words if len(words) <= 300 else f"{words[:300]} ..."
