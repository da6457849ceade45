"""Scores of many texts: the transformers engine against plain forward passes, the pool against one engine, and vLLM
against transformers."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from conftest import make_sliding_model, questions_of, task_of
from estep.config import OpenAIEngineConfig, ScriptedEngineConfig, TransformersEngineConfig
from estep.engines import open_engine
from estep.engines.base import Engine, ScoreRequest
from estep.engines.host import EngineHost
from estep.engines.pool import PooledEngine, Worker, WorkerDiedError
from estep.engines.scoring import batches, tokenized
from estep.engines.scripted import ScriptedEngine
from estep.engines.transformers import TransformersEngine
from estep.errors import ConfigError, DataError, EngineError
from estep.models.loading import Chat, load_chat
from estep.models.tokens import by_prefix
from estep.records import ModelRef, Score

TEXTS = ("Evaluation: dull. Score: 1", "Evaluation: a café in Kraków 🎬. Score: 3", "Score: 4", "", "one\ntwo " * 9)


def engine_of(path: str, batch_size: int = 4) -> TransformersEngine:
    engine = TransformersEngine(TransformersEngineConfig(batch_size=batch_size, dtype="float32", device="cpu"))
    engine.load(ModelRef(path))
    return engine


def requests_of(questions: int = 4, texts: Sequence[str] = TEXTS) -> list[ScoreRequest]:
    """Each text under the plain and the hinted prompt of each question."""
    task = task_of()
    found = []
    for question in questions_of(task, "01234"[:questions]):
        for kind, prompt in (("plain", task.prompt(question)), ("hinted", task.hinted_prompt(question))):
            found += [ScoreRequest(f"{question.id}/{kind}/{n}", prompt, text) for n, text in enumerate(texts)]
    return found


def scored(engine: Engine, requests: Sequence[ScoreRequest], finished: Any = None) -> dict[str, Score]:
    scores = list(engine.score_many(requests, finished or {}))
    assert sorted(score.id for score in scores) == sorted(request.id for request in requests)
    return {score.id: score for score in scores}


def plain_logprobs(model: Any, chat: Chat, request: ScoreRequest) -> list[float]:
    """The log-probabilities of a text's tokens by one forward pass over all of them."""
    prompt, completion = chat.prompt_ids(request.messages), chat.completion_ids(request.text)
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return [float(logprobs[len(prompt) + place - 1, token]) for place, token in enumerate(completion)]


# The transformers engine


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_each_tokens_log_probability_is_that_of_a_plain_forward_pass(tiny_model: str, batch_size: int) -> None:
    engine, model = engine_of(tiny_model, batch_size), AutoModelForCausalLM.from_pretrained(tiny_model)
    requests = requests_of()
    found = scored(engine, requests)
    for request in requests:
        assert found[request.id].logprobs == pytest.approx(plain_logprobs(model, engine.chat, request), abs=2e-4)


def test_a_total_equals_the_score_of_the_text_alone(tiny_model: str) -> None:
    engine = engine_of(tiny_model)
    requests = requests_of(2)
    found = scored(engine, requests)
    for request in requests:
        assert found[request.id].total == pytest.approx(engine.score(request.messages, request.text), abs=1e-3)


