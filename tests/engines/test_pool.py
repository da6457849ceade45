"""A pool of engines: in workers of this process, and in processes of this machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from conftest import Listen, questions_of, task_of, write_task
from estep import FEMTrainer
from estep.config import EngineConfig, ScriptedEngineConfig, TransformersEngineConfig, VLLMEngineConfig
from estep.e_step import EStep
from estep.engines import DrawQueue, Engine, Sampling, _pooled, choice, open_engine
from estep.engines.host import EngineHost
from estep.engines.pool import PooledEngine, Worker, WorkerDiedError
from estep.engines.processes import LocalWorker, cpu_environment, gpu_environment
from estep.engines.scripted import ScriptedEngine
from estep.engines.transformers import TransformersEngine
from estep.errors import ConfigError, DataError, EngineError, StaleWeightsError
from estep.m_step.canary import Canary, check_canary
from estep.progress import Reporter, Silent
from estep.proposals import PPS, Direct, Rejection, STaR
from estep.records import Draw, Messages, ModelRef, Sample
from runs import ANY_TEXT, KillAfter, Killed, contents, settings

SAMPLING = Sampling(1.0, 1.0, 16)
CONFIG = ScriptedEngineConfig(script="unused.json")
BASE, TRAINED = ModelRef("base"), ModelRef("trained", 1)


_LOADING = threading.Lock()
"""transformers cannot load two models at the same time in one process."""


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
        with _LOADING if method == "open" else nullcontext():
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


class GoesOn(ScriptedEngine):
    """An engine whose samples do not depend on when a draw joins."""

    goes_on = True


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_worker_goes_on_while_its_samples_are_graded_where_batches_make_no_difference(goes_on: bool) -> None:
    worker = ThreadWorker((GoesOn if goes_on else ScriptedEngine)(right_at_last))
    engine = PooledEngine(CONFIG, lambda number: worker, 1, lambda line: None)
    engine.load(BASE)
    draws = draws_of(3)
    with closing(engine.generate(DrawQueue(draws), SAMPLING)) as samples:
        first = next(samples)
        deadline = time.monotonic() + 30
        while goes_on and len(worker.pumped) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(worker.pumped) == (2 if goes_on else 1)  # the second one without having graded the first sample
        ids = [first.draw_id, *(sample.draw_id for sample in samples)]
    engine.close()
    assert sorted(ids) == sorted(draw.id for draw in draws)


@pytest.mark.parametrize("engine_class", [ScriptedEngine, GoesOn])
def test_follow_up_draws_reach_a_worker_that_goes_on(engine_class: type[ScriptedEngine]) -> None:
    workers = [ThreadWorker(engine_class(right_at_last)) for _ in range(2)]
    engine = PooledEngine(CONFIG, lambda number: workers[number], 2, lambda line: None)
    engine.load(BASE)
    found = e_step(engine, Rejection(4))
    engine.close()
    assert found == e_step(ScriptedEngine(right_at_last), Rejection(4))


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
    assert [sample.finish_reason for sample in samples] == ["supplied"] * 3
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
        "note: worker died: killed; it is started again, and what it had not finished runs again",
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


# Processes of this machine


@contextmanager
def processes(config: EngineConfig, number: int = 2, listen: Listen | None = None) -> Iterator[PooledEngine]:
    workers: list[LocalWorker] = []

    def start(number: int) -> Worker:
        workers.append(LocalWorker(number, cpu_environment(number, 2)))
        return workers[-1]

    engine = PooledEngine(config, start, number, (listen or Listen()).log)
    engine.workers = workers  # type: ignore[attr-defined]
    try:
        yield engine
    finally:
        engine.close()
        assert all(worker._process.poll() is not None for worker in workers)


def script(folder: Path, questions: int, texts: int = 3) -> ScriptedEngineConfig:
    """A script whose texts name their question and round; the last one is right."""
    path = folder / "script.json"
    answers = {f"q{n}": [f"Score: {(n + 1) % 5}"] * (texts - 1) + [f"Score: {n % 5}"] for n in range(questions)}
    path.write_text(json.dumps(answers))
    return ScriptedEngineConfig(script=str(path))


def test_processes_give_the_samples_of_one_engine(tmp_path: Path) -> None:
    config = script(tmp_path, 6)
    with processes(config) as engine:
        engine.load(BASE)
        assert e_step(engine, Rejection(4), 6) == e_step(ScriptedEngine.from_file(config.script), Rejection(4), 6)


def test_an_error_in_a_process_keeps_its_kind_and_message(tmp_path: Path) -> None:
    with processes(script(tmp_path, 2)) as engine:
        engine.load(BASE)
        with pytest.raises(DataError, match=r"^the script has no text for question 'q2'$"):
            list(engine.generate(DrawQueue(draws_of(3)), SAMPLING))
        assert len(list(engine.generate(DrawQueue(draws_of(2)), SAMPLING))) == 2
    missing = ScriptedEngineConfig(script=str(tmp_path / "missing.json"))
    with processes(missing) as engine, pytest.raises(DataError, match="could not read the script"):
        engine.load(BASE)


def test_a_process_that_is_killed_while_it_samples_is_replaced(tmp_path: Path) -> None:
    config, listen = script(tmp_path, 8), Listen()
    with processes(config, listen=listen) as engine:
        engine.load(BASE)

        class Killing(Silent):
            """Kills a process of the pool once some samples are there."""

            @contextmanager
            def phase(self, *arguments: Any, **options: Any) -> Iterator[Any]:
                seen = count(1)
                victim = engine.workers[1]._process  # type: ignore[attr-defined]
                yield lambda *_: os.kill(victim.pid, signal.SIGKILL) if next(seen) == 9 else None

        task = task_of()
        questions = questions_of(task, "01234012")
        found = EStep(task, Rejection(4), {}, engine, SAMPLING, Killing()).run(questions, 3)
        alone = ScriptedEngine.from_file(config.script)
        assert found == EStep(task, Rejection(4), {}, alone, SAMPLING, Silent()).run(questions, 3)
        assert listen.lines == [
            "note: the process of engine 1 ended (SIGKILL, as when memory runs out); it is started again, and what it "
            "had not finished runs again"
        ]


def test_a_process_ends_with_its_parent_even_if_it_is_killed() -> None:
    program = (
        "import time\n"
        "from estep.engines.processes import LocalWorker\n"
        "worker = LocalWorker(0, {})\n"
        "worker.call('close').result()\n"
        "print(worker._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_what_a_process_started_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import subprocess, pathlib\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
    )
    worker = LocalWorker(0, {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])})
    with pytest.raises(RuntimeError, match="open an engine first"):
        worker.call("properties").result()  # it has begun
    child = Path("/proc", (tmp_path / "child").read_text(), "stat")
    worker._process.kill()
    with pytest.raises(WorkerDiedError):
        worker.call("properties").result()
    deadline = time.monotonic() + 60
    with suppress(OSError):  # the file is gone
        while child.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline, "a child outlived its parent"
            time.sleep(0.05)
    worker.stop()


def test_a_process_that_cannot_begin_says_why() -> None:
    worker = LocalWorker(3, {"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"})
    with pytest.raises(WorkerDiedError, match=r"the process of engine 3 ended \(status 1: .+\)"):
        worker.call("properties").result()
    worker.stop()


def test_cores_are_divided_and_each_worker_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 6, 7, 8}, raising=False)
    assert [cpu_environment(number, 2) for number in range(2)] == [
        {"OMP_NUM_THREADS": "2", "VLLM_CPU_OMP_THREADS_BIND": "4,5"},
        {"OMP_NUM_THREADS": "3", "VLLM_CPU_OMP_THREADS_BIND": "6,7,8"},
    ]
    assert cpu_environment(1, 2, parts=2)["VLLM_CPU_OMP_THREADS_BIND"] == "6|7,8"
    shared = [cpu_environment(number, 7)["VLLM_CPU_OMP_THREADS_BIND"] for number in range(7)]
    assert shared == ["4", "5", "6", "7", "8", "4", "5"]


def test_gpus_are_divided_and_those_that_the_parent_hides_stay_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpu_environment(number, 2)["CUDA_VISIBLE_DEVICES"] for number in range(2)] == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6, GPU-7f,2")
    assert [gpu_environment(number, 1)["CUDA_VISIBLE_DEVICES"] for number in range(3)] == ["6", "GPU-7f", "2"]


# Which engine, and how many copies


@pytest.mark.parametrize(
    ("config", "gpus", "expected"),
    [
        (VLLMEngineConfig(), 0, 1),
        (VLLMEngineConfig(data_parallel=3), 0, 3),  # a CPU has any number
        (VLLMEngineConfig(), 4, 4),
        (VLLMEngineConfig(tensor_parallel_size=2), 5, 2),
        (VLLMEngineConfig(tensor_parallel_size=2), 1, 1),  # vLLM itself says that GPUs are missing
        (VLLMEngineConfig(data_parallel=2), 4, 2),
        (TransformersEngineConfig(), 4, 4),
        (TransformersEngineConfig(device="cpu"), 4, 1),
        (TransformersEngineConfig(device="cpu", data_parallel=2), 1, 2),
        (CONFIG, 4, 1),
    ],
)
def test_one_copy_of_the_model_for_each_gpu(
    monkeypatch: pytest.MonkeyPatch, config: EngineConfig, gpus: int, expected: int
) -> None:
    monkeypatch.setattr(choice, "gpus", lambda: gpus)
    assert choice.copies(config) == expected


def test_more_copies_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "gpus", lambda: 3)
    with pytest.raises(ConfigError, match=r"engine\.data_parallel=4 needs 4 GPUs, and 3 are there"):
        choice.copies(TransformersEngineConfig(data_parallel=4))
    with pytest.raises(ConfigError, match=r"=2 with engine\.tensor_parallel_size=2 needs 4 GPUs, and 3 are there"):
        choice.copies(VLLMEngineConfig(data_parallel=2, tensor_parallel_size=2))


# A real model


def records(engine: Engine, folder: Path, tiny_model: str, reporter: Reporter | None = None) -> dict[str, object]:
    task = folder / "judge.yaml"
    if not task.exists():
        write_task(folder, **ANY_TEXT)
    changes = {"iterations": 1, "proposal": {"type": "rejection", "budget": 2, "n": 2}}
    FEMTrainer(tiny_model, str(task), settings(folder / "run", **changes), reporter=reporter, engine=engine).train()
    return contents(folder / "run")


@pytest.mark.slow
def test_an_interrupted_run_on_two_workers_equals_an_uninterrupted_one(tmp_path: Path, tiny_model: str) -> None:
    config = TransformersEngineConfig(max_new_tokens=8, batch_size=4, device="cpu", data_parallel=2)
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    with closing(open_engine(config, ModelRef(tiny_model))) as engine:
        assert engine.metadata["data_parallel"] == 2
        whole = records(engine, tmp_path / "whole", tiny_model)
        assert len(whole["iteration-01/samples.jsonl"]) == 14  # type: ignore[arg-type]
        for pieces in (6, 9, 5):  # in the E-step, in the E-step again, and in the M-step or after it
            with pytest.raises(Killed):
                records(engine, tmp_path / "killed", tiny_model, KillAfter(pieces))
        assert records(engine, tmp_path / "killed", tiny_model) == whole


def test_a_new_worker_repeats_its_batches(tiny_model: str) -> None:
    # In bfloat16, a sample depends on the rows of its batch: log-probabilities are compared to the last bit.
    config = TransformersEngineConfig(batch_size=3, device="cpu")
    found, starts = [], []
    for dies_at in (None, 2, 4, 6):
        workers: list[ThreadWorker] = []

        def start(number: int, dies_at: int | None = dies_at, workers: list[ThreadWorker] = workers) -> Worker:
            first = dies_at is not None and number == 0 and len(workers) < 2
            dies = lambda method, n: first and method == "pump" and n == dies_at  # noqa: E731
            workers.append(ThreadWorker(TransformersEngine(config), dies))
            return workers[-1]

        with closing(PooledEngine(config, start, 2, Silent().log)) as engine:
            engine.load(ModelRef(tiny_model))
            found.append(e_step(engine, Rejection(3), 9))
        starts.append(len(workers))
    assert starts == [2, 3, 3, 3]
    assert len(found[0].samples) == 27
    assert all(after == found[0] for after in found[1:])


@pytest.mark.slow
def test_two_workers_sample_what_one_engine_samples(tmp_path: Path, tiny_model: str) -> None:
    # In float32, rows of other batches change nothing but the last digits of a log-probability.
    config = TransformersEngineConfig(batch_size=4, device="cpu", dtype="float32")
    texts = []
    for data_parallel in (1, 2):
        copies = config.model_copy(update={"data_parallel": data_parallel})
        with closing(open_engine(copies, ModelRef(tiny_model))) as engine:
            found = e_step(engine, Rejection(2), 9)
            texts.append([(sample.draw_id, sample.text) for sample in found.samples])
            assert engine.prompt_lengths([found.draws[0].messages])[0] > 20
            assert engine.context == 2048
            assert "<|im_end|>" in engine.control_tokens
    assert texts[0] == texts[1]
    assert len(texts[0]) == 18


def test_copies_that_are_told_to_use_the_cpu_share_its_cores_although_there_are_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: dict[int, dict[str, str]] = {}
    monkeypatch.setattr(choice, "gpus", lambda: 2)
    monkeypatch.setattr(
        "estep.engines.processes.LocalWorker", lambda number, changes: started.update({number: changes})
    )
    config = TransformersEngineConfig(device="cpu", data_parallel=2)
    pool = _pooled(config, 2, lambda line: None)
    for number in range(2):
        pool._start(number)  # type: ignore[attr-defined]
    assert started == {number: cpu_environment(number, 2) for number in range(2)}
