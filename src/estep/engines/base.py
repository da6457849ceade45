"""The contract of an engine: something that samples texts, and that can be given new weights.

Engines see messages and seeds, never questions or answers.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

from estep.records import Draw, Messages, ModelRef, Sample


class Sampling(NamedTuple):
    """How texts are sampled."""

    temperature: float
    """0 is greedy."""
    top_p: float
    max_new_tokens: int


class Engine(Protocol):
    """Samples from the model that was loaded last."""

    @property
    def notes(self) -> dict[str, str | int | float | bool]:
        """What a reader of the run should know of this engine: device, dtype, whether seeds bind."""

    def load(self, model: ModelRef) -> None:
        """Put a model's weights to use, in place of the former ones."""

    def generate(self, draws: Sequence[Draw], sampling: Sampling, done: Collection[str] = ()) -> Iterator[Sample]:
        """Sample every draw whose id is not in `done`, and yield each as it finishes.

        `draws` is always the whole round, `done` what an interrupted run had finished: an engine whose numbers
        depend on which rows are sampled together can thus repeat its batches, and a resumed run gives the same
        samples as an uninterrupted one.
        """

    def score(self, messages: Messages, text: str) -> float:
        """Sum of the token log-probabilities, in nats, of a response and its end of turn under a prompt."""

    def prompt_lengths(self, prompts: Sequence[Messages]) -> list[int]:
        """Tokens of each prompt."""

    @property
    def context(self) -> int | None:
        """The longest sequence in tokens, or None for no limit."""

    def release(self) -> None:
        """Free the weights' memory until the next `load`, for the M-step."""

    def close(self) -> None:
        """End the engine."""


def given(draw: Draw) -> Sample | None:
    """The sample of a draw whose text the proposal gave itself: probability 1, no tokens sampled."""
    if draw.completion is None:
        return None
    return Sample(draw.id, draw.completion, "given", 0, 0, 0.0)