def test_long_texts_are_scored_a_few_positions_at_a_time(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, requests = engine_of(tiny_model, 64), requests_of(2)
    whole = scored(engine, requests)
    monkeypatch.setattr("estep.engines.transformers._LOGITS_AT_ONCE", 1)  # so one position at a time
    for name, score in scored(engine, requests).items():
        assert score.logprobs == pytest.approx(whole[name].logprobs, abs=2e-4)


def test_a_model_with_sliding_layers_is_scored_without_a_shared_prefix(tiny_model: str, tmp_path: Path) -> None:
    model = make_sliding_model(tiny_model, tmp_path)
    engine, requests = engine_of(str(tmp_path)), requests_of(2)
    found = scored(engine, requests)
    for request in requests:
        assert found[request.id].logprobs == pytest.approx(plain_logprobs(model, engine.chat, request), abs=2e-4)


def test_an_interrupted_batch_is_scored_again_as_a_whole_with_the_same_result(tiny_model: str) -> None:
    requests = requests_of(2)
    whole = list(engine_of(tiny_model).score_many(requests, {}))
    for stopped in (1, 6, 19):  # batches have four texts
        scores = engine_of(tiny_model).score_many(requests, {})
        finished = {score.id: score for score, _ in zip(scores, range(stopped), strict=False)}
        assert list(engine_of(tiny_model).score_many(requests, finished)) == whole


def test_finished_scores_are_yielded_as_they_are_and_finished_batches_are_not_computed(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, requests = engine_of(tiny_model), requests_of(2)
    finished = {request.id: Score(request.id, (-1.0,), (0,)) for request in requests}
    computed: list[list[str]] = []
    inner = engine._score

    def listen(batch: Any, prefix: Any) -> Any:
        computed.append([text.id for text in batch])
        return inner(batch, prefix)

    monkeypatch.setattr(engine, "_score", listen)
    assert scored(engine, requests, finished) == finished
    assert computed == []
    missing = finished.pop(requests[7].id)
    found = scored(engine, requests, finished)
    (batch,) = computed
    assert missing.id in batch
    assert len(batch) == 4
    assert {name: score for name, score in found.items() if name != missing.id} == finished
    assert len(found[missing.id].logprobs) > 1


def test_a_text_that_does_not_fit_has_no_log_probabilities_and_the_others_have(tiny_model: str) -> None:
    short, long = requests_of(1, ["Score: 1", "x" * 500])[:2]
    engine = TransformersEngine(TransformersEngineConfig(dtype="float32", device="cpu", max_model_len=500))
    engine.load(ModelRef(tiny_model))
    # A sequence as long as the context fits, and one token more does not.
    prompt = engine.prompt_lengths([short.messages])[0]
    full = ScoreRequest("full", short.messages, "x" * (500 - prompt - 1))
    over = ScoreRequest("over", short.messages, full.text + "x")
    found = scored(engine, [short, long, full, over])
    assert [id for id, score in found.items() if not score.fits] == [long.id, "over"]
    assert found["over"] == Score("over", (), ())
    assert math.isnan(found["over"].total)
    assert len(found["full"].logprobs) == 500 - prompt
    assert scored(engine, [short, long, full, over], found) == found
    # A score that another engine computed is kept.
    other = Score("over", (-1.0,), (0,))
    assert scored(engine, [short, over], {"over": other})["over"] == other


def test_nothing_to_score_gives_no_score(tiny_model: str) -> None:
    assert list(engine_of(tiny_model).score_many([], {})) == []


# Tokens and characters


def test_tokens_start_at_characters_and_the_end_of_turn_after_the_last(tiny_model: str) -> None:
    chat = load_chat(tiny_model)  # its tokens are bytes: é has two of them, 🎬 four
    assert chat.starts("né 🎬!") == (0, 1, 1, 2, 3, 3, 3, 3, 4, 5)
    assert chat.starts("") == (0,)


@settings(max_examples=30)
@given(text=st.text(max_size=20))
def test_starts_never_decrease_and_there_is_one_for_each_token(tiny_model: str, text: str) -> None:
    chat = load_cached(tiny_model)
    starts = chat.starts(text)
    assert len(starts) == len(chat.completion_ids(text))
    assert all(first <= second for first, second in pairwise(starts))
    assert starts[-1] == len(text)


_chats: dict[str, Chat] = {}


def load_cached(path: str) -> Chat:
    if path not in _chats:
        _chats[path] = load_chat(path)
    return _chats[path]


def test_a_score_is_split_at_a_character(tiny_model: str) -> None:
    text = "é: 4"  # five tokens, of which the first two are one character, and the end of turn
    (request,) = requests_of(1, [text])[:1]
    score = scored(engine_of(tiny_model), [request])[request.id]
    assert len(score.logprobs) == 6
    assert score.before(3) == score.logprobs[:4]
    assert score.since(3) == score.logprobs[4:]
    assert score.before(1) == score.logprobs[:2]
    assert score.before(0) == ()
    assert score.before(len(text)) == score.logprobs[:5]


def test_a_text_that_starts_with_parts_of_a_character_is_split_before_all_of_them() -> None:
    # "a🎬b": a has one token, the second character three, b one; then the end of turn.
    score = Score("x", (-1.0, -2.0, -3.0, -4.0, -5.0, -6.0), (0, 1, 1, 1, 2, 3))
    assert score.before(1) == (-1.0,)
    assert score.before(2) == (-1.0, -2.0, -3.0, -4.0)
    assert score.since(2) == (-5.0, -6.0)


def test_what_starts_behind_the_answer_follows_it_at_least_the_end_of_turn() -> None:
    # Tokens 0..3, 3..6, 6..9 and the end of turn at 9.
    score = Score("x", (-1.0, -2.0, -3.0, -4.0), (0, 3, 6, 9))
    assert score.after(6) == (-3.0, -4.0)
    assert score.after(5) == (-3.0, -4.0)  # the token across the position is still the answer's
    assert score.after(8) == (-4.0,)
    assert score.after(9) == (-4.0,)
    assert score.after(12) == (-4.0,)


def test_a_token_across_the_position_belongs_to_what_follows() -> None:
    # Tokens 0..4 and 4..9 of "word answer"; a position at 5, behind the space, is within the second one.
    score = Score("x", (-1.0, -2.0, -3.0), (0, 4, 11))
    assert score.before(5) == (-1.0,)
    assert score.since(5) == (-2.0, -3.0)


def test_a_tokenizer_without_character_offsets_is_refused(tiny_model: str) -> None:
    class Slow:
        is_fast = False

    chat = Chat(Slow(), 1, frozenset({1}))
    message = "the log-probability of each token needs a tokenizer that gives the character offsets of its tokens; Slow"
    with pytest.raises(ConfigError, match=message):
        chat.starts("text")


# Batches


def test_prompts_are_split_where_two_prefixes_spare_positions() -> None:
    # Four prompts share one token, and each half shares four: one group is spared 1 * 3 positions, each half 4 * 1.
    first, second = [[1, 2, 2, 2, end] for end in (3, 4)], [[1, 5, 5, 5, end] for end in (3, 4)]
    assert by_prefix([*second, *first]) == [first, second]
    # A prompt that shares one token with three that share two: 1 * 3 in one group, 2 * 2 without it.
    assert by_prefix([[1, 2, 3], [1, 2, 4], [1, 2, 5], [1, 9, 9]]) == [[[1, 2, 3], [1, 2, 4], [1, 2, 5]], [[1, 9, 9]]]
    # With two of them, 1 * 2 in one group and 2 * 1 without it: nothing is won.
    assert by_prefix([[1, 2, 3], [1, 2, 4], [1, 9, 9]]) == [[[1, 2, 3], [1, 2, 4], [1, 9, 9]]]
    assert by_prefix([]) == []


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), unique_by=tuple, max_size=12))
def test_groups_hold_every_prompt_once(prompts: list[list[int]]) -> None:
    groups = by_prefix(prompts)
    assert [prompt for group in groups for prompt in group] == sorted(prompts)


