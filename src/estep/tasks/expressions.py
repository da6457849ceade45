"""Mathematical answers: reads them from text, and decides whether two are equal by value.

Numbers are compared exactly (`estep.tasks.numbers`). math-verify compares everything else, in a separate process
(`estep.tasks.judge_process`). Answers that it would accept too easily are refused first, such as a calculation in place
of a value, a chain of equations, another base, or an extra percent sign: the policy learns whatever is rewarded.
"""

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from estep.tasks.endings import DOUBT
from estep.tasks.judge_process import ask
from estep.tasks.numbers import Numeral, canonical_numeral, read_numeral, trimmed

_LONGEST = 500
"""The longest expression, in characters; longer ones are not read."""


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}` in a text, or None if there is none or it is not closed.

    >>> last_boxed(r"so \boxed{1} and \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> last_boxed(r"so $k = \boxed 2$.")
    '2'
    """
    boxes = list(re.finditer(r"\\(?:boxed|fbox)\s*", text))
    if not boxes:
        return None
    begin = boxes[-1].end()
    if not text.startswith("{", begin):
        return re.split(r"[$\n]", text[begin:], maxsplit=1)[0].strip() or None
    depth = 0
    for index in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[begin + 1 : index]
    return None


def is_boxed(text: str) -> bool:
    """Whether a text contains a box, closed or not."""
    return re.search(r"\\(?:boxed|fbox)\b", text) is not None


class Expression(NamedTuple):
    """A number or an expression in a line."""

    answer: str
    """The answer in canonical form; empty if the line states nothing."""
    span: tuple[int, int]
    numeral: Numeral | None
    """The number; None for an expression."""


_REMARK = re.compile(r"\.[*_$`\"')]*\s+(?=[^a-z\s])|(?:,|(?<!\s))\s+(?=(?:because|since)\b)")
"""The beginning of text that may follow a number: sentences or a reason, without another number."""
_CHANGED = r"[\w%/^*+]|[.,]\d|\s*[-−+*/^%=]|\s+(?i:squared|cubed|times|plus|minus|factorial|to\s+the|tens)\b"
"""What makes another number of a number in a remark."""
_LONGEST_LINE = 2000


def skip_variable(text: str, start: int, end: int) -> int:
    """Where the right side of `x = 42` begins in a line; `start` where the line is no such equation."""
    left = re.compile(r"\s*[A-Za-z]\s*=").match(text, start, end)
    return left.end() if left else start


def read_line(text: str, start: int, end: int) -> Expression | None:
    """The answer that a line states; None if a box is only a part of it."""
    remark = _REMARK.search(text, start, end)
    if remark and not DOUBT.search(text, remark.start(), end):
        number = _unboxed(text, start, remark.start())
        if number is not None and number.numeral is not None:
            own = rf"(?<![\w.,/^−+-]){re.escape(text[slice(*number.span)])}(?!{_CHANGED})"
            others = re.sub(own, "", text[remark.start() : end])
            if not re.search(r"[\d\\]", others):
                return number
    return _unboxed(text, start, end)


def _unboxed(text: str, start: int, end: int) -> Expression | None:
    """An expression, in a box or not. A box must be the whole line, and a very long line is not read."""
    if end - start > _LONGEST_LINE:
        return None
    start, end = trimmed(text, start, end)
    boxed = re.fullmatch(r"\\(?:boxed|fbox)\s*\{(.*)\}", text[start:end])
    if boxed and last_boxed(text[start:end]) == boxed[1]:
        start, end = start + boxed.start(1), start + boxed.end(1)
    return None if is_boxed(text[start:end]) else read_expression(text, start, end)


def read_expression(text: str, start: int, end: int) -> Expression:
    start, end = trimmed(text, start, end)
    line = text[start:end]
    numeral = read_numeral(line)
    if numeral is None:
        return Expression(" ".join(line.split()), (start, end), None)
    return Expression(canonical_numeral(line, numeral), (start + numeral.start, start + numeral.end), numeral)


