"""The interface of an engine, which samples texts and can load new weights.

Engines see messages and seeds, never questions or answers.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from estep.errors import DataError, EstepError
from estep.models.loading import Chat
from estep.progress import Reporter
from estep.records import Draw, Messages, ModelRef, Sample, Score


class Sampling(NamedTuple):
    """How texts are sampled."""

    temperature: float
    """0 is greedy."""
    top_p: float
    max_new_tokens: int
    regex: str | None = None
    """Pattern of the whole text, for engines that support constrained sampling."""


class ScoreRequest(NamedTuple):
    """A text whose tokens are to be scored as a response to a prompt."""

    id: str
    messages: Messages
    text: str


class DrawQueue:
    """Draws waiting for an engine. The consumer of the samples may add draws while the engine works.

    Args:
        draws: the first draws.
        finished: samples that an interrupted run had finished, by draw id.
    """

    def __init__(self, draws: Iterable[Draw] = (), finished: Mapping[str, Sample] | None = None):
        self._waiting = list(draws)
        self.finished = {} if finished is None else finished
        self.ready = 0
        """Number of samples that the engine has finished and yields next, without sampling in between."""

    def add(self, draw: Draw) -> None:
        """Add a draw to the queue."""
        self._waiting.append(draw)

    def __iter__(self) -> Iterator[Draw]:
        """The waiting draws; they stay in the queue."""
        return iter(tuple(self._waiting))

    def take(self) -> list[Draw]:
        """Remove and return all waiting draws."""
        taken, self._waiting = self._waiting, []
        return taken

    def together(self, samples: Sequence[Sample]) -> Iterator[Sample]:
        """Yield samples that finished at the same time, and count in `ready` those that are still to come."""
        for number, sample in enumerate(samples, 1):
            self.ready = len(samples) - number
            yield sample


class Engine(Protocol):
    """Samples from the model that was loaded last."""

    @property
    def metadata(self) -> dict[str, str | int | float | bool]:
        """Metadata for the run's record: device, dtype, support for per-request seeds (`per_request_seeds`)."""

    def load(self, model: ModelRef) -> None:
        """Replace the current weights with a model's."""

    def generate(self, queue: DrawQueue, sampling: Sampling) -> Iterator[Sample]:
        """Sample until the queue is empty; yield each sample as it finishes.

        Draws added meanwhile are sampled as soon as possible. For a draw with a finished sample, that sample is
        yielded. Engines see such draws too, because results may depend on which rows share a batch: an engine can
        then repeat its batches, so that a resumed run gives the same samples as an uninterrupted one.
        """

    def score(self, messages: Messages, text: str) -> float:
        """Sum of the token log-probabilities, in nats, of a response and its end of turn under a prompt."""

    def score_many(self, requests: Sequence[ScoreRequest], finished: Mapping[str, Score]) -> Iterator[Score]:
        """Score texts in batches; yield each score as it is computed. Shared prefixes of the prompts are computed once
        where the engine can. A text that does not fit the model's context has a score without log-probabilities.

        Args:
            requests: texts under their prompts, each with its own id.
            finished: scores that an interrupted run had computed, by id. They are yielded as they are; as with
                `generate`, an engine sees their requests too, so that it can repeat its batches.
        """

    def prompt_lengths(self, prompts: Sequence[Messages]) -> list[int]:
        """Number of tokens of each prompt."""

    @property
    def control_tokens(self) -> frozenset[str]:
        """Texts that the model's tokenizer parses as control tokens, such as the end of a turn."""

    @property
    def context(self) -> int | None:
        """The longest sequence in tokens, or None for no limit."""

    def release(self) -> None:
        """Free the weights' memory until the next `load`, for the M-step."""

    def close(self) -> None:
        """Shut the engine down."""


@runtime_checkable
class Replicated(Protocol):
    """An engine that holds several copies of the model."""

    def scores(self, messages: Messages, text: str) -> list[float]:
        """`Engine.score` of each copy."""


def copies_scores(engine: Engine, messages: Messages, text: str) -> list[float]:
    """`Engine.score` of each copy of the model that an engine holds."""
    return engine.scores(messages, text) if isinstance(engine, Replicated) else [engine.score(messages, text)]


def supplied_sample(draw: Draw) -> Sample | None:
    """The sample of a draw whose text the proposal supplied: probability 1, no tokens sampled."""
    if draw.completion is None:
        return None
    return Sample(draw.id, draw.completion, "supplied", 0, 0, 0.0)


def finished_sample(id: str, tokens: list[int], chat: Chat, prompt_tokens: int, logprob: float | None) -> Sample:
    """The sample of finished tokens, which end with a token that ends a turn unless they reached the limit.

    Args:
        id: the draw's.
        tokens: at least one.
        logprob: of the tokens; see `Sample`.
    """
    stopped = tokens[-1] in chat.stop_ids
    return Sample(
        draw_id=id,
        text=chat.text(tokens[:-1] if stopped else tokens),
        finish_reason="stop" if stopped else "length",
        prompt_tokens=prompt_tokens,
        completion_tokens=len(tokens),
        logprob=logprob,
    )


def check_length(draw: Draw, prompt_tokens: int, sampling: Sampling, context: int | None) -> None:
    """Check that a draw fits the model's context.

    Raises:
        DataError: prompt and new tokens together exceed the context.
    """
    if context is not None and prompt_tokens + sampling.max_new_tokens > context:
        raise DataError(
            f"question {draw.question_id}: a prompt of {prompt_tokens} tokens and {sampling.max_new_tokens} new "
            f"ones exceed the model's context of {context}"
        )


def known(draw: Draw, queue: DrawQueue) -> Sample | None:
    """The sample of a draw that needs no sampling: supplied by the proposal, or finished before; otherwise None."""
    return queue.finished.get(draw.id) or supplied_sample(draw)


class NeverSampledError(EstepError):
    """A draw to be replayed has no sample."""


def replayed(queue: DrawQueue) -> Iterator[Sample]:
    """Yield known samples in place of an engine.

    Raises:
        NeverSampledError: a draw has no known sample.
    """
    while draws := queue.take():
        for draw in draws:
            sample = known(draw, queue)
            if sample is None:
                raise NeverSampledError(f"draw {draw.id} was never sampled")
            yield sample


def log_usage(engine: Engine, reporter: Reporter) -> None:
    """Report the requests, tokens and cost of a server."""
    metadata = engine.metadata
    if "requests" in metadata:
        cost = f", cost {metadata['cost']:.4f}" if metadata["cost"] else ""
        reporter.log(
            f"{metadata['model']}: {metadata['requests']} requests, {metadata['prompt_tokens']} tokens read, "
            f"{metadata['completion_tokens']} written{cost}"
        )
