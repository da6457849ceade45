"""The openai engine: against a real vLLM server, and against a server of ours that fails on purpose."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from conftest import Listen, questions_of, task_of, write_task
from estep import FEMConfig, FEMTrainer
from estep.config import OpenAIEngineConfig, Price, RunConfig
from estep.config.files import load_config
from estep.data.prepare import fit_to_task
from estep.engines import DrawQueue, Sampling
from estep.engines.openai import OpenAIEngine
from estep.errors import ConfigError, DataError, EngineError, EstepError
from estep.inference import evaluate_model, predict, preview
from estep.progress import Silent
from estep.proposals import PPS
from estep.records import Draw, ModelRef, Sample
from estep.sources.archives import fetch
from estep.store.files import JsonlFile

SAMPLING = Sampling(1.0, 1.0, 16)
SECRET = "sk-never-written-anywhere"


# A server of ours, which does as it is told


class Server(ThreadingHTTPServer):
    """Answers chat requests from `plan` (statuses, the last one again and again), and keeps them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[int] = [200]
        self.error = "no reason"
        self.pause = 0.0
        self.insists = False
        """Refuses the older name of the token limit."""
        self.usage = True
        self.text = "Evaluation: It is a fine and sunny day. Score: 3"
        self.page = b""
        """Sent in place of an answer."""
        self.most = 0
        self.under_way = 0
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.keys.append(self.headers["Authorization"])
            plan = self.server.plan
            status = plan.pop(0) if len(plan) > 1 else plan[0]
            if self.server.insists and "max_tokens" in body:
                status = 400
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
        time.sleep(self.server.pause)
        with self.server.lock:
            self.server.under_way -= 1
        token = {"token": "x", "bytes": None, "top_logprobs": []}
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": self.server.text},
            "logprobs": {"content": [{**token, "logprob": -0.5}, {**token, "logprob": -0.25}]},
        }
        answer: dict[str, Any] = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "judge",
            "choices": [choice],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
        if not self.server.usage:
            del answer["usage"]
        if status != 200:
            answer = {"error": {"message": self.server.error, "type": "error"}}
        content = self.server.page or json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if self.server.page else "application/json")
            self.send_header("Content-Length", str(len(content)))
            if status == 429:
                self.send_header("Retry-After", "0.01")
            self.end_headers()
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up waiting, as one test wants it to

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("ESTEP_TEST_KEY", SECRET)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def engine_of(server: Server, **changes: Any) -> OpenAIEngine:
    settings = {"base_url": server.url, "api_key_env": "ESTEP_TEST_KEY", **changes}
    engine = OpenAIEngine(OpenAIEngineConfig(**settings))
    engine.load(ModelRef("judge"))
    return engine


def draws_of(number: int) -> list[Draw]:
    task = task_of()
    return PPS().propose(task, questions_of(task, "3" * number), 3)


def test_a_request_says_all_that_q_is_and_the_answer_is_accounted(server: Server) -> None:
    engine = engine_of(server, price=Price(prompt=2.0, completion=10.0))
    (draw,) = draws_of(1)
    (sample,) = engine.generate(DrawQueue([draw]), SAMPLING)
    assert sample == Sample(draw.id, "Evaluation: It is a fine and sunny day. Score: 3", "stop", 100, 10, -0.75)
    (request,) = server.requests
    assert request == {
        "model": "judge",
        "messages": list(draw.messages),
        "temperature": 1.0,
        "max_tokens": 16,
        "seed": draw.seed,
        "logprobs": True,
    }
    assert server.keys == [f"Bearer {SECRET}"]
    assert engine.metadata["cost"] == pytest.approx((100 * 2.0 + 10 * 10.0) / 1e6)
    assert (engine.metadata["requests"], engine.metadata["prompt_tokens"], engine.metadata["completion_tokens"]) == (
        1,
        100,
        10,
    )


def test_log_probabilities_are_asked_for_only_where_they_are_those_of_q(server: Server) -> None:
    engine = engine_of(server)
    shapes = [SAMPLING, Sampling(0.0, 1.0, 16), Sampling(0.6, 1.0, 16), Sampling(1.0, 0.9, 16)]
    for sampling in shapes:
        list(engine.generate(DrawQueue(draws_of(1)), sampling))
    assert ["logprobs" in request for request in server.requests] == [True, True, False, False]
    assert server.requests[-1]["top_p"] == 0.9


