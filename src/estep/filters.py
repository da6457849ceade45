"""Which samples become training pairs: the reward r(ŷ, y*) of Algorithm 1, and hygiene beside it.

Every filter is a pure function from candidates to the candidates that it keeps, in order. `apply` runs those that
the config names, and counts what each of them left out.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, assert_never

from estep.config import FilterConfig, RankBy
from estep.errors import ConfigError, DataError
from estep.records import Question, Sample, Verdict
from estep.tasks.answers import AnswerSpec, IntegerAnswer


class Candidate(NamedTuple):
    """The last sample of an attempt, with its verdict."""

    sample: Sample
    verdict: Verdict
    gold: str = ""
    """y*"""
    weight: float = 1.0
    """What its log-likelihood is multiplied by in the M-step."""


Filter = Callable[[Sequence[Candidate]], list[Candidate]]


def correct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Keep r(ŷ, y*) = 1[ŷ = y*], what the verifier calls correct: the filter inside the expectation of equation 3."""
    return [c for c in candidates if c.verdict.status == "correct"]


def graded(candidates: Sequence[Candidate], width: int, min_reward: float) -> list[Candidate]:
    """Weigh by r(ŷ, y*) = 1 − |ŷ − y*| / width, and keep what earns at least `min_reward`.

    A graded reward in place of Algorithm 1's indicator, as in reward-weighted fine-tuning (Mukherjee et al., 2025):
    the reward multiplies the gradient of the sample's log-likelihood.

    Args:
        width: of the scale, in points.
        min_reward: above 0.
    """
    kept = []
    for c in candidates:
        if c.verdict.status in ("correct", "wrong") and c.verdict.answer is not None:
            reward = 1 - abs(int(c.verdict.answer) - int(c.gold)) / width
            if reward >= min_reward:
                kept.append(c._replace(weight=c.weight * reward))
    return kept


