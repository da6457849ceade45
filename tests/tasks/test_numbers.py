"""Numbers as answers: right exactly where the value is the gold's."""

from collections.abc import Iterator
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conftest import JOINED
from estep.tasks.answers import MathAnswer, NumberAnswer

MATH = MathAnswer(type="math")
NUMBER = NumberAnswer(type="number")

DENOMINATORS = (1, 2, 4, 5, 8, 10, 100, 3, 7)
AROUND = [
    "%s",
    "\\(%s\\)",
    "\\[%s\\]",
    "$%s$",
    "**%s**",
    "`%s`",
    "\\boxed{%s}",
    "\\(\\boxed{%s}\\)",
    "%s.",
    "%s eggs",
    "%s. So it is.",
]


def written(value: Fraction) -> Iterator[str]:
    """A number in every form that math reads; a decimal only where it is exact."""
    sign, over, under = "-" * (value < 0), abs(value.numerator), value.denominator
    if under == 1:
        yield from (f"{sign}{over}", f"{sign}{over:,}", f"{sign}{over}.0", f"{sign}${over}")
    yield from (f"{sign}{over}/{under}", f"{sign}\\frac{{{over}}}{{{under}}}", f"\\dfrac{{{sign}{over}}}{{{under}}}")
    if over > under > 1:
        yield f"{sign}{over // under}\\frac{{{over % under}}}{{{under}}}"
    if 1000 % under == 0:
        exact = format(Decimal(over) / Decimal(under), "f")
        yield f"{sign}{exact}"
        yield (f"{sign}{exact}".replace("-", "\u2212") if "." in exact else f"{sign}{exact}.00")
        if exact.startswith("0."):
            yield f"{sign}{exact[1:]}"


VALUES = st.builds(Fraction, st.integers(-2000, 2000), st.sampled_from(DENOMINATORS))


@st.composite
def statements(draw: st.DrawFn, value: Fraction) -> str:
    return draw(st.sampled_from(AROUND)) % draw(st.sampled_from(list(written(value))))


@settings(max_examples=300, deadline=None)
@given(VALUES, VALUES | st.none(), st.data())
def test_a_number_is_right_exactly_where_its_value_is_the_golds(gold, other, data):
    other = gold if other is None else other
    answer = MATH.canonical(data.draw(st.sampled_from(list(written(gold)))))
    stated = MATH.parse(f"Reasoning: so. Answer: {data.draw(statements(other))}")
    assert answer is not None
    assert stated is not None
    assert MATH.agree(stated.answer, answer, {}) == (other == gold)


@settings(max_examples=200, deadline=None)
@given(VALUES, st.integers(1, 12), st.data())
def test_a_rounded_fraction_is_not_the_fraction(gold, digits, data):
    with localcontext(Context(prec=50)):  # libraries that other tests import change the precision
        rounded = round(Decimal(gold.numerator) / Decimal(gold.denominator), digits)
    stated = MATH.parse(f"Answer: {rounded:f}")
    assert stated is not None
    answer = MATH.canonical(data.draw(st.sampled_from(list(written(gold)))))
    assert answer is not None
    assert MATH.agree(stated.answer, answer, {}) == (Fraction(str(rounded)) == gold)


@settings(max_examples=200, deadline=None)
@given(VALUES, st.data())
def test_number_reads_a_decimal_at_its_value_and_a_fraction_not_at_all(value, data):
    said = data.draw(statements(value))
    parsed = NUMBER.parse(f"Answer: {said}")
    if "/" in said or "frac" in said:
        assert parsed is None
    else:
        assert parsed is not None
        assert Fraction(parsed.answer) == value