def test_what_a_server_refuses_can_be_left_out(server: Server) -> None:
    list(engine_of(server, seeds=False, logprobs=False).generate(DrawQueue(draws_of(1)), SAMPLING))
    assert "seed" not in server.requests[0]
    assert "logprobs" not in server.requests[0]


def test_requests_run_together_up_to_the_limit(server: Server) -> None:
    server.pause = 0.05
    found = list(engine_of(server, concurrency=3).generate(DrawQueue(draws_of(12)), SAMPLING))
    assert len({sample.draw_id for sample in found}) == 12
    assert server.most == 3


def test_finished_draws_are_not_paid_for_again(server: Server) -> None:
    draws = draws_of(3)
    old = Sample(draws[0].id, "old", "stop", 1, 1, None)
    found = {s.draw_id: s for s in engine_of(server).generate(DrawQueue(draws, {old.draw_id: old}), SAMPLING)}
    assert len(server.requests) == 2
    assert found[old.draw_id] == old


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(server: Server, status: int) -> None:
    server.plan = [status, status, 200]
    found = list(engine_of(server).generate(DrawQueue(draws_of(1)), SAMPLING))
    assert len(found) == 1
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, EngineError, "refused the key from ESTEP_TEST_KEY"),
        (404, EngineError, "model 'judge' answered with status 404: no reason"),
        (400, DataError, "refused question q0: no reason"),
        (500, EngineError, "answered with status 500"),
    ],
)
def test_a_lasting_failure_says_what_was_asked_of_whom(
    server: Server, status: int, kind: type[Exception], words: str
) -> None:
    server.plan = [status]
    with pytest.raises(kind) as error:
        list(engine_of(server, max_retries=0).generate(DrawQueue(draws_of(1)), SAMPLING))
    assert words in " ".join(str(error.value).split())
    assert SECRET not in str(error.value)


def test_the_other_name_of_the_token_limit_is_used_where_a_server_insists(server: Server) -> None:
    server.plan = [400, 200]
    server.error = "Unsupported parameter: use 'max_completion_tokens'"
    list(engine_of(server, concurrency=1).generate(DrawQueue(draws_of(2)), SAMPLING))
    assert ["max_completion_tokens" in request for request in server.requests] == [False, True, True]


def test_the_other_name_is_found_by_requests_that_run_together(server: Server) -> None:
    server.insists, server.pause = True, 0.05
    server.error = "Unsupported parameter: use 'max_completion_tokens'"
    found = list(engine_of(server, concurrency=8).generate(DrawQueue(draws_of(16)), SAMPLING))
    assert len(found) == 16


def test_a_silent_server_runs_into_the_timeout(server: Server) -> None:
    server.pause = 1.0
    with pytest.raises(EngineError, match=r"did not answer within timeout=0\.1 seconds, asked 2 times"):
        list(engine_of(server, timeout=0.1, max_retries=1).generate(DrawQueue(draws_of(1)), SAMPLING))


def test_no_server_at_all(server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EngineError, match=f"cannot reach {url}"):
        list(engine_of(server, base_url=url, max_retries=0).generate(DrawQueue(draws_of(1)), SAMPLING))


def test_the_line_end_of_a_keys_file_is_no_part_of_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESTEP_TEST_KEY", f" {SECRET}\r\n")
    assert len(list(engine_of(server).generate(DrawQueue(draws_of(1)), SAMPLING))) == 1
    assert server.keys == [f"Bearer {SECRET}"]


@pytest.mark.parametrize("inside", ["\n", "\r\n", "\t", " ", "\x7f", "\x1b[0m", "\u00a0", "\u200b", "é", "\udcff"])
def test_a_malformed_key_is_refused_by_its_variables_name_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    monkeypatch.setenv("ESTEP_TEST_KEY", f"{SECRET}{inside}{SECRET}")
    with pytest.raises(ConfigError, match="the environment variable ESTEP_TEST_KEY holds no usable key") as error:
        list(engine_of(server).generate(DrawQueue(draws_of(1)), SAMPLING))
    assert SECRET not in "".join(traceback.format_exception(error.value))
    assert server.keys == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500])
