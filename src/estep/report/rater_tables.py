"""The tables of a report on how well people agree, and what a single one of them would reach."""

from statistics import median

from estep.report.raters import Compared, Estimate, Measures, Rated
from estep.report.tables import ReportTable, percent_number, setting_table
from estep.report.terminal import NOTHING, number

SINGLE_RATER = "a single rater"


def rater_tables(rated: Rated, ending: str) -> list[ReportTable]:
    """All tables of a setting.

    Args:
        ending: the iteration that the runs end in, in words.

    Raises:
        EstepError: a library is not installed.
    """
    each = each_rater_table(rated)
    others = [raters_table(rated), where_raters_agree_table(rated, ending), *([each] if each is not None else [])]
    return [ceiling_table(rated, ending), *others]


def ceiling_table(rated: Rated, ending: str) -> ReportTable:
    """A single rater and each model against what the other raters say."""
    word, scores = _word(rated), _scores(rated)
    rows = [_row(SINGLE_RATER, rated.single_rater(), NOTHING, scores)]
    for judge in rated.models:
        compared = rated.compared(judge)
        if compared is not None:
            rows.append(_row(judge.name, compared.measures, _above(compared), scores))
    others = "the score of their mean" if scores else "their most frequent label; labels that tie count in part"
    note = (
        "A single rater: how well one person, drawn at random among the raters of each question, agrees with the "
        f"others ({others}). The models, in {ending}, are compared with the same {word}s of the others. A model above "
        "the single rater is closer to what people say together than one of them is; that is possible, because several "
        "people together vary less than one. Each question counts once. In parentheses: 95 % intervals (bootstrap over "
        "questions). Accuracy and the difference, the model's accuracy minus the rater's, are in percent. "
    )
    if scores:
        note += "Kappa: Cohen's, with quadratic weights. MAE: mean absolute error in points of the scale. "
    note += f"Elsewhere in this report, accuracy is against the correct {word}s, so it differs a little."
    columns = ("", "accuracy", "difference", *(("kappa", "MAE") if scores else ()))
    return setting_table(rated.setting, "human-ceiling", "Human ceiling", (columns, rows), note)


def raters_table(rated: Rated) -> ReportTable:
    """How many ratings there are, and how far they agree."""
    alpha = rated.alpha()
    counts = [len(given) for given in rated.ratings.values()]
    fewest, most = min(counts), max(counts)
    each = str(most) if fewest == most else f"{fewest} to {most}, median {median(counts):g}"
    rows = [
        ("test questions with at least two ratings", str(len(counts))),
        ("ratings of each", each),
        ("share of them on which all say the same, in percent", percent_number(rated.unanimous)),
        (f"Krippendorff's alpha, {alpha.level}", number(alpha.value)),
    ]
    note = (
        "Krippendorff's alpha (2004) is 1 if raters agree on everything, and 0 if they agree as chance would have it. "
        "It takes the ratings as they are, before they become scores."
        if not alpha.of_scores
        else "Krippendorff's alpha (2004), of the scores that the ratings stand for: there are many distinct ratings."
    )
    return setting_table(rated.setting, "raters", "Agreement of the raters", (("", "value"), rows), note)


def where_raters_agree_table(rated: Rated, ending: str) -> ReportTable:
    """Accuracy on the questions that raters agree on, and on the others."""
    rows = [(SINGLE_RATER, *(percent_number(rated.rater_where(agree)) for agree in (True, False)))]
    for judge in rated.models:
        shares = (percent_number(rated.accuracy_where(judge, agree)) for agree in (True, False))
        rows.append((judge.name, *shares))
    counts = [sum(rated.agree(id) == agree for id in rated.ratings) for agree in (True, False)]
    measure = (
        f"the standard deviation of a question's ratings is at most {rated.cut:.2f}"
        if _scores(rated)
        else f"at most {percent_number(rated.cut)} % of the raters gave another label than the most frequent one"
    )
    note = (
        f"Accuracy in {ending}, in percent, on rated test questions; predictions of all seeds together, against the "
        f"correct {_word(rated)}s; a single rater, against the others. Raters agree where {measure}, "
        "which divides the questions as evenly as possible. "
        f"Distinct questions per column: {counts[0]}, {counts[1]}."
    )
    columns = ("", "raters agree", "raters differ")
    return setting_table(rated.setting, "accuracy-by-agreement", "Accuracy where raters agree", (columns, rows), note)


def each_rater_table(rated: Rated) -> ReportTable | None:
    """Each rater against the others; None if the ratings do not say who gave them."""
    scores, rows = _scores(rated), []
    for place, name in enumerate(rated.reader.names):
        found = rated.rater(place)
        if found is not None:
            questions, measures = found
            cells = (_percent(measures.accuracy), *((_plain(measures.kappa), _plain(measures.mae)) if scores else ()))
            rows.append((name, str(questions), *cells))
    note = (
        "Each rater against what the others say of the same test questions. In parentheses: 95 % intervals (bootstrap "
        "over questions). Accuracy is in percent."
    )
    columns = ("", "questions", "accuracy", *(("kappa", "MAE") if scores else ()))
    return (
        setting_table(rated.setting, "each-rater", "Each rater against the others", (columns, rows), note)
        if rows
        else None
    )


def rater_sentence(rated: Rated) -> str:
    """What a report's opening says of people."""
    measures = rated.single_rater()
    value, low, high = map(percent_number, (measures.accuracy.value, *measures.accuracy.interval))
    text = f"{rated.setting.words}: a single rater agrees with the others on {value} % of the questions (95 % interval "
    text += f"{low} to {high})"
    reached = [
        f"{judge.name} on {percent_number(compared.measures.accuracy.value)} %"
        for judge in rated.arms
        if (compared := rated.compared(judge)) is not None
    ]
    return f"{text}; by the same measure, {', '.join(reached)}." if reached else f"{text}."


def _row(name: str, measures: Measures, above: str, scores: bool) -> tuple[str, ...]:
    ordinal = (_plain(measures.kappa), _plain(measures.mae)) if scores else ()
    return (name, _percent(measures.accuracy), above, *ordinal)


def _above(compared: Compared) -> str:
    value, (low, high) = compared.above
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _percent(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{percent_number(estimate.value)} ({percent_number(low)} to {percent_number(high)})"


def _plain(estimate: Estimate) -> str:
    low, high = map(number, estimate.interval)
    return f"{number(estimate.value)} ({low} to {high})" if low != NOTHING else number(estimate.value)


def _scores(rated: Rated) -> bool:
    return rated.reader.level != "nominal"


def _word(rated: Rated) -> str:
    return "score" if _scores(rated) else "label"
