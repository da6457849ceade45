"""The records that flow through one iteration, each made from the one before it.

    Question --proposal--> Draw --engine--> Sample --task.judge--> Verdict --filters--> Pair --M-step--> ModelRef

Records are frozen and only hold what JSON can hold. This module imports nothing of estep.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Message = dict[str, str]
"""One chat message: `role` (system, user or assistant) and `content`."""

Messages = tuple[Message, ...]

Status = Literal["correct", "wrong", "unparseable", "gold_invalid"]


@dataclass(frozen=True)
class Question:
    """A question x with its correct answer y*."""

    id: str
    fields: dict[str, Any]
    """The row's fields, as the task's templates see them."""
    answer: str
    """y* in the canonical form of the task's answer spec; '' where it is not known (`estep predict`)."""
    solution: str = ""
    """A worked solution that the data gives with the answer; only a hint may tell it."""


@dataclass(frozen=True)
class Draw:
    """One request to the proposal distribution q(z, y | x, y*)."""

    id: str
    question_id: str
    index: int
    """Which of the n independent draws of this question, from 0."""
    round: int
    """How often this draw has been tried, from 0: rejection sampling tries up to M times."""
    proposal: str
    """The proposal that made it: within a mixture, the component."""
    hinted: bool
    """Whether `messages` hold the correct answer. Hinted messages are sampled from, never trained on."""
    messages: Messages
    seed: int
    completion: str | None = None
    """A text given by the proposal itself, which is then not sampled; None for all that is sampled."""


@dataclass(frozen=True)
class Sample:
    """What an engine returned for a draw: a rationale ẑ and then an answer ŷ, in one text (equation 1: x → z → y*)."""

    draw_id: str
    text: str
    finish_reason: Literal["stop", "length", "answer_only"]
    prompt_tokens: int
    completion_tokens: int
    logprob: float | None
    """log q of the text under the distribution it was sampled from, in nats (temperature included); None where a
    server does not tell it."""


@dataclass(frozen=True)
class Verdict:
    """What the task's verifier says of a sample."""

    draw_id: str
    question_id: str
    index: int
    round: int
    hinted: bool
    status: Status
    answer: str | None
    """ŷ in canonical form; None where the text holds no single answer."""
    rationale: str
    """ẑ: the text before the answer, without its label."""
    hint_mentioned: bool
    answer_only: bool
    """Whether the proposal gave the text itself, so that there was no rationale to sample."""


@dataclass(frozen=True)
class Response:
    """A graded response of the policy to a held-out question, asked with the plain prompt: a line of `eval.jsonl`."""

    draw_id: str
    question_id: str
    index: int
    """Which of the question's samples, from 0."""
    gold: str
    """y*"""
    answer: str | None
    """ŷ in canonical form; None where the text holds no single answer."""
    status: Status
    rationale: str
    text: str
    hint_mentioned: bool
    finish_reason: Literal["stop", "length", "answer_only"]
    prompt_tokens: int
    completion_tokens: int
    logprob: float | None


@dataclass(frozen=True)
class Pair:
    """A training example. `prompt` is always the task's plain prompt: no hint reaches it."""

    question_id: str
    draw_id: str
    prompt: Messages
    completion: str
    weight: float = 1.0
    """Multiplies the completion's log-likelihood."""
    answer_span: tuple[int, int] | None = None
    """Where the answer stands in `completion`, without its label; None where the task does not tell."""


@dataclass(frozen=True)
class ModelRef:
    """A hub name or a folder of weights, and the iteration that made it (0: the base model)."""

    path: str
    iteration: int = 0


class RowLog(Protocol):
    """An append-only log of rows that an interrupted run can be continued from."""

    def read(self) -> list[dict[str, Any]]:
        """The rows that it holds."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row."""


class _NoLog(RowLog):
    def read(self) -> list[dict[str, Any]]:
        return []

    def append(self, row: Mapping[str, Any]) -> None:
        pass


NO_LOG: RowLog = _NoLog()
"""Keeps nothing."""


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on every part and on nothing else.

    >>> derive_seed(257, "movies-1", 0) == derive_seed(257, "movies-1", 0)
    True
    """
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
