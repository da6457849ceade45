"""Answers one row at a time, as `estep predict` answers a table. Knows neither HTTP nor vLLM."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from estep.config import RunConfig
from estep.data.prepare import without_control_tokens
from estep.engines.base import finished_sample
from estep.engines.scoring import ScoredText, tokenized
from estep.errors import DataError
from estep.evaluate import evaluation_draws, graded
from estep.inference import added_fields, added_names, one_each
from estep.models.loading import Chat
from estep.probabilities import answer_texts, with_probabilities
from estep.records import Draw, Messages, Question, Response, Score
from estep.scoring import split
from estep.tasks import Task


class Model(Protocol):
    """A model that answers while other requests are answered, too."""

    @property
    def context(self) -> int:
        """The longest sequence in tokens."""
        ...

    async def sample(self, prompt: list[int], draws: Sequence[Draw]) -> list[list[int]]:
        """The tokens of a response for each draw, all of which have this prompt, with the one that ends it."""
        ...

    async def score(self, text: ScoredText) -> Score:
        """The log-probabilities of a text's tokens."""
        ...


@dataclass(frozen=True)
class Judge:
    """A model with the task that it was trained on.

    Args:
        task: provides the prompt and reads the answers.
        config: how the run asks its model: `evaluation`, `engine.max_new_tokens`, `seed`.
        chat: the model's tokenizer.
        model: samples.
    """

    task: Task
    config: RunConfig
    chat: Chat
    model: Model

    def question(self, row: object) -> Question:
        """The question of a row.

        Raises:
            DataError: the row is no object, or lacks a field that the prompt needs.
        """
        if not isinstance(row, dict):
            raise DataError(f"a row is a JSON object such as {json.dumps(self._example())}, not {_kind(row)}")
        (question,) = without_control_tokens([self.task.question(row, id="row")], self.chat.control_tokens, _no_log)
        return question

    def messages(self, row: object) -> Messages:
        """The prompt for a row, as the model was trained on it."""
        return self.task.prompt(self.question(row))

    async def __call__(self, row: object) -> dict[str, Any]:
        """The fields that `estep predict` adds to a row; with `evaluation.probabilities`, also those of all answers.

        Raises:
            DataError: see `question`; or the prompt leaves no room for a response in the model's context.
        """
        question = self.question(row)
        draws = evaluation_draws(self.task, [question], self.config.evaluation.samples, self.config.seed)
        prompt = self.chat.prompt_ids(draws[0].messages)
        room = self.model.context - self.config.max_new_tokens
        if len(prompt) > room:
            raise DataError(
                f"the prompt has {len(prompt)} tokens; the model's context of {self.model.context} has room for {room} "
                f"beside a response of {self.config.max_new_tokens}"
            )
        samples = [
            finished_sample(draw.id, tokens, self.chat, len(prompt), logprob=None)
            for draw, tokens in zip(draws, await self.model.sample(prompt, draws), strict=True)
        ]
        # A verifier may wait for a process; other requests go on meanwhile.
        responses = await asyncio.to_thread(
            lambda: [graded(self.task, question, draw, sample) for draw, sample in zip(draws, samples, strict=True)]
        )
        if self.config.evaluation.probabilities:
            responses = await self._with_probabilities(question, responses)
        answered = one_each(responses, self.config.evaluation)[question.id]
        fields = added_fields(self.task, answered, added_names(self.task, self.config))
        if self.config.evaluation.probabilities:
            fields["probabilities"] = answered.probabilities
        return fields

    async def _with_probabilities(self, question: Question, responses: Sequence[Response]) -> list[Response]:
        """See `Evaluator.with_probabilities`; all texts are scored at the same time."""
        wanted = [text for response in responses for text in answer_texts(self.task, question, response)]
        answer = {text.request.id: text.answer for text in wanted}
        texts = tokenized([text.request for text in wanted], self.chat, self.model.context - 1).texts
        scores = await asyncio.gather(*(self.model.score(text) for text in texts))
        parts = {one.id: split(one, answer[one.id]) for one in scores}
        return with_probabilities(self.task, {question.id: question}, responses, parts)

    def describe(self) -> dict[str, Any]:
        """What a client needs to know: the fields of a row, and the answers."""
        return {
            "task": self.task.name,
            "description": self.task.file.description,
            "fields": sorted(self.task.needed_fields),
            "answers": list(self.task.answers) or None,
            "example": self._example(),
        }

    def _example(self) -> dict[str, Any]:
        if self.task.file.examples:
            return dict(self.task.file.examples[0].fields)
        return dict.fromkeys(sorted(self.task.needed_fields), "…")


def _kind(value: object) -> str:
    """What JSON calls a value."""
    names = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "null")


def _no_log(_: str) -> None:
    pass
