"""How likely the policy finds its own responses: log-probabilities at temperature 1, split into rationale and answer.

A response is scored under the plain prompt of its proposal, and if it was drawn with the hint also under that prompt,
with the same few-shot examples. The weights of `filters.weight_by` and the diagnostics come from these scores.

Every score is a line of the iteration's `scores.jsonl`; a resumed run does not compute it again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from estep.engines import Engine
from estep.engines.base import NeverSampledError, ScoreRequest
from estep.progress import Reporter
from estep.records import NO_LOG, Draw, Messages, Question, RowLog, Score
from estep.tasks import Task


@dataclass(frozen=True)
class Parts:
    """log π of a rationale, and of the answer after it, under one prompt."""

    rationale: float
    """log π(z | prompt), in nats: all tokens before the answer, the answer's label among them."""
    answer: float
    """log π(y | prompt, z), in nats: the answer, what follows it, and the end of turn."""
    rationale_tokens: int
    answer_tokens: int

    @property
    def total(self) -> float:
        """log π(z, y | prompt), in nats."""
        return self.rationale + self.answer

    @property
    def tokens(self) -> int:
        return self.rationale_tokens + self.answer_tokens


@dataclass(frozen=True)
class SampleScores:
    """The scores of a sample under its proposal's two prompts."""

    policy: Parts
    """Without the hint: π."""
    proposal: Parts
    """Under the prompt that the sample was drawn from. The same as `policy` if that has no hint."""


class ScoreText:
    """One text to score, and where its answer starts."""

    def __init__(self, id: str, messages: Messages, text: str, answer_start: int):
        self.request = ScoreRequest(id, messages, text)
        self.answer_start = answer_start


class Scorer:
    """Scores texts with an engine.

    Args:
        engine: with the weights to score by; None if every score is already in the log.
        reporter: receives progress.
        kept: the log of finished scores; new ones are added.
    """

    def __init__(self, engine: Engine | None, reporter: Reporter, kept: RowLog = NO_LOG):
        self._engine = engine
        self._reporter = reporter
        self._kept = kept

    def __call__(self, texts: Sequence[ScoreText], title: str) -> dict[str, Parts]:
        """The scores by id.

        Raises:
            NeverSampledError: there is no engine, and a text has no finished score.
        """
        finished = {row["id"]: _score(row) for row in self._kept.read()}
        missing = [text.request.id for text in texts if text.request.id not in finished]
        if missing and self._engine is None:
            raise NeverSampledError(f"text {missing[0]} was never scored")
        starts = {text.request.id: text.answer_start for text in texts}
        scores = {id: finished[id] for id in starts if id in finished}
        if missing and self._engine is not None:
            with self._reporter.phase(title, len(texts), "texts", len(texts) - len(missing)) as advance:
                for score in self._engine.score_many([text.request for text in texts], finished):
                    scores[score.id] = score
                    if score.id not in finished:
                        self._kept.append(_row(score, starts[score.id]))
                        advance()
        return {id: split(scores[id], start) for id, start in starts.items()}


def split(score: Score, answer_start: int) -> Parts:
    """A score as that of a rationale and of the answer after it."""
    before, since = score.before(answer_start), score.since(answer_start)
    return Parts(sum(before), sum(since), len(before), len(since))


def sample_texts(task: Task, question: Question, draw: Draw, text: str) -> list[ScoreText]:
    """What to score of a sample: its text under the plain prompt and, if it was drawn with the hint, under that one.

    Args:
        text: the sample's text as it is trained.
    """
    span = task.answer_span(text)
    start = span[0] if span is not None else len(text)
    texts = [ScoreText(f"policy:{draw.id}", task.proposal_prompt(question), text, start)]
    if draw.hinted:
        texts.append(ScoreText(f"proposal:{draw.id}", draw.messages, text, start))
    return texts


def sample_scores(draw_id: str, parts: Mapping[str, Parts]) -> SampleScores | None:
    """The scores of a sample; None if it was not scored."""
    policy = parts.get(f"policy:{draw_id}")
    return None if policy is None else SampleScores(policy, parts.get(f"proposal:{draw_id}", policy))


def read_parts(kept: RowLog) -> dict[str, Parts]:
    """The scores in a log, by id."""
    return {row["id"]: split(_score(row), row["answer_start"]) for row in kept.read()}


def _row(score: Score, answer_start: int) -> dict[str, Any]:
    parts = split(score, answer_start)
    return {
        "id": score.id,
        "rationale": parts.rationale,
        "answer": parts.answer,
        "answer_start": answer_start,
        "logprobs": list(score.logprobs),
        "starts": list(score.starts),
    }


def _score(row: Mapping[str, Any]) -> Score:
    return Score(row["id"], tuple(row["logprobs"]), tuple(row["starts"]))
