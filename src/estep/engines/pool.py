"""Several engines that sample as one: one per GPU of a machine, or per GPU of a cluster.

Each engine is in a worker (`estep.engines.host.EngineHost`). All draws of a question go to one worker, so that a draw
that follows from a sample joins the engine that sampled it. Which one depends on the draws alone, and a worker stands
still while its samples are graded: the same draws on as many workers give the same batches. Engines whose samples do
not depend on batches go on meanwhile (`Properties.goes_on`).

A worker that dies is started again with the present weights, and repeats its share as a resumed run does: its first
draws go in again with the samples that it had finished, and each of those brings back the draws that followed from it.
Draws whose text the proposal supplied need no worker.

Texts to score are cut into parts, and each worker asks for another part when it has scored one. The parts depend on the
requests and the number of workers alone, and the scores of a part do not depend on the worker.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from estep.config import EngineConfig
from estep.engines.base import DrawQueue, Sampling, ScoreRequest, supplied_sample
from estep.engines.host import Properties
from estep.errors import EngineError
from estep.records import Draw, Messages, ModelRef, Sample, Score

RESTARTS = 3
"""How many workers of a machine's pool may die between two loads of a model until the run stops."""
_CLOSING = 60.0
"""Seconds after which a worker that does not close is ended."""
_SCORED_TOGETHER = 256
"""Texts that a worker scores in one call. If the run is killed, the scores of a call are lost."""


class WorkerDiedError(EngineError):
    """The process of an engine ended."""


class Worker(Protocol):
    """An engine in a process of its own, on this machine or another."""

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of the worker's `EngineHost` (`estep.engines.host`). One call at a time.

        The future raises what the method raises, or `WorkerDiedError`, also after `stop`.
        """

    def stop(self) -> None:
        """End the process, even if it hangs or has ended, and fail the call that it has not answered."""


StartWorker = Callable[[int], Worker]
"""Starts the process of the worker with this number; its engine is built by a call of `open`."""


@dataclass
class _Share:
    """A worker's share of the draws."""

    waiting: list[Draw] = field(default_factory=list)
    """Draws to send."""
    first: list[Draw] = field(default_factory=list)
    """Draws that did not follow from one of `samples`."""
    following: dict[str, list[Draw]] = field(default_factory=dict)
    """Draws that followed from a sample, by the id of the sample's draw."""
    samples: dict[str, Sample] = field(default_factory=dict)
    """All finished samples, by draw id."""
    sampling: bool = False
    """Whether the worker has begun its share, and not ended it."""

    def add(self, draw: Draw, cause: str | None) -> None:
        """Add a draw that followed from the sample of the draw `cause`."""
        self.waiting.append(draw)
        if cause in self.samples:
            self.following.setdefault(cause, []).append(draw)
        else:
            self.first.append(draw)

    def take(self) -> list[Draw]:
        """Remove and return the draws to send."""
        taken, self.waiting = self.waiting, []
        return taken

    def receive(self, samples: Sequence[Sample]) -> list[Sample]:
        """Keep samples; returns the new ones. The others are repeated for a new worker."""
        self.sampling = bool(samples)  # a worker that returns none has ended
        new = [sample for sample in samples if sample.draw_id not in self.samples]
        for sample in samples:
            self.waiting += self.following.get(sample.draw_id, [])
            self.samples.setdefault(sample.draw_id, sample)
        return new

    def repeat(self) -> None:
        """Send all draws again, in the same order."""
        self.waiting, self.sampling = list(self.first), False


class _Shares:
    """Distributes draws among workers."""

    def __init__(self, workers: int):
        self.of_worker = [_Share() for _ in range(workers)]
        self._draws = [0] * workers
        self._worker: dict[str, int] = {}  # by question

    def add(self, draw: Draw, cause: str | None) -> None:
        """Give a draw to the worker of its question; a new question's is the one with the fewest draws so far."""
        fewest = self._draws.index(min(self._draws))
        number = self._worker.setdefault(draw.question_id, fewest)
        self._draws[number] += 1
        self.of_worker[number].add(draw, cause)


@dataclass
class _Slot:
    """A place in the pool."""

    number: int
    worker: Worker
    future: Future[Any] | None = None
    """The call that the worker has not answered, or whose answer was not read."""
    opening: bool = False
    """Whether `future` starts an engine in place of one that died."""
    sampling: bool = False
    """Whether draws of a `generate` that was dropped may be left in the worker."""


