"""What is measured in an iteration. An undefined metric is NaN, never 0, and null in JSON.

The paper's three (section 4.1) are `Evaluation.accuracy`, `EStepMetrics.data_utilization` and
`Evaluation.reasoning_words`; the others are there because these three can look good while a judge is useless.
"""

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from estep.records import Response

Vote = Literal["none", "majority", "median"]


@dataclass(frozen=True)
class Evaluation:
    """The policy on the held-out questions, asked with the plain prompt."""

    questions: int
    predictions: int
    """Questions times samples, or questions where samples vote."""
    accuracy: float
    """Share of predictions that are right; an unparseable one is wrong."""
    majority_accuracy: float
    """What always giving the most frequent gold answer of these questions would reach."""
    parse_rate: float
    """Share of predictions that hold one allowed answer."""
    kappa: float
    """Cohen's kappa with quadratic weights, over the parsed predictions. NaN where answers are not ordered, nothing
    was parsed, or chance agreement is certain."""
    mae: float
    """Mean absolute error in points of the scale, over the parsed predictions; NaN where answers are not ordered."""
    predicted: dict[str, int]
    """How often each answer was given; `unparseable` among them."""
    gold: dict[str, int]
    """How often each answer is right."""
    reasoning_words: float
    """Mean words of a rationale. A response without a readable answer counts whole."""
    distinct_rationales: float
    """Distinct rationales over all rationales: near 0 when the policy says the same of every question."""
    hint_mentioned: float
    """Share of responses that mention the hint."""


@dataclass(frozen=True)
class EStepMetrics:
    """What sampling gave."""

    questions: int
    draws: int
    """All draws, of all rounds."""
    attempts: int
    """Questions times n: every attempt ends in one sample."""
    accepted: int
    """Samples that passed all filters and became pairs."""
    data_utilization: float
    """Accepted over attempts, in [0, 1]."""
    tokens_per_pair: float
    """New tokens sampled, in all rounds, for each accepted pair."""
    status: dict[str, int]
    """Verdicts of the attempts' last samples."""
    dropped: dict[str, int]
    """How many samples each filter left out, in its turn."""
    hinted_share: float
    """Share of the accepted pairs that were sampled with the hint."""
    accepted_answers: dict[str, int]
    """Correct answers y* of the accepted pairs."""
    data_answers: dict[str, int]
    """Correct answers y* of all attempts."""
    answer_shift: float
    """Total variation distance between the two mixes, in [0, 1]: the share of the weight that would have to change its
    answer to make the accepted pairs mixed as the data. NaN where nothing was accepted, or where the task's answers are
    no fixed set."""
    reasoning_words: float
    """Mean words of an accepted rationale."""
    distinct_rationales: float
    """Distinct rationales over all accepted ones."""
    hint_mentioned: float
    """Share of all last samples that mention the hint, before filtering."""


@dataclass(frozen=True)
class MStepMetrics:
    """What training did."""

    pairs: int
    left_out: int
    """Pairs longer than the model's context."""
    steps: int
    learning_rate: float
    first_loss: float
    last_loss: float
    mean_loss: float
    """Nats a completion token; with `loss_reduction: sequence` nats a pair, and all of it times the weights."""


@dataclass(frozen=True)
class IterationMetrics:
    """One iteration of Algorithm 1. Iteration 0 is the base model and has an evaluation only."""

    iteration: int
    evaluation: Evaluation
    e_step: EStepMetrics | None = None
    m_step: MStepMetrics | None = None
    """None where nothing was accepted, so that nothing was trained."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Tokens of each phase: `e_step_prompt`, `e_step_new`, `m_step`, `evaluation_prompt`, `evaluation_new`; the last
    two with the validation questions'."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each phase: `e_step`, `m_step`, `load`, `evaluation`. Of the last session only, where an
    iteration was interrupted. The one field in which a resumed run differs from an uninterrupted one."""
    validation: Evaluation | None = None
    """On the validation questions, where a run has some."""

    @property
    def name(self) -> str:
        """For people."""
        return f"iteration {self.iteration}" if self.iteration else "the base model"


def selected(iterations: Sequence[IterationMetrics], select: Literal["last", "validation"]) -> IterationMetrics:
    """The iteration whose weights a run ends in: the last, or the earliest of the highest validation accuracy."""
    if select == "last":
        return iterations[-1]
    return max(iterations, key=lambda one: one.validation.accuracy if one.validation else -math.inf)


