"""What the engines share when they score texts: tokens, batches, and the records of the results."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from estep.engines.base import ScoreRequest
from estep.models.loading import Chat
from estep.models.tokens import by_prefix, common_prefix
from estep.records import Score


class ScoredText(NamedTuple):
    """A request in tokens."""

    id: str
    prompt: list[int]
    completion: list[int]
    """With the end of turn."""
    starts: tuple[int, ...]
    """See `Score.starts`."""

    def score(self, logprobs: Sequence[float]) -> Score:
        """The record of the completion's log-probabilities."""
        return Score(self.id, tuple(logprobs), self.starts)


class Batch(NamedTuple):
    """Texts that are scored at the same time."""

    prefix: tuple[int, ...]
    """What all prompts of this batch, and of others beside it, begin with."""
    texts: list[ScoredText]


class Tokenized(NamedTuple):
    """Requests in tokens."""

    texts: list[ScoredText]
    too_long: list[Score]
    """The scores, without log-probabilities, of the requests that the engine cannot score."""


def tokenized(requests: Sequence[ScoreRequest], chat: Chat, longest: int | None) -> Tokenized:
    """Requests in tokens.

    Args:
        longest: the longest sequence that the engine can score, in tokens; None for no limit.

    Raises:
        ConfigError: the tokenizer gives no character offsets.
    """
    texts, too_long = [], []
    for request in requests:
        prompt, completion = chat.prompt_ids(request.messages), chat.completion_ids(request.text)
        if longest is not None and len(prompt) + len(completion) > longest:
            too_long.append(Score(request.id, (), ()))
        else:
            texts.append(ScoredText(request.id, prompt, completion, chat.starts(request.text)))
    return Tokenized(texts, too_long)


def batches(texts: Sequence[ScoredText], size: int, shares_prefixes: bool) -> Iterator[Batch]:
    """Texts in batches whose prompts share a prefix and are of similar length; equal prompts are side by side.

    Args:
        size: the largest number of texts in a batch.
        shares_prefixes: whether a prefix can be computed apart from what follows.
    """
    of_prompt: dict[tuple[int, ...], list[ScoredText]] = {}
    for text in texts:
        of_prompt.setdefault(tuple(text.prompt), []).append(text)
    prompts = [list(prompt) for prompt in of_prompt]
    for group in by_prefix(prompts) if shares_prefixes else [prompts]:
        prefix: tuple[int, ...] = ()
        if shares_prefixes:
            prefix = tuple(group[0][: common_prefix(group, min(map(len, group)) - 1)])
        mine = [text for prompt in group for text in of_prompt[tuple(prompt)]]
        mine.sort(key=lambda text: (len(text.prompt), text.prompt, text.id))
        for start in range(0, len(mine), size):
            yield Batch(prefix, mine[start : start + size])
