"""Metrics against values worked out by hand, and NaN wherever there is nothing to measure."""

import json
import math
from collections.abc import Sequence

import pytest

from estep.metrics import (
    EStepMetrics,
    Evaluation,
    IterationMetrics,
    MStepMetrics,
    distinct_share,
    evaluate_responses,
    mean,
    metrics_from_json,
    metrics_to_json,
    quadratic_kappa,
    total_variation,
    voted,
)
from estep.records import Response, Status

SCALE = ("0", "1", "2")


def predicted(question: str, gold: str, answer: str | None, rationale: str = "a b", hint: bool = False) -> Response:
    status: Status = "unparseable" if answer is None else "correct" if answer == gold else "wrong"
    return Response(
        draw_id=question,
        question_id=question,
        index=0,
        gold=gold,
        answer=answer,
        status=status,
        rationale=rationale,
        text="",
        hint_mentioned=hint,
        finish_reason="stop",
        prompt_tokens=0,
        completion_tokens=0,
        logprob=None,
    )


def predictions_of(*pairs: tuple[str, str | None]) -> list[Response]:
    """One prediction for each (gold, answer)."""
    return [predicted(f"q{n}", gold, answer) for n, (gold, answer) in enumerate(pairs)]


def samples_of(*answers: str | None, gold: str = "1") -> list[Response]:
    """Several predictions for one question."""
    return [predicted("q", gold, answer, rationale=f"sample {n}") for n, answer in enumerate(answers)]


# Eight questions: six parsed, two not.
EIGHT = predictions_of(("0", "0"), ("0", "0"), ("1", "1"), ("1", "2"), ("2", "2"), ("2", "0"), ("2", None), ("2", None))


def test_accuracy_counts_an_unparseable_prediction_as_wrong() -> None:
    assert evaluate_responses(EIGHT, SCALE, ordinal=True).accuracy == 4 / 8


def test_parse_rate_is_the_share_with_an_answer() -> None:
    assert evaluate_responses(EIGHT, SCALE, ordinal=True).parse_rate == 6 / 8


def test_mae_is_over_the_parsed_predictions() -> None:
    # Errors 0, 0, 0, 1, 0, 2.
    assert evaluate_responses(EIGHT, SCALE, ordinal=True).mae == 3 / 6


def test_quadratic_kappa_of_a_three_by_three_table() -> None:
    # Observed disagreement: (1 - 2)^2 + (2 - 0)^2 = 5.
    # Gold counts 2, 2, 2; predicted counts 3, 1, 2; expected disagreement, sum of g_i p_j (i - j)^2 / 6:
    #   i=0: 2 (1*1 + 2*4) = 18;  i=1: 2 (3*1 + 2*1) = 10;  i=2: 2 (3*4 + 1*1) = 26;  54 / 6 = 9.
    # kappa = 1 - 5/9.
    pairs = [(0, 0), (0, 0), (1, 1), (1, 2), (2, 2), (2, 0)]
    assert quadratic_kappa(pairs, [0, 1, 2]) == pytest.approx(4 / 9)
    assert evaluate_responses(EIGHT, SCALE, ordinal=True).kappa == pytest.approx(4 / 9)
    # Answers that nobody gave change nothing.
    assert quadratic_kappa(pairs, [0, 1, 2, 3, 4]) == pytest.approx(4 / 9)


def test_kappa_is_1_of_agreement_and_minus_1_of_reversal() -> None:
    assert quadratic_kappa([(0, 0), (2, 2)], [0, 1, 2]) == pytest.approx(1)
    # Observed 4 + 4 = 8; expected (1*1*4 + 1*1*4) / 2 = 4; 1 - 8/4.
    assert quadratic_kappa([(0, 2), (2, 0)], [0, 1, 2]) == pytest.approx(-1)


def test_kappa_of_a_constant_judge_is_0() -> None:
    # Always 1 of golds 0, 1, 2: observed 1 + 0 + 1 = 2, expected (1*3*1 + 1*3*1) / 3 = 2.
    assert quadratic_kappa([(0, 1), (1, 1), (2, 1)], [0, 1, 2]) == pytest.approx(0)


def test_kappa_is_undefined_where_chance_agreement_is_certain() -> None:
    assert math.isnan(quadratic_kappa([(1, 1), (1, 1)], [0, 1, 2]))
    assert math.isnan(quadratic_kappa([], [0, 1, 2]))


