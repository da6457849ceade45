"""Filters: what each keeps, the order in which they run, and what they count."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import questions_of, task_of
from estep.config import FilterConfig
from estep.errors import ConfigError, DataError
from estep.filters import (
    Candidate,
    Filter,
    apply,
    at_most_per_question,
    build_filters,
    check_filters,
    correct,
    dedup,
    drop_hint_mentions,
    effective_sample_size,
    has_rationale,
    left_out_by,
    resampled,
    temper,
    true_steps,
    weighted_by_answer,
    weighted_by_importance,
)
from estep.records import Sample, Status, Verdict
from estep.scoring import Parts, SampleScores
from estep.tasks.answers import AnswerSpec, ChoiceAnswer, IntegerAnswer, PythonAnswer, TextAnswer
from estep.theory import example
from estep.theory import weights as oracle

WORDS = "one two three four five six"


def candidate(
    id: str,
    status: Status = "correct",
    rationale: str = WORDS,
    *,
    question: str = "q",
    text: str | None = None,
    hint: bool = False,
    supplied: bool = False,
    cut: bool = False,
    answer: str | None = None,
    gold: str = "1",
    tokens: int = 0,
    logprob: float | None = 0.0,
) -> Candidate:
    text = f"{rationale} Score: 1 ({id})" if text is None else text
    sample = Sample(id, text, "supplied" if supplied else "length" if cut else "stop", 0, tokens, logprob)
    verdict = Verdict(id, question, 0, 0, False, status, answer, rationale, hint, supplied)
    return Candidate(sample, verdict, gold)


SCALE = IntegerAnswer(type="integer", min=0, max=4)


def filters_of(config: FilterConfig, golds: str = "", answers: AnswerSpec = SCALE) -> dict[str, Filter]:
    """A config's filters, for questions with these correct answers."""
    return build_filters(config, answers, questions_of(task_of(), golds))


def ids(candidates: list[Candidate]) -> list[str]:
    return [c.sample.draw_id for c in candidates]


def test_only_correct_samples_pass_the_reward() -> None:
    candidates = [
        candidate("a"),
        candidate("b", "wrong"),
        candidate("c", "unparseable"),
        candidate("d", "gold_invalid"),
        candidate("e"),
    ]
    assert ids(correct(candidates)) == ["a", "e"]


def test_a_rationale_has_at_least_so_many_words() -> None:
    candidates = [
        candidate("six"),
        candidate("five", rationale="one two three four five"),
        candidate("none", rationale=""),
        candidate("spaced", rationale="one\ntwo  three four\tfive six"),
    ]
    assert ids(has_rationale(candidates, 6)) == ["six", "spaced"]
    assert ids(has_rationale(candidates, 5)) == ["six", "five", "spaced"]


def test_given_texts_need_no_rationale_and_no_other_exemption() -> None:
    given_text = candidate("given", rationale="", supplied=True)
    assert ids(has_rationale([given_text, candidate("sampled", rationale="")], 6)) == ["given"]
    filters = filters_of(FilterConfig())
    wrong = candidate("wrong", "wrong", "", supplied=True)
    assert ids(apply(filters, [given_text, wrong]).kept) == ["given"]


def test_every_equation_of_a_rationale_is_true_and_there_is_one() -> None:
    candidates = [
        candidate("true", rationale="7 + 5 = 12, 12 + 9 = 21."),
        candidate("bent", rationale="7 + 5 = 12, 12 + 9 = 22."),
        candidate("none", rationale="I add the numbers and get the sum."),
        candidate("unreadable", rationale="(7 + 5) * 2 = 24"),
        candidate("unreadable beside a true one", rationale="7 + 5 = 12, so (7 + 5) * 2 = 25"),
        candidate("given", rationale="", supplied=True),
    ]
    assert ids(true_steps(candidates)) == ["true", "unreadable beside a true one", "given"]
    filtered = apply(filters_of(FilterConfig(check_steps=True, min_rationale_words=0)), candidates)
    assert filtered.dropped["check_steps"] == 3
    assert "check_steps" not in filters_of(FilterConfig())


def test_samples_that_mention_the_hint_are_left_out() -> None:
    assert ids(drop_hint_mentions([candidate("a"), candidate("b", hint=True)])) == ["a"]


