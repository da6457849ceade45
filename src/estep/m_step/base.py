"""The interface of an M-step: pairs in, weights out, and the record that is stored with the weights."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from estep.m_step.canary import Canary
from estep.metrics import MStepMetrics, mean
from estep.records import Messages, ModelRef, Pair, Response, Sample


@dataclass(frozen=True)
class MStepResult:
    """The result of an M-step."""

    model: ModelRef
    pairs: int
    steps: int
    tokens: int
    """Prompt and completion tokens trained on, over all epochs."""
    completion_tokens: int
    losses: tuple[float, ...]
    """The loss of each gradient step in nats (formula in `estep.m_step.sft`). With weights of 1 and
    `loss_reduction: token`, it is the mean negative log-likelihood of the completion tokens."""
    learning_rate: float
    left_out: int
    """Number of pairs left out because they exceed the model's context."""
    canary: Canary
    halvings: int = 0
    """How often a forward pass was halved because memory ran out; the next iteration begins with that."""
    precision: str = ""
    """Of the matrix products: `bfloat16` or `float32`; empty in records of earlier versions."""

    @property
    def metrics(self) -> MStepMetrics:
        """The measures of the M-step."""
        return MStepMetrics(
            pairs=self.pairs,
            left_out=self.left_out,
            steps=self.steps,
            learning_rate=self.learning_rate,
            first_loss=self.losses[0],
            last_loss=self.losses[-1],
            mean_loss=mean(self.losses),
        )


@dataclass(frozen=True)
class MStepInput:
    """The input of an M-step."""

    start: ModelRef
    """The weights to start from."""
    iteration: int
    pairs: Sequence[Pair]
    learning_rate: float
    seed: int
    folder: Path
    """Where the new weights go; appears only when they are complete and on the disk."""
    score_before: Callable[[Messages, str], float]
    """Log-probability of a response under the engine's current weights, for the canary."""
    advance: Callable[[int], None]
    """Called after every gradient step with the number of its pairs."""
    release: Callable[[], None] = lambda: None
    """Frees the engine's memory; called once the canary is scored."""
    log: Callable[[str], None] = lambda line: None
    """Receives messages for the user."""


MStep = Callable[[MStepInput], MStepResult | None]
"""Trains on a `MStepInput`; returns None if no pair fits the model's context."""


def learning_rate_at(iteration: int, iterations: int, first: float, last: float) -> float:
    """The learning rate of an iteration: linear from `first` to `last`, constant within (paper, section 4.1).

    >>> [round(learning_rate_at(k, 5, 1e-6, 1e-7) * 1e6, 3) for k in range(1, 6)]
    [1.0, 0.775, 0.55, 0.325, 0.1]
    """
    if not 1 <= iteration <= iterations:
        raise ValueError(f"iteration must be from 1 to {iterations}, got {iteration}")
    if iterations == 1:
        return first
    return first + (last - first) * (iteration - 1) / (iterations - 1)


_RECORD = "m_step.json"


def write_m_step(trained: MStepResult, folder: Path) -> None:
    """Store an M-step's record with its weights."""
    (folder / _RECORD).write_text(json.dumps(asdict(trained), indent=1) + "\n", encoding="utf-8")


def read_m_step(folder: Path) -> MStepResult | None:
    """The record of a finished M-step, or None if the folder holds no finished weights."""
    path = folder / _RECORD
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    canary = content.pop("canary")
    # Records of earlier versions lack the count: English text has about four characters per token.
    canary.setdefault("tokens", sum(len(text) // 4 + 1 for _, text in canary["responses"]))
    canary["responses"] = tuple((tuple(prompt), text) for prompt, text in canary["responses"])
    content["losses"] = tuple(content["losses"])
    # The run may have been moved, so the recorded path may be outdated.
    content["model"] = ModelRef(str(folder), content["model"]["iteration"])
    return MStepResult(**content, canary=Canary(**canary))


def count_tokens(
    responses: Sequence[Response], samples: Sequence[Sample] | None, trained: MStepResult | None
) -> dict[str, int]:
    """The tokens of each phase of an iteration, as `IterationMetrics.tokens` names them.

    Args:
        responses: of the evaluation.
        samples: of the E-step; None for the base model, which has none.
        trained: the M-step; None where nothing was trained.
    """
    tokens = {
        "evaluation_prompt": sum(response.prompt_tokens for response in responses),
        "evaluation_new": sum(response.completion_tokens for response in responses),
    }
    if samples is not None:
        tokens["e_step_prompt"] = sum(sample.prompt_tokens for sample in samples)
        tokens["e_step_new"] = sum(sample.completion_tokens for sample in samples)
        tokens["m_step"] = trained.tokens if trained else 0
    return tokens
