"""The metrics of an iteration. An undefined metric is NaN, never 0, and null in JSON.

The paper reports three (section 4.1): `Evaluation.accuracy`, `EStepMetrics.data_utilization` and
`Evaluation.reasoning_words`. The others are here because these three can look good while a judge is useless.
"""

import math
import statistics
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

from estep.records import Response

Vote = Literal["none", "majority", "median"]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of the policy on held-out questions, asked with the plain prompt."""

    questions: int
    predictions: int
    """Questions times samples; with voting, one per question."""
    accuracy: float
    """Share of predictions that are correct; unparseable ones count as wrong."""
    majority_accuracy: float
    """Accuracy of always giving the most frequent gold answer of these questions."""
    parse_rate: float
    """Share of predictions with exactly one allowed answer."""
    kappa: float
    """Cohen's kappa with quadratic weights, over the parsed predictions. NaN if answers are not ordered, nothing was
    parsed, or chance agreement is certain."""
    mae: float
    """Mean absolute error in points of the scale, over the parsed predictions; NaN if answers are not ordered."""
    predicted: dict[str, int]
    """Number of predictions per answer, with those that are `unparseable`."""
    gold: dict[str, int]
    """Number of questions per gold answer."""
    reasoning_words: float
    """Mean words per rationale. A response without a readable answer counts in full."""
    distinct_rationales: float
    """Distinct rationales over all rationales: near 0 if the policy says the same about every question."""
    hint_mentioned: float
    """Share of responses that mention the hint."""
    expected_mae: float = math.nan
    """Mean absolute error of the expected score, the mean of all scores by their probabilities, over the parsed
    predictions; NaN without `evaluation.probabilities`, or if answers are not ordered."""
    calibration_error: float = math.nan
    """Expected calibration error of the probability of the prediction, over the parsed predictions, in [0, 1]; NaN
    without `evaluation.probabilities`."""


@dataclass(frozen=True)
class EStepMetrics:
    """Metrics of an E-step."""

    questions: int
    draws: int
    """Draws in all rounds."""
    attempts: int
    """Questions times n; each attempt ends in one sample."""
    accepted: int
    """Samples that passed all filters and became pairs."""
    data_utilization: float
    """`accepted` over `attempts`, in [0, 1]."""
    tokens_per_pair: float
    """New tokens, sampled in all rounds, per accepted pair."""
    status: dict[str, int]
    """Number of attempts per verdict on their last sample."""
    dropped: dict[str, int]
    """Number of samples that each filter dropped; a sample counts at the first filter that dropped it."""
    hinted_share: float
    """Share of the accepted pairs that were sampled with the hint."""
    accepted_answers: dict[str, int]
    """Number of accepted pairs per correct answer y*."""
    data_answers: dict[str, int]
    """Number of attempts per correct answer y*."""
    answer_shift: float
    """Total variation distance between the answers of the accepted pairs, by weight, and those of the data, in [0, 1]:
    the share of the weight that would need another answer to match the data. NaN if nothing was accepted or the task
    has no fixed set of answers."""
    reasoning_words: float
    """Mean words per accepted rationale."""
    distinct_rationales: float
    """Distinct accepted rationales over all accepted rationales."""
    hint_mentioned: float
    """Share of the attempts' last samples that mention the hint, before filtering."""
    never_accepted: float = math.nan
    """Share of the questions from which no pair has been accepted, in this or any earlier iteration."""
    unscored: int = 0
    """Correct samples without scores, because they do not fit the model's context with one of their prompts and the end
    of turn."""


@dataclass(frozen=True)
class MStepMetrics:
    """Metrics of an M-step."""

    pairs: int
    left_out: int
    """Pairs longer than the model's context."""
    steps: int
    learning_rate: float
    first_loss: float
    """Of the first gradient step."""
    last_loss: float
    """Of the last gradient step."""
    mean_loss: float
    """Nats per completion token, or per pair with `loss_reduction: sequence`; weighted by the pairs' weights. The same
    holds for the other two losses."""