def evaluate_responses(
    responses: Sequence[Response], answers: Sequence[str], ordinal: bool, vote: Vote = "none"
) -> Evaluation:
    """The metrics of graded responses.

    Args:
        responses: to all questions; with `vote`, several of each.
        answers: every allowed answer in order; empty where there is no such list.
        ordinal: whether answers are integers.
        vote: how a question's responses become one prediction.
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
    )


def voted(responses: Sequence[Response], vote: Vote) -> list[Response]:
    """One response per question. Unparseable responses do not vote; the earliest answer wins a tie, and the median
    of an even number is the lower one."""
    if vote == "none":
        return list(responses)
    by_question: dict[str, list[Response]] = {}
    for response in responses:
        by_question.setdefault(response.question_id, []).append(response)
    chosen = []
    for samples in by_question.values():
        votes = [p for p in samples if p.answer is not None]
        if not votes:
            chosen.append(samples[0])
        elif vote == "majority":
            (winner, _), *_ = Counter(p.answer for p in votes).most_common(1)  # ties: the one counted first
            chosen.append(next(p for p in votes if p.answer == winner))
        else:
            ranked = sorted(votes, key=lambda p: float(p.answer or "nan"))
            chosen.append(ranked[(len(ranked) - 1) // 2])
    return chosen


def quadratic_kappa(pairs: Sequence[tuple[int, int]], labels: Sequence[int]) -> float:
    """Cohen's kappa with quadratic weights of (gold, predicted) pairs (Cohen, 1968); NaN where undefined."""
    from sklearn.metrics import cohen_kappa_score

    gold, predicted = [g for g, _ in pairs], [p for _, p in pairs]
    if not pairs or (len(set(gold)) == 1 and set(gold) == set(predicted)):
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(cohen_kappa_score(gold, predicted, labels=list(labels), weights="quadratic"))


def total_variation(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Half the summed difference of two mixes' shares, in [0, 1]; NaN where one of them is empty.

    >>> total_variation({"0": 3, "1": 1}, {"0": 2, "1": 2})
    0.25
    """
    first, second = sum(one.values()), sum(other.values())
    if not first or not second:
        return math.nan
    return sum(abs(one.get(key, 0) / first - other.get(key, 0) / second) for key in {*one, *other}) / 2


def distinct_share(texts: Sequence[str]) -> float:
    """Distinct non-empty texts over all texts; NaN of none."""
    if not texts:
        return math.nan
    return len({" ".join(t.lower().split()) for t in texts if t.strip()}) / len(texts)


def mean(values: Sequence[float | bool]) -> float:
    """The arithmetic mean; NaN of none."""
    return sum(values) / len(values) if values else math.nan


def metrics_to_json(metrics: IterationMetrics) -> dict[str, Any]:
    """Plain data, with null for NaN."""
    return _replace(asdict(metrics), lambda value: None if isinstance(value, float) and math.isnan(value) else value)


def metrics_from_json(content: Mapping[str, Any]) -> IterationMetrics:
    """The inverse of `metrics_to_json`."""
    sections = {"evaluation": Evaluation, "e_step": EStepMetrics, "m_step": MStepMetrics, "validation": Evaluation}
    fields: dict[str, Any] = dict(content)
    for name, section in sections.items():
        if fields.get(name) is not None:
            fields[name] = section(**{k: math.nan if v is None else v for k, v in fields[name].items()})
    return IterationMetrics(**fields)


def _replace(value: Any, with_: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace(inner, with_) for key, inner in value.items()}
    return with_(value)


NOTABLE_SHIFT = 0.1
"""From this total variation distance on, a mix of accepted answers that differs from the data's is pointed out."""


def balance_note(metrics: IterationMetrics) -> str | None:
    """A line about accepted answers that are mixed otherwise than the data's; None where they are not."""
    shift = metrics.e_step.answer_shift if metrics.e_step else 0.0
    if not shift > NOTABLE_SHIFT:
        return None
    return (
        f"  note: {shift:.0%} of the accepted pairs would need another answer to match the data's mix of answers; "
        "filters.balance gives every answer its share"
    )


def summary(metrics: IterationMetrics) -> str:
    """An iteration on one line."""
    evaluation, e_step = metrics.evaluation, metrics.e_step
    name = "base model" if metrics.iteration == 0 else f"iteration {metrics.iteration}"
    used = f", data utilization {e_step.data_utilization:.1%}" if e_step else ""
    if e_step and not math.isnan(e_step.tokens_per_pair):
        used += f" ({e_step.tokens_per_pair:.0f} new tokens a pair)"
    validated = f", validation accuracy {metrics.validation.accuracy:.1%}" if metrics.validation else ""
    return (
        f"{name}: test accuracy {evaluation.accuracy:.1%} (majority class {evaluation.majority_accuracy:.1%})"
        f"{validated}{used}, "
        f"parse rate {evaluation.parse_rate:.1%}, "
        + ("" if math.isnan(evaluation.kappa) else f"kappa {evaluation.kappa:.2f}, ")
        + f"{evaluation.reasoning_words:.0f} words a rationale"
    )