def test_the_first_of_equal_texts_of_one_question_is_kept() -> None:
    candidates = [
        candidate("a", text="It is good. Score: 1"),
        candidate("b", text="It is bad. Score: 1"),
        candidate("c", text=" It is  good.\nScore: 1"),
        candidate("d", text="It is good. Score: 1", question="another"),
        candidate("e", text="it is good. Score: 1"),
    ]
    # c differs from a in space alone; d answers another question; e differs in case.
    assert ids(dedup(candidates)) == ["a", "b", "d", "e"]


def test_the_first_so_many_of_each_question_are_kept() -> None:
    candidates = [candidate(f"{question}{n}", question=question) for n in range(3) for question in "xy"]
    assert ids(at_most_per_question(candidates, 2)) == ["x0", "y0", "x1", "y1"]
    assert ids(at_most_per_question(candidates, 1)) == ["x0", "y0"]


def test_the_filters_of_a_config_run_in_a_fixed_order() -> None:
    assert list(filters_of(FilterConfig())) == [
        "correct",
        "drop_truncated",
        "min_rationale_words",
        "drop_hint_mentions",
        "dedup",
    ]
    assert list(filters_of(FilterConfig(max_per_question=1)))[-1] == "max_per_question"
    assert list(filters_of(FilterConfig(check_steps=True)))[2:5] == [
        "min_rationale_words",
        "check_steps",
        "drop_hint_mentions",
    ]


def test_the_reward_cannot_be_switched_off() -> None:
    bare = FilterConfig(drop_truncated=False, min_rationale_words=0, drop_hint_mentions=False, dedup=False)
    assert list(filters_of(bare)) == ["correct"]


def test_each_filter_counts_what_it_left_out_in_its_turn() -> None:
    candidates = [
        candidate("wrong and short", "wrong", "no"),  # counted by the first filter alone
        candidate("short and hinted", rationale="no", hint=True),
        candidate("hinted", hint=True),
        candidate("a", text="same"),
        candidate("b", text="same"),
        candidate("c"),
        candidate("d"),
    ]
    filtered = apply(filters_of(FilterConfig(max_per_question=2)), candidates)
    assert ids(filtered.kept) == ["a", "c"]
    assert filtered.dropped == {
        "correct": 1,
        "drop_truncated": 0,
        "min_rationale_words": 1,
        "drop_hint_mentions": 1,
        "dedup": 1,
        "max_per_question": 1,
    }


def test_the_cap_counts_only_what_the_other_filters_kept() -> None:
    candidates = [candidate("wrong", "wrong"), candidate("hinted", hint=True), candidate("good")]
    assert ids(apply(filters_of(FilterConfig(max_per_question=1)), candidates).kept) == ["good"]


def test_filters_of_nothing_drop_nothing() -> None:
    filtered = apply(filters_of(FilterConfig()), [])
    assert filtered.kept == []
    assert set(filtered.dropped.values()) == {0}


def test_the_filter_that_left_a_sample_out_is_named() -> None:
    candidates = [
        candidate("bad", "wrong"),
        candidate("long", cut=True),
        candidate("good"),
        candidate("leak", hint=True),
    ]
    assert left_out_by(filters_of(FilterConfig()), candidates) == {
        "bad": "correct",
        "long": "drop_truncated",
        "leak": "drop_hint_mentions",
    }


CANDIDATES = st.lists(
    st.builds(
        lambda status, words, step, question, text, hint, supplied: candidate(
            f"{question}-{text}",
            status,
            " ".join(["w"] * words) + step,
            question=question,
            text=text,
            hint=hint,
            supplied=supplied,
        ),
        st.sampled_from(["correct", "wrong", "unparseable", "gold_invalid"]),
        st.integers(0, 8),
        st.sampled_from(["", ": 1 + 1 = 2", ": 1 + 1 = 3"]),
        st.sampled_from("xyz"),
        st.sampled_from(["s", "t", "t ", ""]),
        st.booleans(),
        st.booleans(),
    )
)
CONFIGS = st.builds(
    FilterConfig,
    min_rationale_words=st.integers(0, 8),
    check_steps=st.booleans(),
    drop_hint_mentions=st.booleans(),
    dedup=st.booleans(),
    max_per_question=st.none() | st.integers(1, 3),
)


