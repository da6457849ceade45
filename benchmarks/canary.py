"""Measures rounding errors in log-probabilities, and how much training the canary needs to detect stale weights.

smollm2-135m on `sentiment/movies`. First, sampled texts of 8 to 200 tokens are scored by the M-step's own computation,
by both engines, and in float32. Then one gradient step on eight pairs is taken at several learning rates, and the
canary is checked twice: with an engine that still has the old weights, and with one that loaded the new ones.

    python benchmarks/canary.py
"""

import math
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from estep.config import MStepConfig, TransformersEngineConfig, VLLMEngineConfig
from estep.data.split import Sizes, draw_split, load_pool
from estep.engines import DrawQueue, Engine, Sampling, open_engine
from estep.errors import StaleWeightsError
from estep.m_step.base import MStepInput
from estep.m_step.canary import Canary, check_canary
from estep.m_step.packing import use_packed_attention
from estep.m_step.sft import SFTMStep
from estep.models.loading import load_chat, load_model, rounded_weights
from estep.models.tokens import sequence_logprob
from estep.records import Draw, Messages, ModelRef, Pair, Question
from estep.sources.models import resolve_model
from estep.tasks import Task, load_task

SEED = 257
LENGTHS = (8, 16, 32, 64, 128, 200)
RATES = (1e-7, 1e-6, 1e-5, 1e-4)

Response = tuple[Messages, str, int]
"""Prompt, text, and the tokens of the text with its end of turn."""


def sampled(engine: Engine, path: str, questions: list[Question]) -> list[Response]:
    """A text per question, cut to the lengths in turn."""
    chat = load_chat(path)
    prompts = [
        ({"role": "user", "content": f"Write a long story that contains this sentence: {question.fields['text']}"},)
        for question in questions
    ]
    draws = [Draw(f"d{n}", f"q{n}", 0, 0, "plain", False, prompt, SEED + n) for n, prompt in enumerate(prompts)]
    texts = {sample.draw_id: sample.text for sample in engine.generate(DrawQueue(draws), Sampling(0.8, 1.0, 200))}
    responses = []
    for number, prompt in enumerate(prompts):
        ids = chat.tokenizer(texts[f"d{number}"], add_special_tokens=False)["input_ids"]
        text = chat.text(ids[: LENGTHS[number % len(LENGTHS)]])
        responses.append((prompt, text, len(chat.completion_ids(text))))
    return responses


def own_scores(path: str, responses: list[Response], dtype: str) -> list[float]:
    """The M-step's computation."""
    chat, model = load_chat(path), load_model(path, "float32", "cpu")
    use_packed_attention(model)
    model.eval()
    with rounded_weights(model, dtype), torch.inference_mode():
        return [sequence_logprob(model, chat, prompt, text) for prompt, text, _ in responses]


def report(name: str, scores: list[float], own: list[float], responses: list[Response]) -> None:
    """Print the differences of two computations, per square root of tokens and of tokens plus nats."""
    rows = list(zip(scores, own, (tokens for _, _, tokens in responses), strict=True))
    scaled = [(a - b) / math.sqrt(n) for a, b, n in rows]
    by_length = [
        f"{length}: {math.sqrt(statistics.mean(z * z for z in scaled[number :: len(LENGTHS)])):.3f}"
        for number, length in enumerate(LENGTHS)
    ]
    with_nats = [(a - b) / math.sqrt(n + abs(b)) for a, b, n in rows]
    eights = [rows[start::3] for start in range(3)]
    sums = [sum(a - b for a, b, _ in eight) / math.sqrt(sum(n + abs(b) for _, b, n in eight)) for eight in eights]
    print(
        f"{name}: rms {math.sqrt(statistics.mean(z * z for z in scaled)):.4f} per sqrt(token) "
        f"({', '.join(by_length)}); {math.sqrt(statistics.mean(z * z for z in with_nats)):.4f} per sqrt(token + nat), "
        f"sums of eight {', '.join(f'{z:+.4f}' for z in sums)}; most in a response "
        f"{max(abs(a - b) for a, b, _ in rows):.2f} nats",
        flush=True,
    )


