"""Which figures warn, and what the warnings say."""

import math
from dataclasses import replace

import pytest

from estep.diagnostics.alarms import alarms
from estep.metrics import Diagnostics, EStepMetrics, IterationMetrics, MStepMetrics, evaluate_responses

FIGURES = Diagnostics(0.05, 0.02, math.nan, 0.05, 0.02, math.nan, log_likelihood=-1.0, log_likelihood_error=0.05)
E_STEP = EStepMetrics(
    questions=100,
    draws=100,
    attempts=100,
    accepted=60,
    data_utilization=0.6,
    tokens_per_pair=30.0,
    status={"correct": 60, "wrong": 40},
    dropped={},
    hinted_share=1.0,
    accepted_answers={"0": 30, "1": 30},
    data_answers={"0": 50, "1": 50},
    answer_shift=0.0,
    reasoning_words=12.0,
    distinct_rationales=0.9,
    hint_mentioned=0.0,
)


def iteration(figures: Diagnostics = FIGURES, number: int = 1, **e_step: object) -> IterationMetrics:
    evaluation = evaluate_responses([], ["0", "1"], ordinal=True)
    found = replace(E_STEP, **e_step)
    m_step = MStepMetrics(found.accepted, 0, 1, 1e-4, 1.0, 1.0, 1.0) if found.accepted else None
    if number == 0:
        return IterationMetrics(0, evaluation, None, diagnostics=figures)
    return IterationMetrics(number, evaluation, found, m_step, diagnostics=figures)


def names(*iterations: IterationMetrics) -> list[str]:
    return [alarm.name for alarm in alarms(iterations)]


def test_a_healthy_iteration_gives_no_warning() -> None:
    assert names(iteration()) == []
    assert names(iteration(number=0)) == []


@pytest.mark.parametrize(("accepted", "warns"), [(0, True), (9, True), (10, False)])
def test_a_run_starves_below_a_pair_for_ten_questions(accepted: int, warns: bool) -> None:
    assert ("starved" in names(iteration(accepted=accepted))) == warns


def test_one_pair_of_many_samples_per_question_is_no_starvation() -> None:
    # filters.resample keeps one of 16 samples, so that 6 % of them are accepted.
    assert names(iteration(attempts=1600, accepted=95, data_utilization=95 / 1600)) == []


def test_kept_states_of_chains_are_no_starvation() -> None:
    few = iteration(accepted=2, data_utilization=0.02)
    assert few.m_step is not None
    assert names(replace(few, m_step=replace(few.m_step, pairs=90))) == []


def test_a_starved_iteration_says_how_much_there_was_and_what_to_try() -> None:
    (alarm,) = alarms([iteration(accepted=4)])
    assert "only 4 training pairs for 100 questions" in alarm.reason
    assert "proposal.type=pps" in alarm.suggestion


def test_an_answer_that_is_rarely_accepted_is_named() -> None:
    # 5 of 50 attempts for the answer 1 against 60 of 100: below a quarter of it. The shift is 55/60 − 1/2 = 42 %.
    counts = {"accepted_answers": {"0": 55, "1": 5}, "answer_shift": 55 / 60 - 0.5}
    shifted, scarce = alarms([iteration(**counts)])
    assert (shifted.name, scarce.name) == ("unbalanced", "scarce_answer")
    assert "42%" in shifted.reason
    assert "the answer 1 are accepted in 10% of the attempts, against 60%" in scarce.reason


def test_a_small_shift_of_the_answers_gives_no_warning() -> None:
    assert names(iteration(answer_shift=0.25)) == []
    assert names(iteration(answer_shift=0.26)) == ["unbalanced"]


def test_weights_that_restore_the_balance_give_no_warning() -> None:
    assert names(iteration(accepted_answers={"0": 55, "1": 5}, answer_shift=0.0)) == []


@pytest.mark.parametrize(
    "changed",
    [{"e_step": {"distinct_rationales": 0.29}}, {"figures": replace(FIGURES, commonest_rationale=0.21)}],
)
def test_rationales_that_are_all_alike_have_collapsed(changed: dict[str, object]) -> None:
    found = iteration(changed.get("figures", FIGURES), **changed.get("e_step", {}))  # type: ignore[arg-type, dict-item]
    assert names(found) == ["collapsed"]


def test_false_equations_warn() -> None:
    (alarm,) = alarms([iteration(replace(FIGURES, valid_steps=0.71))])
    assert (alarm.name, alarm.reason) == ("false_steps", "29% of the equations in the accepted rationales are false")
    assert "filters.check_steps=true" in alarm.suggestion
    assert names(iteration(replace(FIGURES, valid_steps=0.8))) == []
    assert names(iteration(replace(FIGURES, valid_steps=math.nan))) == [], "no equations"


def test_copied_examples_warn() -> None:
    assert names(iteration(replace(FIGURES, example_overlap=0.26))) == ["copied"]


def test_an_answer_that_does_not_depend_on_its_rationale_makes_it_an_ornament() -> None:
    assert names(iteration(replace(FIGURES, dependence=0.09))) == ["ornament"]
    assert names(iteration(replace(FIGURES, dependence=0.11))) == []


def test_answers_alone_have_no_rationales_to_warn_of() -> None:
    figures = replace(FIGURES, commonest_rationale=math.nan, dependence=0.0)
    assert names(iteration(figures, distinct_rationales=0.0, reasoning_words=0.0)) == []


def test_one_of_four_samples_that_weighs_alone_warns() -> None:
    assert names(iteration(replace(FIGURES, several=4.0, effective_samples=1.9))) == ["one_weight"]
    assert names(iteration(replace(FIGURES, several=3.0, effective_samples=1.2))) == []


def falling(*likelihoods: float, error: float = 0.1) -> list[IterationMetrics]:
    return [
        iteration(replace(FIGURES, log_likelihood=value, log_likelihood_error=error), number)
        for number, value in enumerate(likelihoods)
    ]


def test_a_likelihood_that_falls_twice_beyond_two_standard_errors_warns() -> None:
    # The error of a difference is 0.1 √2 = 0.141; twice that is 0.283.
    assert names(*falling(-1.0, -1.3, -1.6)) == ["falling"]
    assert names(*falling(-1.0, -1.3, -1.5)) == []
    assert names(*falling(-1.0, -1.3)) == []
    assert names(*falling(-1.6, -1.3, -1.6)) == []


def test_figures_that_are_not_there_give_no_warning() -> None:
    nothing = Diagnostics(*[math.nan] * 6)
    e_step = {"data_utilization": math.nan, "distinct_rationales": math.nan, "answer_shift": math.nan}
    assert names(iteration(nothing, **e_step)) == []