class PooledEngine:
    """An engine that distributes draws among workers.

    Args:
        config: the configuration of each worker's engine.
        start: starts a worker.
        count: the number of workers.
        log: receives a line for each worker that died.
    """

    def __init__(self, config: EngineConfig, start: StartWorker, count: int, log: Callable[[str], None]):
        self._config = config
        self._start = start
        self._count = count
        self.restarts = RESTARTS
        """How many workers may die until the run stops."""
        self._log = log
        self._restarts = 0
        self._slots: list[_Slot] = []
        self._model: ModelRef | None = None
        self._properties: Properties | None = None

    @property
    def _known(self) -> Properties:
        assert self._properties is not None, "load a model first"
        return self._properties

    @property
    def metadata(self) -> dict[str, str | int | float | bool]:
        return {**self._known.metadata, "data_parallel": self._count}

    @property
    def context(self) -> int | None:
        return self._known.context

    @property
    def control_tokens(self) -> frozenset[str]:
        return self._known.control_tokens

    def load(self, model: ModelRef) -> None:
        """Load a model in all workers at the same time; the first call starts them.

        Raises:
            EngineError: workers died, more often than `restarts` times.
        """
        self._model = model
        self._restarts = 0
        if self._slots:
            self._properties = self._all("load", model)[0]
            return
        try:
            for number in range(self._count):
                self._slots.append(_Slot(number, self._start(number)))
            self._properties = self._all("open", self._config, model, again=False)[0]
        except BaseException:
            self.close()
            raise

    def scores(self, messages: Messages, text: str) -> list[float]:
        """The score of each worker, for the canary: all of them must hold the new weights."""
        return self._all("score", messages, text)

    def score(self, messages: Messages, text: str) -> float:
        return self._one("score", messages, text)

    def prompt_lengths(self, prompts: Sequence[Messages]) -> list[int]:
        return self._one("prompt_lengths", prompts)

    def release(self) -> None:
        self._all("release")

    def close(self) -> None:
        slots, self._slots = self._slots, []
        closing = []
        for slot in slots:
            if slot.future is None or slot.future.done():
                closing.append(slot.worker.call("close"))
        wait(closing, timeout=_CLOSING)
        for slot in slots:
            slot.worker.stop()

    def generate(self, queue: DrawQueue, sampling: Sampling) -> Iterator[Sample]:
        """See `Engine.generate`.

        Raises:
            EngineError: workers died, more often than `restarts` times.
        """
        self._settle(self._slots)
        shares = _Shares(len(self._slots))
        yield from _hand_out(queue, shares, None)
        for slot in self._slots:
            self._pump(slot, shares, queue.finished, sampling)
        while under_way := [slot.future for slot in self._slots if slot.future is not None]:
            wait(under_way, return_when=FIRST_COMPLETED)
            for slot in self._slots:
                if slot.future is not None and slot.future.done():
                    samples = self._answer(slot, shares.of_worker[slot.number])
                    if self._known.goes_on:
                        self._pump(slot, shares, queue.finished, sampling)
                    for sample in samples:
                        yield sample
                        yield from _hand_out(queue, shares, sample.draw_id)
                self._pump(slot, shares, queue.finished, sampling)

    def _pump(self, slot: _Slot, shares: _Shares, finished: Mapping[str, Sample], sampling: Sampling) -> None:
        """Have a worker sample, if it is idle and something is left to do."""
        share = shares.of_worker[slot.number]
        if slot.future is not None or not (share.waiting or share.sampling):
            return
        draws = share.take()
        known = {draw.id: share.samples.get(draw.id) or finished.get(draw.id) for draw in draws}
        kept = {id: sample for id, sample in known.items() if sample is not None}
        slot.sampling = share.sampling = True
        slot.future = slot.worker.call("pump", draws, kept, sampling)

    def _answer(self, slot: _Slot, share: _Share) -> list[Sample]:
        """The new samples of a worker that has answered; a new worker is started for one that died."""
        opening = slot.opening
        try:
            answer = self._read(slot)
        except WorkerDiedError as error:
            share.repeat()
            self._replace(slot, error)
            return []
        if opening:
            return []
        samples = share.receive(answer)
        slot.sampling = share.sampling
        return samples

    def score_many(self, requests: Sequence[ScoreRequest], finished: Mapping[str, Score]) -> Iterator[Score]:
        """See `Engine.score_many`. The scores of a part arrive together.

        Raises:
            EngineError: workers died, more often than `restarts` times.
        """
        self._settle(self._slots)
        size = min(_SCORED_TOGETHER, -(-len(requests) // len(self._slots)))
        parts: deque[Sequence[ScoreRequest]] = deque()
        for start in range(0, len(requests), size or 1):
            part = requests[start : start + size]
            if all(request.id in finished for request in part):
                yield from (finished[request.id] for request in part)
            else:
                parts.append(part)
        asked: dict[int, Sequence[ScoreRequest]] = {}  # by the worker's number
        while True:
            for slot in self._slots:
                if slot.future is None and parts:
                    part = asked[slot.number] = parts.popleft()
                    kept = {request.id: finished[request.id] for request in part if request.id in finished}
                    slot.future = slot.worker.call("score_many", part, kept)
            if not asked and not parts:
                return
            wait([slot.future for slot in self._slots if slot.future is not None], return_when=FIRST_COMPLETED)
            for slot in self._slots:
                if slot.future is None or not slot.future.done():
                    continue
                opening = slot.opening
                try:
                    answer = self._read(slot)
                except WorkerDiedError as error:
                    if slot.number in asked:
                        parts.appendleft(asked.pop(slot.number))
                    self._replace(slot, error)
                    continue
                if not opening:
                    del asked[slot.number]
                    yield from answer

    # Calls of workers

    def _one(self, method: str, *arguments: Any) -> Any:
        return self._call(self._slots[:1], method, *arguments)[0]

    def _all(self, method: str, *arguments: Any, again: bool = True) -> list[Any]:
        return self._call(self._slots, method, *arguments, again=again)

    def _call(self, slots: list[_Slot], method: str, *arguments: Any, again: bool = True) -> list[Any]:
        """Call a method of several workers at the same time.

        Args:
            again: start a new worker in place of one that dies, and call it again.

        Returns:
            Their answers. If some raise, the first error is raised once all have answered.
        """
        self._settle(slots)
        for slot in slots:
            slot.future = slot.worker.call(method, *arguments)
        answers, errors = [], []
        for slot in slots:
            try:
                answers.append(self._insist(slot, method, *arguments) if again else self._read(slot))
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return answers

    def _insist(self, slot: _Slot, method: str, *arguments: Any) -> Any:
        """The answer to the present call, asked again of a new worker if the worker died."""
        while True:
            try:
                opening = slot.opening
                answer = self._read(slot)
                if not opening:
                    return answer
                slot.future = slot.worker.call(method, *arguments)
            except WorkerDiedError as error:
                self._replace(slot, error)

    def _read(self, slot: _Slot) -> Any:
        """Wait for a worker's answer."""
        assert slot.future is not None
        wait([slot.future])  # an interrupt leaves the call to `_settle`
        future, slot.future, slot.opening = slot.future, None, False
        return future.result()

    def _replace(self, slot: _Slot, error: WorkerDiedError) -> None:
        """Start a worker in place of one that died. It loads the present weights while the others go on."""
        slot.worker.stop()
        if self._restarts >= self.restarts:
            raise EngineError(f"{error}; {self.restarts} were started again before, so the run stops") from error
        self._restarts += 1
        self._log(f"note: {error}; it is started again, and what it had not finished runs again")
        slot.worker, slot.sampling = self._start(slot.number), False
        slot.future, slot.opening = slot.worker.call("open", self._config, self._model), True

    def _settle(self, slots: list[_Slot]) -> None:
        """Drop what a `generate` left behind whose reader stopped early."""
        assert slots, "load a model first"
        for slot in slots:
            if slot.future is not None:
                ignored = WorkerDiedError if slot.opening else Exception  # the next call finds a worker that died
                with contextlib.suppress(ignored):
                    self._read(slot)
            if slot.sampling:
                slot.future, slot.sampling = slot.worker.call("abort"), False
        for slot in slots:
            if slot.future is not None:
                with contextlib.suppress(WorkerDiedError):
                    self._read(slot)


def _hand_out(queue: DrawQueue, shares: _Shares, cause: str | None) -> Iterator[Sample]:
    """Distribute the waiting draws; yield the samples of those whose text the proposal supplied."""
    while draws := queue.take():
        for draw in draws:
            supplied = supplied_sample(draw)
            if supplied is None:
                shares.add(draw, cause)
            else:
                yield queue.finished.get(draw.id) or supplied
