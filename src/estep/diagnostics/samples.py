"""Diagnostics from the samples of an E-step and from the policy's responses."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from estep.e_step import EStepResult
from estep.filters import Candidate, effective_sample_size, log_ratio
from estep.metrics import Diagnostics, mean, normalized_texts
from estep.records import Response
from estep.tasks import Task
from estep.tasks.steps import valid_steps_share

_RUN = 5
"""Words of a run that counts as copied from an example."""


def from_samples(task: Task, test: Sequence[Response], e_step: EStepResult | None) -> Diagnostics:
    """The figures that come from an E-step and from the policy's responses to the test questions."""
    examples = [example.rationale for example in task.file.examples]
    rationales, responses = accepted_rationales(e_step) if e_step else [], [response.rationale for response in test]
    candidates = e_step.candidates if e_step else []
    sizes = list(_effective_sizes(candidates))
    return replace(
        from_rationales(rationales, responses, examples),
        hint_price=hint_price(candidates),
        effective_samples=mean([size.effective for size in sizes]),
        several=mean([size.samples for size in sizes]),
    )


def from_rationales(accepted: Sequence[str], responses: Sequence[str], examples: Sequence[str]) -> Diagnostics:
    """The figures that come from rationales alone.

    Args:
        accepted: the rationales that were accepted.
        responses: those of the policy's responses to the test questions.
        examples: those of the few-shot examples.
    """
    return Diagnostics(
        commonest_rationale=commonest_share(accepted),
        example_overlap=overlap(accepted, examples),
        valid_steps=valid_steps_share(accepted),
        test_commonest_rationale=commonest_share(responses),
        test_example_overlap=overlap(responses, examples),
        test_valid_steps=valid_steps_share(responses),
    )


def accepted_rationales(e_step: EStepResult) -> list[str]:
    """The rationales of the samples that became pairs."""
    rationales = {c.verdict.draw_id: c.verdict.rationale for c in e_step.candidates}
    return [rationales[pair.draw_id] for pair in e_step.pairs]


def commonest_share(rationales: Sequence[str]) -> float:
    """Share of the most frequent text, ignoring case and whitespace; NaN without a non-empty text."""
    counts = Counter(normalized_texts(rationales))
    return max(counts.values()) / len(rationales) if counts else math.nan


def overlap(rationales: Sequence[str], examples: Sequence[str]) -> float:
    """Share of the rationales' runs of five words that occur in the examples; NaN if either has none."""
    known = {run for example in examples for run in _runs(example)}
    runs = [run for rationale in rationales for run in _runs(rationale)]
    return mean([run in known for run in runs]) if known else math.nan


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = text.lower().split()
    return (tuple(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1))


def hint_price(candidates: Sequence[Candidate]) -> float:
    """Mean of log q(z | x, y*) − log π(z | x) over hinted candidates, in nats per token of the rationale; NaN if none
    has scores."""
    gained, tokens = 0.0, 0
    for c in candidates:
        if c.verdict.hinted and c.scores is not None and c.scores.proposal is not None:
            gained += c.scores.proposal.rationale - c.scores.policy.rationale
            tokens += c.scores.policy.rationale_tokens
    return gained / tokens if tokens else math.nan


class _Size(NamedTuple):
    samples: int
    effective: float


def _effective_sizes(candidates: Sequence[Candidate]) -> Iterator[_Size]:
    """The effective sample sizes of questions with several candidates whose weights are known."""
    ratios: dict[str, list[float]] = {}
    for c in candidates:
        if c.scores is not None and c.scores.proposal is not None and c.sample.finish_reason == "stop":
            ratios.setdefault(c.verdict.question_id, []).append(log_ratio(c.sample, c.scores))
    return (_Size(len(of), effective_sample_size(of)) for of in ratios.values() if len(of) > 1)
