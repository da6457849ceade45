"""The tables of a report on how each arm judges."""

from dataclasses import replace

from estep.report.judge import (
    Confusion,
    Judge,
    Judges,
    Lengths,
    accuracy_of,
    confidences,
    length_quarters,
    rank_correlations,
    reliability,
    score_pairs,
)
from estep.report.tables import ReportTable, percent_number, setting_table, spread
from estep.report.terminal import number

MOST_ANSWERS = 12
"""With more answers than this, what a report says of each answer could not be read."""

NONE = "none"


def judge_tables(judges: Judges, ending: str) -> list[ReportTable]:
    """All tables of a setting that say something.

    Args:
        ending: the iteration that the runs end in, in words.
    """
    tables = []
    if judges.ordinal:
        tables.append(agreement_table(judges, ending))
    if has_few_answers(judges):
        tables += [precision_table(judges, ending), by_answer_table(judges, ending), confusion_table(judges, ending)]
    tables.append(by_length_table(judges, ending))
    calibration = calibration_table(judges, ending)
    return [*tables, *([calibration] if calibration is not None else [])]


def has_few_answers(judges: Judges) -> bool:
    """Whether figures of each single answer can be read."""
    return len(judges.answers) <= MOST_ANSWERS


def agreement_table(judges: Judges, ending: str) -> ReportTable:
    """How well scores agree with the correct ones: means over seeds."""
    rows = []
    for judge in judges.all:
        evaluations = [judge.pick(seed.run).evaluation for seed in judge.seeds]
        ranks = [rank_correlations(score_pairs(seed.predictions)) for seed in judge.seeds]
        rows.append(
            (
                judge.name,
                number(spread([one.kappa for one in evaluations]).mean),
                number(spread([one.spearman for one in ranks]).mean),
                number(spread([one.kendall for one in ranks]).mean),
                number(spread([one.mae for one in evaluations]).mean),
                percent_number(spread([one.parse_rate for one in evaluations]).mean),
            )
        )
    note = (
        f"Means over seeds, measured in {ending}, over the predictions that state a score; parsed: how many do, in "
        "percent. Kappa: Cohen's, with quadratic weights. Spearman: rank correlation of predicted and correct scores. "
        "Kendall: tau-b. MAE: mean absolute error in points of the scale."
    )
    columns = ("", "kappa", "Spearman", "Kendall", "MAE", "parsed")
    return setting_table(judges.setting, "agreement", "Agreement with the correct scores", (columns, rows), note)


def precision_table(judges: Judges, ending: str) -> ReportTable:
    """Precision, recall and F1 of each answer, by arm."""
    word = _word(judges)
    rows = []
    for judge in judges.arms:
        found = Confusion.of(judge.predictions, judges.answers)
        for answer in judges.answers:
            shares = (found.precision(answer), found.recall(answer), found.f1(answer))
            counts = (str(found.gold(answer)), str(found.predicted(answer)))
            rows.append((judge.name, answer, *counts, *map(percent_number, shares)))
    note = (
        f"Predictions of all seeds together, in {ending}. Correct: predictions for questions whose correct {word} is "
        f"this one. Predicted: predictions of this {word}. Precision: the share of the latter that are right. Recall: "
        "the share of the former that are right. F1: the harmonic mean of both. All three are in percent."
    )
    columns = ("", word, "correct", "predicted", "precision", "recall", "F1")
    return setting_table(judges.setting, "precision", f"Precision and recall of each {word}", (columns, rows), note)


def by_answer_table(judges: Judges, ending: str) -> ReportTable:
    """Accuracy by the correct answer: a row per arm, a column per answer."""
    word = _word(judges)
    rows = []
    for judge in judges.all:
        found = Confusion.of(judge.predictions, judges.answers)
        rows.append((judge.name, *(percent_number(found.recall(answer)) for answer in judges.answers)))
    golds = list(judges.golds.values())
    counts = ", ".join(str(golds.count(answer)) for answer in judges.answers)
    note = (
        f"Accuracy in {ending}, in percent, on the test questions with each correct {word}; predictions of "
        f"all seeds together. Distinct questions per column: {counts}."
    )
    name = f"accuracy-by-{word}"
    return setting_table(judges.setting, name, f"Accuracy by {word}", (("", *judges.answers), rows), note)


def confusion_table(judges: Judges, ending: str) -> ReportTable:
    """How often each answer was predicted where each is correct, by arm."""
    word = _word(judges)
    rows = []
    for judge in judges.arms:
        found = Confusion.of(judge.predictions, judges.answers)
        rows += [(judge.name, answer, *map(str, found.row(answer))) for answer in judges.answers]
    note = (
        f"Number of predictions in {ending}, over all seeds: a row per correct {word}, a column per predicted "
        f"one; right ones in bold. None: the text states no allowed {word}, or several."
    )
    columns = ("", "correct", *judges.answers, NONE)
    right = frozenset((row, 2 + row % len(judges.answers)) for row in range(len(rows)))
    return replace(setting_table(judges.setting, "confusion", "Confusion matrix", (columns, rows), note), best=right)


def by_length_table(judges: Judges, ending: str) -> ReportTable:
    """Accuracy by the length of the question's text: a row per arm, a column per quarter of the questions."""
    lengths = [judges.words[question] for question in judges.golds]
    quarters = length_quarters(lengths)

    def accuracy(judge: Judge, quarter: Lengths) -> float:
        return accuracy_of(one for one in judge.predictions if judges.words[one.question_id] in quarter)

    rows = [(judge.name, *(percent_number(accuracy(judge, quarter)) for quarter in quarters)) for judge in judges.all]
    counts = ", ".join(str(sum(length in quarter for length in lengths)) for quarter in quarters)
    note = (
        f"Accuracy in {ending}, in percent, on each quarter of the test questions by the number of words in their "
        "text; texts of equal length stay together. Predictions of all seeds together. Distinct questions per column: "
        f"{counts}."
    )
    columns = ("", *(quarter.name for quarter in quarters))
    return setting_table(judges.setting, "accuracy-by-length", "Accuracy by length of the text", (columns, rows), note)


def calibration_table(judges: Judges, ending: str) -> ReportTable | None:
    """The vote share of predictions against the share that is right; None if no question has several samples."""
    rows = [row for judge in judges.arms for row in _reliability_rows(judge)]
    if not rows:
        return None
    note = (
        f"In {ending}: the predictions of all seeds by vote share, the share of a question's samples that give the "
        "predicted answer; a share on a boundary is in the lower bin. The prediction is the one that counts, or the "
        "most frequent answer if samples do not vote. Mean share and right, the share of correct predictions, are in "
        "percent: they agree if votes say how certain an answer is. None: no sample of the question states an answer."
    )
    columns = ("", "vote share", "predictions", "mean share", "right")
    return setting_table(judges.setting, "calibration", "Calibration of the votes", (columns, rows), note)


def _reliability_rows(judge: Judge) -> list[tuple[str, ...]]:
    predictions = confidences(judge)
    if not predictions:
        return []
    rows: list[tuple[str, ...]] = [
        (
            judge.name,
            f"{100 * one.low:.0f}–{100 * one.high:.0f} %",
            str(one.predictions),
            percent_number(one.confidence),
            percent_number(one.right),
        )
        for one in reliability(predictions)
    ]
    without = [one for one in predictions if not one.votes]
    if without:
        rows.append((judge.name, NONE, str(len(without)), percent_number(0.0), percent_number(0.0)))
    return rows


def _word(judges: Judges) -> str:
    return "score" if judges.ordinal else "answer"
