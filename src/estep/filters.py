"""Which samples become training pairs: the reward r(ŷ, y*) of Algorithm 1, and optional quality filters.

Each filter is a pure function from candidates to the candidates that it keeps, in order. `apply` runs the filters that
the config names and counts how many candidates each of them drops.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, assert_never

from estep.config import FilterConfig, RankBy
from estep.errors import ConfigError, DataError
from estep.records import Question, Sample, Verdict, derive_seed
from estep.scoring import SampleScores
from estep.tasks.answers import AnswerSpec, IntegerAnswer, PythonAnswer
from estep.tasks.steps import read_steps


class Candidate(NamedTuple):
    """The last sample of an attempt, with its verdict."""

    sample: Sample
    verdict: Verdict
    gold: str = ""
    """y*"""
    weight: float = 1.0
    """Multiplies its log-likelihood in the M-step."""
    scores: SampleScores | None = None
    """None if nothing is scored, or the sample does not fit the model's context."""


Filter = Callable[[Sequence[Candidate]], list[Candidate]]


def correct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Keep samples with r(ŷ, y*) = 1[ŷ = y*] = 1, those with the verdict `correct`: the filter in equation 3."""
    return [c for c in candidates if c.verdict.status == "correct"]


def graded(candidates: Sequence[Candidate], width: int, min_reward: float) -> list[Candidate]:
    """Weight each sample by r(ŷ, y*) = 1 − |ŷ − y*| / width, and keep those with a reward of at least `min_reward`.

    This replaces Algorithm 1's indicator with a graded reward, as in reward-weighted fine-tuning (Mukherjee et al.,
    2025): the reward multiplies the gradient of the sample's log-likelihood.

    Args:
        width: the width of the scale, in points.
        min_reward: the smallest reward to keep, above 0.
    """
    kept = []
    for c in candidates:
        if c.verdict.status in ("correct", "wrong") and c.verdict.answer is not None:
            reward = 1 - abs(int(c.verdict.answer) - int(c.gold)) / width
            if reward >= min_reward:
                kept.append(c._replace(weight=c.weight * reward))
    return kept


def drop_truncated(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Drop samples that were cut off at `max_new_tokens`: training on them would teach the policy to stop in
    mid-sentence, and an answer at the cut may be the start of a longer one."""
    return [c for c in candidates if c.sample.finish_reason != "length"]


def has_rationale(candidates: Sequence[Candidate], min_words: int) -> list[Candidate]:
    """Keep rationales of at least `min_words` words.

    A hinted model may learn to skip the rationale, because an answer alone passes the verifier. Texts that the proposal
    wrote itself are kept: no rationale was sampled for them.
    """
    return [c for c in candidates if c.verdict.supplied or len(c.verdict.rationale.split()) >= min_words]


