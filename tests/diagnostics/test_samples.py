"""Figures from samples, by hand."""

import math

import pytest

from estep.diagnostics.samples import commonest_share, hint_price, overlap
from estep.filters import Candidate
from estep.records import Sample, Verdict
from estep.scoring import Parts, SampleScores


def candidate(id: str, policy: Parts, proposal: Parts | None, hinted: bool = True) -> Candidate:
    verdict = Verdict(id, "q", 0, 0, hinted, "correct", "1", "some words", False, False)
    sample = Sample(id, "some words Score: 1", "stop", 0, 4, 0.0)
    return Candidate(sample, verdict, "1", 1.0, SampleScores(policy, proposal))


def test_the_commonest_rationale_ignores_case_and_spaces() -> None:
    assert commonest_share(["A b", "a  B", "c", ""]) == 0.5
    assert math.isnan(commonest_share(["", " "]))


def test_the_overlap_counts_runs_of_five_words() -> None:
    # Six words have two runs; the first is in the example.
    example = "It calls the film very dull indeed"
    assert overlap(["it calls the film very funny"], [example]) == 0.5
    assert overlap(["too short to count"], [example]) != overlap([], [])  # both are NaN, which equals nothing
    assert math.isnan(overlap(["it calls the film very funny"], []))


def test_the_price_of_the_hint_is_per_token_of_the_rationale() -> None:
    # (−10 + 18) + (−4 + 5) = 9 nats over 12 + 6 tokens.
    one = candidate("a", Parts(-18.0, -3.0, 12, 2), Parts(-10.0, -0.1, 12, 2))
    other = candidate("b", Parts(-5.0, -1.0, 6, 2), Parts(-4.0, -0.1, 6, 2))
    plain = candidate("c", Parts(-5.0, -1.0, 6, 2), Parts(-5.0, -1.0, 6, 2), hinted=False)
    assert hint_price([one, other, plain]) == pytest.approx(0.5)
    assert math.isnan(hint_price([plain]))
    # What follows the answer costs nothing.
    assert hint_price([candidate("d", Parts(-5.0, -1.0, 6, 2, -9.0, 3), Parts(-2.0, -1.0, 6, 2))]) == 0.5


def test_samples_of_a_served_model_have_no_price() -> None:
    served = candidate("a", Parts(-5.0, -1.0, 6, 2), None)
    assert math.isnan(hint_price([served]))
    assert hint_price([served, candidate("b", Parts(-5.0, -1.0, 6, 2), Parts(-2.0, -1.0, 6, 2))]) == 0.5
