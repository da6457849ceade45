"""The vLLM engine: on the real model on a CPU, held against the transformers engine; our own logic on a fake vLLM."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_tiny_model, questions_of, task_of
from estep import FEMConfig, FEMTrainer
from estep.config import AutoEngineConfig, TransformersEngineConfig, VLLMEngineConfig
from estep.data.split import Sizes, draw_split, load_pool
from estep.e_step import EStep
from estep.engines import DrawQueue, Engine, Sampling, open_engine, vllm, vllm_adapter
from estep.engines.base import ScoreRequest
from estep.engines.pool import PooledEngine
from estep.engines.scoring import ScoredText
from estep.engines.transformers import TransformersEngine
from estep.engines.vllm import VLLMEngine
from estep.engines.vllm_adapter import Finished, Request
from estep.engines.vllm_scoring import limit_cache_reads
from estep.errors import ConfigError, DataError, EngineError
from estep.models.loading import load_model
from estep.progress import Silent
from estep.proposals import PPS, Rejection
from estep.records import Draw, ModelRef, Sample, Score
from estep.sources.archives import fetch
from estep.tasks import load_task

SAMPLING = Sampling(1.0, 1.0, 48)
_INSTALLED = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")


def real_vllm(test: Any) -> Any:
    """Marks a test that starts vLLM."""
    return pytest.mark.slow(_INSTALLED(test))


MOVIES = load_task("sentiment/movies")


def model() -> ModelRef:
    return ModelRef(str(fetch("smollm2-135m")))


def movie_draws(number: int) -> list[Draw]:
    questions = draw_split(MOVIES, load_pool(MOVIES), Sizes(number, 192), 257).train
    return PPS().propose(MOVIES, questions, 257)


# On a fake vLLM: our own logic


class FakeVLLM:
    """Finishes each request after as many steps as its prompt has words, and keeps a record."""

    metadata: dict[str, str | int | float | bool] = {"engine": "vllm", "per_request_seeds": False}  # noqa: RUF012
    context = 2048
    per_request_seeds = True

    def __init__(self, *arguments: object):
        self.started_with = arguments[1:2]
        self.running: dict[str, int] = {}
        self.added: list[tuple[str, Request]] = []
        self.sizes: list[int] = []
        self.scored: list[ScoredText] = []
        self.loaded: list[str] = []
        self.closed = False

    def add(self, id: str, prompt: Sequence[int], request: Request) -> None:
        self.added.append((id, request))
        self.running[id] = 1 + len(self.added) % 3

    def step(self) -> list[Finished]:
        self.sizes.append(len(self.running))
        self.running = {id: left - 1 for id, left in self.running.items()}
        done = [id for id, left in self.running.items() if left == 0]
        for id in done:
            del self.running[id]
        return [Finished(id, [10, 11, 1], -1.5) for id in done]

    def abort(self, ids: Sequence[str]) -> None:
        for id in ids:
            del self.running[id]

    def score_many(self, texts: Sequence[ScoredText]) -> Iterator[Score]:
        self.scored += texts
        return (text.score([-1.0] * len(text.completion)) for text in texts)

    def load(self, folder: str) -> None:
        self.loaded.append(folder)

    def load_adapter(self, folder: str) -> None:
        self.loaded.append(f"adapter {folder}")

    def reset_prefix_cache(self) -> None:
        assert not self.running

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tiny_model: str) -> tuple[VLLMEngine, FakeVLLM]:
    monkeypatch.setattr(vllm, "VLLM", FakeVLLM)
    engine = VLLMEngine(VLLMEngineConfig(structured=True))
    engine.load(ModelRef(tiny_model))
    started = engine._vllm
    assert isinstance(started, FakeVLLM)
    return engine, started


def draws_of(number: int) -> list[Draw]:
    task = task_of()
    return PPS().propose(task, questions_of(task, "0" * number), 3)


def test_every_draw_is_sampled_once_and_finished_ones_are_handed_back(fake: tuple[VLLMEngine, FakeVLLM]) -> None:
    engine, inner = fake
    draws = draws_of(5)
    old = Sample(draws[1].id, "old", "stop", 1, 1, 0.0)
    draws[3] = replace(draws[3], completion="Score: 3")
    found = {s.draw_id: s for s in engine.generate(DrawQueue(draws, {old.draw_id: old}), SAMPLING)}
    assert found.keys() == {draw.id for draw in draws}
    assert found[draws[1].id] == old
    assert found[draws[3].id].finish_reason == "supplied"
    assert [id for id, _ in inner.added] == [draws[0].id, draws[2].id, draws[4].id]
    sampled = found[draws[0].id]
    assert (sampled.completion_tokens, sampled.finish_reason, sampled.logprob) == (3, "stop", -1.5)
    assert sampled.text == engine.chat.text([10, 11])


def test_where_no_seed_binds_an_interrupted_round_is_sampled_again_whole(fake: tuple[VLLMEngine, FakeVLLM]) -> None:
    engine, inner = fake
    inner.per_request_seeds = False
    draws = draws_of(5)
    old = Sample(draws[1].id, "old", "stop", 1, 1, 0.0)
    found = {s.draw_id: s for s in engine.generate(DrawQueue(draws, {old.draw_id: old}), SAMPLING)}
    assert [id for id, _ in inner.added] == [draw.id for draw in draws]
    assert found[old.draw_id] == old
    inner.added.clear()
    greedy = SAMPLING._replace(temperature=0.0)  # which needs no seed
    list(engine.generate(DrawQueue(draws, {old.draw_id: old}), greedy))
    assert len(inner.added) == 4


def test_a_missed_draw_is_tried_again_while_others_still_run(fake: tuple[VLLMEngine, FakeVLLM]) -> None:
    engine, inner = fake
    task = task_of()
    questions = questions_of(task, "01234")
    found = EStep(task, Rejection(4), {}, engine, SAMPLING, Silent()).run(questions, 3)
    assert len(found.draws) == 20  # the fake never states a score, so every budget is used up
    assert [draw.round for draw in found.draws] == sorted(draw.round for draw in found.draws)
    # A miss's next draw joins at the next step, so the batch is never smaller than the chains that are unfinished.
    # Waiting for a round's slowest would make it shrink and grow again.
    assert inner.sizes[0] == 5
    assert inner.sizes == sorted(inner.sizes, reverse=True)


def test_requests_are_taken_back_when_the_reader_stops(fake: tuple[VLLMEngine, FakeVLLM]) -> None:
    engine, inner = fake
    samples = engine.generate(DrawQueue(draws_of(6)), SAMPLING)
    next(samples)
    assert inner.running
    samples.close()  # type: ignore[attr-defined]
    assert not inner.running


def test_only_a_structured_engine_constrains_and_only_where_a_form_is_given(
    fake: tuple[VLLMEngine, FakeVLLM],
) -> None:
    engine, inner = fake
    list(engine.generate(DrawQueue(draws_of(1)), SAMPLING._replace(regex="[01]")))
    list(engine.generate(DrawQueue(draws_of(1)), SAMPLING))
    assert [request.regex for _, request in inner.added] == ["[01]", None]
    engine.config = VLLMEngineConfig()
    list(engine.generate(DrawQueue(draws_of(1)), SAMPLING._replace(regex="[01]")))
    assert inner.added[-1][1].regex is None


def test_a_prompt_that_leaves_no_room_is_refused(fake: tuple[VLLMEngine, FakeVLLM]) -> None:
    engine, inner = fake
    (draw,) = draws_of(1)
    long = replace(draw, messages=({"role": "user", "content": "x" * 2040},))
    with pytest.raises(DataError, match=r"question q0: a prompt of \d+ tokens and 48 new"):
        list(engine.generate(DrawQueue([long]), SAMPLING))
    assert inner.added == []


def test_only_unfinished_texts_reach_vllm_in_the_order_of_their_prompts(fake: tuple[VLLMEngine, FakeVLLM]) -> None:
    engine, inner = fake
    draws = draws_of(4)
    requests = [ScoreRequest(draw.id, draw.messages, "Score: 3") for draw in reversed(draws)]
    old = Score(draws[1].id, (-1.0,), (0,))
    found = {score.id: score for score in engine.score_many(requests, {old.id: old})}
    assert found.keys() == {draw.id for draw in draws}
    assert found[old.id] == old
    assert [text.id for text in inner.scored] == [draws[0].id, draws[2].id, draws[3].id]
    assert inner.scored[0].completion == engine.chat.completion_ids("Score: 3")


def test_a_text_that_leaves_no_room_for_the_token_that_vllm_samples_is_left_out(
    fake: tuple[VLLMEngine, FakeVLLM],
) -> None:
    engine, inner = fake
    messages = ({"role": "user", "content": "x"},)
    room = FakeVLLM.context - 2 - engine.prompt_lengths([messages])[0]  # beside the end of turn and that token
    requests = [ScoreRequest("long", messages, "x" * (room + 1)), ScoreRequest("fits", messages, "x" * room)]
    assert {score.id: score.fits for score in engine.score_many(requests, {})} == {"long": False, "fits": True}
    assert [text.id for text in inner.scored] == ["fits"]


def test_a_version_of_vllm_whose_cache_cannot_be_limited_is_not_read() -> None:
    assert not limit_cache_reads(FakeCore())


def write_adapter(base: str, folder: Path, **options: Any) -> str:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **options)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(folder)
    return str(folder)


def test_an_engine_whose_first_model_is_an_adapter_starts_with_its_base(
    monkeypatch: pytest.MonkeyPatch, tiny_model: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(vllm, "VLLM", FakeVLLM)
    engine = VLLMEngine(VLLMEngineConfig())
    adapter = write_adapter(tiny_model, tmp_path / "adapter")
    engine.load(ModelRef(adapter, 1))
    started = engine._vllm
    assert isinstance(started, FakeVLLM)
    assert started.started_with == (tiny_model,)
    engine.load(ModelRef(tiny_model))
    assert started.loaded == [f"adapter {adapter}", tiny_model]


def test_an_adapter_that_cannot_be_streamed_is_loaded_from_a_folder(
    fake: tuple[VLLMEngine, FakeVLLM], tiny_model: str, tmp_path: Path
) -> None:
    engine, inner = fake
    engine.load(ModelRef(write_adapter(tiny_model, tmp_path / "adapter", use_dora=True), 1))
    (folder,) = inner.loaded
    assert "estep-merged-" in folder
    assert not Path(folder).exists()


def test_auto_takes_vllm_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, tiny_model: str) -> None:
    monkeypatch.setattr(vllm, "VLLM", FakeVLLM)
    monkeypatch.setattr(vllm_adapter, "installed", lambda: None)
    said: list[str] = []
    engine = open_engine(AutoEngineConfig(temperature=0.5), ModelRef(tiny_model), said.append)
    assert isinstance(engine, VLLMEngine)
    assert engine.config.temperature == 0.5
    assert said[0] == "engine: vLLM, because it is installed"
    assert "does not support per-request seeds" in said[1]


def test_auto_takes_transformers_and_says_why(monkeypatch: pytest.MonkeyPatch, tiny_model: str) -> None:
    monkeypatch.setattr(vllm_adapter, "installed", lambda: "vLLM is not installed")
    said: list[str] = []
    engine = open_engine(AutoEngineConfig(dtype="float32"), ModelRef(tiny_model), said.append)
    assert isinstance(engine, TransformersEngine)
    assert engine.config.dtype == "float32"
    assert said == ["engine: transformers, because vLLM is not installed"]


def test_auto_names_the_keys_that_transformers_does_without(monkeypatch: pytest.MonkeyPatch, tiny_model: str) -> None:
    monkeypatch.setattr(vllm_adapter, "installed", lambda: "vLLM is not installed")
    said: list[str] = []
    open_engine(
        AutoEngineConfig(dtype="float32", max_num_seqs=8, kv_cache_gib=4, eager=None), ModelRef(tiny_model), said.append
    )
    assert said[1:] == ["note: only vLLM has engine.kv_cache_gib, engine.max_num_seqs; transformers does without"]
    for key, value in {"structured": True, "tensor_parallel_size": 2}.items():
        message = rf"engine\.{key}={value} needs vLLM, but vLLM is not installed"
        with pytest.raises(ConfigError, match=message):
            open_engine(AutoEngineConfig(**{key: value}), ModelRef(tiny_model))


def test_auto_does_not_replace_a_vllm_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tiny_model: str) -> None:
    def fails(*arguments: object) -> None:
        raise EngineError("vLLM 0.32.0 did not start")

    monkeypatch.setattr(vllm_adapter, "installed", lambda: None)
    monkeypatch.setattr(vllm, "VLLM", fails)
    with pytest.raises(EngineError, match="did not start"):
        open_engine(AutoEngineConfig(), ModelRef(tiny_model))


def test_a_vllm_that_does_not_start_names_what_would_do() -> None:
    config = VLLMEngineConfig(max_model_len=512)
    assert adapter_on(FakeCore(), on_cpu=False)._remedies(config) == (
        "change engine.gpu_memory_utilization (0.85), engine.kv_cache_gib (what is left), engine.max_model_len (512), "
        "or set engine.type=transformers"
    )
    assert adapter_on(FakeCore(), on_cpu=True)._remedies(VLLMEngineConfig()) == (
        "change engine.kv_cache_gib (2.0), engine.max_model_len (the context of the model), "
        "or set engine.type=transformers"
    )


def test_vllm_asked_for_by_name_is_not_replaced(monkeypatch: pytest.MonkeyPatch, tiny_model: str) -> None:
    monkeypatch.setattr(vllm_adapter, "installed", lambda: "vLLM is not installed")
    with pytest.raises(EngineError, match="vLLM is not installed"):
        open_engine(VLLMEngineConfig(), ModelRef(tiny_model))


class FakeCore:
    """Replaces vLLM's own engine and records its calls."""

    def __init__(self, has_memory: bool = True) -> None:
        self.told: list[str] = []
        self.has_memory = has_memory
        self.engine_core = self

    def shutdown(self) -> None:
        self.told.append("shutdown")

    def sleep(self, level: int) -> None:
        self.told.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.told.append(f"wake {' '.join(tags)}")

    def collective_rpc(self, method: Any, args: tuple[str, ...] = (), kwargs: dict[str, Any] | None = None) -> None:
        if kwargs is None:
            self.told.append(" ".join([method.__name__, *args]))
            return
        if method == "wake_up":
            self.told.append("wake all" if self.has_memory else "no memory")
            if not self.has_memory:
                raise RuntimeError("CUDA Error: out of memory")
            return
        self.told.append(f"{method} {kwargs['weights_path']}")
        if kwargs["weights_path"] == "broken":
            raise RuntimeError("shapes differ")

    def reset_prefix_cache(self) -> bool:
        self.told.append("reset")
        return True


