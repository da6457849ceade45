"""Expected draws and pairs, by hand; tests/study/test_cost.py has those of the paper's proposals."""

import pytest

from estep.config import AdaptiveProposal, ChainProposal, FEMConfig, GoldProposal, MixtureProposal, MStepConfig
from estep.planning.draws import (
    DrawsPerAttempt,
    Rates,
    accepted_pairs,
    expected_draws,
    times_trained,
    worst_case_draws,
)

PLAIN, HINTED = Rates(0.4, 0.4), Rates(0.9, 0.8)


def test_an_adaptive_budget_draws_plainly_twice_where_four_in_ten_are_correct() -> None:
    # 1 − 0.6² = 0.64 is above one half, 1 − 0.6 is not: M = 2. Plain draws 1 + 0.6, then a hint with 0.36.
    found = expected_draws(AdaptiveProposal(), PLAIN, HINTED)
    assert found == pytest.approx((1.6, 0.36, 0.4 * 1.6 + 0.36 * 0.8))


def test_an_adaptive_budget_hints_at_once_where_plain_draws_are_hopeless() -> None:
    assert expected_draws(AdaptiveProposal(), Rates(0.1, 0.1), HINTED) == pytest.approx((0, 1, 0.8))


def test_the_worst_case_of_a_mixture_counts_every_draw_of_its_components() -> None:
    mixture = MixtureProposal.model_validate(
        {
            "components": [
                {"weight": 1, "proposal": {"type": "adaptive", "budget": 5}},
                {"weight": 3, "proposal": {"type": "pps"}},
            ]
        }
    )
    # A quarter of (5, 1) and three quarters of (0, 1).
    assert worst_case_draws(mixture) == pytest.approx((1.25, 1.0, 1.0))


def test_chains_and_gold_rationales_need_one_draw_and_none() -> None:
    assert expected_draws(ChainProposal(), PLAIN, HINTED) == (0, 1, 0.8)
    assert expected_draws(GoldProposal(), PLAIN, HINTED) == (0, 0, 1)


def test_chains_train_on_every_question_that_was_ever_accepted() -> None:
    # With half of the attempts accepted: 1/2, 3/4 and 7/8 of the questions, in units of one half.
    found = times_trained(MStepConfig(replay="last"), DrawsPerAttempt(0, 1, 0.5), iterations=3)
    assert found == pytest.approx((0.5 + 0.75 + 0.875) / 0.5)


def test_resampling_leaves_one_pair_per_question() -> None:
    def pairs(**filters: object) -> float:
        config = FEMConfig.model_validate({"proposal": {"type": "pps", "n": 4}, "filters": filters})
        return accepted_pairs(config, DrawsPerAttempt(0, 1, 0.5), questions=10)

    assert pairs() == 20
    assert pairs(weight_by="answer") == 20
    assert pairs(weight_by="answer", resample=True) == 10
    assert pairs(max_per_question=1) == 10
