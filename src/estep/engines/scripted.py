"""An engine without a model that returns texts from a script, for tests and quick demonstrations.

It counts words as tokens. It has no weights to train: a run with this engine needs an M-step supplied by the caller.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from estep.engines.base import DrawQueue, Sampling, ScoreRequest, known
from estep.errors import DataError
from estep.records import Draw, Messages, ModelRef, Sample, Score

Script = Mapping[str, Sequence[str]] | Callable[[Draw], str]
ScoreScript = Callable[[ScoreRequest], Sequence[float]]
"""The log-probabilities of a text's words and of its end of turn; none if the text is not to fit the context."""


class ScriptedEngine:
    """Answers draws from a script.

    Args:
        script: question id -> texts, returned in the order of the draws, the last one repeatedly; or a function of
            the draw.
        scores: how texts are scored; by default, a word has log-probability -1 and the end of turn 0.

    Raises:
        DataError: the script lacks the question of a draw, or does not score each word of a text and the end of turn.
    """

    def __init__(self, script: Script, scores: ScoreScript | None = None):
        self.script = script
        self.score_script = scores
        self.loaded: list[ModelRef] = []
        """Every loaded model, in order."""
        self.asked: list[Draw] = []
        """Every sampled draw, in order."""
        self.scored: list[ScoreRequest] = []
        """Every request that `score_many` scored, in order."""
        self._used: dict[str, int] = defaultdict(int)

    @classmethod
    def from_file(cls, path: str | Path) -> "ScriptedEngine":
        """A script from a JSON file: question id -> list of texts."""
        try:
            script = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"could not read the script {path}: {error}") from error
        if not isinstance(script, dict) or not all(isinstance(texts, list) and texts for texts in script.values()):
            raise DataError(f"the script {path} must map question ids to non-empty lists of texts")
        return cls(script)

    @property
    def metadata(self) -> dict[str, str | int | float | bool]:
        return {"engine": "scripted"}

    @property
    def context(self) -> int | None:
        return None

    def load(self, model: ModelRef) -> None:
        self.loaded.append(model)

    def generate(self, queue: DrawQueue, sampling: Sampling) -> Iterator[Sample]:
        while draws := queue.take():
            for draw in draws:
                text = self._text(draw)  # finished draws consume their texts too
                if draw.id not in queue.finished:
                    self.asked.append(draw)
                sampled = Sample(draw.id, text, "stop", _words(draw.messages), len(text.split()), 0.0)
                yield known(draw, queue) or sampled

    def _text(self, draw: Draw) -> str:
        if draw.completion is not None:
            return draw.completion
        if callable(self.script):
            return self.script(draw)
        if draw.question_id not in self.script:
            raise DataError(f"the script has no text for question '{draw.question_id}'")
        texts = self.script[draw.question_id]
        position = min(self._used[draw.question_id], len(texts) - 1)
        self._used[draw.question_id] += 1
        return texts[position]

    def score(self, messages: Messages, text: str) -> float:
        return self._score(ScoreRequest("", messages, text)).total

    def score_many(self, requests: Sequence[ScoreRequest], finished: Mapping[str, Score]) -> Iterator[Score]:
        for request in requests:
            if request.id not in finished:
                self.scored.append(request)
            yield finished.get(request.id) or self._score(request)

    def _score(self, request: ScoreRequest) -> Score:
        starts = [word.start() for word in re.finditer(r"\S+", request.text)]
        logprobs = [-1.0] * len(starts) + [0.0] if self.score_script is None else list(self.score_script(request))
        if not logprobs:
            return Score(request.id, (), ())
        if len(logprobs) != len(starts) + 1:
            raise DataError(
                f"text {request.id}: the script has {len(logprobs)} log-probabilities for {len(starts)} words and the "
                "end of turn"
            )
        return Score(request.id, tuple(logprobs), (*starts, len(request.text)))

    @property
    def control_tokens(self) -> frozenset[str]:
        return frozenset()

    def prompt_lengths(self, prompts: Sequence[Messages]) -> list[int]:
        return [_words(messages) for messages in prompts]

    def release(self) -> None:
        pass

    def close(self) -> None:
        pass


def _words(messages: Messages) -> int:
    return sum(len(message["content"].split()) for message in messages)
