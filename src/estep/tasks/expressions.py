"""Mathematical answers: what is one, and whether two are equal by value.

math-verify compares, in a process of its own (`estep.tasks.judge_process`). What it would accept too easily is refused
first: a calculation where a value is asked for, a chain of equations, another base, a percent sign too many. Whatever
is rewarded is learned.
"""

import functools
import re

from estep.tasks.judge_process import ask

_LONGEST = 500
"""Characters of an expression; what is longer is none."""


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}` of a text, or None where it has none that is closed.

    >>> last_boxed(r"so \boxed{1} and \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> last_boxed(r"so $k = \boxed 2$.")
    '2'
    """
    found = list(re.finditer(r"\\(?:boxed|fbox)\s*", text))
    if not found:
        return None
    begin = found[-1].end()
    if not text.startswith("{", begin):
        return re.split(r"[$\n]", text[begin:], maxsplit=1)[0].strip() or None
    depth = 0
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin + 1 : place]
    return None


def is_boxed(text: str) -> bool:
    """Whether a text has a box, closed or not."""
    return re.search(r"\\(?:boxed|fbox)\b", text) is not None


@functools.lru_cache(maxsize=65536)
def readable(expression: str) -> bool:
    """Whether math-verify reads an expression."""
    return len(expression) <= _LONGEST and ask("readable", expression)


@functools.lru_cache(maxsize=65536)
def equal(gold: str, stated: str) -> bool:
    r"""Whether a stated expression equals the correct one.

    >>> equal("1/2", r"\frac{2}{4}"), equal("x+1", "1+x"), equal("2", "3"), equal("29", "48-19")
    (True, True, False, False)
    """
    if "=" in stated and "=" not in gold:
        stated = re.sub(r"^[A-Za-z]\s*=", "", stated)  # "x = 5" for 5
    if stated.count("=") > gold.count("=") or ("%" in stated) != ("%" in gold):
        return False
    if "_" in gold or "_" in stated:  # math-verify does not look at subscripts
        return _bare(gold) == _bare(stated)
    if _VALUE.fullmatch(_bare(gold)) and not _VALUE.fullmatch(_bare(stated)):
        return False
    return max(len(gold), len(stated)) <= _LONGEST and ask("equal", gold, stated)


_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_VALUE = re.compile(rf"[-+]?(?:{_NUMBER}(?:/{_NUMBER})?|\\[dt]?frac\{{?-?{_NUMBER}\}}?\{{?-?{_NUMBER}\}}?)(?:\\?%)?")
"""A number, a fraction or a percentage, worked out: not `48-19`."""


def _bare(expression: str) -> str:
    """Without spaces, and without braces around a subscript or superscript."""
    return re.sub(r"([_^])\{(\w+)\}", r"\1\2", re.sub(r"\s+|\\[,!;: ]", "", expression))