def adapter_on(core: FakeCore, on_cpu: bool) -> vllm_adapter.VLLM:
    adapter = vllm_adapter.VLLM.__new__(vllm_adapter.VLLM)
    adapter.version, adapter.on_cpu, adapter._asleep, adapter._engine = "0.32.0", on_cpu, False, core
    adapter._alone, adapter._threads, adapter._serving_threads = True, torch.get_num_threads(), torch.get_num_threads()
    return adapter


def test_a_gpu_is_given_back_while_the_m_step_runs_and_woken_weights_first() -> None:
    core = FakeCore()
    adapter = adapter_on(core, on_cpu=False)
    adapter.sleep()
    adapter.sleep()  # asleep already
    adapter.load("weights")
    adapter.load("again")
    assert core.told == [
        "sleep 2",
        "wake weights",
        "reload_weights weights",
        "wake kv_cache",
        "reset",
        "reload_weights again",
        "reset",
    ]


def test_a_cpu_keeps_its_memory() -> None:
    core = FakeCore()
    adapter = adapter_on(core, on_cpu=True)
    adapter.sleep()
    adapter.load("weights")
    assert core.told == ["reload_weights weights", "repack_tied_head", "reset"]


def test_an_adapter_is_streamed_into_the_awake_weights() -> None:
    core = FakeCore()
    adapter = adapter_on(core, on_cpu=False)
    adapter.sleep()
    adapter.load_adapter("adapter")
    assert core.told == ["sleep 2", "wake weights", "_reload_merged adapter", "wake kv_cache", "reset"]