@dataclass(frozen=True)
class Diagnostics:
    """What an iteration shows of the inside of the EM; see docs/diagnostics.md. NaN where a figure has no data or was
    not asked for."""

    commonest_rationale: float
    """Share of the accepted pairs with the most frequent rationale."""
    example_overlap: float
    """Share of the accepted rationales' runs of five words that occur in the rationales of the few-shot examples."""
    valid_steps: float
    """Share of the equations in accepted rationales that hold."""
    test_commonest_rationale: float
    """The same three figures of the policy's responses to the test questions."""
    test_example_overlap: float
    test_valid_steps: float
    hint_price: float = math.nan
    """Mean of log q(z | x, y*) − log π(z | x) over the correct hinted samples, in nats per token of the rationale: how
    much less likely the policy is to write them without the hint."""
    effective_samples: float = math.nan
    """Mean over questions of the effective sample size of the weights π(z, y* | x) / q(z, y* | x, y*), over the
    correct samples of questions with several. NaN, like the price, if a served model proposes: its q is not known."""
    several: float = math.nan
    """Mean number of those samples per question."""
    log_likelihood: float = math.nan
    """Estimate of log π(y* | x) in nats, the mean over the validation questions: the importance-weighted bound of four
    plain samples at temperature 1 (IWAE-4; Burda et al., 2016). It is low by the estimate's own scatter."""
    log_likelihood_error: float = math.nan
    """Its standard error over questions."""
    dependence: float = math.nan
    """Mean of log π(y* | x, z) − log π(y* | x, z') in nats, where z' is a rationale for a question with another answer:
    0 if the answer does not depend on the rationale."""
    dependence_error: float = math.nan
    """Its standard error over questions."""
    unscored_probes: int = 0
    """Texts that the last four figures lack, because they do not fit the model's context."""
    warnings: tuple[str, ...] = ()
    """The names of the warnings that these figures gave."""


@dataclass(frozen=True)
class IterationMetrics:
    """One iteration of Algorithm 1. Iteration 0 is the base model and only has an evaluation."""

    iteration: int
    evaluation: Evaluation
    e_step: EStepMetrics | None = None
    m_step: MStepMetrics | None = None
    """None if no sample was accepted, so nothing was trained."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Tokens per phase: `e_step_prompt`, `e_step_new`, `m_step`, `evaluation_prompt`, `evaluation_new`. The last two
    include the validation questions."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds per phase: `e_step`, `m_step`, `load`, `evaluation`. If the iteration was interrupted, only
    the last session counts. This is the only field in which a resumed run differs from an uninterrupted one."""
    validation: Evaluation | None = None
    """On the validation questions; None if the run has none."""
    diagnostics: Diagnostics | None = None
    """None with `diagnostics: off`."""

    @property
    def name(self) -> str:
        """The iteration in words."""
        return f"iteration {self.iteration}" if self.iteration else "the base model"


def selected(iterations: Sequence[IterationMetrics], select: Literal["last", "validation"]) -> IterationMetrics:
    """The iteration whose weights a run selects: the last, or the earliest with the highest validation accuracy."""
    if select == "last":
        return iterations[-1]
    return max(iterations, key=lambda one: one.validation.accuracy if one.validation else -math.inf)