def test_the_majority_is_of_the_questions_gold_answers() -> None:
    # Golds 0, 0, 1, 1, 2, 2, 2, 2.
    assert evaluate_responses(EIGHT, SCALE, ordinal=True).majority_accuracy == 4 / 8


def test_a_question_with_many_samples_counts_once_in_the_majority() -> None:
    many = [*samples_of("0", "0", "0", gold="0"), predicted("r", "1", "1"), predicted("s", "1", "0")]
    found = evaluate_responses(many, SCALE, ordinal=True)
    assert (found.questions, found.predictions) == (3, 5)
    assert found.majority_accuracy == 2 / 3
    assert found.gold == {"0": 1, "1": 2, "2": 0}


def test_histograms_name_every_answer_of_the_scale() -> None:
    found = evaluate_responses(EIGHT, (*SCALE, "3"), ordinal=True)
    assert found.predicted == {"0": 3, "1": 1, "2": 2, "3": 0, "unparseable": 2}
    assert found.gold == {"0": 2, "1": 2, "2": 4, "3": 0}


def test_answers_without_a_list_are_named_as_they_occur() -> None:
    found = evaluate_responses(predictions_of(("oslo", "rome"), ("oslo", "oslo")), (), ordinal=False)
    assert found.predicted == {"oslo": 1, "rome": 1, "unparseable": 0}
    assert found.gold == {"oslo": 2, "rome": 0}
    assert found.accuracy == 1 / 2


def test_answers_without_an_order_have_no_kappa_and_no_error() -> None:
    found = evaluate_responses(predictions_of(("A", "B"), ("B", "B")), ("A", "B"), ordinal=False)
    assert math.isnan(found.kappa)
    assert math.isnan(found.mae)
    assert found.accuracy == 1 / 2


def test_where_nothing_was_parsed_agreement_is_undefined_but_accuracy_is_0() -> None:
    found = evaluate_responses(predictions_of(("0", None), ("1", None)), SCALE, ordinal=True)
    assert math.isnan(found.kappa)
    assert math.isnan(found.mae)
    assert (found.accuracy, found.parse_rate) == (0, 0)
    assert found.predicted == {"0": 0, "1": 0, "2": 0, "unparseable": 2}


def test_where_nothing_was_asked_every_share_is_undefined() -> None:
    found = evaluate_responses([], SCALE, ordinal=True)
    assert (found.questions, found.predictions) == (0, 0)
    shares = ("accuracy", "majority_accuracy", "parse_rate", "kappa", "mae", "reasoning_words")
    for name in (*shares, "distinct_rationales", "hint_mentioned"):
        assert math.isnan(getattr(found, name)), name


def test_reasoning_length_and_hints_are_means_over_responses() -> None:
    found = evaluate_responses(
        [
            predicted("a", "0", "0", "one two three"),
            predicted("b", "0", None, "one"),
            predicted("c", "0", "0", "", hint=True),
            predicted("d", "0", "0", " One  two three "),
        ],
        SCALE,
        ordinal=True,
    )
    assert found.reasoning_words == (3 + 1 + 0 + 3) / 4
    assert found.hint_mentioned == 1 / 4
    # "one two three" twice without regard to case and space, "one", and an empty one that does not count.
    assert found.distinct_rationales == 2 / 4


def test_distinct_share_ignores_case_space_and_empty_texts() -> None:
    assert distinct_share(["a b", "A  B", "c"]) == 2 / 3
    assert distinct_share(["same"] * 4) == 1 / 4
    assert distinct_share(["", " "]) == 0
    assert math.isnan(distinct_share([]))


def test_mean_of_none_is_undefined() -> None:
    assert mean([1, 2, 6]) == 3
    assert math.isnan(mean([]))


# Votes


