"""Which samples become training pairs: the reward r(ŷ, y*) of Algorithm 1, and hygiene beside it.

Every filter is a pure function from candidates to the candidates that it keeps, in order. `apply` runs those that
the config names, and counts what each of them left out.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from estep.config import FilterConfig
from estep.records import Sample, Verdict


class Candidate(NamedTuple):
    """The last sample of a chain, with its verdict."""

    sample: Sample
    verdict: Verdict


Filter = Callable[[Sequence[Candidate]], list[Candidate]]


def correct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Keep r(ŷ, y*) = 1[ŷ = y*]: what the verifier calls correct."""
    return [c for c in candidates if c.verdict.status == "correct"]


def finished(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Leave out texts that were cut off at `max_new_tokens`: trained on, they would teach to stop in mid-sentence, and
    an answer at the cut may be the head of a longer one."""
    return [c for c in candidates if c.sample.finish_reason != "length"]


def has_rationale(candidates: Sequence[Candidate], min_words: int) -> list[Candidate]:
    """Keep rationales of at least `min_words` words.

    A hinted model may learn to skip the rationale, since an answer alone is accepted too. Texts that the proposal
    gave itself are kept: there was no rationale to sample.
    """
    return [c for c in candidates if c.verdict.given or len(c.verdict.rationale.split()) >= min_words]


def no_hint_mentioned(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Leave out texts that talk about the hint: the policy is asked without one."""
    return [c for c in candidates if not c.verdict.hint_mentioned]


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Keep the first of the candidates of a question that have the same text."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for c in candidates:
        key = (c.verdict.question_id, " ".join(c.sample.text.split()))
        if key not in seen:
            seen.add(key)
            kept.append(c)
    return kept


def at_most_per_question(candidates: Sequence[Candidate], cap: int) -> list[Candidate]:
    """Keep the first `cap` candidates of every question."""
    taken: Counter[str] = Counter()
    kept = []
    for c in candidates:
        if taken[c.verdict.question_id] < cap:
            taken[c.verdict.question_id] += 1
            kept.append(c)
    return kept


class Filtered(NamedTuple):
    """What the filters kept, and how many candidates each of them left out."""

    kept: list[Candidate]
    dropped: dict[str, int]


def build_filters(config: FilterConfig) -> dict[str, Filter]:
    """The filters that a config names, in the order in which they run."""
    filters: dict[str, Filter] = {"correct": correct}
    if config.finished:
        filters["finished"] = finished
    if config.min_rationale_words > 0:
        filters["min_rationale_words"] = partial(has_rationale, min_words=config.min_rationale_words)
    if config.no_hint_mentioned:
        filters["no_hint_mentioned"] = no_hint_mentioned
    if config.distinct:
        filters["distinct"] = distinct
    if config.max_per_question is not None:
        filters["max_per_question"] = partial(at_most_per_question, cap=config.max_per_question)
    return filters


def apply(filters: dict[str, Filter], candidates: Sequence[Candidate]) -> Filtered:
    """Run the filters one after the other."""
    dropped = {}
    kept = list(candidates)
    for name, keep in filters.items():
        before = len(kept)
        kept = keep(kept)
        dropped[name] = before - len(kept)
    return Filtered(kept, dropped)
