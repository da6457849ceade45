"""Filters: what each keeps, the order in which they run, and what they count."""

from hypothesis import given
from hypothesis import strategies as st

from estep.config import FilterConfig
from estep.filters import (
    Candidate,
    apply,
    at_most_per_question,
    build_filters,
    correct,
    distinct,
    has_rationale,
    no_hint_mentioned,
)
from estep.records import Sample, Status, Verdict

WORDS = "one two three four five six"


def candidate(
    id: str,
    status: Status = "correct",
    rationale: str = WORDS,
    *,
    question: str = "q",
    text: str | None = None,
    hint: bool = False,
    given: bool = False,
    cut: bool = False,
) -> Candidate:
    text = f"{rationale} Score: 1 ({id})" if text is None else text
    sample = Sample(id, text, "given" if given else "length" if cut else "stop", 0, 0, 0.0)
    verdict = Verdict(id, question, 0, 0, False, status, None, rationale, hint, given)
    return Candidate(sample, verdict)


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
    given_text = candidate("given", rationale="", given=True)
    assert ids(has_rationale([given_text, candidate("sampled", rationale="")], 6)) == ["given"]
    filters = build_filters(FilterConfig())
    wrong = candidate("wrong", "wrong", "", given=True)
    assert ids(apply(filters, [given_text, wrong]).kept) == ["given"]


def test_samples_that_mention_the_hint_are_left_out() -> None:
    assert ids(no_hint_mentioned([candidate("a"), candidate("b", hint=True)])) == ["a"]


def test_the_first_of_equal_texts_of_one_question_is_kept() -> None:
    candidates = [
        candidate("a", text="It is good. Score: 1"),
        candidate("b", text="It is bad. Score: 1"),
        candidate("c", text=" It is  good.\nScore: 1"),
        candidate("d", text="It is good. Score: 1", question="another"),
        candidate("e", text="it is good. Score: 1"),
    ]
    # c differs from a in space alone; d answers another question; e differs in case.
    assert ids(distinct(candidates)) == ["a", "b", "d", "e"]


def test_the_first_so_many_of_each_question_are_kept() -> None:
    candidates = [candidate(f"{question}{n}", question=question) for n in range(3) for question in "xy"]
    assert ids(at_most_per_question(candidates, 2)) == ["x0", "y0", "x1", "y1"]
    assert ids(at_most_per_question(candidates, 1)) == ["x0", "y0"]


def test_the_filters_of_a_config_run_in_a_fixed_order() -> None:
    assert list(build_filters(FilterConfig())) == [
        "correct",
        "finished",
        "min_rationale_words",
        "no_hint_mentioned",
        "distinct",
    ]
    assert list(build_filters(FilterConfig(max_per_question=1)))[-1] == "max_per_question"


def test_the_reward_cannot_be_switched_off() -> None:
    bare = FilterConfig(finished=False, min_rationale_words=0, no_hint_mentioned=False, distinct=False)
    assert list(build_filters(bare)) == ["correct"]


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
    filtered = apply(build_filters(FilterConfig(max_per_question=2)), candidates)
    assert ids(filtered.kept) == ["a", "c"]
    assert filtered.dropped == {
        "correct": 1,
        "finished": 0,
        "min_rationale_words": 1,
        "no_hint_mentioned": 1,
        "distinct": 1,
        "max_per_question": 1,
    }


def test_the_cap_counts_only_what_the_other_filters_kept() -> None:
    candidates = [candidate("wrong", "wrong"), candidate("hinted", hint=True), candidate("good")]
    assert ids(apply(build_filters(FilterConfig(max_per_question=1)), candidates).kept) == ["good"]


def test_filters_of_nothing_drop_nothing() -> None:
    filtered = apply(build_filters(FilterConfig()), [])
    assert filtered.kept == []
    assert set(filtered.dropped.values()) == {0}


CANDIDATES = st.lists(
    st.builds(
        lambda status, words, question, text, hint, given: candidate(
            f"{question}-{text}", status, " ".join(["w"] * words), question=question, text=text, hint=hint, given=given
        ),
        st.sampled_from(["correct", "wrong", "unparseable", "gold_invalid"]),
        st.integers(0, 8),
        st.sampled_from("xyz"),
        st.sampled_from(["s", "t", "t ", ""]),
        st.booleans(),
        st.booleans(),
    )
)
CONFIGS = st.builds(
    FilterConfig,
    min_rationale_words=st.integers(0, 8),
    no_hint_mentioned=st.booleans(),
    distinct=st.booleans(),
    max_per_question=st.none() | st.integers(1, 3),
)


@given(CANDIDATES, CONFIGS)
def test_every_candidate_is_kept_or_counted_and_kept_ones_pass_again(
    candidates: list[Candidate], config: FilterConfig
) -> None:
    filters = build_filters(config)
    filtered = apply(filters, candidates)
    assert len(filtered.kept) + sum(filtered.dropped.values()) == len(candidates)
    assert all(c.verdict.status == "correct" for c in filtered.kept)
    assert apply(filters, filtered.kept).kept == filtered.kept
    places = [next(i for i, c in enumerate(candidates) if c is kept) for kept in filtered.kept]
    assert places == sorted(places)


def test_a_text_that_was_cut_off_is_left_out_unless_the_config_lets_it_in() -> None:
    candidates = [candidate("a"), candidate("b", cut=True), candidate("c", given=True)]
    kept, dropped = apply(build_filters(FilterConfig()), candidates)
    assert [c.sample.draw_id for c in kept] == ["a", "c"]
    assert dropped["finished"] == 1
    kept, dropped = apply(build_filters(FilterConfig(finished=False)), candidates)
    assert len(kept) == 3
    assert "finished" not in dropped
