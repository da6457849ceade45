"""Warnings from diagnostics: what a figure says that is going wrong, and what to try.

The thresholds are starting points that were checked on the runs of a study; docs/diagnostics.md says how often each
warned rightly.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from estep.metrics import EStepMetrics, IterationMetrics

STARVED = 0.1
"""Pairs to train on per question below which a run has too little to learn from."""
SCARCE_ANSWER = 0.25
"""Acceptance of the samples for one answer, over that for all, below which the answer is hardly learned."""
SHIFTED = 0.25
"""Total variation distance between accepted and true answers above which the policy learns other frequencies."""
BALANCED = 0.01
"""The same distance below which scarce answers were made up for by weights."""
FEW_DISTINCT = 0.3
"""Share of distinct rationales below which they have collapsed."""
COMMON = 0.2
"""Share of one rationale above which the rationales have collapsed."""
COPIED = 0.25
"""Share of word runs from the examples above which the examples are copied."""
INDEPENDENT = 0.1
"""Nats of dependence below which a rationale is an ornament."""
TRUE_STEPS = 0.8
"""Share of true equations below which accepted rationales are bent towards answers."""
FEW_EFFECTIVE = 2.0
"""Effective samples below which one of several weighs alone."""


class Alarm(NamedTuple):
    """A warning: its name in `metrics.json`, what is wrong, and what to try."""

    name: str
    reason: str
    suggestion: str


def alarms(iterations: Sequence[IterationMetrics]) -> list[Alarm]:
    """The warnings of the last of some iterations of one run, in order of their names in `CHECKS`.

    Args:
        iterations: all iterations up to the one in question, the base model first, with their diagnostics.
    """
    found = (check(iterations) for check in CHECKS.values())
    return [alarm for alarm in found if alarm is not None]


def _starved(iterations: Sequence[IterationMetrics]) -> Alarm | None:
    e_step, m_step = iterations[-1].e_step, iterations[-1].m_step
    pairs = m_step.pairs if m_step is not None else 0
    if e_step is None or not pairs < STARVED * e_step.questions:
        return None
    return Alarm(
        "starved",
        f"only {pairs} training pairs for {e_step.questions} questions",
        "look at some with `estep sample`; a hint (proposal.type=pps), a larger proposal.budget or few_shot=both help",
    )


def _unbalanced(iterations: Sequence[IterationMetrics]) -> Alarm | None:
    e_step = iterations[-1].e_step
    if e_step is None or not e_step.answer_shift > SHIFTED:
        return None
    reason = (
        f"{e_step.answer_shift:.0%} of the accepted pairs would need another answer to match the distribution of "
        "answers in the data"
    )
    return Alarm("unbalanced", reason, "an example with each answer helps; so does filters.balance")


def _scarce_answer(iterations: Sequence[IterationMetrics]) -> Alarm | None:
    e_step = iterations[-1].e_step
    if e_step is None or e_step.answer_shift < BALANCED or not (scarce := scarce_answers(e_step)):
        return None
    rarest = min(scarce, key=lambda answer: scarce[answer])
    others = f", as are those for {len(scarce) - 1} more" if len(scarce) > 1 else ""
    return Alarm(
        "scarce_answer",
        f"samples for the answer {rarest} are accepted in {scarce[rarest]:.0%} of the attempts{others}, against "
        f"{e_step.data_utilization:.0%} for all answers",
        "the policy will rarely give it: add an example with it to the task file, or set filters.balance",
    )


def scarce_answers(e_step: EStepMetrics) -> dict[str, float]:
    """The answers that are accepted less than a quarter as often as all answers, with their acceptance rates; none in
    an E-step with few pairs, which lacks all answers."""
    if e_step.accepted < STARVED * e_step.questions:
        return {}
    rates = {a: e_step.accepted_answers.get(a, 0) / n for a, n in e_step.data_answers.items() if n}
    return {a: rate for a, rate in rates.items() if rate < SCARCE_ANSWER * e_step.data_utilization}


def _collapsed(iterations: Sequence[IterationMetrics]) -> Alarm | None:
    last = iterations[-1]
    assert last.diagnostics is not None
    e_step, figures = last.e_step, last.diagnostics
    if not _reasons(last) or e_step is None:
        return None
    if e_step.distinct_rationales < FEW_DISTINCT:
        reason = f"only {e_step.distinct_rationales:.0%} of the accepted rationales are distinct"
    elif figures.commonest_rationale > COMMON:
        reason = f"{figures.commonest_rationale:.0%} of the accepted rationales are one and the same"
    else:
        return None
    suggestion = "the policy says the same whatever it is asked: raise engine.temperature or lower m_step.learning_rate"
    return Alarm("collapsed", reason, suggestion)


def _reasons(iteration: IterationMetrics) -> bool:
    """Whether rationales were accepted at all; `direct` trains on answers alone."""
    return iteration.e_step is not None and iteration.e_step.reasoning_words > 0


def _copied(iterations: Sequence[IterationMetrics]) -> Alarm | None:
    figures = iterations[-1].diagnostics
    if iterations[-1].e_step is None or figures is None or not figures.example_overlap > COPIED:
        return None
    return Alarm(
        "copied",
        f"{figures.example_overlap:.0%} of the accepted rationales are the words of the few-shot examples",
        "use more, and more varied, examples, or few_shot=first, which drops them after the first iteration",
    )


def _false_steps(iterations: Sequence[IterationMetrics]) -> Alarm | None:
    figures = iterations[-1].diagnostics
    if figures is None or not figures.valid_steps < TRUE_STEPS:
        return None
    return Alarm(
        "false_steps",
        f"{1 - figures.valid_steps:.0%} of the equations in the accepted rationales are false",
        "filters.check_steps=true leaves such rationales out; without a hint, fewer of them end in the correct answer",
    )


def _ornament(iterations: Sequence[IterationMetrics]) -> Alarm | None:
    figures = iterations[-1].diagnostics
    if not _reasons(iterations[-1]) or figures is None or not figures.dependence < INDEPENDENT:
        return None
    return Alarm(
        "ornament",
        f"the answer hardly depends on the rationale ({figures.dependence:.2f} nats)",
        "compare with proposal.type=direct; filters.weight_by=answer prefers rationales that lead to the answer",
    )


def _one_weight(iterations: Sequence[IterationMetrics]) -> Alarm | None:
    figures = iterations[-1].diagnostics
    if figures is None or not (figures.several >= 4 and figures.effective_samples < FEW_EFFECTIVE):
        return None
    return Alarm(
        "one_weight",
        f"importance weights leave {figures.effective_samples:.1f} of {figures.several:.1f} samples per question",
        "the samples are unlike what the policy writes at temperature 1 without the hint: keep filters.min_ess",
    )


def _falling(iterations: Sequence[IterationMetrics]) -> Alarm | None:
    figures = [one.diagnostics for one in iterations[-3:] if one.diagnostics is not None]
    if len(figures) < 3:
        return None
    for before, after in itertools.pairwise(figures):
        error = math.hypot(before.log_likelihood_error, after.log_likelihood_error)
        if not before.log_likelihood - after.log_likelihood > 2 * error:
            return None
    return Alarm(
        "falling",
        f"the likelihood of the correct answers fell twice, to {figures[-1].log_likelihood:.2f} nats",
        "stop earlier (select=validation chooses the iteration), or lower m_step.learning_rate",
    )


CHECKS: dict[str, Callable[[Sequence[IterationMetrics]], Alarm | None]] = {
    "starved": _starved,
    "unbalanced": _unbalanced,
    "scarce_answer": _scarce_answer,
    "collapsed": _collapsed,
    "copied": _copied,
    "false_steps": _false_steps,
    "ornament": _ornament,
    "one_weight": _one_weight,
    "falling": _falling,
}
