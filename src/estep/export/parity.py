"""Does an exported model answer as the run's own weights do?

Both get the same held-out questions with the plain prompt. The responses that the run's evaluation recorded are scored
under both, token by token, and both answer greedily. Log-probabilities decide: they differ by a little where weights
were rounded, while a greedy answer changes completely or not at all. The answers are counted and reported.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from estep.config import TransformersEngineConfig
from estep.engines import DrawQueue, Sampling
from estep.engines.base import ScoreRequest
from estep.errors import DataError
from estep.evaluate import evaluation_draws
from estep.export.source import Trained
from estep.metrics import mean
from estep.models.loading import adapter_base
from estep.progress import Reporter
from estep.records import ModelRef, Question, Score
from estep.tasks.answers import PythonAnswer

SAME, ROUNDED, QUANTIZED = 0.005, 0.05, 0.5
"""The largest mean difference of a token's log-probability, in nats: with weights that were not rounded anew; with a
merged adapter, or weights in another type of 16 or 32 bits or in 8 bits; and with weights of fewer bits.
docs/guide-judge.md shows measured differences."""


@dataclass(frozen=True)
class Answers:
    """What a model makes of some held-out questions."""

    questions: tuple[Question, ...]
    texts: Mapping[str, str]
    """The responses that are scored, by question."""
    scores: Mapping[str, Score]
    """Their scores under this model, without those that do not fit its context."""
    greedy: Mapping[str, str]
    """This model's own greedy responses, by question."""


@dataclass(frozen=True)
class Parity:
    """How an exported model differs from the run's own weights."""

    questions: int
    tokens: int
    """Tokens of the scored responses, with the end of turn of each."""
    difference: float
    """Mean absolute difference of a token's log-probability, in nats."""
    largest: float
    """The largest one."""
    same_texts: int
    """Questions with the same greedy response, character by character."""
    same_answers: int
    """Questions with the same answer in the greedy response."""
    tolerance: float
    """The largest `difference` that is accepted."""

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @property
    def line(self) -> str:
        """In one line, for people."""
        return (
            f"on {self.questions} held-out questions: log-probabilities differ by {self.difference:.2g} nats per token "
            f"(largest {self.largest:.2g}; up to {self.tolerance:g} is accepted), {self.same_answers} of "
            f"{self.questions} greedy answers and {self.same_texts} texts are the same"
        )


def own_answers(trained: Trained, questions: int, reporter: Reporter) -> Answers | None:
    """The answers of the run's own weights, in the precision in which the run sampled.

    Args:
        questions: how many held-out questions to ask, the first ones.

    Returns:
        None if there are none: `questions` is 0, or the run's evaluation of these weights is not there.
    """
    from estep.engines.transformers import TransformersEngine

    asked = trained.responses()[:questions]
    if not asked:
        return None
    engine = TransformersEngine(TransformersEngineConfig(dtype=trained.dtype))
    engine.load(ModelRef(trained.weights, trained.step.number))
    texts = {question.id: response.text for question, response in asked}
    return _answers(trained, engine, tuple(question for question, _ in asked), texts, reporter, "the run's weights")


def check(trained: Trained, own: Answers, engine: Any, kind: str, reporter: Reporter) -> Parity:
    """Compare the answers of an exported model with those of the run's own weights.

    Args:
        engine: the transformers engine with the exported model; it is closed.
        kind: how the exported weights are stored: `float32`, `bfloat16`, `float16`, or a GGUF type such as `Q4_K_M`.

    Raises:
        DataError: the log-probabilities differ by more than the tolerance, or nothing could be compared.
    """
    exported = _answers(trained, engine, own.questions, own.texts, reporter, "the exported model")
    pairs = [
        (ours, theirs)
        for question, score in own.scores.items()
        for ours, theirs in zip(score.logprobs, exported.scores[question].logprobs, strict=True)
    ]
    if not pairs:
        raise DataError("no held-out response fits the model's context, so the export cannot be checked (--check 0)")
    differences = [abs(ours - theirs) for ours, theirs in pairs]
    ids = [question.id for question in own.questions]
    parity = Parity(
        questions=len(ids),
        tokens=len(pairs),
        difference=mean(differences),
        largest=max(differences),
        same_texts=sum(own.greedy[id] == exported.greedy[id] for id in ids),
        same_answers=sum(_answer(trained, own, id) == _answer(trained, exported, id) for id in ids),
        tolerance=tolerance(trained, kind),
    )
    if not parity.difference <= parity.tolerance:  # NaN is refused too
        raise DataError(f"the exported model is not the run's: {parity.line}")
    return parity


def tolerance(trained: Trained, kind: str) -> float:
    """The largest mean difference of a token's log-probability that rounding explains, in nats."""
    if kind in ("float32", trained.dtype):
        return SAME if adapter_base(trained.weights) is None else ROUNDED
    return ROUNDED if kind in ("bfloat16", "float16", "q8_0") else QUANTIZED


def _answers(
    trained: Trained,
    engine: Any,
    questions: tuple[Question, ...],
    texts: Mapping[str, str],
    reporter: Reporter,
    whose: str,
) -> Answers:
    task, prompt = trained.task, trained.task.prompt
    requests = [ScoreRequest(question.id, prompt(question), texts[question.id]) for question in questions]
    draws = evaluation_draws(task, questions, samples=1, seed=0)
    asked = {draw.id: draw.question_id for draw in draws}
    greedy = {}
    try:
        with reporter.phase(f"check of {whose}", len(questions), "texts") as advance:
            scores = {score.id: score for score in engine.score_many(requests, {}) if score.fits}
            for sample in engine.generate(DrawQueue(draws), Sampling(0.0, 1.0, trained.config.max_new_tokens)):
                greedy[asked[sample.draw_id]] = sample.text
                advance()
    finally:
        engine.close()
    return Answers(questions, texts, scores, greedy)


def _answer(trained: Trained, answers: Answers, id: str) -> str | None:
    """The answer in a greedy response; the whole response if only the user's own function can read it."""
    text = answers.greedy[id]
    if isinstance(trained.task.file.answer, PythonAnswer):
        return text
    question = next(question for question in answers.questions if question.id == id)
    return trained.task.judge(question, text).answer
