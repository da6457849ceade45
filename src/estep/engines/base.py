"""The contract of an engine: something that samples texts, and that can be given new weights.

Engines see messages and seeds, never questions or answers.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from estep.errors import DataError, EstepError
from estep.progress import Reporter
from estep.records import Draw, Messages, ModelRef, Sample


class Sampling(NamedTuple):
    """How texts are sampled."""

    temperature: float
    """0 is greedy."""
    top_p: float
    max_new_tokens: int
    regex: str | None = None
    """The form of a text, for an engine that constrains its samples to one."""


class DrawQueue:
    """Draws on their way to an engine. Whoever reads the samples may add draws while the engine works.

    Args:
        draws: what to begin with.
        finished: samples by draw id that an interrupted run had finished.
    """

    def __init__(self, draws: Iterable[Draw] = (), finished: Mapping[str, Sample] | None = None):
        self._waiting = list(draws)
        self.finished = finished or {}

    def add(self, draw: Draw) -> None:
        """Let a draw wait for the engine."""
        self._waiting.append(draw)

    def __iter__(self) -> Iterator[Draw]:
        """The draws that wait; they go on waiting."""
        return iter(tuple(self._waiting))

    def take(self) -> list[Draw]:
        """All draws that wait, which then wait no more."""
        taken, self._waiting = self._waiting, []
        return taken


class Engine(Protocol):
    """Samples from the model that was loaded last."""

    @property
    def metadata(self) -> dict[str, str | int | float | bool]:
        """What a reader of the run should know of this engine: device, dtype, whether seeds bind."""

    def load(self, model: ModelRef) -> None:
        """Put a model's weights to use, in place of the former ones."""

    def generate(self, queue: DrawQueue, sampling: Sampling) -> Iterator[Sample]:
        """Sample until the queue is empty, and yield every draw's sample as it finishes.

        Draws that are added meanwhile are taken up as soon as the engine can. A draw that has a finished sample is
        not sampled again: that sample is yielded. An engine whose numbers depend on which rows are sampled together
        can thus repeat its batches, so that a resumed run gives the same samples as an uninterrupted one.
        """

    def score(self, messages: Messages, text: str) -> float:
        """Sum of the token log-probabilities, in nats, of a response and its end of turn under a prompt."""

    def prompt_lengths(self, prompts: Sequence[Messages]) -> list[int]:
        """Tokens of each prompt."""

    @property
    def control_tokens(self) -> frozenset[str]:
        """Texts that the model's tokenizer reads as control tokens, such as the end of a turn."""

    @property
    def context(self) -> int | None:
        """The longest sequence in tokens, or None for no limit."""

    def release(self) -> None:
        """Free the weights' memory until the next `load`, for the M-step."""

    def close(self) -> None:
        """End the engine."""


def answer_only_sample(draw: Draw) -> Sample | None:
    """The sample of a draw whose text the proposal gave itself: probability 1, no tokens sampled."""
    if draw.completion is None:
        return None
    return Sample(draw.id, draw.completion, "answer_only", 0, 0, 0.0)


def check_length(draw: Draw, prompt_tokens: int, sampling: Sampling, context: int | None) -> None:
    """Refuse a draw that would not fit the model.

    Raises:
        DataError: its prompt leaves no room for the new tokens.
    """
    if context is not None and prompt_tokens + sampling.max_new_tokens > context:
        raise DataError(
            f"question {draw.question_id}: a prompt of {prompt_tokens} tokens and {sampling.max_new_tokens} new "
            f"ones exceed the model's context of {context}"
        )


def known(draw: Draw, queue: DrawQueue) -> Sample | None:
    """The sample of a draw that needs no sampling: given by the proposal, or finished before."""
    return queue.finished.get(draw.id) or answer_only_sample(draw)


class NeverSampledError(EstepError):
    """A draw has no sample to be replayed."""


def replayed(queue: DrawQueue) -> Iterator[Sample]:
    """The samples of draws that need no sampling, in place of an engine.

    Raises:
        NeverSampledError: a draw does need it.
    """
    while draws := queue.take():
        for draw in draws:
            sample = known(draw, queue)
            if sample is None:
                raise NeverSampledError(f"draw {draw.id} was never sampled")
            yield sample


def log_usage(engine: Engine, reporter: Reporter) -> None:
    """Say what a server was asked for."""
    metadata = engine.metadata
    if "requests" in metadata:
        cost = f", cost {metadata['cost']:.4f}" if metadata["cost"] else ""
        reporter.log(
            f"{metadata['model']}: {metadata['requests']} requests, {metadata['prompt_tokens']} tokens read, "
            f"{metadata['completion_tokens']} written{cost}"
        )