def refused(engine: Engine, canary: Canary) -> str:
    """The result of the canary check."""
    try:
        check_canary(engine, canary)
    except StaleWeightsError:
        return "refused"
    return "passed"


def learning_steps(engine: Engine, path: str, task: Task, questions: list[Question]) -> None:
    """Print, for each learning rate, how far one gradient step moved the canary, and the result of the check."""
    rationales = [example.rationale for example in task.file.examples]
    pairs = []
    for number, question in enumerate(questions[:8]):
        text = f"Evaluation: {rationales[number % len(rationales)]} Score: {question.answer}"
        pairs.append(Pair(question.id, f"{question.id}#0.0", task.prompt(question), text))
    chat = load_chat(path)
    responses = [(pair.prompt, pair.completion, len(chat.completion_ids(pair.completion))) for pair in pairs]
    exact = sum(own_scores(path, responses, "float32"))
    with tempfile.TemporaryDirectory() as folder:
        for rate in RATES:
            engine.load(ModelRef(path))
            step = SFTMStep(MStepConfig(batch_size=8, precision="bfloat16"), None, "stop", "bfloat16")
            weights = Path(folder) / f"{rate}"
            work = MStepInput(ModelRef(path), 1, pairs, rate, SEED, weights, engine.score, lambda _: None)
            trained = step(work)
            assert trained is not None
            canary = trained.canary
            by_size = refused(engine, replace(canary, visible=False))
            stale = refused(engine, canary)
            engine.load(trained.model)
            loaded = sum(engine.score(prompt, text) for prompt, text in canary.responses)
            print(
                f"rate {rate:g}: in float32 {exact:.2f} to "
                f"{sum(own_scores(trained.model.path, responses, 'float32')):.2f}; in bfloat16 "
                f"before {canary.before:.2f}, trained {canary.logprob:.2f}, loaded {loaded:.2f}, "
                f"{canary.tokens} tokens, tolerance {canary.tolerance:.2f}, visible {canary.visible}; former weights: "
                f"{by_size} by the size of the difference, {stale} by both tests; new weights: "
                f"{refused(engine, canary)}",
                flush=True,
            )


def main() -> None:
    """Run both parts."""
    path = resolve_model("smollm2-135m", lambda line: print(line, file=sys.stderr))
    task = load_task("sentiment/movies", few_shot="proposal")
    questions = draw_split(task, load_pool(task), Sizes(24, 16), SEED).train
    engine = open_engine(VLLMEngineConfig(dtype="bfloat16"), ModelRef(path))
    responses = sampled(engine, path, questions)
    of_vllm = [engine.score(prompt, text) for prompt, text, _ in responses]
    again = [engine.score(prompt, text) for prompt, text, _ in responses]
    print(
        f"{sum(tokens for _, _, tokens in responses)} tokens, {-sum(of_vllm):.0f} nats; vLLM repeats itself: "
        f"{again == of_vllm}"
    )
    own = own_scores(path, responses, "bfloat16")
    report("vLLM, bfloat16", of_vllm, own, responses)
    other = open_engine(TransformersEngineConfig(dtype="bfloat16"), ModelRef(path))
    report("transformers, bfloat16", [other.score(p, t) for p, t, _ in responses], own, responses)
    other.close()
    exact = own_scores(path, responses, "float32")
    report("M-step, bfloat16 against float32", own, exact, responses)
    other = open_engine(TransformersEngineConfig(dtype="float32"), ModelRef(path))
    report("transformers, float32", [other.score(p, t) for p, t, _ in responses], exact, responses)
    other.close()
    learning_steps(engine, path, task, questions)
    engine.close()


if __name__ == "__main__":
    main()