def evaluate_responses(
    responses: Sequence[Response], answers: Sequence[str], ordinal: bool, vote: Vote = "none"
) -> Evaluation:
    """The metrics of graded responses.

    Args:
        responses: the responses to all questions; with `vote`, several per question.
        answers: all allowed answers in order; empty if they cannot be listed.
        ordinal: whether answers are integers.
        vote: how a question's responses are combined into one prediction.
    """
    counted = voted(responses, vote)
    golds = {p.question_id: p.gold for p in responses}
    parsed = [p for p in counted if p.answer is not None]
    rationales = [p.rationale for p in responses]
    order = list(answers) or sorted({*golds.values(), *(p.answer for p in parsed if p.answer is not None)})
    counts = Counter(p.answer if p.answer is not None else "unparseable" for p in counted)
    gold_counts = Counter(golds.values())
    pairs = [(int(p.gold), int(p.answer)) for p in parsed if p.answer is not None] if ordinal else []
    return Evaluation(
        questions=len(golds),
        predictions=len(counted),
        accuracy=mean([p.status == "correct" for p in counted]),
        majority_accuracy=max(gold_counts.values()) / len(golds) if golds else math.nan,
        parse_rate=mean([p.answer is not None for p in counted]),
        kappa=quadratic_kappa(pairs, [int(a) for a in answers] if ordinal else []),
        mae=mean([abs(gold - predicted) for gold, predicted in pairs]),
        predicted={answer: counts.get(answer, 0) for answer in [*order, "unparseable"]},
        gold={answer: gold_counts.get(answer, 0) for answer in order},
        reasoning_words=mean([len(r.split()) for r in rationales]),
        distinct_rationales=distinct_share(rationales),
        hint_mentioned=mean([p.hint_mentioned for p in responses]),
        expected_mae=mean([abs(int(p.gold) - expected_score(p.probabilities)) for p in parsed if p.probabilities])
        if ordinal
        else math.nan,
        calibration_error=calibration_error([c for p in parsed if (c := confidence(p)) is not None]),
    )


class Confidence(NamedTuple):
    """A prediction with its probability."""

    probability: float
    right: bool


def confidence(prediction: Response) -> Confidence | None:
    """The probability of a prediction and whether it is right; None if there is no prediction or no probability."""
    if prediction.answer is None or prediction.probabilities is None:
        return None
    # A letter that is none of the question's options has none.
    return Confidence(prediction.probabilities.get(prediction.answer, 0.0), prediction.status == "correct")


def expected_score(probabilities: Mapping[str, float]) -> float:
    """The mean of all scores by their probabilities.

    >>> expected_score({"0": 0.25, "4": 0.75})
    3.0
    """
    return math.fsum(int(answer) * probability for answer, probability in probabilities.items())


BINS = 10
"""Bins of predictions by their probability, of equal width. A probability on a boundary is in the upper one, and 1 in
the last one."""


def by_probability(predictions: Iterable[Confidence]) -> list[list[Confidence]]:
    """Predictions in `BINS` bins by their probability."""
    bins: list[list[Confidence]] = [[] for _ in range(BINS)]
    for one in predictions:
        bins[min(int(BINS * one.probability), BINS - 1)].append(one)
    return bins


def calibration_error(predictions: Sequence[Confidence]) -> float:
    """Expected calibration error (Naeini et al., 2015): the distance between the mean probability and the share that is
    right, as the mean over the bins by their numbers of predictions. NaN without predictions.

    >>> round(calibration_error([Confidence(0.95, True), Confidence(0.85, False)]), 3)
    0.45
    """
    gaps = [abs(sum(one.probability - one.right for one in of_bin)) for of_bin in by_probability(predictions)]
    return math.fsum(gaps) / len(predictions) if predictions else math.nan


