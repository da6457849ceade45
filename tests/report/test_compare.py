"""Paired statistics against values worked out by hand."""

import json
import math
from collections.abc import Sequence

import pytest

from estep.errors import ConfigError, DataError
from estep.report.compare import compare
from estep.report.predictions import Answer, Arm
from estep.report.stats import wilson

NO = None


def arm(
    name: str,
    predictions: Sequence[object],
    gold: Sequence[object] | None = None,
    verdicts: Sequence[bool] | None = None,
    first: int = 0,
) -> Arm:
    """An arm that answers questions `first`, `first + 1`, ..."""
    answers = {}
    for place, given in enumerate(predictions):
        prediction = None if given is None else str(given)
        correct = None if gold is None or gold[place] is None else str(gold[place])
        verdict = None if verdicts is None else verdicts[place]
        answers[f"q{first + place}"] = Answer(prediction, correct, verdict, missing=given is None)
    return Arm(name, f"{name}.csv", answers, ("id", "prediction"), judged=verdicts is not None)


GOLD = "A" * 12


def of_shares(name: str, right: str, gold: str | None = None) -> Arm:
    """An arm that answers A where the text has a 1, and B elsewhere."""
    return arm(name, ["A" if mark == "1" else "B" for mark in right], gold)


def test_accuracy_mcnemar_and_holm_by_hand() -> None:
    found = compare(
        [
            of_shares("ref", "111100000000", GOLD),
            of_shares("all", "111111111111"),
            of_shares("some", "111011110000"),
        ]
    )
    assert [one.accuracy for one in found.arms] == pytest.approx([4 / 12, 1, 7 / 12])
    assert found.arms[2].interval == wilson(7, 12)
    every, some = found.comparisons
    assert (every.name, every.difference, every.wins, every.losses) == ("all", pytest.approx(8 / 12), 8, 0)
    # 8 to none: 2 / 2⁸. 4 to 1: twice (1 + 5) / 2⁵. Holm: the smaller times 2, the larger times 1.
    assert (every.p, every.holm) == (pytest.approx(2 / 256), pytest.approx(4 / 256))
    assert (some.wins, some.losses, some.p, some.holm) == (4, 1, pytest.approx(12 / 32), pytest.approx(12 / 32))
    # The interval of 8/12 with 8 questions won and none lost: Binomial(12, 2/3) / 12, 2.5 % and 97.5 %: 5 and 11.
    assert every.interval == pytest.approx((5 / 12, 11 / 12))
    assert (found.ordinal, math.isnan(every.kappa_difference)) == (False, True)


def test_the_reference_can_be_named_and_differences_change_their_sign() -> None:
    arms = [of_shares("ref", "111100000000", GOLD), of_shares("all", "111111111111")]
    found = compare(arms, reference="all")
    (versus,) = found.comparisons
    assert (found.reference, versus.name, versus.wins, versus.losses) == ("all", "ref", 0, 8)
    assert versus.difference == pytest.approx(-8 / 12)
    with pytest.raises(ConfigError, match="--reference: got 'al'; did you mean 'all'"):
        compare(arms, reference="al")


def test_kappa_and_mean_error_by_hand() -> None:
    # ref: the mean squared error is 4/4. By chance, gold (0 in 1/2) and predictions (0 in 1/4) differ by 2 in 3/8 + 1/8
    # of all pairs; the mean of the squares is 2, and kappa is 1 - 1/2.
    found = compare([arm("ref", [0, 2, 2, 2], [0, 0, 2, 2]), arm("new", [0, 0, 2, 2])])
    assert (found.ordinal, found.why) == (True, "every answer is an integer")
    assert [(one.kappa, one.mae) for one in found.arms] == [(pytest.approx(0.5), 0.5), (pytest.approx(1), 0)]
    (versus,) = found.comparisons
    assert versus.kappa_difference == pytest.approx(0.5)
    assert 0 <= versus.kappa_interval.low < 0.5 < versus.kappa_interval.high <= 2


def test_missing_predictions_are_wrong_and_counted_but_not_in_kappa() -> None:
    found = compare([arm("ref", [0, NO, 2, 2], [0, 0, 2, 2]), arm("none", [NO] * 4)])
    ref, none = found.arms
    # Kappa and MAE over the three parsed predictions, all of them right.
    assert (ref.accuracy, ref.unparsed, ref.kappa, ref.mae) == (0.75, 1, pytest.approx(1), 0)
    assert (none.accuracy, none.unparsed) == (0, 4)
    assert math.isnan(none.kappa)
    assert math.isnan(found.comparisons[0].kappa_difference)
    assert math.isnan(found.comparisons[0].kappa_interval.low)


