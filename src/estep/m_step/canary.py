"""Whether an engine really uses the weights that it was told to load."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from estep.engines import Engine
from estep.errors import StaleWeightsError
from estep.records import Messages

if TYPE_CHECKING:  # both import much
    pass


@dataclass(frozen=True)
class Canary:
    """Responses whose likelihood shows which weights an engine uses.

    Several, because engines round one text's log-probability either way, and training moves all of them one way.
    """

    responses: tuple[tuple[Messages, str], ...]
    """Prompt and text."""
    logprob: float
    """Σ log π(text | prompt) under the trained weights, computed by the M-step from the weights in its memory."""
    before: float
    """The same under the weights that the engine had before, computed by the engine."""


def check_canary(engine: Engine, canary: Canary) -> dict[str, Any]:
    """Score the canary with the engine's weights and hold it against the M-step's own figure.

    Raises:
        StaleWeightsError: the score is off by more than rounding explains, or is nearer to the former weights'.
    """
    loaded = sum(engine.score(prompt, text) for prompt, text in canary.responses)
    off, moved = abs(loaded - canary.logprob), abs(canary.before - canary.logprob)
    # Two engines' bf16 kernels give a text log-probabilities that differ by up to about half a nat (docs/log.md), in
    # either direction; the former weights are off by all that training moved them.
    rounding = 0.5 * math.sqrt(len(canary.responses)) + 0.02 * abs(canary.logprob)
    telling = moved > 2 * rounding  # whether the canary can tell the new weights from the former ones
    if not off <= rounding or (telling and abs(loaded - canary.before) < off):  # a score of NaN is refused too
        raise StaleWeightsError(
            f"the engine does not use the new weights: the canary scores {loaded:.3f}, the trained weights give "
            f"{canary.logprob:.3f}, the former ones {canary.before:.3f}"
        )
    return {"loaded": loaded, "trained": canary.logprob, "before": canary.before, "telling": telling}