def test_a_server_that_repeats_the_key_does_not_get_it_printed(server: Server, status: int) -> None:
    server.plan = [status]
    server.error = f"no such key: Bearer {SECRET}"
    with pytest.raises(EstepError) as error:
        list(engine_of(server, max_retries=0).generate(DrawQueue(draws_of(1)), SAMPLING))
    assert SECRET not in "".join(traceback.format_exception(error.value))


def test_a_failure_of_the_client_that_holds_the_key_does_not_get_it_printed(server: Server) -> None:
    # h11's error holds the header with its line end; the errors of httpx and of the client are raised from it.
    engine = engine_of(server, max_retries=0)
    engine._client = engine._client.with_options(default_headers={"X-Note": f"{SECRET}\n"})
    with pytest.raises(EngineError, match=r"cannot reach .*\[key\]") as error:
        list(engine.generate(DrawQueue(draws_of(1)), SAMPLING))
    assert SECRET not in "".join(traceback.format_exception(error.value))


def test_the_error_for_a_missing_key_names_its_variable(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESTEP_TEST_KEY")
    with pytest.raises(ConfigError, match="the environment variable ESTEP_TEST_KEY holds no key"):
        engine_of(server)
    assert list(engine_of(server, api_key_env=None).generate(DrawQueue(draws_of(1)), SAMPLING))


def test_spending_stops_before_the_limit_and_keeps_what_was_paid_for(server: Server) -> None:
    # A request costs 10 tokens x 1 = 10 a million; it is set aside at its most, 16 a million.
    engine = engine_of(server, price=Price(completion=1.0), spending_limit=60e-6, concurrency=4)
    found = []
    with pytest.raises(EngineError, match="spending_limit=6e-05 does not allow another request"):
        found.extend(engine.generate(DrawQueue(draws_of(20)), SAMPLING))
    assert engine.metadata["cost"] <= 60e-6  # type: ignore[operator]
    assert len(server.requests) == engine.metadata["requests"] == 5


def test_a_server_that_reports_no_usage_is_charged_the_maximum(server: Server) -> None:
    server.usage = False
    engine = engine_of(server, price=Price(completion=1.0), spending_limit=60e-6, concurrency=1)
    with pytest.raises(EngineError, match="does not allow another request"):
        list(engine.generate(DrawQueue(draws_of(20)), SAMPLING))
    assert len(server.requests) == 3  # 16 a million each
    assert engine.metadata["cost"] == pytest.approx(48e-6)


def test_a_request_that_ran_out_of_time_counts_as_paid_for(server: Server) -> None:
    server.pause = 1.0
    engine = engine_of(
        server, price=Price(completion=1.0), spending_limit=40e-6, timeout=0.1, max_retries=5, concurrency=1
    )
    with pytest.raises(EngineError, match=r"spending_limit=4e-05 does not allow another request: 0\.0000 was spent"):
        list(engine.generate(DrawQueue(draws_of(1)), SAMPLING))
    assert len(server.requests) == 2
    assert engine.metadata["cost"] == pytest.approx(32e-6)


def test_half_a_surrogate_pair_in_an_answer_becomes_a_replacement_character(server: Server, tmp_path: Path) -> None:
    # A server that stops between the halves of such a pair sends one that UTF-8 cannot hold.
    server.text = "fine \U0001f600 \ud83d, and \ude00"
    (sample,) = engine_of(server).generate(DrawQueue(draws_of(1)), SAMPLING)
    assert sample.text == "fine \U0001f600 \ufffd, and \ufffd"
    log = JsonlFile(tmp_path / "samples.jsonl")
    log.append(asdict(sample))
    log.close()
    assert log.read()[0]["text"] == sample.text


def test_a_page_in_place_of_an_answer(server: Server) -> None:
    server.page = b"<html>Sign in</html>"
    with pytest.raises(EngineError, match="gave no chat completion for question q0; an API's address usually ends in"):
        list(engine_of(server).generate(DrawQueue(draws_of(1)), SAMPLING))


def test_a_reader_that_stops_does_not_wait_for_later_tries(server: Server) -> None:
    server.plan = [200, 500]
    samples = engine_of(server, concurrency=2).generate(DrawQueue(draws_of(4)), SAMPLING)
    next(samples)
    started = time.monotonic()
    samples.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 5  # five more tries of each would take half a minute


def collected(engine: OpenAIEngine, draws: list[Draw]) -> tuple[list[Sample], Exception | None]:
    found: list[Sample] = []
    try:
        for sample in engine.generate(DrawQueue(draws), SAMPLING):
            found.append(sample)
    except EngineError as error:
        return found, error
    return found, None


def test_what_came_back_before_a_failure_is_handed_on(server: Server) -> None:
    server.plan = [200] * 5 + [404]
    found, error = collected(engine_of(server, max_retries=0, concurrency=2), draws_of(12))
    assert len(found) == 5
    assert error is not None


def test_an_engine_on_a_server_is_not_trained(server: Server) -> None:
    with pytest.raises(ConfigError, match=r"engine\.type=openai cannot be trained"):
        FEMTrainer(
            "judge", "sentiment/movies", FEMConfig(engine=OpenAIEngineConfig(base_url=server.url, api_key_env=None))
        )


def test_a_model_that_proposes_and_is_not_trained_keeps_the_examples(
    server: Server, tiny_model: str, tmp_path: Path
) -> None:
    served = {"model": "judge", "base_url": server.url, "api_key_env": None}
    args = FEMConfig(
        proposal={"type": "pps", "model": served},
        engine={"type": "transformers", "device": "cpu", "max_new_tokens": 6},
        m_step={"learning_rate": [1e-3, 1e-3], "device": "cpu"},
        few_shot="first",
        iterations=2,
        train_size=6,
        test_size=4,
        run_dir=str(tmp_path / "run"),
    )
    result = FEMTrainer(tiny_model, str(write_task(tmp_path, rows=20)), args).train()
    assert result.iterations[1].m_step is not None
    for k in (1, 2):
        draws = (tmp_path / f"run/iteration-{k:02d}/draws.jsonl").read_text().splitlines()
        assert {len(json.loads(draw)["messages"]) for draw in draws} == {6}  # system, two examples, question


def test_a_stronger_model_proposes_and_its_key_is_kept_nowhere(server: Server, tiny_model: str, tmp_path: Path) -> None:
    task = write_task(tmp_path, rows=40)
    args = FEMConfig(
        proposal={"type": "pps", "model": {"model": "judge", "base_url": server.url, "api_key_env": "ESTEP_TEST_KEY"}},
        engine={"type": "transformers", "device": "cpu", "max_new_tokens": 6},
        m_step={"learning_rate": [1e-3, 1e-3], "device": "cpu"},
        iterations=1,
        train_size=20,
        test_size=4,
        run_dir=str(tmp_path / "run"),
    )
    result = FEMTrainer(tiny_model, str(task), args).train()
    assert len(server.requests) == 20  # the evaluation is the policy's own
    assert result.last.e_step is not None
    assert result.last.m_step is not None
    right = sum(
        row["answer"] == "3" for row in map(json.loads, (tmp_path / "run/train.jsonl").read_text().splitlines())
    )
    assert result.last.m_step.pairs == result.last.e_step.accepted == right > 0
    metadata = json.loads((tmp_path / "run/run.json").read_text())["sessions"][0]["proposer"]
    assert metadata["requests"] == 20
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not any(SECRET.encode() in path.read_bytes() for path in files)


def served(server: Server, **changes: Any) -> RunConfig:
    section = {"type": "openai", "base_url": server.url, "api_key_env": None, "max_retries": 0, "concurrency": 1}
    return RunConfig.model_validate({"task": "sentiment/movies", "model": "judge", "engine": section, **changes})


def test_an_evaluation_that_failed_resumes_with_the_responses_already_paid_for(server: Server) -> None:
    server.plan = [200] * 4 + [500]
    config = served(server, test_size=6)
    with pytest.raises(EngineError, match="status 500"):
        evaluate_model(config, Silent())
    server.plan = [200]
    server.requests.clear()
    evaluation, _ = evaluate_model(config, Silent())
    assert evaluation.questions == 6
    assert len(server.requests) == 2
    evaluate_model(config, Silent())  # all was answered, so the next evaluation begins anew
    assert len(server.requests) == 2 + 6


def test_predictions_and_previews_that_failed_go_on_too(server: Server, tmp_path: Path) -> None:
    rows = tmp_path / "new.jsonl"
    rows.write_text("".join(json.dumps({"text": f"Film {n}."}) + "\n" for n in range(5)))
    server.plan = [200, 200, 500]
    with pytest.raises(EngineError, match="status 500"):
        predict(served(server), rows, "stop", Silent())
    server.plan = [200]
    server.requests.clear()
    assert len(predict(served(server), rows, "stop", Silent()).rows) == 5
    assert len(server.requests) == 3

    model = {"model": "judge", "base_url": server.url, "api_key_env": None, "max_retries": 0, "concurrency": 1}
    config = served(server, proposal={"type": "pps", "model": model})
    server.plan = [200, 500]
    with pytest.raises(EngineError, match="status 500"):
        preview(config, 4, Silent())
    server.plan = [200]
    server.requests.clear()
    assert len(preview(config, 4, Silent()).e_step.samples) == 4
    assert len(server.requests) == 3


def test_a_form_is_not_asked_of_a_model_that_does_not_take_it() -> None:
    task, own = task_of(), task_of(answer={"type": "python", "function": "verifiers:any_text"})
    model = {"model": "judge", "base_url": "http://localhost/v1", "api_key_env": None}
    content = {"task": "x", "model": "x", "engine": {"type": "vllm", "structured": True}}
    with pytest.raises(ConfigError, match=r"proposal\.model samples from a server"):
        fit_to_task(RunConfig.model_validate({**content, "proposal": {"type": "pps", "model": model}}), task)
    ranked = {"task": "x", "model": "x", "filters": {"max_per_question": 1, "rank_by": "logprob"}}
    ranked |= {"engine": {"type": "vllm", "temperature": 0.6}, "proposal": {"type": "pps", "model": model}}
    with pytest.raises(ConfigError, match="a server reports log-probabilities only at temperature 0 or 1"):
        fit_to_task(RunConfig.model_validate(ranked), task)
    with pytest.raises(ConfigError, match="has its own verifier"):
        fit_to_task(RunConfig.model_validate(content), own)


# A real vLLM server


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(fetch("smollm2-135m"))]
    command += ["--served-model-name", "smollm", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--kv-cache-memory-bytes", str(1 << 30), "--block-size", "32", "--api-key", SECRET]
    log = tmp_path_factory.mktemp("vllm-server") / "log"
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    deadline = time.monotonic() + 240
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
            except OSError:
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_a_served_model_is_evaluated_predicts_and_proposes(
    vllm_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ESTEP_TEST_KEY", SECRET)
    section = {"base_url": vllm_server, "api_key_env": "ESTEP_TEST_KEY", "seeds": False}
    demo = load_config("demo").model_dump(mode="json")

    said = Listen()
    engine = {"type": "openai", "max_new_tokens": 48, **section}
    config = RunConfig.model_validate(demo | {"model": "smollm", "engine": engine, "test_size": 12, "few_shot": "both"})
    evaluation, responses = evaluate_model(config, said)
    assert evaluation.questions == 12
    assert evaluation.parse_rate > 0.5
    assert all(response.logprob is not None and response.logprob < 0 for response in responses)
    assert said.lines[-1].startswith("smollm: 12 requests, ")

    (tmp_path / "new.jsonl").write_text('{"text": "A fine film."}\n{"text": "A dull film."}\n')
    found = predict(config, tmp_path / "new.jsonl", "stop", said)
    assert [row["text"] for row in found.rows] == ["A fine film.", "A dull film."]
    assert found.parsed >= 1

    proposal = {"type": "pps", "model": {"model": "smollm", **section}}
    proposed = preview(RunConfig.model_validate(demo | {"proposal": proposal}), 8, said).e_step
    assert len(proposed.samples) == 8
    assert len(proposed.pairs) >= 2

    wrong = RunConfig.model_validate(demo | {"model": "another", "engine": engine, "test_size": 2})
    with pytest.raises(EngineError, match="model 'another' answered with status 404"):
        evaluate_model(wrong, said)
    monkeypatch.setenv("ESTEP_TEST_KEY", "sk-wrong")
    with pytest.raises(EngineError, match="refused the key from ESTEP_TEST_KEY"):
        evaluate_model(config, said)
