"""The tables of a report on the probabilities of answers."""

from collections.abc import Sequence

from estep.report.judge import Judge, Judges
from estep.report.probabilities import error_of, expected_of, judges_with_probabilities, reliability_of
from estep.report.tables import ReportTable, percent_number, setting_table, spread
from estep.report.terminal import number


def probability_tables(judges: Judges, ending: str) -> list[ReportTable]:
    """All tables of a setting; none if its runs computed no probabilities.

    Args:
        ending: the iteration that the runs end in, in words.
    """
    found = judges_with_probabilities(judges)
    expected = expected_table(judges, ending) if judges.ordinal else None
    tables = [expected] if expected is not None else []
    return [*tables, probability_calibration_table(judges, found, ending)] if found else tables


def expected_table(judges: Judges, ending: str) -> ReportTable | None:
    """Expected scores beside the stated ones: means over seeds; None without probabilities."""
    rows = []
    for judge in judges.all:
        found = [one for seed in judge.seeds if (one := expected_of(seed.predictions)) is not None]
        if found:
            means = [spread(values).mean for values in zip(*(one[:-1] for one in found), strict=True)]
            rows.append((judge.name, *map(number, means), str(sum(one.completed for one in found))))
    if not rows:
        return None
    note = (
        f"Means over seeds, in {ending}. Stated: the score in the response. Expected: the mean of all scores by the "
        "probability that the policy gives to each behind its rationale. MAE: mean absolute error in points of the "
        "scale. Spearman: rank correlation with the correct scores. Both are over the predictions that state a score, "
        "the MAE of all over the others, too. No score: how many predictions of all seeds state none; for these, the "
        "scores were put behind the response in the form that the task asks for."
    )
    measures = ("MAE, stated", "MAE, expected", "Spearman, stated", "Spearman, expected", "MAE of all, expected")
    columns = ("", *measures, "no score")
    return setting_table(judges.setting, "expected-score", "Expected scores", (columns, rows), note)


def probability_calibration_table(judges: Judges, found: Sequence[Judge], ending: str) -> ReportTable:
    """The probability of predictions against the share that is right."""
    rows = [
        (
            judge.name,
            f"{100 * one.low:.0f}–{100 * one.high:.0f} %",
            str(one.predictions),
            percent_number(one.confidence),
            percent_number(one.right),
        )
        for judge in found
        for one in reliability_of(judge)
    ]
    errors = ", ".join(f"{judge.name} {percent_number(error_of(judge))} %" for judge in found)
    note = (
        f"In {ending}: the predictions of all seeds that state an answer, by its probability among the allowed answers "
        "behind the rationale; a probability on a boundary is in the upper bin, and bins without predictions are left "
        "out. Mean probability and right, the share of correct predictions, are in percent: they agree if the model is "
        "well calibrated. Expected calibration error, the mean distance of the two over the bins by their predictions "
        f"(Naeini et al., 2015): {errors}."
    )
    columns = ("", "probability", "predictions", "mean probability", "right")
    return setting_table(
        judges.setting, "probability-calibration", "Calibration of the probabilities", (columns, rows), note
    )