@given(CANDIDATES, CONFIGS)
def test_every_candidate_is_kept_or_counted_and_kept_ones_pass_again(
    candidates: list[Candidate], config: FilterConfig
) -> None:
    filters = filters_of(config)
    filtered = apply(filters, candidates)
    assert len(filtered.kept) + sum(filtered.dropped.values()) == len(candidates)
    assert all(c.verdict.status == "correct" for c in filtered.kept)
    assert apply(filters, filtered.kept).kept == filtered.kept
    places = [next(i for i, c in enumerate(candidates) if c is kept) for kept in filtered.kept]
    assert places == sorted(places)


def test_a_text_that_was_cut_off_is_left_out_unless_the_config_lets_it_in() -> None:
    candidates = [candidate("a"), candidate("b", cut=True), candidate("c", supplied=True)]
    kept, dropped = apply(filters_of(FilterConfig()), candidates)
    assert [c.sample.draw_id for c in kept] == ["a", "c"]
    assert dropped["drop_truncated"] == 1
    kept, dropped = apply(filters_of(FilterConfig(drop_truncated=False)), candidates)
    assert len(kept) == 3
    assert "drop_truncated" not in dropped


# Rewards, ranks and balance


def test_a_graded_reward_weighs_a_near_miss_and_drops_a_far_one() -> None:
    candidates = [
        candidate("right", answer="1"),
        candidate("one off", "wrong", answer="2"),
        candidate("two off", "wrong", answer="3"),
        candidate("three off", "wrong", answer="4"),
        candidate("none", "unparseable"),
        candidate("no gold", "gold_invalid", answer="1", gold="?"),
    ]
    filters = filters_of(FilterConfig(reward="graded", min_reward=0.5))
    kept = apply(filters, candidates).kept
    assert [(c.sample.draw_id, c.weight) for c in kept] == [("right", 1.0), ("one off", 0.75), ("two off", 0.5)]
    strict = filters_of(FilterConfig(reward="graded", min_reward=1.0))
    assert ids(apply(strict, candidates).kept) == ids(apply(filters_of(FilterConfig()), candidates).kept) == ["right"]
    assert next(iter(filters)) == "graded"


def test_a_graded_reward_is_for_integer_answers() -> None:
    with pytest.raises(ConfigError, match=r"filters\.reward=graded needs integer answers; this task has choice"):
        filters_of(FilterConfig(reward="graded"), answers=ChoiceAnswer(type="choice"))


def test_the_best_of_each_question_are_kept_in_their_order() -> None:
    candidates = [
        candidate("long", tokens=9, logprob=-9.0),
        candidate("other", question="another", tokens=30, logprob=-1.0),
        candidate("short", tokens=4, logprob=-8.0),
        candidate("likely", tokens=8, logprob=-2.0),
    ]
    candidates[3] = candidates[3]._replace(weight=0.5)
    assert ids(at_most_per_question(candidates, 1, "order")) == ["long", "other"]
    assert ids(at_most_per_question(candidates, 1, "shortest")) == ["other", "short"]
    assert ids(at_most_per_question(candidates, 2, "shortest")) == ["other", "short", "likely"]
    assert ids(at_most_per_question(candidates, 1, "logprob")) == ["other", "likely"]
    assert ids(at_most_per_question(candidates, 2, "reward")) == ["long", "other", "short"]
    with pytest.raises(DataError, match="draw unknown has no log-probability to rank by"):
        at_most_per_question([candidate("unknown", logprob=None)], 1, "logprob")


def accepted(golds: str) -> list[Candidate]:
    return [candidate(f"{n}", text=f"{n}", gold=gold, answer=gold) for n, gold in enumerate(golds)]


def test_weighing_gives_every_answer_its_share_in_the_data() -> None:
    kept = apply(filters_of(FilterConfig(balance="reweight"), "00112234"), accepted("0001112")).kept
    shares: Counter[str] = Counter()
    for c in kept:
        shares[c.gold] += c.weight  # type: ignore[assignment]
    # The data have two of each of 0, 1 and 2; nothing was accepted for 3 and 4.
    assert shares == {gold: pytest.approx(7 / 3) for gold in "012"}
    assert sum(c.weight for c in kept) == pytest.approx(len(kept))


def test_weighing_counts_weights_and_not_pairs() -> None:
    near = [candidate(f"n{n}", "wrong", text=f"n{n}", gold="4", answer="2") for n in range(2)]
    config = FilterConfig(reward="graded", balance="reweight")
    kept = apply(filters_of(config, "0044"), [*accepted("00"), *near]).kept
    assert [c.weight for c in kept] == pytest.approx([0.75] * 4)