def test_hinted_and_plain_prompts_have_a_prefix_each_and_batches_ignore_the_order(tiny_model: str) -> None:
    chat = load_cached(tiny_model)
    texts, _ = tokenized(requests_of(), chat, None)
    found = list(batches(texts, 6, shares_prefixes=True))
    kinds = [{text.id.split("/")[1] for text in batch} for _, batch in found]
    assert kinds == [{"hinted"}] * 4 + [{"plain"}] * 4 or kinds == [{"plain"}] * 4 + [{"hinted"}] * 4
    assert len({prefix for prefix, _ in found}) == 2
    for prefix, batch in found:
        assert all(text.prompt[: len(prefix)] == list(prefix) for text in batch)
    assert list(batches(texts[::-1], 6, shares_prefixes=True)) == found
    assert [prefix for prefix, _ in batches(texts, 6, shares_prefixes=False)] == [()] * 7  # 40 texts


# The pool


class InlineWorker:
    """A worker that answers at once, and dies before the calls of which `dies` is told."""

    def __init__(self, engine: Engine, dies: Callable[[str], bool] = lambda method: False):
        self.host = EngineHost(lambda config: engine)
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._dies = dies

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        self.calls.append((method, arguments))
        future: Future[Any] = Future()
        if self._dies(method):
            future.set_exception(WorkerDiedError("worker died"))
            return future
        try:
            future.set_result(getattr(self.host, method)(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def stop(self) -> None:
        pass

    def parts(self) -> list[list[str]]:
        return [[request.id for request in arguments[0]] for method, arguments in self.calls if method == "score_many"]


def pool_of(start: Callable[[int], Worker], count: int = 2) -> PooledEngine:
    engine = PooledEngine(ScriptedEngineConfig(script="unused.json"), start, count, lambda line: None)
    engine.load(ModelRef("base"))
    return engine


def test_a_pool_passes_on_that_a_text_does_not_fit() -> None:
    def unless_third(request: ScoreRequest) -> list[float]:
        return [] if request.id.endswith("/2") else by_length(request)

    requests = requests_of()
    pool = pool_of(lambda number: InlineWorker(ScriptedEngine({}, unless_third)))
    found = scored(pool, requests)
    assert sorted(id for id in found if not found[id].fits) == sorted(r.id for r in requests if r.id.endswith("/2"))
    assert scored(pool, requests, found) == found


def by_length(request: ScoreRequest) -> list[float]:
    return [-0.5 * len(word) for word in request.text.split()] + [-0.25]


def test_a_pool_of_scripted_engines_gives_the_scores_of_one() -> None:
    requests = requests_of()
    workers = [InlineWorker(ScriptedEngine({}, by_length)) for _ in range(3)]
    pool = pool_of(lambda number: workers[number], 3)
    assert scored(pool, requests) == scored(ScriptedEngine({}, by_length), requests)
    # 40 requests in three parts of at most 14, in order.
    ids = [request.id for request in requests]
    assert [worker.parts() for worker in workers] == [[ids[:14]], [ids[14:28]], [ids[28:]]]
    assert list(pool.score_many([], {})) == []


def test_a_pool_of_models_gives_the_scores_of_one_up_to_rounding(tiny_model: str) -> None:
    requests = requests_of(2)
    pool = PooledEngine(
        TransformersEngineConfig(), lambda number: InlineWorker(engine_of(tiny_model)), 2, lambda line: None
    )
    pool.load(ModelRef(tiny_model))
    alone = scored(engine_of(tiny_model), requests)
    for name, score in scored(pool, requests).items():
        assert score.starts == alone[name].starts
        assert score.logprobs == pytest.approx(alone[name].logprobs, abs=2e-4)


def test_a_worker_that_dies_is_replaced_and_its_part_is_scored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estep.engines.pool._SCORED_TOGETHER", 5)
    workers: list[InlineWorker] = []

    def start(number: int) -> Worker:
        order = len(workers)
        worker = InlineWorker(
            ScriptedEngine({}, by_length),
            lambda method: order == 1 and method == "score_many" and len(workers[1].parts()) == 2,
        )
        workers.append(worker)
        return worker

    requests = requests_of()
    assert scored(pool_of(start), requests) == scored(ScriptedEngine({}, by_length), requests)
    assert len(workers) == 3
    lost = workers[1].parts()[-1]
    again = [part for worker in (workers[0], workers[2]) for part in worker.parts() if part == lost]
    assert len(again) == 1


def test_workers_that_die_again_and_again_stop_the_scoring() -> None:
    pool = pool_of(lambda number: InlineWorker(ScriptedEngine({}), lambda method: method == "score_many"))
    with pytest.raises(EngineError, match="worker died; 3 were started again before, so the run stops"):
        list(pool.score_many(requests_of(), {}))


def test_finished_scores_reach_the_worker_of_their_part_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estep.engines.pool._SCORED_TOGETHER", 5)
    workers = [InlineWorker(ScriptedEngine({}, by_length)) for _ in range(2)]
    pool = pool_of(lambda number: workers[number])
    requests = requests_of(1)  # two parts of five
    finished = {request.id: Score(request.id, (-1.0,), (0,)) for request in requests[:7]}
    found = scored(pool, requests, finished)
    assert {name: found[name] for name in finished} == finished
    assert [worker.parts() for worker in workers] == [[[request.id for request in requests[5:]]], []]
    (_, kept) = workers[0].calls[-1][1]
    assert kept == {request.id: finished[request.id] for request in requests[5:7]}


def test_an_error_of_a_worker_arrives_and_the_pool_goes_on() -> None:
    workers = [InlineWorker(ScriptedEngine({}, lambda request: [-1.0])) for _ in range(2)]
    pool = pool_of(lambda number: workers[number])
    with pytest.raises(DataError, match="text q0/plain/0: the script has 1 log-probabilities for 4 words"):
        list(pool.score_many(requests_of(), {}))
    for worker in workers:
        worker.host._engine.score_script = by_length  # type: ignore[attr-defined]
    assert len(scored(pool, requests_of())) == 40


# Engines without a model


def test_a_scripted_score_has_a_log_probability_for_each_word_and_the_end_of_turn() -> None:
    engine = ScriptedEngine({})
    request = ScoreRequest("a", ({"role": "user", "content": "x"},), " Score:  3\n")
    assert list(engine.score_many([request], {})) == [Score("a", (-1.0, -1.0, 0.0), (1, 9, 11))]
    assert engine.score(request.messages, request.text) == -2.0
    assert engine.scored == [request]
    scripted = ScriptedEngine({}, by_length)
    # Words of 6 and 1 characters at -0.5 each, and -0.25 for the end of turn.
    assert list(scripted.score_many([request], {})) == [Score("a", (-3.0, -0.5, -0.25), (1, 9, 11))]
    assert scripted.score(request.messages, request.text) == -3.75


def test_a_finished_score_is_not_asked_of_the_script() -> None:
    engine, requests = ScriptedEngine({}, by_length), requests_of(1)
    old = Score(requests[3].id, (-9.0,), (0,))
    assert scored(engine, requests, {old.id: old})[old.id] == old
    assert engine.scored == [request for request in requests if request.id != old.id]


def test_a_server_cannot_score_and_says_what_can(monkeypatch: pytest.MonkeyPatch) -> None:
    config = OpenAIEngineConfig(base_url="http://localhost:1/v1", api_key_env=None)
    engine = open_engine(config, ModelRef("served"))
    try:
        with pytest.raises(EngineError, match=r"does not score given texts: load the model here, with engine\.type"):
            engine.score_many(requests_of(1), {})
    finally:
        engine.close()