def voted(responses: Sequence[Response], vote: Vote) -> list[Response]:
    """One response per question, by vote. Unparseable responses do not vote; the earliest answer wins a tie, and the
    median of an even number of votes is the lower of the middle two. The probabilities of answers are the mean of those
    of all responses."""
    if vote == "none":
        return list(responses)
    by_question: dict[str, list[Response]] = {}
    for response in responses:
        by_question.setdefault(response.question_id, []).append(response)
    chosen = []
    for samples in by_question.values():
        votes = [p for p in samples if p.answer is not None]
        if not votes:
            winner = samples[0]
        elif vote == "majority":
            (answer, _), *_ = Counter(p.answer for p in votes).most_common(1)  # the earliest answer wins a tie
            winner = next(p for p in votes if p.answer == answer)
        else:
            ranked = sorted(votes, key=lambda p: float(p.answer or "nan"))
            winner = ranked[(len(ranked) - 1) // 2]
        given = [p.probabilities for p in samples if p.probabilities is not None]
        chosen.append(replace(winner, probabilities=_mean_of(given)) if given else winner)
    return chosen


def _mean_of(given: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {answer: mean([probabilities[answer] for probabilities in given]) for answer in given[0]}


def shares_right(predictions: Iterable[Response]) -> dict[str, float]:
    """Each question's share of correct predictions: 0 or 1 unless several of them count."""
    right: dict[str, list[float]] = {}
    for prediction in predictions:
        right.setdefault(prediction.question_id, []).append(float(prediction.status == "correct"))
    return {question: mean(values) for question, values in right.items()}


def quadratic_kappa(pairs: Sequence[tuple[int, int]], labels: Sequence[int]) -> float:
    """Cohen's kappa of (gold, predicted) pairs with quadratic weights (Cohen, 1968); NaN if undefined."""
    from sklearn.metrics import cohen_kappa_score

    gold, predicted = [g for g, _ in pairs], [p for _, p in pairs]
    if not pairs or (len(set(gold)) == 1 and set(gold) == set(predicted)):
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(cohen_kappa_score(gold, predicted, labels=list(labels), weights="quadratic"))


def total_variation(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Total variation distance of two distributions given as counts, in [0, 1]; NaN if either is empty.

    >>> total_variation({"0": 3, "1": 1}, {"0": 2, "1": 2})
    0.25
    """
    first, second = sum(one.values()), sum(other.values())
    if not first or not second:
        return math.nan
    return sum(abs(one.get(key, 0) / first - other.get(key, 0) / second) for key in {*one, *other}) / 2


def distinct_share(texts: Sequence[str]) -> float:
    """Distinct non-empty texts over all texts, ignoring case and whitespace; NaN if there are none."""
    if not texts:
        return math.nan
    return len(set(normalized_texts(texts))) / len(texts)


def normalized_texts(texts: Sequence[str]) -> list[str]:
    """The texts that are not empty, without differences of case and whitespace."""
    return [" ".join(text.lower().split()) for text in texts if text.strip()]


def mean(values: Sequence[float | bool]) -> float:
    """The arithmetic mean; NaN if there are no values."""
    return sum(values) / len(values) if values else math.nan


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean; NaN for fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def metrics_to_json(metrics: IterationMetrics | Evaluation) -> dict[str, Any]:
    """The metrics as plain data, with None for NaN."""
    return _replace(asdict(metrics), lambda value: None if isinstance(value, float) and math.isnan(value) else value)


def metrics_from_json(content: Mapping[str, Any]) -> IterationMetrics:
    """The metrics of an iteration from plain data, the inverse of `metrics_to_json`."""
    sections = {
        "evaluation": Evaluation,
        "e_step": EStepMetrics,
        "m_step": MStepMetrics,
        "validation": Evaluation,
        "diagnostics": Diagnostics,
    }
    fields: dict[str, Any] = dict(content)
    for name, section in sections.items():
        if fields.get(name) is not None:
            fields[name] = section(**{k: _restored(v) for k, v in fields[name].items()})
    return IterationMetrics(**fields)


def _restored(value: Any) -> Any:
    if value is None:
        return math.nan
    return tuple(value) if isinstance(value, list) else value


def _replace(value: Any, with_: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace(inner, with_) for key, inner in value.items()}
    return with_(value)


def summary(metrics: IterationMetrics) -> str:
    """An iteration's metrics on one line."""
    evaluation, e_step = metrics.evaluation, metrics.e_step
    name = "base model" if metrics.iteration == 0 else f"iteration {metrics.iteration}"
    used = f", data utilization {e_step.data_utilization:.1%}" if e_step else ""
    if e_step and not math.isnan(e_step.tokens_per_pair):
        used += f" ({e_step.tokens_per_pair:.0f} new tokens per pair)"
    validated = f", validation accuracy {metrics.validation.accuracy:.1%}" if metrics.validation else ""
    return (
        f"{name}: test accuracy {evaluation.accuracy:.1%} (majority class {evaluation.majority_accuracy:.1%})"
        f"{validated}{used}, "
        f"parse rate {evaluation.parse_rate:.1%}, "
        + ("" if math.isnan(evaluation.kappa) else f"kappa {evaluation.kappa:.2f}, ")
        + f"{evaluation.reasoning_words:.0f} words per rationale"
    )