@pytest.fixture
def cleaned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `_clean_up` would do, as a list of calls."""
    calls: list[str] = []
    monkeypatch.setattr(vllm_adapter, "_clean_up", lambda: calls.append("clean up"))
    monkeypatch.setattr(vllm_adapter, "_kept_asleep", [])
    return calls


def test_a_sleeping_engine_is_woken_before_it_is_shut_down(cleaned: list[str]) -> None:
    core = FakeCore()
    adapter = adapter_on(core, on_cpu=False)
    adapter.sleep()
    adapter.close()
    assert core.told == ["sleep 2", "wake all", "shutdown"]
    assert cleaned == ["clean up"]
    awake = FakeCore()
    adapter_on(awake, on_cpu=False).close()
    assert awake.told == ["shutdown"]


def test_an_engine_that_failed_to_load_is_woken_before_it_is_shut_down(cleaned: list[str]) -> None:
    core = FakeCore()
    adapter = adapter_on(core, on_cpu=False)
    adapter.sleep()
    with pytest.raises(EngineError):
        adapter.load("broken")
    adapter.close()
    assert core.told[-2:] == ["wake all", "shutdown"]


def test_an_engine_that_cannot_be_woken_is_shut_down_before_the_next_one_starts(cleaned: list[str]) -> None:
    core = FakeCore(has_memory=False)
    adapter = adapter_on(core, on_cpu=False)
    adapter.sleep()
    adapter.close()
    assert core.told == ["sleep 2", "no memory"]
    with pytest.raises(EngineError, match="an engine of this process sleeps and cannot be shut down"):
        vllm_adapter._shut_down_kept()
    core.has_memory = True
    vllm_adapter._shut_down_kept()
    vllm_adapter._shut_down_kept()  # nothing is left
    assert core.told == ["sleep 2", "no memory", "no memory", "wake all", "shutdown"]
    assert cleaned == ["clean up"]


def test_workers_of_a_split_model_end_with_their_memory_and_are_not_woken(cleaned: list[str]) -> None:
    core = FakeCore()
    adapter = adapter_on(core, on_cpu=False)
    adapter._alone = False
    adapter.sleep()
    adapter.close()
    assert core.told == ["sleep 2", "shutdown"]


def test_the_m_step_has_the_threads_that_vllm_serves_without(cleaned: list[str]) -> None:
    before = torch.get_num_threads()
    adapter = adapter_on(FakeCore(), on_cpu=False)
    adapter._threads, adapter._serving_threads = before + 1, 1
    try:
        torch.set_num_threads(1)
        adapter.sleep()
        assert torch.get_num_threads() == before + 1
        adapter.load("weights")
        assert torch.get_num_threads() == 1
        adapter.close()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_weights_that_vllm_does_not_take_are_named() -> None:
    with pytest.raises(EngineError, match=r"vLLM 0\.32\.0 did not load the weights in broken: RuntimeError: shapes"):
        adapter_on(FakeCore(), on_cpu=True).load("broken")


# On the real model


@pytest.fixture(scope="module")
def real() -> Iterator[VLLMEngine]:
    engine = VLLMEngine(VLLMEngineConfig(structured=True))
    engine.load(model())
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference() -> TransformersEngine:
    engine = TransformersEngine(TransformersEngineConfig(device="cpu"))
    engine.load(model())
    return engine


def sampled(engine: Engine, draws: list[Draw], sampling: Sampling = SAMPLING) -> list[Sample]:
    return sorted(engine.generate(DrawQueue(draws), sampling), key=lambda sample: sample.draw_id)


@real_vllm
def test_both_engines_draw_scores_from_one_distribution(real: VLLMEngine, reference: TransformersEngine) -> None:
    from scipy.stats import chi2_contingency

    draws = movie_draws(256)
    answers = []
    for engine in (real, reference):
        parsed = [MOVIES.file.answer.parse(sample.text) for sample in sampled(engine, draws)]
        answers.append(Counter("none" if p is None else p.answer for p in parsed))
    kinds = sorted(answers[0].keys() | answers[1].keys())
    table = [[found[kind] for kind in kinds] for found in answers]
    assert min(map(sum, table)) == 256
    assert len(kinds) == 6
    p = chi2_contingency(table).pvalue
    assert p > 0.001, f"{kinds}: {table}, p = {p}"


@real_vllm
def test_scores_equal_those_of_transformers(real: VLLMEngine, reference: TransformersEngine) -> None:
    draws = movie_draws(8)
    for draw, sample in zip(sorted(draws, key=lambda draw: draw.id), sampled(real, draws), strict=True):
        ours = real.score(draw.messages, sample.text)
        theirs = reference.score(draw.messages, sample.text)
        assert ours == pytest.approx(theirs, abs=0.5 + 0.02 * abs(theirs))  # bf16 in two kernels
        if sample.finish_reason == "stop":
            assert sample.logprob == pytest.approx(ours, abs=0.5 + 0.05 * abs(ours))


@real_vllm
def test_many_scores_equal_those_of_transformers_and_prompts_come_from_the_cache(
    real: VLLMEngine, reference: TransformersEngine
) -> None:
    # Prompts end at each place of a block of the cache, and texts share most of their tokens, so that the cache holds
    # positions whose logits are needed.
    prompt = MOVIES.prompt(MOVIES.question({"text": "It is a film, and a fine one."}, 4.0, "q"))[-1]["content"]
    requests = [
        ScoreRequest(f"{padding}/{score}", ({"role": "user", "content": prompt + " so" * padding},), text)
        for padding in range(32)
        for score in (1, 4)
        for text in [f"Evaluation: {'The writer finds it fine. ' * 3}Score: {score}"]
    ]
    ours = {score.id: score for score in real.score_many(requests, {})}
    theirs = {score.id: score for score in reference.score_many(requests, {})}
    assert ours.keys() == theirs.keys()
    differences = []
    for id, score in ours.items():
        assert score.starts == theirs[id].starts
        differences += [abs(a - b) for a, b in zip(score.logprobs, theirs[id].logprobs, strict=True)]
    # Rounding to bfloat16 in two kernels: in the mean 0.03 a token, and at most 0.6.
    assert sum(differences) / len(differences) < 0.1
    assert max(differences) < 1.5
    for request in requests[::16]:
        assert ours[request.id].total == pytest.approx(real.score(request.messages, request.text), abs=0.3)


@real_vllm
def test_a_prompt_is_read_from_the_cache_up_to_its_last_token(real: VLLMEngine) -> None:
    core = real._running._engine
    prompt = real.chat.prompt_ids(({"role": "user", "content": "fine " * 200},))
    end = len(prompt) // 32 * 32
    text = real.chat.completion_ids("It is a fine film, and a long one. Score: 4" * 3)
    texts = [ScoredText(f"t{length}", prompt[:length], prompt[length:] + text, ()) for length in (end, end + 1)]
    real._running.reset_prefix_cache()
    list(real._running.score_many(texts[:1]))
    read: list[int] = []
    step = core.step

    def listen() -> Any:
        outputs = step()
        read.extend(output.num_cached_tokens for output in outputs)
        return outputs

    core.step = listen
    try:
        list(real._running.score_many([texts[0]]))
        list(real._running.score_many([texts[1]]))
        real._running.score(texts[0].prompt, texts[0].completion)
    finally:
        del core.step
    # The last token of the prompt predicts the text's first. A block of 32 that it is in is not read.
    assert read == [end - 32, end, 0]


@real_vllm
def test_finished_scores_are_not_computed_again_and_new_weights_score_anew(real: VLLMEngine) -> None:
    draws = movie_draws(6)
    requests = [ScoreRequest(draw.id, draw.messages, "Score: 1") for draw in draws]
    finished = {requests[2].id: Score(requests[2].id, (-1.0,), (0,))}
    found = {score.id: score for score in real.score_many(requests, finished)}
    assert found.keys() == {request.id for request in requests}
    assert found[requests[2].id] == finished[requests[2].id]
    scores = real.score_many(requests, {})
    next(scores)
    scores.close()  # type: ignore[attr-defined]
    assert len(list(real.score_many(requests, {}))) == 6  # nothing was left behind


@real_vllm
def test_greedy_texts_agree_with_transformers(real: VLLMEngine, reference: TransformersEngine) -> None:
    greedy = Sampling(0.0, 1.0, 12)  # bf16 rounding tells ties apart, so that longer texts drift
    draws = movie_draws(12)
    pairs = zip(sampled(real, draws, greedy), sampled(reference, draws, greedy), strict=True)
    assert sum(a.text == b.text for a, b in pairs) >= 9


@real_vllm
def test_a_round_that_is_sampled_whole_repeats(real: VLLMEngine) -> None:
    draws = movie_draws(8)
    real.load(model())
    first = sampled(real, draws)
    real.load(model())
    assert [sample.text for sample in sampled(real, draws)] == [sample.text for sample in first]


@real_vllm
def test_an_interrupted_round_resumes_with_the_same_samples(real: VLLMEngine) -> None:
    draws = movie_draws(24)
    whole = sampled(real, draws)
    samples = real.generate(DrawQueue(draws), SAMPLING)
    finished = {sample.draw_id: sample for sample, _ in zip(samples, range(9), strict=False)}
    samples.close()  # type: ignore[attr-defined]
    assert sorted(real.generate(DrawQueue(draws, finished), SAMPLING), key=lambda sample: sample.draw_id) == whole


@real_vllm
def test_the_norm_of_rows_that_lie_apart_is_that_of_rows_that_do_not(real: VLLMEngine) -> None:
    # A joint projection's query is such a view; vLLM's kernel would read past it.
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.layernorm import RMSNorm

    with torch.random.fork_rng(), set_current_vllm_config(VllmConfig()):
        torch.manual_seed(0)
        norm = RMSNorm(64, dtype=torch.bfloat16)
        joint = torch.randn(6, 192, dtype=torch.bfloat16)
        view = joint[:, :64]
        assert type(norm).__name__ == "KernelRMSNorm"
        assert torch.allclose(norm(view), norm(view.contiguous()), atol=0.02)
        assert torch.allclose(norm(view.contiguous()), norm.forward_native(view), atol=0.02)


@real_vllm
def test_structured_samples_close_with_an_allowed_score(real: VLLMEngine) -> None:
    # The plain prompt without examples, which this model follows in hardly a tenth of its samples.
    draws = [
        replace(draw, messages=MOVIES.prompt(MOVIES.question({"text": f"It is film {n}, and a fine one."}, 4.0, "q")))
        for n, draw in enumerate(movie_draws(24))
    ]
    free = sampled(real, draws)
    bound = sampled(real, draws, SAMPLING._replace(regex=MOVIES.response_regex(SAMPLING.max_new_tokens)))
    parse = MOVIES.file.answer.parse
    assert sum(parse(sample.text) is not None for sample in free) <= 8
    assert sum(parse(sample.text) is not None for sample in bound) >= 23


@real_vllm
def test_an_adapter_is_merged_and_loaded(real: VLLMEngine, reference: TransformersEngine, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    path = model().path
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = get_peft_model(
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
            LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
        )
    adapted.save_pretrained(tmp_path / "adapter")
    (draw,) = movie_draws(1)
    text = "Evaluation: The writer finds it dull. Score: 1"
    before = real.score(draw.messages, text)
    real.load(ModelRef(str(tmp_path / "adapter"), 1))
    reference.load(ModelRef(str(tmp_path / "adapter"), 1))
    try:
        expected = reference.score(draw.messages, text)
        assert real.score(draw.messages, text) == pytest.approx(expected, abs=0.5 + 0.02 * abs(expected))
        assert abs(expected - before) > 2  # so that the former weights would not have passed
        streamed = real.score(draw.messages, text)
        load_model(str(tmp_path / "adapter"), "float32", "cpu").save_pretrained(tmp_path / "merged")
        real.load(ModelRef(str(tmp_path / "merged"), 1))
        assert real.score(draw.messages, text) == streamed
    finally:
        real.load(model())
        reference.load(model())


@real_vllm
def test_a_head_that_shares_the_embeddings_weights_is_loaded_with_them(
    real: VLLMEngine, reference: TransformersEngine, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from estep.models.loading import load_chat

    changed = AutoModelForCausalLM.from_pretrained(model().path, dtype=torch.float32)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        weight = changed.get_output_embeddings().weight
        weight += 0.3 * weight.std() * torch.randn_like(weight)
    changed.save_pretrained(tmp_path / "changed")
    load_chat(model().path).tokenizer.save_pretrained(tmp_path / "changed")
    (draw,) = movie_draws(1)
    text = "Evaluation: The writer finds it dull. Score: 1"
    before = real.score(draw.messages, text)
    try:
        real.load(ModelRef(str(tmp_path / "changed"), 1))
        reference.load(ModelRef(str(tmp_path / "changed"), 1))
        expected = reference.score(draw.messages, text)
        assert real.score(draw.messages, text) == pytest.approx(expected, abs=0.5 + 0.02 * abs(expected))
        assert abs(expected - before) > 2
    finally:
        real.load(model())
        reference.load(model())


@real_vllm
def test_two_workers_repeat_their_samples_and_both_take_new_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = make_tiny_model(tmp_path / "base", hidden_size=128)  # vLLM's attention on a CPU needs heads of 32 or more
    changed = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        changed.model.layers[0].mlp.down_proj.weight.mul_(-3.0)
    changed.save_pretrained(tmp_path / "changed")
    draws = draws_of(14)
    config = VLLMEngineConfig(data_parallel=2, kv_cache_gib=0.1, max_model_len=512)
    engine = open_engine(config, ModelRef(base))
    try:
        assert isinstance(engine, PooledEngine)
        assert (engine.metadata["data_parallel"], engine.metadata["threads"]) == (2, 1)
        whole = sampled(engine, draws, SAMPLING)
        assert len({sample.text for sample in whole}) > 7
        samples = engine.generate(DrawQueue(draws), SAMPLING)
        finished = {sample.draw_id: sample for sample, _ in zip(samples, range(5), strict=False)}
        samples.close()  # type: ignore[attr-defined]
        resumed = engine.generate(DrawQueue(draws, finished), SAMPLING)
        assert sorted(resumed, key=lambda sample: sample.draw_id) == whole
        before = engine.scores(draws[0].messages, "Score: 3")
        engine.release()
        engine.load(ModelRef(str(tmp_path / "changed"), 1))
        after = engine.scores(draws[0].messages, "Score: 3")
        assert before[0] == before[1]
        assert after[0] == after[1]
        assert abs(after[0] - before[0]) > 0.1
    finally:
        engine.close()


@real_vllm
def test_a_whole_run_trains_and_uses_the_new_weights(tmp_path: Path) -> None:
    args = FEMConfig(
        engine={"type": "vllm", "temperature": 0.6, "max_new_tokens": 40},
        m_step={"learning_rate": [1e-4, 1e-4], "batch_size": 4},
        iterations=1,
        train_size=12,
        test_size=6,
        run_dir=str(tmp_path / "run"),
    )
    result = FEMTrainer(model().path, "sentiment/movies", args).train()
    assert result.last.m_step is not None
    assert result.last.m_step.pairs > 0
    canary = json.loads((tmp_path / "run/iteration-01/iteration.json").read_text())["canary"]
    assert canary["telling"]  # the trained weights say something else than the base model's
    assert abs(canary["loaded"] - canary["trained"]) < abs(canary["loaded"] - canary["before"])
    session = json.loads((tmp_path / "run/run.json").read_text())["sessions"][0]
    assert session["engine"]["engine"] == "vllm"
    assert session["engine"]["per_request_seeds"] is False


@real_vllm
def test_killed_while_streaming_no_finished_sample_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = ["engine.type=vllm", "train_size=48", "test_size=4", "iterations=1", "proposal.n=2"]
    command = [sys.executable, "-m", "estep.cli", "train", "demo", *settings, f"run_dir={folder}"]
    samples = folder / "iteration-01/samples.jsonl"

    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    for _ in count():
        written = samples.read_bytes().count(b"\n") if samples.exists() else 0
        if written >= 5 or process.poll() is not None or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = samples.read_bytes().splitlines()[:written]
    assert 5 <= len(before) < 96, "the kill came in the middle of the E-step"

    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    after = samples.read_bytes().splitlines()
    assert after[: len(before)] == before
    ids = [json.loads(line)["draw_id"] for line in after]
    assert len(ids) == len(set(ids)) == 96