@functools.lru_cache(maxsize=65536)
def readable(expression: str) -> bool:
    """Whether an expression is a number or can be read by math-verify."""
    return read_numeral(expression) is not None or (len(expression) <= _LONGEST and ask("readable", expression))


@functools.lru_cache(maxsize=65536)
def equal(gold: str, stated: str) -> bool:
    r"""Whether a stated expression equals the correct one.

    >>> equal("1/2", r"\frac{2}{4}"), equal("x+1", "1+x"), equal("2", "3"), equal("29", "48-19")
    (True, True, False, False)
    """
    if "=" in stated and "=" not in gold:
        stated = re.sub(r"^[A-Za-z]\s*=", "", stated)  # "x = 5" for 5
    number, other = read_numeral(gold), read_numeral(stated)
    if number is not None:  # the stated answer must be a number too: `48-19` is not 29
        return other is not None and (other.value, other.percent) == (number.value, number.percent)
    if other is not None and max(other.value.denominator, abs(other.value.numerator)) > _EXACT:
        return False
    if stated.count("=") > gold.count("=") or ("%" in stated) != ("%" in gold):
        return False
    left, right = _EQUATION.fullmatch(gold), _EQUATION.fullmatch(stated)
    if left and right and left[1] == right[1]:  # x = 5.0 for x = 5
        sides = read_numeral(left[2]), read_numeral(right[2])
        if sides[0] is not None and sides[1] is not None:
            return (sides[0].value, sides[0].percent) == (sides[1].value, sides[1].percent)
    # math-verify does not look at subscripts, and takes R and r for the same
    if "_" in gold or "_" in stated or _mixes_cases(gold + " " + stated):
        return _bare(gold) == _bare(stated)
    if not _same_brackets(gold, stated):
        return False
    return max(len(gold), len(stated)) <= _LONGEST and ask("equal", _without_decimals(gold), _without_decimals(stated))


def _mixes_cases(expressions: str) -> bool:
    """Whether a letter, or a name such as `\\Delta`, stands in both cases."""
    names = set(re.findall(r"\\[A-Za-z]+", expressions))
    names |= set(re.sub(r"\\[A-Za-z]+", " ", expressions))
    return len({name.lower() for name in names}) < len(names)


def _same_brackets(gold: str, stated: str) -> bool:
    """Whether two lists are of one kind: a pair is no set, and neither is `1 or 2`."""
    if re.search(r"\b(?:or|and)\b", stated) and not re.search(r"\b(?:or|and)\b", gold):
        return False
    kinds = [_LIST.fullmatch(re.sub(r"\s+|\\(?:left|right|[,!;: ])", "", expression)) for expression in (gold, stated)]
    if kinds[0] is None or kinds[1] is None:
        return True
    return kinds[0].group(1, 2) == kinds[1].group(1, 2)


_EQUATION = re.compile(r"\s*([A-Za-z])\s*=([^=]*)")
_LIST = re.compile(r"(\(|\[|\\\{|\\lbrace)(?!.*\\cup).*,.*(\)|\]|\\\}|\\rbrace)")
_EXACT = 10**12
"""math-verify compares only 15 digits of some expressions; larger numbers are not compared with expressions."""
_DECIMALS = re.compile(r"(?<![\d.])(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)\.[0-9]+(?![\d.]|\s*\\(?:overline|bar|dot))")


def _without_decimals(expression: str) -> str:
    """Replace decimal numbers with fractions: math-verify rounds decimals to six places and would accept 1.414214 for a
    square root."""

    def fraction(decimal: re.Match[str]) -> str:
        value = Fraction(decimal[0].replace(",", ""))
        return rf"{{(\frac{{{value.numerator}}}{{{value.denominator}}})}}"

    return _DECIMALS.sub(fraction, expression)


def _bare(expression: str) -> str:
    """The expression without spaces, and without braces around a subscript or superscript."""
    expression = re.sub(r"\\(?:text|textrm|textbf|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", expression)
    return re.sub(r"([_^])\{(\w+)\}", r"\1\2", re.sub(r"\s+|\\[,!;: ]", "", expression))
