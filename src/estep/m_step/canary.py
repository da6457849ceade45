"""Whether an engine really uses the weights that it was told to load."""

import math
from dataclasses import dataclass
from typing import Any

from estep.engines import Engine
from estep.engines.base import copies_scores
from estep.errors import StaleWeightsError
from estep.records import Messages

ROUNDING = 0.2
"""Allowed difference, in nats, per square root of tokens plus nats.

Two bfloat16 implementations round each token's log-probability independently, so the error of a sum grows with the
square root of its length; unlikely tokens have larger errors. Measured on sampled texts (docs/log.md, 2026-11-24): 0.03
per response, and at most 0.054 for a sum of eight.
"""


@dataclass(frozen=True)
class Canary:
    """Responses whose likelihood shows which weights an engine uses.

    Several, because rounding changes their log-probabilities in either direction, and training raises all of them.
    """

    responses: tuple[tuple[Messages, str], ...]
    """Prompt and text."""
    logprob: float
    """Σ log π(text | prompt) under the trained weights, computed by the M-step from the weights in its memory."""
    before: float
    """The same under the weights that the engine had before, computed by the engine."""
    tokens: int
    """Tokens of all responses, with each one's end of turn."""
    visible: bool = False
    """Whether the M-step found that training changed the score of every response at the engine's precision. Scores
    that equal `before` to the last bit then prove that the engine still uses the former weights, however little
    training moved them. False also where the M-step cannot tell."""

    @property
    def tolerance(self) -> float:
        """The largest difference between two computations of `logprob` that rounding explains, in nats."""
        return ROUNDING * math.sqrt(self.tokens + abs(self.logprob))


def check_canary(engine: Engine, canary: Canary) -> dict[str, Any]:
    """Score the canary with the engine's weights and compare the sum with the M-step's own.

    An engine with several copies of the model is checked copy by copy. A copy on other hardware than the one that
    scored `before` may round differently, so that former scores need not repeat to the last bit there.

    Returns:
        The sums (`loaded` is that of the copy that differs most), and `telling`: whether the check can tell the new
        weights from the former ones.

    Raises:
        StaleWeightsError: the difference exceeds what rounding explains, or the scores of former weights have not
            changed at all.
    """
    scores = [copies_scores(engine, prompt, text) for prompt, text in canary.responses]
    sums = [sum(of_copy) for of_copy in zip(*scores, strict=True)]
    unchanged = canary.visible and canary.before in sums
    loaded = (
        canary.before if unchanged else max(sums, key=lambda at: math.inf if at != at else abs(at - canary.logprob))
    )
    if not abs(loaded - canary.logprob) <= canary.tolerance or unchanged:  # a score of NaN is refused too
        raise StaleWeightsError(
            f"the engine does not use the new weights: the canary scores {loaded:.3f}, the trained weights give "
            f"{canary.logprob:.3f}, the former ones {canary.before:.3f}; rounding explains {canary.tolerance:.3f}"
        )
    telling = canary.visible or abs(canary.before - canary.logprob) > 2 * canary.tolerance
    return {"loaded": loaded, "trained": canary.logprob, "before": canary.before, "telling": telling}
