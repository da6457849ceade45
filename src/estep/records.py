"""The records of one iteration; each is made from the one before it.

    Question --proposal--> Draw --engine--> Sample --task.judge--> Verdict --filters--> Pair --M-step--> ModelRef

Records are frozen and hold only values that JSON can represent. This module imports nothing from estep.
"""

import hashlib
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

Message = dict[str, str]
"""One chat message: `role` (system, user or assistant) and `content`."""

Messages = tuple[Message, ...]

Status = Literal["correct", "wrong", "unparseable", "gold_invalid"]

Rating = float | str
"""What one person says of a row: a number on the scale of the ratings, or a label."""


@dataclass(frozen=True)
class Question:
    """A question x with its correct answer y*."""

    id: str
    fields: dict[str, Any]
    """The row's fields, as the task's templates see them."""
    answer: str
    """y* in the canonical form of the task's answer spec; empty if it is not known (`estep predict`)."""
    solution: str = ""
    """A worked solution that comes with the answer in the data; only a hint may contain it."""
    ratings: tuple[Rating | None, ...] = ()
    """What each of several people says, None where one says nothing; empty if that is not known. No prompt contains
    it."""

    def as_row(self) -> dict[str, Any]:
        """The question as plain data, without `ratings` if it has none."""
        row = asdict(self)
        if not self.ratings:
            del row["ratings"]
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Question":
        """The inverse of `as_row`, also after a round trip through JSON."""
        return cls(**{**row, "ratings": tuple(row.get("ratings", ()))})


@dataclass(frozen=True)
class Draw:
    """One request to the proposal distribution q(z, y | x, y*)."""

    id: str
    question_id: str
    index: int
    """Which of the question's n attempts, from 0."""
    round: int
    """The round of the attempt, from 0: rejection sampling has up to M rounds."""
    proposal: str
    """The proposal that asked for the draw; in a mixture, the component."""
    hinted: bool
    """Whether `messages` contain the correct answer. Hinted messages are sampled from, never trained on."""
    messages: Messages
    seed: int
    completion: str | None = None
    """A text that the proposal wrote itself, so nothing is sampled; None for a sampled draw."""


@dataclass(frozen=True)
class Sample:
    """An engine's response to a draw: a rationale ẑ followed by an answer ŷ, in one text (equation 1: x → z → y*)."""

    draw_id: str
    text: str
    finish_reason: Literal["stop", "length", "supplied"]
    prompt_tokens: int
    completion_tokens: int
    logprob: float | None
    """log q of the text under the distribution it was sampled from (temperature included), in nats; None if a server
    does not report it."""


@dataclass(frozen=True)
class Verdict:
    """The task's judgment of a sample."""

    draw_id: str
    question_id: str
    index: int
    round: int
    hinted: bool
    status: Status
    answer: str | None
    """ŷ in canonical form; None unless the text states exactly one answer."""
    rationale: str
    """ẑ: the text before the answer's label."""
    hint_mentioned: bool
    supplied: bool
    """Whether the proposal wrote the text itself, so no rationale was sampled."""


@dataclass(frozen=True)
class Response:
    """The policy's graded response to a held-out question, asked with the plain prompt: a line of `eval.jsonl`."""

    draw_id: str
    question_id: str
    index: int
    """Which of the question's samples, from 0."""
    gold: str
    """y*"""
    answer: str | None
    """ŷ in canonical form; None unless the text states exactly one answer."""
    status: Status
    rationale: str
    text: str
    hint_mentioned: bool
    finish_reason: Literal["stop", "length", "supplied"]
    prompt_tokens: int
    completion_tokens: int
    logprob: float | None
    probabilities: dict[str, float] | None = None
    """Of each allowed answer, behind this response's rationale; they sum to 1. None if they were not computed
    (`evaluation.probabilities`), or do not fit the model's context."""


@dataclass(frozen=True)
class Pair:
    """A training example. `prompt` is always the task's plain prompt, without a hint."""

    question_id: str
    draw_id: str
    prompt: Messages
    completion: str
    weight: float = 1.0
    """Multiplies the completion's log-likelihood."""
    answer_span: tuple[int, int] | None = None
    """The start and end of the answer in `completion`, without its label; None if the task does not report it."""
    index: int = 0
    """Which of the question's n attempts the pair comes from, from 0."""


@dataclass(frozen=True)
class Score:
    """The log-probabilities of a text's tokens as a response to a prompt, at temperature 1."""

    id: str
    """Which text under which prompt; unique in an iteration."""
    logprobs: tuple[float, ...]
    """Of each token of the text, and of the end of turn after it, in nats; none if the text does not fit the model's
    context behind its prompt."""
    starts: tuple[int, ...]
    """The position in the text, in characters, where each token starts; the end of turn starts at the text's length."""

    @property
    def fits(self) -> bool:
        """Whether the text fits the context, so that it has log-probabilities."""
        return bool(self.logprobs)

    @property
    def total(self) -> float:
        """log π(z, y | prompt), in nats; NaN if the text does not fit."""
        return sum(self.logprobs) if self.fits else math.nan

    def before(self, position: int) -> tuple[float, ...]:
        """The log-probabilities of the tokens that end at or before a position in the text: those of a rationale, where
        the answer starts at the position."""
        spans = zip(self.starts, self.starts[1:], strict=False)
        # Tokens that are parts of one character start together, so the end of all but the last seems to be there, too.
        ends_before = [start < position and end <= position for start, end in spans]
        return self.logprobs[: sum(ends_before)]

    def since(self, position: int) -> tuple[float, ...]:
        """The log-probabilities of all other tokens: the answer, what follows it, and the end of turn."""
        return self.logprobs[len(self.before(position)) :]

    def after(self, position: int) -> tuple[float, ...]:
        """The log-probabilities of the tokens that start at or behind a position in the text: what follows an answer
        that ends there, at least the end of turn."""
        return self.logprobs[bisect_left(self.starts, min(position, self.starts[-1])) :]


@dataclass(frozen=True)
class ModelRef:
    """A hub id or a folder of weights, and the iteration that trained it (0: the base model)."""

    path: str
    iteration: int = 0


@dataclass(frozen=True)
class Attempt:
    """One of the n independent draws of a question."""

    question_id: str
    index: int


class Tally(NamedTuple):
    """Draws, and how many of them were correct."""

    draws: int
    correct: int


@dataclass(frozen=True)
class History:
    """What a run's earlier iterations tell its proposal."""

    accepted: frozenset[Attempt] = frozenset()
    """The attempts that a pair was accepted from, in any earlier iteration."""
    plain: Mapping[str, Tally] = field(default_factory=dict)
    """The plain draws of the previous iteration by question; questions without one are not in it."""

    @property
    def plain_rate(self) -> float:
        """Share of the previous iteration's plain draws that were correct; NaN without any."""
        draws = sum(tally.draws for tally in self.plain.values())
        return sum(tally.correct for tally in self.plain.values()) / draws if draws else math.nan


NO_HISTORY = History()


class RowLog(Protocol):
    """An append-only log of rows, from which an interrupted run resumes."""

    def read(self) -> list[dict[str, Any]]:
        """All rows in the log."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row."""


class _NoLog(RowLog):
    def read(self) -> list[dict[str, Any]]:
        return []

    def append(self, row: Mapping[str, Any]) -> None:
        pass


NO_LOG: RowLog = _NoLog()
"""A log that stores nothing."""


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on every part and on nothing else.

    >>> derive_seed(257, "movies-1", 0) == derive_seed(257, "movies-1", 0)
    True
    """
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