def test_dropping_leaves_every_answer_about_its_share_and_at_least_one() -> None:
    kept = apply(filters_of(FilterConfig(balance="subsample"), "000011"), accepted("00000001")).kept
    assert Counter(c.gold for c in kept) == {"0": 2, "1": 1}
    scarce = apply(filters_of(FilterConfig(balance="subsample"), "0" * 9 + "1"), accepted("0111")).kept
    assert Counter(c.gold for c in scarce) == {"0": 1, "1": 1}
    for how in ("subsample", "reweight"):
        assert apply(filters_of(FilterConfig(balance=how), "01"), []).kept == []


def test_balance_needs_a_fixed_set_of_answers() -> None:
    with pytest.raises(ConfigError, match=r"filters\.balance needs a fixed set of answers; this task has text"):
        filters_of(FilterConfig(balance="reweight"), answers=TextAnswer(type="text"))


@pytest.mark.parametrize(
    "settings", [{"rank_by": "shortest"}, {"min_reward": 0.7}, {"rank_by": "reward", "max_per_question": 1}]
)
def test_a_setting_that_would_do_nothing_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"set max_per_question|is for reward=graded|exact rewards are all 1"):
        FilterConfig.model_validate(settings)


# Weights


def scored(
    id: str, policy: float, proposal: float, answer: float = 0.0, *, question: str = "q", tokens: int = 4
) -> Candidate:
    """A candidate whose policy gives its text a log-probability, and which was drawn with another.

    Args:
        answer: log π of the answer after the rationale.
        tokens: of the text.
    """
    # No weight looks at the probability under the hinted prompt at temperature 1: it is 7 nats lower.
    scores = SampleScores(Parts(policy - answer, answer, tokens - 1, 1), Parts(proposal - 7, 0.0, tokens - 1, 1))
    unscored = candidate(id, question=question)
    return unscored._replace(sample=replace(unscored.sample, logprob=proposal), scores=scores)


def weights(kept: Sequence[Candidate]) -> list[float]:
    return [c.weight for c in kept]


def test_answer_weights_of_a_question_are_its_answers_probabilities_and_sum_to_one() -> None:
    # s(z) = 0.2, 0.6 of question q; 0.5 alone of question r. 0.2 / 0.8 and 0.6 / 0.8.
    found = weighted_by_answer(
        [
            scored("a", -5, -1, math.log(0.2)),
            scored("b", -9, -1, math.log(0.6)),
            scored("c", -9, -1, math.log(0.5), question="r"),
        ]
    )
    assert weights(found) == pytest.approx([0.25, 0.75, 1.0])


def test_importance_weights_are_the_ratio_of_policy_and_proposal() -> None:
    # Ratios 1 and 3; the effective sample size is 16 / 10 = 1.6 of 2, above 0.5.
    found = weighted_by_importance([scored("a", -4, -4), scored("b", -4 + math.log(3), -4)], min_ess=0.5)
    assert weights(found) == pytest.approx([0.25, 0.75])


def test_plain_samples_weigh_alike() -> None:
    found = weighted_by_importance([scored("a", -4, -4), scored("b", -9, -9), scored("c", -1, -1)], min_ess=0.9)
    assert weights(found) == pytest.approx([1 / 3] * 3)


def test_importance_weights_are_tempered_until_enough_samples_are_effective() -> None:
    # Ratios 1 and e^20 leave one effective sample. At 0.8 of 2, (1 + w)² / (1 + w²) = 1.6 gives w = 3.
    found = weighted_by_importance([scored("a", -30, -10), scored("b", -10, -10)], min_ess=0.8)
    assert weights(found) == pytest.approx([0.25, 0.75], abs=1e-4)


def test_importance_weights_need_the_probability_of_the_draw() -> None:
    one = scored("a", -4, -4)
    unknown = one._replace(sample=replace(one.sample, logprob=None))
    with pytest.raises(DataError, match="draw a has no log-probability"):
        weighted_by_importance([unknown], min_ess=0.5)


def test_length_normalized_ratios_are_per_token() -> None:
    # Log-ratios of 2 log 3 over 2 tokens and of 3 log 3 over 3 tokens: alike per token.
    one, other = scored("a", -4, -4 - 2 * math.log(3), tokens=2), scored("b", -4, -4 - 3 * math.log(3), tokens=3)
    assert weights(weighted_by_importance([one, other], 0.1, length_normalized=True)) == pytest.approx([0.5, 0.5])