def winner(samples: Sequence[Response], vote: str) -> str | None:
    (chosen,) = voted(samples, vote)  # type: ignore[arg-type]
    assert chosen in samples
    return chosen.answer


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("2", "1", "1"), "1"),
        (("2", "1", "1", "2"), "2"),  # a tie: the answer that was given first
        (("0", "2", "1"), "0"),
        ((None, None, None, "2"), "2"),  # who states nothing does not vote
        ((None, "2", "1", "1"), "1"),
        ((None, None), None),
    ],
)
def test_the_most_frequent_answer_wins_a_majority_vote(answers: tuple[str | None, ...], expected: str | None) -> None:
    assert winner(samples_of(*answers), "majority") == expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("4", "0", "1"), "1"),
        (("0", "0", "4", "3", "3"), "3"),
        (("3", "1"), "1"),  # of an even number the lower one
        (("4", "3", "0", "1"), "1"),
        (("10", "9", "2"), "9"),  # by value, not by spelling
        ((None, "4", None), "4"),
        ((None, None), None),
    ],
)
def test_the_middle_answer_wins_a_median_vote(answers: tuple[str | None, ...], expected: str | None) -> None:
    assert winner(samples_of(*answers), "median") == expected


def test_a_vote_makes_one_prediction_of_each_question() -> None:
    # q: 1, 1, 0 of gold 1; r: 0, 0, 2 of gold 2.
    samples = [*samples_of("1", "1", "0"), *(predicted("r", "2", answer) for answer in ("0", "0", "2"))]
    alone = evaluate_responses(samples, SCALE, ordinal=True)
    together = evaluate_responses(samples, SCALE, ordinal=True, vote="majority")
    assert (alone.predictions, alone.accuracy) == (6, 3 / 6)
    assert (together.questions, together.predictions, together.accuracy) == (2, 2, 1 / 2)
    assert together.mae == (0 + 2) / 2
    # Median of r is 0 as well.
    assert evaluate_responses(samples, SCALE, ordinal=True, vote="median").predicted["0"] == 1


def test_votes_keep_questions_apart_though_their_samples_are_mixed() -> None:
    mixed = [predicted("q", "1", "1"), predicted("r", "2", "0"), predicted("q", "1", "0"), predicted("r", "2", "0")]
    assert [(p.question_id, p.answer) for p in voted(mixed, "majority")] == [("q", "1"), ("r", "0")]


# JSON


def iteration(evaluation: Evaluation) -> IterationMetrics:
    e_step = EStepMetrics(
        4,
        5,
        4,
        0,
        0.0,
        math.nan,
        {"wrong": 4},
        {"correct": 4},
        math.nan,
        {"0": 0},
        {"0": 4},
        math.nan,
        math.nan,
        math.nan,
        0.25,
    )
    m_step = MStepMetrics(3, 0, 2, 1e-6, 2.5, math.nan, 2.25)
    return IterationMetrics(1, evaluation, e_step, m_step, {"e_step_new": 7}, {"e_step": 1.5})


def test_the_total_variation_of_two_mixes() -> None:
    assert total_variation({"0": 3, "1": 1}, {"0": 2, "1": 2}) == 0.25
    assert total_variation({"0": 1.5}, {"1": 7}) == 1.0
    assert total_variation({"0": 1, "1": 1}, {"1": 0.5, "0": 0.5}) == 0.0
    assert math.isnan(total_variation({"0": 0}, {"0": 4}))


def test_metrics_survive_json_with_null_for_nan() -> None:
    metrics = iteration(evaluate_responses(predictions_of(("0", None)), SCALE, ordinal=True))
    text = json.dumps(metrics_to_json(metrics), allow_nan=False)
    assert json.loads(text)["evaluation"]["kappa"] is None
    again = metrics_from_json(json.loads(text))
    assert math.isnan(again.evaluation.kappa)
    assert again.e_step is not None
    assert math.isnan(again.e_step.hinted_share)
    assert again.e_step.hint_mentioned == 0.25
    assert again.m_step is not None
    assert math.isnan(again.m_step.last_loss)
    assert (again.tokens, again.seconds) == ({"e_step_new": 7}, {"e_step": 1.5})
    assert metrics_to_json(again) == metrics_to_json(metrics)


def test_metrics_without_nan_are_equal_after_json() -> None:
    base = IterationMetrics(0, evaluate_responses(EIGHT, SCALE, ordinal=True))
    again = metrics_from_json(json.loads(json.dumps(metrics_to_json(base))))
    assert again == base
    assert again.e_step is None
    assert again.m_step is None


def test_an_undefined_measure_of_an_evaluation_is_null() -> None:
    content = metrics_to_json(evaluate_responses(predictions_of(("0", None)), SCALE, ordinal=True))
    assert (content["accuracy"], content["mae"], content["kappa"]) == (0.0, None, None)
    assert content["predicted"]["unparseable"] == content["questions"] == 1
    json.dumps(content, allow_nan=False)
