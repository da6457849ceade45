"""Which weights an engine uses, from hand-made scores."""

import math
from collections.abc import Sequence

import pytest

from estep.engines.scripted import ScriptedEngine
from estep.errors import StaleWeightsError
from estep.m_step.canary import Canary, check_canary

LONG = Canary(
    responses=tuple((({"role": "user", "content": f"question {n}"},), f"text {n}") for n in range(8)),
    logprob=-880.0,
    before=-895.0,
    tokens=1200,
)
"""Eight responses of 150 tokens. Rounding explains 0.2 * sqrt(1200 + 880) = 9.121 nats."""


def scoring(scores: Sequence[float]) -> ScriptedEngine:
    engine = ScriptedEngine({})
    given = iter(scores)
    engine.score = lambda messages, text: next(given)  # type: ignore[method-assign]
    return engine


def test_stale_weights_are_refused_although_the_responses_are_long() -> None:
    # 15 nats of training are less than 2 % of 880 nats, but more than rounding of 1200 tokens.
    with pytest.raises(StaleWeightsError, match=r"scores -895\.000, .* give -880\.000, .* rounding explains 9\.121"):
        check_canary(scoring([-895 / 8] * 8), LONG)


@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_of_every_response_in_one_direction_passes(sign: int) -> None:
    # The largest error that was measured on a sampled text is 1.05 nats with transformers and 0.80 with vLLM
    # (docs/log.md): 8.4 in all if each response had it.
    assert check_canary(scoring([-110 + 1.05 * sign] * 8), LONG)["loaded"] == pytest.approx(-880 + 8.4 * sign)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_difference_beyond_rounding_is_refused_in_both_directions(sign: int) -> None:
    check_canary(scoring([-110.0] * 7 + [-110 + 9.1 * sign]), LONG)
    with pytest.raises(StaleWeightsError):
        check_canary(scoring([-110.0] * 7 + [-110 + 9.2 * sign]), LONG)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(StaleWeightsError, match="scores nan"):
        check_canary(scoring([math.nan, *[-110.0] * 7]), LONG)


def test_four_times_the_tokens_double_what_rounding_explains() -> None:
    assert Canary((), 0.0, 0.0, tokens=400).tolerance == pytest.approx(0.2 * 20)
    assert Canary((), 0.0, 0.0, tokens=1600).tolerance == pytest.approx(0.2 * 40)


def test_scores_that_did_not_change_at_all_are_refused_however_little_training_moved() -> None:
    # The M-step saw the weights change, so an engine that took them cannot repeat its former scores bit for bit.
    barely = Canary(LONG.responses, -880.0, -880.5, tokens=1200, visible=True)
    with pytest.raises(StaleWeightsError):
        check_canary(scoring([-880.5, *[0.0] * 7]), barely)
    assert check_canary(scoring([-880.25, *[0.0] * 7]), barely)["telling"]


def test_a_check_says_whether_it_could_have_detected_the_old_weights() -> None:
    # Twice what rounding explains are 18.24 nats: the former weights are then nearer to no score that passes.
    for before, telling in ((-880.5, False), (-898.0, False), (-898.5, True)):
        canary = Canary(LONG.responses, -880.0, before, tokens=1200)
        assert check_canary(scoring([-110.0] * 8), canary)["telling"] == telling


def test_weights_that_rounding_left_as_they_were_pass() -> None:
    unmoved = Canary(LONG.responses, -880.0, -880.0, tokens=1200, visible=False)
    assert not check_canary(scoring([-110.0] * 8), unmoved)["telling"]
