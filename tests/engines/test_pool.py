"""A pool of engines: in workers of this process, and in processes of this machine."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from conftest import Listen, questions_of, task_of
from estep.config import ScriptedEngineConfig
from estep.e_step import EStep
from estep.engines import DrawQueue, Engine, Sampling
from estep.engines.host import EngineHost
from estep.engines.pool import PooledEngine, Worker, WorkerDiedError
from estep.engines.scripted import ScriptedEngine
from estep.errors import DataError, EngineError, StaleWeightsError
from estep.m_step.canary import Canary, check_canary
from estep.progress import Silent
from estep.proposals import PPS, Direct, Rejection, STaR
from estep.records import Draw, Messages, ModelRef, Sample

SAMPLING = Sampling(1.0, 1.0, 16)
CONFIG = ScriptedEngineConfig(script="unused.json")
BASE, TRAINED = ModelRef("base"), ModelRef("trained", 1)


class ThreadWorker:
    """A worker in this process. `dies` says before which call it dies, by method and number."""

    def __init__(self, engine: Engine, dies: Callable[[str, int], bool] = lambda method, number: False):
        self.engine = engine
        self.host = EngineHost(lambda config: engine)
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.dead = False
        self._dies = dies
        self._thread = ThreadPoolExecutor(1)

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        try:
            return self._thread.submit(self._answer, method, *arguments)
        except RuntimeError:  # stopped
            future: Future[Any] = Future()
            future.set_exception(WorkerDiedError("worker died: stopped"))
            return future

    def _answer(self, method: str, *arguments: Any) -> Any:
        self.calls.append((method, arguments))
        number = sum(called == method for called, _ in self.calls)
        self.dead = self.dead or self._dies(method, number)
        if self.dead:
            raise WorkerDiedError("worker died: killed")
        return getattr(self.host, method)(*arguments)

    def stop(self) -> None:
        self.dead = True
        self._thread.shutdown()

    @property
    def pumped(self) -> list[list[str]]:
        """The ids of the draws of each pump."""
        return [[draw.id for draw in arguments[0]] for method, arguments in self.calls if method == "pump"]


class Pool:
    """A pool of scripted engines in this process, and every worker that it started."""

    def __init__(self, script: Any, count: int = 2, dies: Callable[[int, str, int], bool] | None = None):
        self.started: list[tuple[int, ThreadWorker]] = []
        self.listen = Listen()

        def start(number: int) -> Worker:
            order = len(self.started)
            worker = ThreadWorker(ScriptedEngine(script), lambda m, n: dies is not None and dies(order, m, n))
            self.started.append((number, worker))
            return worker

        self.engine = PooledEngine(CONFIG, start, count, self.listen.log)
        self.engine.load(BASE)

    def workers(self) -> list[ThreadWorker]:
        return [worker for _, worker in self.started]

    def asked(self) -> list[list[str]]:
        return [[draw.id for draw in worker.engine.asked] for worker in self.workers()]  # type: ignore[attr-defined]


@pytest.fixture
def pools() -> Iterator[Callable[..., Pool]]:
    opened: list[Pool] = []

    def open_pool(*arguments: Any, **options: Any) -> Pool:
        opened.append(Pool(*arguments, **options))
        return opened[-1]

    yield open_pool
    for pool in opened:
        pool.engine.close()


def right_at_last(draw: Draw) -> str:
    """A text that is right in the third round, or when hinted."""
    answer = int(draw.question_id.removeprefix("q")) % 5
    right = draw.hinted or draw.round == 2
    return f"Evaluation: text of {draw.id}. Score: {answer if right else (answer + 1) % 5}"


def e_step(engine: Engine, proposal: Any, questions: int = 7) -> Any:
    task = task_of()
    answers = "".join(str(number % 5) for number in range(questions))
    return EStep(task, proposal, {}, engine, SAMPLING, Silent()).run(questions_of(task, answers), 3)


def draws_of(number: int, proposal: Any = None) -> list[Draw]:
    task = task_of()
    return (proposal or PPS()).propose(task, questions_of(task, "0" * number), 3)


@pytest.mark.parametrize("proposal", [Rejection(4), STaR(), PPS(2), Direct()])
def test_a_pool_gives_the_samples_of_one_engine(pools: Callable[..., Pool], proposal: Any) -> None:
    pool = pools(right_at_last, count=3)
    assert e_step(pool.engine, proposal) == e_step(ScriptedEngine(right_at_last), proposal)


def test_all_draws_of_a_question_go_to_one_worker_and_none_has_more_than_its_part(pools: Callable[..., Pool]) -> None:
    pool = pools(right_at_last)
    e_step(pool.engine, Rejection(3, n=2), questions=6)
    # Six questions with two attempts of three rounds each: 36 draws, half for each worker.
    assert [len(ids) for ids in pool.asked()] == [18, 18]
    first, second = ({id.split("#")[0] for id in ids} for ids in pool.asked())
    assert not first & second


def test_a_worker_stands_still_until_the_draws_that_follow_have_arrived(pools: Callable[..., Pool]) -> None:
    pool = pools(right_at_last, count=1)
    e_step(pool.engine, Rejection(2), questions=2)
    (worker,) = pool.workers()
    # The scripted engine hands over one sample at a time. What follows from q0 comes with the pump that goes on to q1.
    assert worker.pumped == [["q0#0.0", "q1#0.0"], ["q0#0.1"], ["q1#0.1"], [], []]


def test_finished_samples_reach_the_worker_and_come_back(pools: Callable[..., Pool]) -> None:
    pool = pools(right_at_last)
    draws = draws_of(4)
    old = Sample(draws[2].id, "old", "stop", 1, 1, 0.0)
    found = {sample.draw_id: sample for sample in pool.engine.generate(DrawQueue(draws, {old.draw_id: old}), SAMPLING)}
    assert found.keys() == {draw.id for draw in draws}
    assert found[old.draw_id] == old
    assert all(old.draw_id not in asked for asked in pool.asked())


def test_supplied_texts_need_no_worker(pools: Callable[..., Pool]) -> None:
    pool = pools(right_at_last)
    samples = list(pool.engine.generate(DrawQueue(draws_of(3, Direct())), SAMPLING))
    assert [sample.finish_reason for sample in samples] == ["answer_only"] * 3
    assert all(worker.pumped == [] for worker in pool.workers())


def test_an_error_in_a_worker_arrives_as_it_was_raised(pools: Callable[..., Pool]) -> None:
    pool = pools({"q0": ["text"], "q1": ["text"]})
    with pytest.raises(DataError, match="the script has no text for question 'q2'"):
        list(pool.engine.generate(DrawQueue(draws_of(3)), SAMPLING))
    samples = list(pool.engine.generate(DrawQueue(draws_of(2)), SAMPLING))
    assert {sample.draw_id for sample in samples} == {"q0#0.0", "q1#0.0"}


def test_a_dropped_generate_leaves_nothing_behind(pools: Callable[..., Pool]) -> None:
    pool = pools(right_at_last)
    samples = pool.engine.generate(DrawQueue(draws_of(8)), SAMPLING)
    next(samples)
    samples.close()  # type: ignore[attr-defined]
    later = [replace(draw, id=f"later {draw.id}") for draw in draws_of(4)]
    found = [sample.draw_id for sample in pool.engine.generate(DrawQueue(later), SAMPLING)]
    assert sorted(found) == [draw.id for draw in later]
    assert all("abort" in [method for method, _ in worker.calls] for worker in pool.workers())


@pytest.mark.parametrize("proposal", [Rejection(4), STaR()])
def test_a_worker_that_dies_is_replaced_and_repeats_its_share(pools: Callable[..., Pool], proposal: Any) -> None:
    pool = pools(right_at_last, dies=lambda order, method, number: order == 1 and method == "pump" and number == 5)
    assert e_step(pool.engine, proposal) == e_step(ScriptedEngine(right_at_last), proposal)
    assert [number for number, _ in pool.started] == [0, 1, 1]
    dead, new = pool.workers()[1:]
    assert new.calls[0] == ("open", (CONFIG, BASE))
    # The four finished samples bring back the draws that followed from them, and are not sampled again.
    asked = pool.asked()
    assert len(asked[1]) == 4
    assert not set(asked[1]) & set(asked[2])
    assert new.pumped[0] == dead.pumped[0]
    assert pool.listen.lines == [
        "note: worker died: killed; it is started again, and its unfinished draws run again",
    ]


def test_a_new_worker_has_the_present_weights(pools: Callable[..., Pool]) -> None:
    pool = pools(right_at_last, dies=lambda order, method, number: order == 0 and method == "load")
    pool.engine.load(TRAINED)
    new = pool.workers()[-1]
    assert new.calls[:2] == [("open", (CONFIG, TRAINED)), ("load", (TRAINED,))]
    assert pool.workers()[1].engine.loaded == [BASE, TRAINED]  # type: ignore[attr-defined]


def test_workers_that_die_again_and_again_stop_the_run(pools: Callable[..., Pool]) -> None:
    pool = pools(right_at_last, dies=lambda order, method, number: method == "pump")
    with pytest.raises(EngineError, match="worker died: killed; 3 were started again before, so the run stops"):
        list(pool.engine.generate(DrawQueue(draws_of(4)), SAMPLING))
    assert len(pool.started) == 2 + 3


def test_a_worker_that_does_not_start_is_an_error_and_all_are_stopped() -> None:
    workers: list[ThreadWorker] = []

    def start(number: int) -> Worker:
        workers.append(ThreadWorker(ScriptedEngine({}), lambda method, n: number == 1))
        return workers[-1]

    with pytest.raises(WorkerDiedError, match="worker died: killed"):
        PooledEngine(CONFIG, start, 2, Silent().log).load(BASE)
    assert [worker.dead for worker in workers] == [True, True]
    assert ("close", ()) in workers[0].calls


class Weighted(ScriptedEngine):
    """Scores by its weights; a stale one does not load."""

    def __init__(self, stale: bool = False):
        super().__init__({})
        self.stale = stale

    def score(self, messages: Messages, text: str) -> float:
        models = self.loaded[:1] if self.stale else self.loaded[-1:]
        return -10.0 if models == [BASE] else -9.999


@pytest.mark.parametrize("stale", [None, 0, 1])
def test_the_canary_reaches_every_worker(stale: int | None) -> None:
    workers = [ThreadWorker(Weighted(number == stale)) for number in range(2)]
    engine = PooledEngine(CONFIG, lambda number: workers[number], 2, Silent().log)
    engine.load(BASE)
    messages = ({"role": "user", "content": "x"},)
    before = engine.score(messages, "Score: 3")
    engine.load(TRAINED)
    canary = Canary(((messages, "Score: 3"),), -9.999, before, tokens=9, visible=True)
    if stale is None:
        assert check_canary(engine, canary)["loaded"] == -9.999
    else:
        with pytest.raises(StaleWeightsError, match=r"the canary scores -10\.000"):
            check_canary(engine, canary)
    engine.close()


def test_the_pool_says_what_it_is(pools: Callable[..., Pool]) -> None:
    pool = pools(right_at_last, count=3)
    assert pool.engine.metadata == {"engine": "scripted", "data_parallel": 3}
    assert pool.engine.context is None
    assert pool.engine.control_tokens == frozenset()
    assert pool.engine.prompt_lengths([({"role": "user", "content": "two words"},)]) == [2]
    pool.engine.release()
    assert all(("release", ()) in worker.calls for worker in pool.workers())
    pool.engine.close()
    pool.engine.close()  # a second time does nothing
    assert all(worker.dead for worker in pool.workers())