def true_steps(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Keep rationales with at least one equation, all of which are true.

    In arithmetic, a hinted model may bend its last step to reach the answer: `12 + 9 = 23`. Equations that cannot be
    read for certain are no equations (`tasks.steps`). Texts that the proposal wrote itself are kept.
    """
    kept = []
    for c in candidates:
        steps = read_steps(c.verdict.rationale)
        if c.verdict.supplied or steps.found == steps.valid > 0:
            kept.append(c)
    return kept


def drop_hint_mentions(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Drop samples that mention the hint: the policy's own prompt has none."""
    return [c for c in candidates if not c.verdict.hint_mentioned]


def dedup(candidates: Sequence[Candidate], add_weights: bool = False) -> list[Candidate]:
    """Of a question's candidates with the same text, keep the first. Whitespace is ignored.

    Args:
        add_weights: give it the weights of all of them. A text that was drawn twice counts twice in a weighted mean.
    """
    first: dict[tuple[str, str], Candidate] = {}
    for c in candidates:
        key = (c.verdict.question_id, " ".join(c.sample.text.split()))
        former = first.setdefault(key, c)
        if former is not c and add_weights:
            first[key] = former._replace(weight=former.weight + c.weight)
    return list(first.values())


def weighted_by_answer(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Weight a question's candidates by π(y* | x, z), how surely the policy gives the correct answer after the
    rationale. The weights of a question sum to 1."""
    return _normalized(candidates, lambda group: [scores.policy.answer for _, scores in group])


def weighted_by_importance(
    candidates: Sequence[Candidate], min_ess: float, length_normalized: bool = False
) -> list[Candidate]:
    """Weight a question's candidates by (π(z, y* | x) / q(z, y* | x, y*))^τ: self-normalized importance sampling from
    the proposal towards the posterior π(z | x, y*). The weights of a question sum to 1.

    Sums over many tokens make one weight outweigh all others. So τ is the largest exponent up to 1 for which the
    effective sample size (Σ w)² / Σ w² is at least a share `min_ess` of the question's candidates.

    Args:
        min_ess: in (0, 1]; 1 weights all alike.
        length_normalized: divide each log-ratio by the number of tokens first, so that long texts do not decide.
    """

    def log_weights(group: _Scored) -> list[float]:
        lengths = [scores.policy.tokens if length_normalized else 1 for _, scores in group]
        ratios = [log_ratio(c.sample, scores) / length for (c, scores), length in zip(group, lengths, strict=True)]
        exponent = temper(ratios, min_ess * len(ratios))
        return [exponent * ratio for ratio in ratios]

    return _normalized(candidates, log_weights)


def log_ratio(sample: Sample, scores: SampleScores) -> float:
    """log π(z, y* | x) − log q(z, y* | x, y*), in nats: the logarithm of a correct sample's importance weight.

    q is the distribution that the sample was drawn from, with the hint, the temperature and `top_p`; π is at
    temperature 1, which is what the M-step trains. Whitespace around the sample counts in q only, because it is not
    trained; the end of turn of a sample that was cut off counts in π only, because it is trained.

    Raises:
        DataError: the engine did not report q.
    """
    if sample.logprob is None:
        raise DataError(f"draw {sample.draw_id} has no log-probability, which its importance weight needs")
    return scores.policy.total - sample.logprob


_Scored = Sequence[tuple[Candidate, SampleScores]]


def _normalized(candidates: Sequence[Candidate], log_weights: Callable[[_Scored], list[float]]) -> list[Candidate]:
    """Multiply each candidate's weight by its share among its question's candidates. A text without scores, which the
    proposal supplied or which does not fit the model's context, counts as much as the mean of its question."""
    weighted = list(candidates)
    for indices in _by_question(candidates).values():
        group = [candidates[index] for index in indices]
        known = [(c, c.scores) for c in group if c.scores is not None]
        shares = iter(softmax(log_weights(known)) if known else [])
        for index, c in zip(indices, group, strict=True):
            share = 1 / len(group) if c.scores is None else next(shares) * len(known) / len(group)
            weighted[index] = c._replace(weight=c.weight * share)
    return weighted


def softmax(log_weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1."""
    highest = max(log_weights)
    weights = [math.exp(one - highest) for one in log_weights]
    total = sum(weights)
    return [weight / total for weight in weights]


def effective_sample_size(log_weights: Sequence[float]) -> float:
    """(Σ w)² / Σ w², between 1 and the number of weights."""
    return 1 / sum(weight**2 for weight in softmax(log_weights))


def temper(log_weights: Sequence[float], least: float) -> float:
    """The largest exponent in [0, 1] for which the effective sample size is at least `least`, to 1e-6.

    The effective sample size falls as the exponent grows, from the number of weights at 0.
    """
    if effective_sample_size(log_weights) >= least:
        return 1.0
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        enough = effective_sample_size([middle * one for one in log_weights]) >= least
        low, high = (middle, high) if enough else (low, middle)
    return low


def resampled(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Of each question's candidates, draw one by weight, and give it the sum of their weights: sampling-importance-
    resampling. The random number depends on the question and on the texts."""
    kept = []
    for question_id, indices in _by_question(candidates).items():
        group = [candidates[index] for index in indices]
        generator = random.Random(derive_seed("resample", question_id, *(c.sample.text for c in group)))
        weights = [c.weight for c in group]
        (chosen,) = generator.choices(group, weights)
        kept.append(chosen._replace(weight=sum(weights)))
    return kept


def at_most_per_question(candidates: Sequence[Candidate], cap: int, rank_by: RankBy = "order") -> list[Candidate]:
    """Keep the best `cap` candidates of each question, in their original order.

    Args:
        cap: candidates per question.
        rank_by: `order` prefers the first, `reward` the highest reward, `shortest` the fewest tokens, and `logprob` the
            highest mean log-probability per token. Ties keep their order.
    """
    kept: set[int] = set()
    for indices in _by_question(candidates).values():
        kept.update(sorted(indices, key=lambda index: _rank(candidates[index], rank_by))[:cap])
    return [c for index, c in enumerate(candidates) if index in kept]


def _by_question(candidates: Sequence[Candidate]) -> dict[str, list[int]]:
    """The positions of each question's candidates, in order."""
    of_question: dict[str, list[int]] = {}
    for index, c in enumerate(candidates):
        of_question.setdefault(c.verdict.question_id, []).append(index)
    return of_question


def _rank(candidate: Candidate, rank_by: RankBy) -> float:
    """The sort key: the lowest value is the best."""
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
                raise DataError(f"draw {sample.draw_id} has no log-probability to rank by (filters.rank_by=logprob)")
            return -sample.logprob / max(1, sample.completion_tokens)
        case _:
            assert_never(rank_by)


def reweighted(candidates: Sequence[Candidate], mix: Mapping[str, int]) -> list[Candidate]:
    """Weight candidates so that each answer's share of the total weight equals its share of the data.

    PPS accepts easy answers more often, so the accepted pairs have another distribution of answers than the data. An
    answer without any accepted candidate cannot be corrected for: its share goes to the other answers.

    Args:
        mix: number of questions in the data per correct answer.
    """
    accepted: dict[str, float] = {}
    for c in candidates:
        accepted[c.gold] = accepted.get(c.gold, 0.0) + c.weight
    data, whole = sum(mix[answer] for answer in accepted), sum(accepted.values())
    return [c._replace(weight=c.weight * (mix[c.gold] / data) / (accepted[c.gold] / whole)) for c in candidates]


def subsampled(candidates: Sequence[Candidate], mix: Mapping[str, int]) -> list[Candidate]:
    """Drop candidates until each answer has about its share of the data; at least one per accepted answer is kept.

    Args:
        mix: number of questions in the data per correct answer.
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
    """The candidates that passed all filters, and how many each filter dropped."""

    kept: list[Candidate]
    dropped: dict[str, int]


def check_filters(config: FilterConfig, answers: AnswerSpec) -> None:
    """Check that the filters that a config names fit a task's answers.

    Raises:
        ConfigError: one of them does not.
    """
    if config.reward == "graded" and not isinstance(answers, IntegerAnswer):
        raise ConfigError(f"filters.reward=graded needs integer answers; this task has {answers.type}")
    if config.weight_by == "answer" and isinstance(answers, PythonAnswer):
        raise ConfigError(
            "filters.weight_by=answer needs the position of the answer, which this task's own verifier does not report"
        )
    if config.balance != "none" and not answers.values:
        raise ConfigError(f"filters.balance needs a fixed set of answers; this task has {answers.type}")


def build_filters(config: FilterConfig, answers: AnswerSpec, questions: Sequence[Question]) -> dict[str, Filter]:
    """The filters that a config names, in the order in which they run.

    Args:
        answers: the task's answer spec.
        questions: the questions to draw for; `balance` restores the distribution of their answers.

    Raises:
        ConfigError: a filter does not fit the task's answers.
    """
    check_filters(config, answers)
    filters: dict[str, Filter] = {"correct": correct}
    if config.reward == "graded" and isinstance(answers, IntegerAnswer):
        filters = {"graded": partial(graded, width=answers.max - answers.min, min_reward=config.min_reward)}
    if config.drop_truncated:
        filters["drop_truncated"] = drop_truncated
    if config.min_rationale_words > 0:
        filters["min_rationale_words"] = partial(has_rationale, min_words=config.min_rationale_words)
    if config.check_steps:
        filters["check_steps"] = true_steps
    if config.drop_hint_mentions:
        filters["drop_hint_mentions"] = drop_hint_mentions
    if config.weight_by == "answer":
        filters["weight_by"] = weighted_by_answer
    elif config.weight_by == "importance":
        filters["weight_by"] = partial(
            weighted_by_importance, min_ess=config.min_ess, length_normalized=config.length_normalized
        )
    if config.dedup:
        filters["dedup"] = partial(dedup, add_weights=config.weight_by != "none")
    if config.resample:
        filters["resample"] = resampled
    if config.max_per_question is not None:
        filters["max_per_question"] = partial(at_most_per_question, cap=config.max_per_question, rank_by=config.rank_by)
    if config.balance != "none":
        mix = Counter(question.answer for question in questions)
        filters["balance"] = partial(reweighted if config.balance == "reweight" else subsampled, mix=mix)
    return filters


def apply(filters: Mapping[str, Filter], candidates: Sequence[Candidate]) -> Filtered:
    """Run the filters in order."""
    stages = _stages(filters, candidates)
    return Filtered(stages[-1].kept if stages else list(candidates), {s.name: s.dropped for s in stages})


def left_out_by(filters: Mapping[str, Filter], candidates: Sequence[Candidate]) -> dict[str, str]:
    """The filter that dropped each draw, by draw id; draws that were kept are not in it."""
    return {draw: stage.name for stage in _stages(filters, candidates) for draw in stage.left_out}


class _Stage(NamedTuple):
    name: str
    kept: list[Candidate]
    dropped: int
    left_out: list[str]
    """Draw ids."""


def _stages(filters: Mapping[str, Filter], candidates: Sequence[Candidate]) -> list[_Stage]:
    """The result of each filter in turn."""
    stages = []
    kept = list(candidates)
    for name, keep in filters.items():
        before = [c.verdict.draw_id for c in kept]
        kept = keep(kept)
        after = {c.verdict.draw_id for c in kept}
        left_out = [draw for draw in before if draw not in after]
        stages.append(_Stage(name, kept, len(before) - len(kept), left_out))
    return stages