def test_only_questions_that_all_arms_answer_are_compared() -> None:
    arms = [
        arm("a", ["x"] * 5, ["x"] * 5),
        arm("b", ["x"] * 5, first=2),
        arm("c", ["x", "y", "x"], first=1),
    ]
    found = compare(arms)
    assert found.questions == 2  # q2 and q3
    assert [(one.rows, one.questions) for one in found.arms] == [(5, 2), (5, 2), (3, 2)]
    assert [one.accuracy for one in found.arms] == [1, 1, 0.5]


def test_gold_answers_may_be_spread_over_the_files() -> None:
    found = compare([arm("a", ["x", "y"], ["x", NO]), arm("b", ["x", "z"], [NO, "z"])])
    assert [one.accuracy for one in found.arms] == [0.5, 1]


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(DataError, match=r"no id is in all 2 sets of predictions: a has 'q0', 'q1', \.\.\.; b has 'q5'"):
        compare([arm("a", "xy", "xy"), arm("b", "xy", first=5)])
    with pytest.raises(DataError, match="the gold answer of 'q1' is 'y' in a, 'z' in b; they must agree"):
        compare([arm("a", "xy", "xy"), arm("b", "xy", "xz")])
    with pytest.raises(DataError, match=r"no gold answer for 'q0': a has id, prediction; b has .* \(--gold NAME names"):
        compare([arm("a", "xy"), arm("b", "xy")])


def test_gold_answers_of_questions_that_are_not_shared_need_not_agree() -> None:
    assert compare([arm("a", "xy", "xy"), arm("b", "x", "x")]).questions == 1


# Ordinal or nominal


def test_one_answer_that_is_no_integer_makes_answers_nominal() -> None:
    found = compare([arm("a", [1, 2], [1, 2]), arm("b", [1, "two"])])
    assert (found.ordinal, found.why) == (False, "the prediction of b for 'q1' is 'two'")
    assert all(math.isnan(one.kappa) for one in found.arms)
    letters = compare([arm("a", "AB", "AB"), arm("b", "AB")])
    assert letters.why == "the gold answer of 'q0' is 'A'"


def test_whether_answers_are_ordinal_can_be_said() -> None:
    arms = [arm("a", [1, 2, 3], [1, 2, 3]), arm("b", [1, "two", NO])]
    found = compare(arms, ordinal=True)
    assert (found.ordinal, found.why) == (True, "as asked")
    assert [(one.unparsed, one.mae) for one in found.arms] == [(0, 0), (2, 0)]
    assert not compare([arm("a", [1], [1]), arm("b", [1])], ordinal=False).ordinal
    with pytest.raises(
        ConfigError, match="--ordinal needs gold answers that are integers, but the gold answer of 'q0'"
    ):
        compare([arm("a", "AB", "AB"), arm("b", "AB")], ordinal=True)


# Verdicts


def test_a_tools_verdict_replaces_the_comparison_but_not_a_missing_prediction() -> None:
    judged = arm("judged", ["1/2", "3", NO], ["0.5", "4", "5"], [True, False, True])
    found = compare([judged, arm("texts", ["1/2", "4", "5"])])
    assert [one.accuracy for one in found.arms] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert found.notes == (
        "judged: right and wrong as the tool judged. The others are compared with the gold answers.",
    )


def test_a_file_whose_answers_never_equal_the_gold_is_noted() -> None:
    solution = "It takes 7 hours of work and then another 5 hours, 12 in all. #### 12"
    found = compare([arm("a", ["12"], [solution]), arm("b", [NO])])
    judged = compare([arm("a", ["12"], [solution], [False]), arm("b", [NO], verdicts=[False])])
    assert judged.notes == ("a, b: right and wrong as the tool judged.",)
    (note,) = found.notes
    assert note.startswith("a: no prediction equals its gold answer, such as '12' and '…")
    assert note.endswith("#### 12'. To read the tool's own verdict, name its column with --correct.")


def test_plain_data_has_no_nan() -> None:
    content = compare([arm("a", "AB", "AB"), arm("b", "BB")]).as_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["arms"][0]["kappa"] is None
    assert content["comparisons"][0]["kappa_interval"] == [None, None]
    assert content["comparisons"][0]["p"] == 1
