"""The steps of a rationale: which equations are read, and which of them are true."""

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estep.tasks.steps import read_steps, valid_steps_share

CASES = json.loads((Path(__file__).parent / "step_cases.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_a_step_is_read_where_it_is_certain(case: dict[str, Any]) -> None:
    assert read_steps(case["text"]) == (case["found"], case["valid"])


def test_no_two_cases_are_the_same() -> None:
    assert len({case["text"] for case in CASES}) == len(CASES) == len({case["why"] for case in CASES})


NUMBERS = st.integers(0, 9999) | st.decimals(0, 99, places=2, allow_nan=False)
SIGNS = {"+": "+", "-": "-", "*": "*", "/": "/", "x": "*", "×": "*", "÷": "/"}


@st.composite
def sides(draw: st.DrawFn) -> tuple[str, Fraction]:
    """Two to five numbers with operators, and their value by Python's own rules."""
    numbers = draw(st.lists(NUMBERS, min_size=2, max_size=5))
    signs = draw(st.lists(st.sampled_from(sorted(SIGNS)), min_size=len(numbers) - 1, max_size=len(numbers) - 1))
    if any(SIGNS[sign] == "/" and n == 0 for sign, n in zip(signs, numbers[1:], strict=True)):
        signs = ["+"] * len(signs)
    shown, computed = str(numbers[0]), f"Fraction('{numbers[0]}')"
    for sign, n in zip(signs, numbers[1:], strict=True):
        shown += f" {sign} {draw(st.sampled_from(['', '$']))}{n:,}"
        computed += f" {SIGNS[sign]} Fraction('{n}')"
    return shown, eval(computed, {"Fraction": Fraction})


@given(sides(), sides())
def test_an_equation_is_valid_exactly_where_its_sides_are_equal(left: Any, right: Any) -> None:
    assert read_steps(f"{left[0]} = {right[0]}") == (1, left[1] == right[1])
    value = f"{left[1].numerator}/{left[1].denominator}"
    assert read_steps(f"So it is: {left[0]} = {value}. Then it ends.") == (1, 1)


@given(st.lists(st.integers(0, 99), min_size=2, max_size=9), st.data())
def test_a_running_sum_with_one_wrong_partial_sum_is_seen(numbers: list[int], data: Any) -> None:
    wrong = data.draw(st.integers(1, len(numbers) - 1))
    total, steps = numbers[0], []
    for index, n in enumerate(numbers[1:], 1):
        steps.append(f"{total} + {n} = {total + n + (index == wrong)}")
        total = total + n + (index == wrong)
    assert read_steps(", ".join(steps)) == (len(steps), len(steps) - 1)


@given(st.text(alphabet="0123456789+-*/x×=.,$%()<>\n a÷^", max_size=60))
def test_no_text_is_an_error(text: str) -> None:
    found, valid = read_steps(text)
    assert 0 <= valid <= found <= text.count("=")
    # Spaces around a text mean nothing, and another line adds its own steps.
    assert read_steps(f"  {text}  ") == (found, valid)
    assert read_steps(f"{text}\n1 + 1 = 2\n1 + 1 = 3") == (found + 2, valid + 1)


@pytest.mark.parametrize(
    "piece",
    ["1+", "1/3+", "*", "1**", "1x", " ", "1 ", "1", "1=", "<<", "<<1=1", ",1", ".1", "and a ", "3=4\n", "\\", "(1"],
)
def test_an_endless_text_is_read_to_its_end(piece: str) -> None:
    # A reader whose time grows with the square of the length would not come to the last line.
    read = read_steps(f"{piece * 20_000}=1\n1 + 1 = 2\n1 + 1 = 3")
    assert read.valid >= 1
    assert read.found - read.valid >= 1


def test_the_share_of_valid_steps_is_over_all_rationales() -> None:
    # 1 of 1, 1 of 3 and 0 of 0 steps: 2 of 4, and not the mean of the shares.
    rationales = ["1 + 1 = 2", "1 + 1 = 2, 2 + 2 = 5, 5 + 5 = 11", "It is dull."]
    assert valid_steps_share(rationales) == 0.5
    assert math.isnan(valid_steps_share(["It is dull.", ""]))
    assert math.isnan(valid_steps_share([]))
