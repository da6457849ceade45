"""Answer parsing by intent: one answer in the form asked for, or none. The cases are in `parser_cases.json`."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from conftest import JOINED
from estep.tasks.answers import (
    AnswerSpec,
    ChoiceAnswer,
    IntegerAnswer,
    MathAnswer,
    NumberAnswer,
    TextAnswer,
)
from estep.tasks.base import load_task

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "parser_cases.json").read_text("utf-8"))
SPEC: TypeAdapter[AnswerSpec] = TypeAdapter(AnswerSpec)

SCORE = IntegerAnswer(type="integer", min=0, max=4)
LETTER = ChoiceAnswer(type="choice")
NUMBER = NumberAnswer(type="number")
TEXT = TextAnswer(type="text")
MATH = MathAnswer(type="math")


SPECS = [SCORE, LETTER, NUMBER, TEXT, MATH]

# Arbitrary text hardly ever holds a label, so texts are also put together from what a parser looks at.
PIECES = st.sampled_from(
    [
        *("Score:", "score :", "**Score:**", "Score", "Answer:", "**Answer**:", "Evaluation:"),
        *("0", "1", "3", "4", "5", "44", "3.0", "3.5", "-1", "−1", "3/4", "3/5", "٣", "３", "³", "½", "four"),
        *("A", "b", "E", "$", "%", "/", "-", "–", ".", ",", ":", "(", ")", "[", "]", "*", "**", "_", '"', "`"),
        *("or", "to", "out of", "and", "of", " ", "  ", "\n", "\t", "\u00a0", "\u200b"),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join) | st.text()
SPACED_TEXTS = st.lists(PIECES, max_size=12).map(" ".join)


@st.composite
def stated_scores(draw: st.DrawFn) -> str:
    """A text in which a score is stated, among noise that may hold others."""
    return draw(SPACED_TEXTS) + f" Score: {draw(st.integers(0, 4))}" + draw(TEXTS)


@st.composite
def integer_specs(draw: st.DrawFn) -> IntegerAnswer:
    low = draw(st.integers(-20, 20))
    label = draw(st.sampled_from(["Score", "Rating", "Final score", "Score (final)"]))
    return IntegerAnswer(type="integer", min=low, max=low + draw(st.integers(1, 20)), label=label)


def parsed_answer(spec: Any, text: str) -> str | None:
    parsed = spec.parse(text)
    return None if parsed is None else parsed.answer


# The cases


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_a_text_states_the_answer_of_its_case(case):
    assert parsed_answer(SPEC.validate_python(case["spec"]), case["text"]) == case["answer"]


def test_the_cases_cover_integers_most_and_every_kind_that_reads_text():
    kinds = [case["spec"]["type"] for case in CASES]
    assert kinds.count("integer") >= 60
    assert set(kinds) == {"integer", "choice", "number", "text", "math"}


def test_no_two_cases_share_a_claim():
    assert len({case["why"] for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", [case for case in CASES if case["answer"] is not None], ids=lambda case: case["why"])
def test_the_answer_of_a_case_is_its_own_canonical_form(case):
    assert SPEC.validate_python(case["spec"]).canonical(case["answer"]) == case["answer"]


def test_the_rationale_ends_where_the_first_label_begins():
    text = "Evaluation: Dull. **Score:** 1\nScore: 1"
    parsed = SCORE.parse(text)
    assert parsed is not None
    assert text[: parsed.start] == "Evaluation: Dull. "


# Gold answers


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        *((3, "3"), (3.0, "3"), ("3", "3"), ("3.0", "3"), (" 3 ", "3"), ("03", "3"), (0, "0"), (-0.0, "0"), (4, "4")),
        *((True, None), (False, None), (None, None), ("", None), (" ", None), ("three", None), ("True", None)),
        *((3.5, None), ("3,0", None), ("3/4", None), (5, None), (-1, None), ("44", None), ([3], None)),
        *((float("nan"), None), (float("inf"), None), ("-inf", None), ("sNaN", None), ("0x3", None)),
        *(("٣", None), ("３", None), ("³", None), ("−1", None), ("1e1000000", None), ("1e-1000000", None)),
        ("_3_", None),
    ],
    ids=repr,
)
def test_a_gold_score_is_an_integer_of_the_range_or_nothing(gold, answer):
    assert SCORE.canonical(gold) == answer


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        *(("B", "B"), ("b", "B"), (" B ", "B"), ("E", None), ("AB", None), ("", None), (None, None)),
        *((True, None), (1, None), ("В", None), ("Ｂ", None)),  # Cyrillic, full-width
    ],
    ids=repr,
)
def test_a_gold_letter_is_one_of_the_choices_or_nothing(gold, answer):
    assert LETTER.canonical(gold) == answer


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        *((1200, "1200"), ("1,200", "1200"), ("1200.0", "1200"), ("$1200", "1200"), (" 1200 ", "1200")),
        *((0.5, "0.5"), ("-0.0", "0"), (-5, "-5"), ("1e3", "1000")),
        *((True, None), (None, None), ("", None), ("$", None), ("twelve", None), ("٣", None), ("nan", None)),
        ("1e1000000", None),
    ],
    ids=repr,
)
def test_a_gold_number_is_finite_or_nothing(gold, answer):
    assert NUMBER.canonical(gold) == answer


def test_numbers_that_differ_in_a_late_digit_are_different_answers():
    assert NUMBER.canonical("1" * 40 + "2") != NUMBER.canonical("1" * 40 + "3")


@pytest.mark.parametrize("gold", [None, "", " ", "**", "."], ids=repr)
def test_a_gold_text_says_something(gold):
    assert TEXT.canonical(gold) is None


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.type)
@example(gold="**Paris**.")
@example(gold="Paris. .")
@given(gold=TEXTS | st.integers(-1, 5) | st.integers() | st.floats() | st.sampled_from([*"ABCDEabcde"]))
def test_a_canonical_form_is_its_own_canonical_form(spec, gold):
    answer = spec.canonical(gold)
    assert answer is None or spec.canonical(answer) == answer


@given(integer_specs())
def test_every_allowed_answer_is_canonical(spec):
    assert [spec.canonical(value) for value in spec.values] == list(spec.values)


# Properties of parsing


@given(integer_specs(), TEXTS | stated_scores())
def test_a_parsed_score_is_an_allowed_answer_or_nothing(spec, text):
    assert parsed_answer(spec, text) in (None, *spec.values)


@given(TEXTS)
def test_a_parsed_letter_is_a_choice_or_nothing(text):
    assert parsed_answer(LETTER, text) in (None, *LETTER.values)


@given(stated_scores(), st.integers(0, 4))
def test_another_score_at_the_end_leaves_no_answer(text, score):
    stated = parsed_answer(SCORE, text)
    assume(stated is not None and stated != str(score))
    assert SCORE.parse(f"{text}\nScore: {score}") is None


@given(stated_scores())
def test_the_same_score_at_the_end_leaves_the_answer(text):
    stated = parsed_answer(SCORE, text)
    assume(stated is not None)
    assert parsed_answer(SCORE, f"{text}\nScore: {stated}") == stated


@given(
    integer_specs(),
    st.text(st.characters(exclude_categories=["N", "Cs"])).filter(lambda words: ":" not in words),
    st.data(),
)
def test_a_rendered_score_parses_back(spec, words, data):
    score = data.draw(st.sampled_from(spec.values))
    text = f"Evaluation: {words} {spec.label}: {score}"
    parsed = spec.parse(text)
    assert parsed is not None
    assert parsed.answer == score
    assert text[: parsed.start].startswith("Evaluation:")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.type)
@given(text=TEXTS | stated_scores())
def test_parsing_never_raises(spec, text):
    spec.parse(text)


# 5000 digits: Python refuses to read an int of more than 4300.
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.type)
@pytest.mark.parametrize("before", ["", "3/", "3 out of ", "3.", "-"])
def test_parsing_never_raises_on_endless_digits(spec, before):
    label = getattr(spec, "label", "")
    spec.parse(f"{label}: {before}{'9' * 5000}")


RUNS = [
    "*",
    "_",
    '"',
    "'",
    "*_",
    "**`",
    " ",
    "\n",
    ".$",
    "$ ",
    "(",
    "{",
    "\\(",
    "\\[",
    "\\ ",
    "A",
    "a ",
    "B. ",
    "1",
    "1,",
    "1/",
]
RUNS += [
    "1. ",
    ". ",
    "or ",
    "no 3 ",
    ", ",
    "\\frac",
    "Score:",
    "Answer:",
    "Score:3 ",
    "Answer: A. ",
    "Score*",
    "Answer: x ",
]


# Patterns that are cubic, or quadratic with a large factor, would take hours or minutes on these.
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.type)
@pytest.mark.parametrize("run", RUNS)
def test_a_long_run_of_anything_around_a_label_is_parsed(spec: Any, run: str) -> None:
    long = (run * 20_000)[:20_000]
    spec.parse(f"{long}{spec.label}{long}")
    for answer in ("", "3", "B. ", "3. "):
        spec.parse(f"{long}{spec.label}{long}: {answer}{long}x")
        spec.parse(f"{spec.label}: {answer}{long}x")


@pytest.mark.parametrize(
    ("spec", "text", "stated"),
    [
        (IntegerAnswer(type="integer", min=0, max=4), "A 3 of sorts. Score: **3**/4. And so: Score: (3)", "3"),
        (IntegerAnswer(type="integer", min=0, max=4), "Score: 4.0", "4.0"),
        (ChoiceAnswer(type="choice"), "B is tempting. Answer: (B). Answer: **B**", "B"),
        (ChoiceAnswer(type="choice"), "Answer: option C", "C"),
        (NumberAnswer(type="number"), "So 12 it is. Answer: $1,200.50", "1,200.50"),
        (TextAnswer(type="text"), "Answer: The red house.", "The red house."),
        (IntegerAnswer(type="integer", min=0, max=4), 'It says "dull". {"score": `3`}', "3"),
        (ChoiceAnswer(type="choice"), "Answer: Option (D). Both A and B", "D"),
        (NumberAnswer(type="number"), "So 12. Answer: \\(\\boxed{12}\\). That is all.", "12"),
        (MathAnswer(type="math"), "So .5 it is. Answer: $.5$ cups.", ".5"),
        (MathAnswer(type="math"), "Answer: \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        (MathAnswer(type="math"), "Answer:\n\\[\n2x + 7\n\\]\nDone", "2x + 7"),
        (MathAnswer(type="math"), "Answer: 18 dollars per day. Answer: **18**", "18"),
    ],
)
def test_the_span_holds_the_answer_where_it_is_stated_last(spec: AnswerSpec, text: str, stated: str) -> None:
    parsed = spec.parse(text)
    assert parsed is not None
    assert parsed.span is not None
    start, end = parsed.span
    assert text[start:end] == stated
    assert start == text.rindex(stated)
    assert spec.canonical(stated) == parsed.answer


# Every kind

GOLDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "integer": (SCORE, st.integers(0, 4)),
    "choice": (ChoiceAnswer(type="choice", choices="ABCDEFGHIJ"), st.sampled_from("ABCDEFGHIJ")),
    "number": (
        NUMBER,
        st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9),
    ),
    "text": (TEXT, st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20)),
    "math": (
        MATH,
        st.fractions(-2000, 2000, max_denominator=100).map(lambda f: f"\\frac{{{f.numerator}}}{{{f.denominator}}}"),
    ),
}
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=":\uff1a"), max_size=40)


@settings(deadline=None)
@pytest.mark.parametrize("kind", GOLDS)
@given(data=st.data(), words=WORDS)
def test_a_gold_in_the_completions_form_parses_to_itself(kind, data, words):
    spec, golds = GOLDS[kind]
    gold = spec.canonical(data.draw(golds))
    assert gold is not None
    text = f"Reasoning: {words} {spec.label}: {gold}"
    parsed = spec.parse(text)
    assert parsed is not None
    assert parsed.answer == gold
    assert text[slice(*parsed.span)] == gold


SECONDS = [
    "\n{label}: {b}",
    "\n**{label}:** {b}",
    ". Final {label}: {b}",
    '\n"{label}": {b}',
    "\uff0c {label}\uff1a{b}",
]


@settings(deadline=None)
@pytest.mark.parametrize("kind", GOLDS)
@given(data=st.data())
def test_a_text_with_two_answers_states_none(kind, data):
    spec, golds = GOLDS[kind]
    first, second = (spec.canonical(data.draw(golds)) for _ in range(2))
    assume(first != second)
    forms = SECONDS + (JOINED if kind in ("choice", "number") else [])
    form = data.draw(st.sampled_from(forms)).format(label=spec.label, b=second)
    assert parsed_answer(spec, f"Reasoning: so. {spec.label}: {first}{form}") is None


def test_structured_generation_keeps_labels_of_both_colons_out_of_the_rationale() -> None:
    form = load_task("sentiment/movies").response_regex(64)
    assert re.fullmatch(form, "Evaluation: It calls the film dull, slow and long. Score: 1")
    for colon in (":", "\uff1a"):
        assert not re.fullmatch(form, f"Evaluation: It calls the film dull. Score{colon} 3 or so. Score: 1")
