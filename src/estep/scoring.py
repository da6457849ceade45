"""How likely the policy finds its own responses: log-probabilities at temperature 1, split into rationale and answer.

A response is scored under the plain prompt of its proposal, and if it was drawn with the hint also under that prompt,
with the same few-shot examples. The probabilities of a served model are not known, so its responses are scored only
under the prompt that the policy is trained on. The weights of `filters.weight_by` and the diagnostics come from these
scores.

Every score is a line of the iteration's `scores.jsonl`; a resumed run does not compute it again. A text that just fits
when it is sampled may not fit when it is scored, because the end of turn is scored too. Such a text is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from estep.engines import Engine
from estep.engines.base import NeverSampledError, ScoreRequest
from estep.progress import Reporter
from estep.records import NO_LOG, Draw, Messages, Question, RowLog, Score, Verdict
from estep.tasks import Task

Span = tuple[int, int]
"""Where a part of a text starts and ends, in characters."""


@dataclass(frozen=True)
class Parts:
    """log π of a rationale, of the answer after it, and of the rest of the response, under one prompt."""

    rationale: float
    """log π(z | prompt), in nats: all tokens before the answer, the answer's label among them."""
    answer: float
    """log π(y | prompt, z), in nats: the answer and the token that ends it, which is the end of turn or the first of
    what follows."""
    rationale_tokens: int
    answer_tokens: int
    rest: float = 0.0
    """log π of what follows that token, and of the end of turn after it, in nats; 0 if nothing does."""
    rest_tokens: int = 0

    @property
    def total(self) -> float:
        """log π(z, y | prompt) of the whole response, in nats."""
        return self.rationale + self.answer + self.rest

    @property
    def tokens(self) -> int:
        return self.rationale_tokens + self.answer_tokens + self.rest_tokens


@dataclass(frozen=True)
class SampleScores:
    """The scores of a sample under its proposal's two prompts."""

    policy: Parts
    """Without the hint: π."""
    proposal: Parts | None
    """Under the prompt that the sample was drawn from. The same as `policy` if that has no hint; None if a served model
    drew the sample."""


class ScoreText:
    """One text to score, and where its answer starts and ends."""

    def __init__(self, id: str, messages: Messages, text: str, answer: Span):
        self.request = ScoreRequest(id, messages, text)
        self.answer = answer


class Scorer:
    """Scores texts with an engine.

    Args:
        engine: with the weights to score by; None if every score is already in the log.
        reporter: receives progress.
        kept: the log of finished scores; new ones are added.
        whole: whether the log keeps the scores of rationales, too. Without them, their sums are 0 after a resume.
    """

    def __init__(self, engine: Engine | None, reporter: Reporter, kept: RowLog = NO_LOG, whole: bool = True):
        self._engine = engine
        self._reporter = reporter
        self._kept = kept
        self._whole = whole

    def __call__(self, texts: Sequence[ScoreText], title: str) -> dict[str, Parts]:
        """The scores by id, without those of texts that do not fit the model's context.

        Raises:
            NeverSampledError: there is no engine, and a text has no finished score.
        """
        finished = {row["id"]: _score(row) for row in self._kept.read()}
        missing = [text.request.id for text in texts if text.request.id not in finished]
        if missing and self._engine is None:
            raise NeverSampledError(f"text {missing[0]} was never scored")
        answers = {text.request.id: text.answer for text in texts}
        scores = {id: finished[id] for id in answers if id in finished}
        if missing and self._engine is not None:
            with self._reporter.phase(title, len(texts), "texts", len(texts) - len(missing)) as advance:
                for score in self._engine.score_many([text.request for text in texts], finished):
                    scores[score.id] = score
                    if score.id not in finished:
                        answer = answers[score.id]
                        row = _row(score, answer) if self._whole else _ending_row(score, answer)
                        self._kept.append(row)
                        advance()
            if too_long := [id for id in missing if not scores[id].fits]:
                self._reporter.log(
                    f"{title}: {len(too_long)} of {len(texts)} texts are not scored, because with prompt and end of "
                    f"turn they exceed the model's context (the first is {too_long[0]})"
                )
        return {id: split(scores[id], answer) for id, answer in answers.items() if scores[id].fits}


def split(score: Score, answer: Span) -> Parts:
    """A score as that of a rationale, of the answer after it, and of the rest."""
    start, end = answer
    before, since = score.before(start), score.since(start)
    after = score.after(end)[1:]
    within = since[: len(since) - len(after)]
    return Parts(sum(before), sum(within), len(before), len(within), sum(after), len(after))


def sample_texts(task: Task, question: Question, draw: Draw, text: str, served: bool) -> list[ScoreText]:
    """What to score of a sample: its text under the plain prompt and, if the policy drew it with the hint, under that
    one.

    Args:
        text: the sample's text as it is trained.
        served: whether a served model drew it.
    """
    answer = task.answer_span(text) or (len(text), len(text))
    plain = task.prompt(question) if served else task.proposal_prompt(question)
    texts = [ScoreText(f"policy:{draw.id}", plain, text, answer)]
    if draw.hinted and not served:
        texts.append(ScoreText(f"proposal:{draw.id}", draw.messages, text, answer))
    return texts


def sample_scores(verdict: Verdict, parts: Mapping[str, Parts], served: bool) -> SampleScores | None:
    """The scores of a sample; None if it was not scored, or does not fit the context under one of its prompts.

    Args:
        served: whether a served model drew it.
    """
    policy = parts.get(f"policy:{verdict.draw_id}")
    proposal = parts.get(f"proposal:{verdict.draw_id}") if verdict.hinted else policy
    if policy is None or (proposal is None and not served):
        return None
    return SampleScores(policy, None if served else proposal)


def read_parts(kept: RowLog) -> dict[str, Parts]:
    """The scores in a log, by id, without those of texts that do not fit the model's context."""
    rows = [row for row in kept.read() if row["logprobs"]]
    # Rows of earlier versions have no end; their answers ended the texts.
    ends = [row["answer_end"] if "answer_end" in row else row["starts"][-1] for row in rows]
    return {row["id"]: split(_score(row), (row["answer_start"], end)) for row, end in zip(rows, ends, strict=True)}


def _ending_row(score: Score, answer: Span) -> dict[str, Any]:
    """The row of a score without the tokens before the answer."""
    before = len(score.before(answer[0])) if score.fits else 0
    ending = Score(score.id, score.logprobs[before:], score.starts[before:])
    return {**_row(ending, answer), "rationale": None}


def _row(score: Score, answer: Span) -> dict[str, Any]:
    parts = split(score, answer) if score.fits else None
    start, end = answer
    return {
        "id": score.id,
        "rationale": parts and parts.rationale,
        "answer": parts and parts.answer,
        "rest": parts and parts.rest,
        "answer_start": start,
        "answer_end": end,
        "logprobs": list(score.logprobs),
        "starts": list(score.starts),
    }


def _score(row: Mapping[str, Any]) -> Score:
    return Score(row["id"], tuple(row["logprobs"]), tuple(row["starts"]))