def drop_truncated(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Leave out texts that were cut off at `max_new_tokens`: trained on, they would teach to stop in mid-sentence, and
    an answer at the cut may be the head of a longer one."""
    return [c for c in candidates if c.sample.finish_reason != "length"]


def has_rationale(candidates: Sequence[Candidate], min_words: int) -> list[Candidate]:
    """Keep rationales of at least `min_words` words.

    A hinted model may learn to skip the rationale, since an answer alone is accepted too. Texts that the proposal
    gave itself are kept: there was no rationale to sample.
    """
    return [c for c in candidates if c.verdict.answer_only or len(c.verdict.rationale.split()) >= min_words]


def drop_hint_mentions(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Leave out texts that talk about the hint: the policy is asked without one."""
    return [c for c in candidates if not c.verdict.hint_mentioned]


def dedup(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Keep the first of the candidates of a question that have the same text."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for c in candidates:
        key = (c.verdict.question_id, " ".join(c.sample.text.split()))
        if key not in seen:
            seen.add(key)
            kept.append(c)
    return kept


def at_most_per_question(candidates: Sequence[Candidate], cap: int, rank_by: RankBy = "order") -> list[Candidate]:
    """Keep the best `cap` candidates of every question, in the order in which they came.

    Args:
        cap: candidates a question.
        rank_by: `order` for the first, `reward` for the highest reward, `shortest` for the fewest tokens, `logprob`
            for the highest mean log-probability of a token. Those that rank alike keep their order.
    """
    of_question: dict[str, list[int]] = {}
    for index, c in enumerate(candidates):
        of_question.setdefault(c.verdict.question_id, []).append(index)
    kept: set[int] = set()
    for indices in of_question.values():
        kept.update(sorted(indices, key=lambda index: _rank(candidates[index], rank_by))[:cap])
    return [c for index, c in enumerate(candidates) if index in kept]


def _rank(candidate: Candidate, rank_by: RankBy) -> float:
    """The lowest ranks first."""
    sample = candidate.sample
    match rank_by:
        case "order":
            return 0
        case "reward":
            return -candidate.weight
        case "shortest":
            return sample.completion_tokens
        case "logprob":
            if sample.logprob is None:
                raise DataError(f"draw {sample.draw_id} has no log-probability to be ranked by (rank_by=logprob)")
            return -sample.logprob / max(1, sample.completion_tokens)
        case _:
            assert_never(rank_by)


def reweighted(candidates: Sequence[Candidate], mix: Mapping[str, int]) -> list[Candidate]:
    """Weigh so that every answer has the share of the whole weight that it has in the data.

    PPS accepts easy answers more often, so that what is trained on is not mixed as the data are. Answers of which
    nothing was accepted cannot be made up for: the others share their part.

    Args:
        mix: how often each answer is right in the data.
    """
    accepted: dict[str, float] = {}
    for c in candidates:
        accepted[c.gold] = accepted.get(c.gold, 0.0) + c.weight
    data, whole = sum(mix[answer] for answer in accepted), sum(accepted.values())
    return [c._replace(weight=c.weight * (mix[c.gold] / data) / (accepted[c.gold] / whole)) for c in candidates]


def subsampled(candidates: Sequence[Candidate], mix: Mapping[str, int]) -> list[Candidate]:
    """Leave out so many that every answer has about the share that it has in the data, at least one of each.

    Args:
        mix: how often each answer is right in the data.
    """
    accepted = Counter(c.gold for c in candidates)
    if not accepted:
        return []
    scarcest = min(accepted[answer] / mix[answer] for answer in accepted)
    room = {answer: max(1, math.floor(scarcest * mix[answer] + 1e-9)) for answer in accepted}
    kept = []
    for c in candidates:
        if room[c.gold] > 0:
            room[c.gold] -= 1
            kept.append(c)
    return kept


class Filtered(NamedTuple):
    """What the filters kept, and how many candidates each of them left out."""

    kept: list[Candidate]
    dropped: dict[str, int]


def build_filters(config: FilterConfig, answers: AnswerSpec, questions: Sequence[Question]) -> dict[str, Filter]:
    """The filters that a config names, in the order in which they run.

    Args:
        answers: the task's.
        questions: those that are drawn for: their answers are the mix that `balance` restores.

    Raises:
        ConfigError: a setting that the task's answers do not allow.
    """
    filters: dict[str, Filter] = {"correct": correct}
    if config.reward == "graded":
        if not isinstance(answers, IntegerAnswer):
            raise ConfigError(f"filters.reward=graded needs integer answers; this task has {answers.type}")
        filters = {"graded": partial(graded, width=answers.max - answers.min, min_reward=config.min_reward)}
    if config.drop_truncated:
        filters["drop_truncated"] = drop_truncated
    if config.min_rationale_words > 0:
        filters["min_rationale_words"] = partial(has_rationale, min_words=config.min_rationale_words)
    if config.drop_hint_mentions:
        filters["drop_hint_mentions"] = drop_hint_mentions
    if config.dedup:
        filters["dedup"] = dedup
    if config.max_per_question is not None:
        filters["max_per_question"] = partial(at_most_per_question, cap=config.max_per_question, rank_by=config.rank_by)
    if config.balance != "none":
        if not answers.values:
            raise ConfigError(f"filters.balance needs a fixed set of answers; this task has {answers.type}")
        mix = Counter(question.answer for question in questions)
        filters["balance"] = partial(reweighted if config.balance == "reweight" else subsampled, mix=mix)
    return filters


def apply(filters: Mapping[str, Filter], candidates: Sequence[Candidate]) -> Filtered:
    """Run the filters one after the other."""
    stages = _stages(filters, candidates)
    return Filtered(stages[-1].kept if stages else list(candidates), {s.name: s.dropped for s in stages})


def left_out_by(filters: Mapping[str, Filter], candidates: Sequence[Candidate]) -> dict[str, str]:
    """Which filter left a draw out, by draw id; without those that were kept."""
    return {draw: stage.name for stage in _stages(filters, candidates) for draw in stage.left_out}


class _Stage(NamedTuple):
    name: str
    kept: list[Candidate]
    dropped: int
    left_out: list[str]
    """Draw ids."""


def _stages(filters: Mapping[str, Filter], candidates: Sequence[Candidate]) -> list[_Stage]:
    """What each filter kept and left out."""
    stages = []
    kept = list(candidates)
    for name, keep in filters.items():
        before = [c.verdict.draw_id for c in kept]
        kept = keep(kept)
        after = {c.verdict.draw_id for c in kept}
        left_out = [draw for draw in before if draw not in after]
        stages.append(_Stage(name, kept, len(before) - len(kept), left_out))
    return stages
