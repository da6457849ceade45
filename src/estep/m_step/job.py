"""What an M-step trains, as plain data, so that processes on other devices or other machines can do it.

The driver tokenizes the pairs, chooses the canary and releases its engine. A `Launch` then trains: in this process, in
processes of this machine, or on a cluster. The driver gives the finished folder its name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict

from estep.config import MStepConfig
from estep.errors import EstepError


class Row(TypedDict):
    """A tokenized pair."""

    input_ids: list[int]
    """Token ids of prompt and completion."""
    weights: list[float]
    """One per completion token; the completion is at the end of `input_ids`."""


@dataclass(frozen=True)
class TrainingJob:
    """An M-step's training. Every process that takes part gets the same job."""

    config: MStepConfig
    start: str
    """The weights to start from: a folder or a hub id."""
    rows: list[Row]
    learning_rate: float
    seed: int
    folder: Path
    """The final folder of the weights, which does not exist yet; they are written to `partial`."""
    canary: list[Row]
    """Responses to score before and after training, with weights of 1."""
    canary_dtype: str
    """The dtype that the weights are rounded to for scoring: the engine's."""
    former_scores: bool
    """Whether to score the canary before training, too."""
    halvings: int = 0
    """How often the planned size of a forward pass is halved, because training ran out of memory before."""

    @property
    def partial(self) -> Path:
        """The folder to write to; it exists."""
        return self.folder.with_name(self.folder.name + ".partial")


@dataclass(frozen=True)
class TrainingOutcome:
    """The result of a training."""

    losses: tuple[float, ...]
    """The loss of each gradient step in nats."""
    former_scores: tuple[float, ...] | None
    """log π of each canary response before training, or None if they were not asked for."""
    scores: tuple[float, ...]
    """log π of each canary response under the trained weights."""
    halvings: int
    """`TrainingJob.halvings`, and those of this training."""
    precision: str
    """Of the matrix products: `bfloat16` or `float32`."""


Advance = Callable[[int], None]
"""Called after every gradient step with the number of its pairs; with a negative number if steps are done again, and
perhaps with 0 in between."""


class CountedAdvance:
    """An `Advance` that can take back what it reported, when a training starts again."""

    def __init__(self, advance: Advance):
        self._advance = advance
        self._pairs = 0

    def __call__(self, pairs: int) -> None:
        self._pairs += pairs
        self._advance(pairs)

    def take_back(self) -> None:
        """Report that all pairs so far will be trained on again."""
        self._advance(-self._pairs)
        self._pairs = 0


STARTS_AGAIN = "  note: training ran out of memory; it starts again with half as much in each forward pass"
"""What a `Launch` logs after an `OutOfDeviceMemoryError`."""
Log = Callable[[str], None]
"""Receives messages for the user."""


class Launch(Protocol):
    """Where a training runs."""

    def __call__(self, job: TrainingJob, advance: Advance, log: Log) -> TrainingOutcome:
        """Run a job on its devices and wait for it. All of the weights are in `job.partial` afterwards.

        Raises:
            EstepError: for example a process ended, or a single pair does not fit in memory. Parts may then be in
                `job.partial`.
        """


class OutOfDeviceMemoryError(EstepError):
    """One of several ranks ran out of memory, and fewer pairs per forward pass would help.

    Args:
        halvings: `TrainingJob.halvings` to start again with.
    """

    def __init__(self, halvings: int):
        super().__init__(halvings)
        self.halvings = halvings

    def __str__(self) -> str:
        return f"training ran out of memory; halvings={self.halvings}"
