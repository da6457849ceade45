"""The transformers engine on a tiny random Llama in float32, against transformers' own forward and generate."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import make_sliding_model, questions_of, task_of
from estep.config import TransformersEngineConfig
from estep.engines import DrawQueue, Sampling
from estep.engines.transformers import TransformersEngine, choose
from estep.errors import ConfigError, DataError
from estep.models.loading import load_chat
from estep.proposals import PPS, Rejection
from estep.records import Draw, ModelRef, Sample

GREEDY = Sampling(0.0, 1.0, 10)
SAMPLED = Sampling(1.0, 1.0, 10)


def engine_of(path: str, batch_size: int = 4) -> TransformersEngine:
    engine = TransformersEngine(TransformersEngineConfig(batch_size=batch_size, dtype="float32", device="cpu"))
    engine.load(ModelRef(path))
    return engine


def some_draws(count: int, n: int = 1, plain: bool = False) -> list[Draw]:
    task = task_of()
    questions = [
        replace(question, fields={"text": "word " * (number % 5) + str(number)})
        for number, question in enumerate(questions_of(task, "01234" * 4)[:count])
    ]
    proposal = Rejection(1, n) if plain else PPS(n)
    return proposal.propose(task, questions, 11)


def sampled(engine: TransformersEngine, draws: list[Draw], sampling: Sampling) -> dict[str, Sample]:
    return {sample.draw_id: sample for sample in engine.generate(DrawQueue(draws), sampling)}


def test_greedy_texts_equal_plain_generate(tiny_model: str) -> None:
    engine = engine_of(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    draws = some_draws(7)
    found = sampled(engine, draws, GREEDY)
    for draw in draws:
        prompt = engine.chat.prompt_ids(draw.messages)
        out = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=10
        )[0, len(prompt) :].tolist()
        stop = out.index(engine.chat.end_id) if engine.chat.end_id in out else None
        assert found[draw.id].text == engine.chat.text(out[:stop])
        assert found[draw.id].finish_reason == ("length" if stop is None else "stop")


def test_the_log_probability_of_a_sample_is_the_models_own(tiny_model: str) -> None:
    # At temperature 1, log q is log π, so it must equal a plain forward pass over prompt and sampled tokens.
    engine = engine_of(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    draws = some_draws(6)
    for sample in engine.generate(DrawQueue(draws), SAMPLED):
        draw = next(d for d in draws if d.id == sample.draw_id)
        prompt = engine.chat.prompt_ids(draw.messages)
        text = engine.chat.tokenizer(sample.text, add_special_tokens=False)["input_ids"]
        tokens = text + ([engine.chat.end_id] if sample.finish_reason == "stop" else [])
        if len(tokens) != sample.completion_tokens:
            continue  # bytes that are no UTF-8 do not survive the way through text
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
        expected = sum(float(logprobs[len(prompt) + n - 1, token]) for n, token in enumerate(tokens))
        assert sample.logprob == pytest.approx(expected, abs=1e-3)


def test_samples_do_not_depend_on_batch_size_or_order_in_float32(tiny_model: str) -> None:
    draws = some_draws(9)
    alone = sampled(engine_of(tiny_model, 1), draws, SAMPLED)
    together = sampled(engine_of(tiny_model, 16), draws[::-1], SAMPLED)
    assert {i: s.text for i, s in alone.items()} == {i: s.text for i, s in together.items()}


def test_draws_of_one_question_share_a_prompt_but_not_a_text(tiny_model: str) -> None:
    draws = some_draws(2, n=6)
    found = sampled(engine_of(tiny_model, 16), draws, SAMPLED)
    assert len(found) == 12
    assert len({sample.text for sample in found.values()}) > 6
    alone = sampled(engine_of(tiny_model, 1), draws, SAMPLED)
    assert {i: s.text for i, s in alone.items()} == {i: s.text for i, s in found.items()}


def test_an_interrupted_batch_gives_the_same_samples_when_repeated(tiny_model: str) -> None:
    draws = some_draws(10)
    whole = sampled(engine_of(tiny_model), draws, SAMPLED)
    finished = {i: whole[i] for i in sorted(whole)[:5]}
    resumed = engine_of(tiny_model).generate(DrawQueue(draws, finished), SAMPLED)
    assert {sample.draw_id: sample for sample in resumed} == whole


def test_hinted_and_plain_draws_mix(tiny_model: str) -> None:
    draws = [*some_draws(5), *(replace(d, id=d.id + "p") for d in some_draws(5, plain=True))]
    found = sampled(engine_of(tiny_model), draws, GREEDY)
    apart = sampled(engine_of(tiny_model), draws[:5], GREEDY) | sampled(engine_of(tiny_model), draws[5:], GREEDY)
    assert {i: s.text for i, s in found.items()} == {i: s.text for i, s in apart.items()}


def test_a_given_completion_is_not_sampled(tiny_model: str) -> None:
    (draw, *_) = some_draws(1)
    (sample,) = engine_of(tiny_model).generate(DrawQueue([replace(draw, completion="Score: 3")]), SAMPLED)
    assert (sample.text, sample.finish_reason, sample.completion_tokens) == ("Score: 3", "supplied", 0)


def test_score_sums_the_responses_log_probabilities_with_the_end_of_turn(tiny_model: str) -> None:
    engine = engine_of(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    messages = ({"role": "user", "content": "Hello"},)
    prompt, completion = engine.chat.prompt_ids(messages), engine.chat.completion_ids("Score: 3")
    assert completion[-1] == engine.chat.end_id
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    expected = sum(float(logprobs[len(prompt) + n - 1, token]) for n, token in enumerate(completion))
    assert engine.score(messages, "Score: 3") == pytest.approx(expected, abs=1e-4)


def test_loading_other_weights_changes_the_answers(tiny_model: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(-3.0)
    model.save_pretrained(str(tmp_path))
    engine = engine_of(tiny_model)
    before = engine.score(({"role": "user", "content": "Hello"},), "Score: 3")
    engine.load(ModelRef(str(tmp_path)))
    assert abs(engine.score(({"role": "user", "content": "Hello"},), "Score: 3") - before) > 0.1


def test_the_prefix_cache_does_not_outlive_its_weights(tiny_model: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(-3.0)
    model.save_pretrained(str(tmp_path))
    draws = some_draws(6)
    engine = engine_of(tiny_model)
    sampled(engine, draws, GREEDY)
    engine.load(ModelRef(str(tmp_path)))
    fresh = engine_of(tiny_model)
    fresh.load(ModelRef(str(tmp_path)))
    assert sampled(engine, draws, GREEDY) == sampled(fresh, draws, GREEDY)


def test_a_model_with_sliding_layers_is_sampled_without_a_shared_prefix(tiny_model: str, tmp_path: Path) -> None:
    model = make_sliding_model(tiny_model, tmp_path)
    engine, draws = engine_of(str(tmp_path)), some_draws(5)
    found = sampled(engine, draws, GREEDY)
    for draw in draws:
        prompt = engine.chat.prompt_ids(draw.messages)
        ids = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(10):
                following = model(ids, use_cache=False).logits[0, -1].argmax()
                if int(following) == engine.chat.end_id:
                    break
                ids = torch.cat([ids, following.view(1, 1)], dim=1)
        assert found[draw.id].text == engine.chat.text(ids[0, len(prompt) :].tolist())


def test_the_prompt_does_not_depend_on_the_day(tiny_model: str, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_model, tmp_path / "dated")
    template = tmp_path / "dated/chat_template.jinja"
    template.write_text("Today is {{ strftime_now('%d %b %Y') }}. " + template.read_text())
    chat = load_chat(str(tmp_path / "dated"))
    assert chat.text(chat.prompt_ids(({"role": "user", "content": "x"},))).startswith("Today is 26 Jul 2024.")


def test_a_template_that_refuses_a_prompt_is_an_error(tiny_model: str, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_model, tmp_path / "picky")
    template = tmp_path / "picky/chat_template.jinja"
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    chat = load_chat(str(tmp_path / "picky"))
    with pytest.raises(DataError, match="chat template refuses the prompt: System role not supported"):
        chat.prompt_ids(({"role": "system", "content": "x"},))


def test_an_unknown_device_is_refused(tiny_model: str) -> None:
    with pytest.raises(ConfigError, match="no device 'gpu' here"):
        TransformersEngine(TransformersEngineConfig(device="gpu"))


def test_a_prompt_longer_than_the_context_is_refused(tiny_model: str) -> None:
    (draw, *_) = some_draws(1)
    long = replace(draw, messages=({"role": "user", "content": "x" * 3000},))
    with pytest.raises(DataError, match="context of 2048"):
        list(engine_of(tiny_model).generate(DrawQueue([long]), SAMPLED))


def test_choose_inverts_the_cumulative_distribution() -> None:
    # Probabilities 0.5, 0.3, 0.2: the numbers 0.49, 0.51 and 0.81 fall on tokens 0, 1 and 2.
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]] * 3))
    token, logprob = choose(logits, torch.tensor([0.49, 0.51, 0.81]), Sampling(1.0, 1.0, 1))
    assert token.tolist() == [0, 1, 2]
    assert logprob.tolist() == pytest.approx([math.log(0.5), math.log(0.3), math.log(0.2)], abs=1e-6)


def test_choose_with_temperature_sharpens() -> None:
    # At temperature 0.5 the odds are squared: 0.25, 0.09, 0.04 over 0.38.
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    _, logprob = choose(logits, torch.tensor([0.0]), Sampling(0.5, 1.0, 1))
    assert logprob.item() == pytest.approx(math.log(0.25 / 0.38), abs=1e-6)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    # top_p 0.6 keeps tokens 0 and 1 (0.5 alone does not reach it); renormalized to 0.625 and 0.375.
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]] * 2))
    token, logprob = choose(logits, torch.tensor([0.62, 0.999]), Sampling(1.0, 0.6, 1))
    assert token.tolist() == [0, 1]
    assert logprob.tolist() == pytest.approx([math.log(0.625), math.log(0.375)], abs=1e-6)


def test_a_number_just_below_one_draws_no_token_that_top_p_left_out() -> None:
    # 1 - 2**-26 is 1 in float32. top_p 0.7 keeps tokens 0 and 1, so the last token with mass is 1, at 0.3 / 0.8.
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    token, logprob = choose(logits, torch.tensor([1 - 2**-26], dtype=torch.float64), Sampling(1.0, 0.7, 1))
    assert token.tolist() == [1]
    assert logprob.item() == pytest.approx(math.log(0.375), abs=1e-6)


def test_sampled_frequencies_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.6, 0.25, 0.1, 0.05])
    uniforms = torch.rand(20000, generator=torch.Generator().manual_seed(3))
    token, _ = choose(torch.log(probabilities).expand(20000, 4), uniforms, Sampling(1.0, 1.0, 1))
    shares = torch.bincount(token, minlength=4) / 20000
    # Standard deviation of a share is at most sqrt(0.24 / 20000) = 0.0035; four of them are 0.014.
    assert torch.allclose(shares, probabilities, atol=0.014)