def test_a_supplied_text_counts_as_the_mean_of_its_question() -> None:
    found = weighted_by_answer(
        [scored("a", -5, -1, math.log(0.2)), scored("b", -5, -1, math.log(0.6)), candidate("c", supplied=True)]
    )
    assert weights(found) == pytest.approx([0.25 * 2 / 3, 0.75 * 2 / 3, 1 / 3])


@given(st.lists(st.floats(-60, 60), min_size=1, max_size=8), st.floats(0.05, 1.0))
def test_tempered_weights_reach_the_effective_sample_size(ratios: list[float], share: float) -> None:
    exponent = temper(ratios, share * len(ratios))
    assert 0 <= exponent <= 1
    assert effective_sample_size([exponent * ratio for ratio in ratios]) >= share * len(ratios) - 1e-6
    if exponent < 1:  # the largest that does
        assert effective_sample_size([(exponent + 1e-3) * ratio for ratio in ratios]) <= share * len(ratios) + 0.05


def test_duplicates_of_a_weighted_text_add_their_weights() -> None:
    same = [candidate(id, text="one two Score: 1")._replace(weight=0.3) for id in ("a", "b")]
    other = candidate("c")._replace(weight=0.4)
    assert weights(dedup([*same, other], add_weights=True)) == pytest.approx([0.6, 0.4])
    assert weights(dedup([*same, other])) == pytest.approx([0.3, 0.4])


def test_resampling_keeps_one_sample_of_each_question_by_weight() -> None:
    # 4,000 questions with weights 0.2 and 0.8: the second is kept 3,200 times, with a standard deviation of 25.
    candidates = [
        candidate(f"{n}-{which}", question=f"q{n}")._replace(weight=weight)
        for n in range(4000)
        for which, weight in enumerate((0.2, 0.8))
    ]
    kept = resampled(candidates)
    assert [c.verdict.question_id for c in kept] == [f"q{n}" for n in range(4000)]
    assert {round(c.weight, 9) for c in kept} == {1.0}
    assert abs(sum(c.verdict.draw_id.endswith("-1") for c in kept) - 3200) < 125
    assert resampled(candidates) == kept


def test_weights_come_before_duplicates_are_merged_and_before_one_is_drawn() -> None:
    config = FilterConfig(weight_by="importance", resample=True, balance="reweight")
    names = list(build_filters(config, IntegerAnswer(type="integer", min=0, max=4, label="Score"), []))
    assert names[-4:] == ["weight_by", "dedup", "resample", "balance"]


def test_the_weights_of_answers_need_their_position() -> None:
    answers = PythonAnswer(type="python", function="verifiers:any_text")
    with pytest.raises(ConfigError, match="weight_by=answer needs the position of the answer"):
        check_filters(FilterConfig(weight_by="answer"), answers)
    check_filters(FilterConfig(weight_by="importance"), answers)


def test_importance_weights_turn_accepted_hinted_draws_into_the_posterior() -> None:
    # Of the oracle's example, q(z) q(y* | z) = .05, .05, .18, .19, .40: of 100 hinted draws, so many per hundred are
    # accepted. Their weights must add up to the posterior, whatever the proposal prefers.
    policy, proposal = (model.joint_ZY[:, example.CORRECT] for model in (example.plain(), example.hinted()))
    drawn = [
        scored(f"{z}-{n}", math.log(policy[z]), math.log(proposal[z]))
        for z in range(5)
        for n in range(round(100 * proposal[z]))
    ]
    found = weighted_by_importance(drawn, min_ess=0.01)
    of_rationale = [sum(c.weight for c in found if c.verdict.draw_id.startswith(f"{z}-")) for z in range(5)]
    assert of_rationale == pytest.approx(list(example.plain().posterior(example.CORRECT)))


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=8), st.floats(0.1, 1.0))
def test_tempering_agrees_with_the_oracle(ratios: list[float], share: float) -> None:
    found = weighted_by_importance([scored(str(n), r, 0.0) for n, r in enumerate(ratios)], min_ess=share)
    assert weights(found) == pytest.approx(list(oracle.tempered(np.array(ratios), share).weights_K), abs=1e-4)
