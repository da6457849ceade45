"""Reading the steps of a calculation: which equations a rationale contains, and which of them are true.

A step is an equality of two sides on one line, such as `21 + 2 = 23`, `$20 x .1 = $2` or `<<48/2=24>>`. A side is a
number, or several numbers joined by `+ - * / x × ÷`. One side must hold an operation or follow one in a chain:
`3 + 4 = 7 = 7` are two steps, and `Day 2 = 7` is none. Arithmetic is exact, so `10 / 3 = 3.33` is not true.

The reader never guesses. What it cannot read for certain is no step: brackets, powers, percentages, variables, units
between numbers, `2 million`, `3 remainder 1`, `7.5...`, `12,12`. No text is evaluated as code, and the time grows
linearly with the length of the text.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Literal, NamedTuple


class Steps(NamedTuple):
    """The equations of a text."""

    found: int
    valid: int
    """How many of them are true."""


def read_steps(rationale: str) -> Steps:
    """Count the equations of a rationale, and those that are true.

    An annotation of GSM8K, `<<48/2=24>>`, is an equation of its own.

    >>> read_steps("7 + 5 = 12, 12 + 9 = 22")
    Steps(found=2, valid=1)
    >>> read_steps("He sold 48/2 = <<48/2=24>>24 clips, so (2 + 3) * 4 = 20.")
    Steps(found=2, valid=2)
    """
    texts = [*_ANNOTATION.findall(rationale), _ANNOTATION.sub("", rationale)]
    truths = [true for text in texts for line in text.splitlines() for true in _equations(line)]
    return Steps(len(truths), sum(truths))


def valid_steps_share(rationales: Iterable[str]) -> float:
    """The share of true equations among all equations of some rationales, from 0 to 1; NaN if there are none."""
    steps = [read_steps(rationale) for rationale in rationales]
    found = sum(step.found for step in steps)
    return sum(step.valid for step in steps) / found if found else math.nan


_ANNOTATION = re.compile(r"<<([^<>]*)>>")

# Tokens of a line


class _Token(NamedTuple):
    kind: Literal["number", "operator", "equals", "word", "mark", "unreadable"]
    text: str
    glued: bool
    """Whether no space stands before it."""


_REWRITTEN = (
    (re.compile(r"^\s*(?:[-*+•]|\(?[0-9]{1,3}[.)])\s+"), ""),  # of a list
    (re.compile(r"(?<![0-9])\\?[$€£¥](?=[-−]?\.?[0-9])"), ""),
    (re.compile(r"\\?[$€£¥]|\\[()\[\]]"), " "),
    (re.compile(r"\\times(?![a-z])|\\cdot(?![a-z])|×|(?<=[0-9])(?:(?<!\b0)|(?=\s))\s*[xX]\s*(?=\.?[0-9])"), "*"),
    (re.compile(r"\\div(?![a-z])|÷"), "/"),
    (re.compile("−"), "-"),
    (re.compile(r"(?<![0-9*])\*\*++|(?<!\*)\*\*++(?!\s*\.?[0-9])"), ""),  # emphasis; between numbers, a power
    (re.compile(r"(?<=[0-9]):(?=[0-9])"), "^"),  # a time or a ratio
    (re.compile(r"\band\s+(?:(?:a|one|three)\s+(?:half|third|quarter)|[0-9]/[0-9](?!\s*[-+*/=0-9]))"), "half"),
)
"""What a line is rewritten to before it is read, in this order."""
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[0-9.,]+)|(?P<operator>[-+*/])|(?P<equals>=)|(?P<word>[^\W\d_]+)
    |(?P<mark>[()\[\]{}<>;:?"'`|~→—“”‘’])|(?P<unreadable>\S))""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+")
_LONGEST = 40
"""Most characters of a number that is read."""


def _tokens(line: str) -> Iterator[_Token]:
    for pattern, text in _REWRITTEN:
        line = pattern.sub(text, line)
    for match in _TOKEN.finditer(line):
        kind, text = match.lastgroup, match[match.lastgroup or 0]
        glued = match.start(match.lastgroup or 0) == match.start()
        if kind == "number":
            yield from _number(text, glued)
        else:
            yield _Token(kind, text, glued)  # type: ignore[arg-type]  # a group's name


def _number(text: str, glued: bool) -> Iterator[_Token]:
    """The tokens of a run of digits, points and commas: a number, perhaps with marks around it."""
    number = text.lstrip(",")
    if number != text:
        yield _Token("mark", ",", glued)
    if number in ("", "."):
        yield _Token("mark", number, glued)
        return
    ends = number[-1] in ".,"
    number = number[:-1] if ends else number
    plain = len(number) <= _LONGEST and _NUMBER.fullmatch(number)
    yield _Token("number" if plain else "unreadable", number.replace(",", ""), glued)
    if ends:
        yield _Token("mark", text[-1], True)


# Sides of an equation


class _Side(NamedTuple):
    value: Fraction | None
    """None where it divides by zero."""
    operations: int
    whole: bool
    """Whether it is all that stands between two equality signs."""


_MOST_NUMBERS = 64
"""Most numbers of a side that is read, so that its value stays small."""
_CHANGING = (
    r"times|plus|minus|over|by|multiplied|divided|subtracted|squared|cubed|mod|modulo|rem|remainder|percent|pct|twice"
    r"|double|triple|halves|mln|bn|(?:hundred|thousand|million|billion|trillion|dozen|half|third|quarter|fifth|sixth"
    r"|eighth|tenth)s?"
)
_AFTER = re.compile(_CHANGING, re.IGNORECASE)
"""Words behind a side that may change its value."""
_BEFORE = re.compile(
    rf"{_CHANGING}|step|day|week|month|year|part|case|question|problem|round|line|equation|number|no", re.IGNORECASE
)
"""Words before a side that may change its value, or whose number only names something, as in `Step 1 - 3 + 4 = 7`."""


def _equations(line: str) -> Iterator[bool]:
    """Whether each equation of a line is true."""
    if "=" not in line:
        return
    between: list[list[_Token]] = [[]]
    for token in _tokens(line):
        if token.kind == "equals":
            between.append([])
        else:
            between[-1].append(token)
    chained = False
    for before, after in pairwise(between):
        left, right = _left(before), _right(after)
        if left is None or right is None:
            chained = False
            continue
        chained = left.operations + right.operations > 0 or (chained and left.whole)
        if chained:
            yield left.value is not None and left.value == right.value


def _left(tokens: Sequence[_Token]) -> _Side | None:
    """The side that ends before an equality sign."""
    start = len(tokens)
    while start > 0 and tokens[start - 1].kind in ("number", "operator"):
        start -= 1
    side = tokens[start:]
    if not side:
        return None
    if start > 0:
        before = tokens[start - 1]
        if before.kind == "unreadable" or before.text in (")", "]", "}"):
            return None
        # A word may be an operand (`Total - 3`), or a number may belong to it (`Day 2 = ...`).
        alone = len(side) == 1 or side[0].kind == "operator"
        if before.kind == "word" and (alone or side[0].glued or _alters(before.text, _BEFORE)):
            return None
    return _side(side, whole=start == 0)


def _right(tokens: Sequence[_Token]) -> _Side | None:
    """The side that begins behind an equality sign."""
    end = 0
    while end < len(tokens) and tokens[end].kind in ("number", "operator"):
        end += 1
    if end < len(tokens):
        after = tokens[end]
        if after.kind == "unreadable" or (after.glued and after.text in ("(", "[", "{")):
            return None
        if after.kind == "word" and (after.glued or _alters(after.text, _AFTER)):
            return None
    return _side(tokens[:end], whole=end == len(tokens))


def _alters(word: str, known: re.Pattern[str]) -> bool:
    """Whether a word may change the value of the number beside it; a single letter may be a variable or a unit."""
    return known.fullmatch(word) is not None or not word.isalpha() or (len(word) == 1 and word not in "aAI")


def _side(tokens: Sequence[_Token], whole: bool) -> _Side | None:
    """The value of numbers joined by operators; None if they are no such expression."""
    total, product, operator, numbers = Fraction(0), Fraction(0), "+", 0
    defined, expected, negative = True, True, False  # a number is expected
    for position, token in enumerate(tokens):
        if token.kind == "operator":
            sign = expected and token.text == "-" and not negative and position + 1 < len(tokens)
            if sign and tokens[position + 1].glued:
                negative = True
                continue
            if expected:
                return None
            operator, expected = token.text, True
            continue
        if not expected or numbers == _MOST_NUMBERS:
            return None
        value = -Fraction(token.text) if negative else Fraction(token.text)
        numbers, expected, negative = numbers + 1, False, False
        if operator in "+-":
            total, product = total + product, value if operator == "+" else -value
        elif operator == "*":
            product *= value
        elif value == 0:
            defined = False
        else:
            product /= value
    if expected:
        return None
    return _Side(total + product if defined else None, numbers - 1, whole)