# Decimals of roots and of pi, to six and more places: math-verify alone rounds to six and takes each for the gold.
@pytest.mark.parametrize(
    ("stated", "gold"),
    [
        *(
            ("1.414214", "\\sqrt{2}"),
            ("1.4142135623730951", "\\sqrt{2}"),
            ("3.141593", "\\pi"),
            ("2.414214", "\\sqrt{2}+1"),
        ),
        *(("(0.333333, 3)", "(1/3, 3)"), ("0.333333", "1/3"), ("0.333333", "\\frac{1}{3}")),
        *((".5", "5"), ("5", ".5"), ("..5", "5"), ("0.5%", ".5"), ("1,200", "(1,200)"), ("-.5", ".5")),
        *(
            ("31/2", "3 1/2"),
            ("1.5", "3\\frac{1}{2}"),
            ("3\\frac{7}{2}", "6.5"),
            ("0.333...", "0.333"),
            ("about 5", "5"),
        ),
    ],
)
def test_a_number_near_the_gold_is_wrong(stated: str, gold: str) -> None:
    answer, parsed = MATH.canonical(gold), MATH.parse(f"Answer: {stated}")
    assert answer is not None
    assert parsed is not None
    assert MATH.sound(answer)
    assert not MATH.agree(parsed.answer, answer, {})


@pytest.mark.parametrize(
    ("stated", "gold"),
    [
        *(
            ("0.5x", "x/2"),
            ("(0.5, 3)", "(\\frac{1}{2}, 3)"),
            ("x^{0.5}", "\\sqrt{x}"),
            ("2.5\\pi", "\\frac{5\\pi}{2}"),
        ),
        *(
            ("2", "\\sqrt{4}"),
            ("\\(x = .5\\)", "1/2"),
            ("90", "90^\\circ"),
            ("3.5", "3\\frac{1}{2}"),
            ("\\[2x+7\\]", "7+2x"),
        ),
    ],
)
def test_an_expression_of_the_golds_value_is_right(stated: str, gold: str) -> None:
    answer, parsed = MATH.canonical(gold), MATH.parse(f"Answer: {stated}")
    assert answer is not None
    assert parsed is not None
    assert MATH.agree(parsed.answer, answer, {})


@settings(max_examples=200, deadline=None)
@given(VALUES, VALUES, st.sampled_from(JOINED))
def test_two_numbers_are_right_for_neither(first, second, form):
    assume(first != second)
    first, second = (next(written(value)) for value in (first, second))
    parsed = MATH.parse(f"Answer: {first}{form.format(b=second)}")
    golds = [MATH.canonical(first), MATH.canonical(second)]
    assert parsed is None or not any(MATH.agree(parsed.answer, gold, {}) for gold in golds if gold is not None)


# math-verify folds the case of letters, and takes tuples, sets and `or` for one another.
@pytest.mark.parametrize(
    ("stated", "gold"),
    [
        *(("0", "R^2-r^2"), ("R+r", "2R"), ("x+X", "2x"), ("\\frac{R}{r}", "1"), ("2X", "2x"), ("\\Delta", "\\delta")),
        *(("\\{1,2\\}", "(1,2)"), ("1 or 2", "(1,2)"), ("(2,1)", "\\{1,2\\}"), ("[0,1]", "(0,1]")),
        *(("y=5", "x=5"), ("x=6", "x=5")),
    ],
)
def test_letters_of_another_case_and_lists_of_another_kind_are_wrong(stated: str, gold: str) -> None:
    answer, parsed = MATH.canonical(gold), MATH.parse(f"Answer: {stated}")
    assert answer is not None
    assert parsed is not None
    assert not MATH.agree(parsed.answer, answer, {})


@pytest.mark.parametrize(
    ("stated", "gold"),
    [
        *(("R^2-r^2", "R^2-r^2"), ("Evelyn", "\\text{Evelyn}"), ("R^2\\pi", "\\pi R^2")),
        *(("\\{2,1\\}", "\\{1,2\\}"), ("\\left(1, 2\\right)", "(1,2)"), ("1,2", "\\{1,2\\}")),
        *(("x = 5.0", "x=5"), ("\\left(42\\right)", "42"), ("{42}", "42"), ("42\\,", "42"), ("\\mathbf{42}", "42")),
    ],
)
def test_a_harmless_difference_of_form_stays_right(stated: str, gold: str) -> None:
    answer, parsed = MATH.canonical(gold), MATH.parse(f"Answer: {stated}")
    assert answer is not None
    assert parsed is not None
    assert MATH.agree(parsed.answer, answer, {})
