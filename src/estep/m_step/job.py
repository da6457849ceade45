"""What an M-step trains, as plain data: a process on another device or another machine can do it.

The driver tokenizes the pairs, chooses the canary and releases its engine. A `Launch` then trains, in this process, in
processes of this machine or on a cluster, and returns a `TrainingOutcome`. The driver names the finished folder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from estep.config import MStepConfig


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
    """The folder to write the weights to; exists, and takes its final name once the training has ended."""
    canary: list[Row]
    """Responses to score before and after training; their weights are not used."""
    canary_dtype: str
    """The dtype that the weights are rounded to for scoring: the engine's."""
    former_scores: bool
    """Whether to score the canary before training, too."""
    halvings: int = 0
    """How often the planned memory of a forward pass is halved, because training ran out of memory before."""


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


Advance = Callable[[int], None]
"""Called after every gradient step with the number of its pairs."""
Log = Callable[[str], None]
"""Receives messages for the user."""
Launch = Callable[[TrainingJob, Advance, Log], TrainingOutcome]
"""Runs a job on its devices and waits for it. Raises an `EstepError` if a process died; the folder may then hold
parts."""
