"""Reading a number out of one line, and its exact value.

One reader serves `number` and `math`. It reads a line that states one number and nothing else of weight: a decimal, a
fraction, a mixed number or a percentage, in plain text or LaTeX, perhaps with a currency sign and a unit. Values are
fractions of integers, so that equality is exact: 0.333333 is not 1/3. It refuses what might mean another number:
`about 5`, `2 million`, `1 000`, `5:30`, `1e5`, `(1,200)` (a pair, or a thousand).
"""

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, NamedTuple


class Numeral(NamedTuple):
    """A number in a line."""

    value: Fraction
    percent: bool
    """Whether a percent sign follows. `50%` and `50` are different answers, and so are `50%` and `0.5`."""
    decimal: bool
    """Whether it is written as a decimal number, without a fraction or a percent sign."""
    start: int
    end: int
    """Where the number is in the line, without its unit."""


_DECIMAL = r"(?:(?:[0-9]{1,3}(?:(?:,\\!|\{,\}|,)[0-9]{3})+|[0-9]{1,3}(?:\\,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
_FRACTION = rf"""(?:(?P<top>{_DECIMAL})\s*/\s*(?P<bottom>{_DECIMAL})
    |\\[dt]?frac\s*(?:\{{\s*(?P<over>[-−]?{_DECIMAL})\s*\}}|(?P<over1>[0-9]))
        \s*(?:\{{\s*(?P<under>[-−]?{_DECIMAL})\s*\}}|(?P<under1>[0-9])))"""
_MIXED = r"""(?P<whole>[0-9]+)(?:\s+(?P<part>[0-9]+)\s*/\s*(?P<parts>[0-9]+)
    |\s*\\[dt]?frac\s*(?:\{\s*(?P<ofpart>[0-9]+)\s*\}|(?P<ofpart1>[0-9]))
        \s*(?:\{\s*(?P<ofparts>[0-9]+)\s*\}|(?P<ofparts1>[0-9])))"""
_SPACE = r"(?:\s|~|\\[ ,;:!])*"
_UNIT = r"[A-Za-z]{2,}(?:\s+(?:[A-Za-z]{2,}|a)){0,3}"
_POWER = r"(?:\^\{?[23]\}?|[²³])?"
_NUMERAL = re.compile(
    rf"""(?:\\[(\[]|[$*`\s])*
    (?P<number>(?P<sign>[-+−]?)(?:{_MIXED}|{_FRACTION}|(?:\\?[$€£]\s*)?(?P<inner>[-−]?)(?P<decimal>{_DECIMAL}))
        (?P<percent>\s*\\?%)?)
    (?:\\[)\]]|[$*`\s])*
    (?:{_SPACE}(?:°\s*[CF]?|\^\s*\\circ|\^\s*\{{\s*\\circ\s*\}}|\\degree)
      |{_SPACE}\\(?:text|textrm|mbox|mathrm)\s*\{{[\s~]*(?P<text>[A-Za-z]|{_UNIT})\.?\s*\}}{_POWER}
      |\s(?P<length>(?:mm|cm|km|ft|in|yd|mi)(?:\^\{{?[23]\}}?|[²³]))
      |(?<=[0-9])(?:kg|km|cm|mm|mg|ml|mL|lb|oz)(?:/h)?|\skm/h|(?<=[0-9])\s?[€£]
      |(?<=[0-9])/(?:day|hour|week|month|year|minute|second)
      |(?<=[\s$*`)\]])(?P<unit>{_UNIT}))?
    (?:\\[)\],;!]|[$*`\s])*""",
    re.VERBOSE,
)
_LONGEST = 500
"""The longest line that is read as a number: the pattern's time grows with the square of a line's length."""
_BRACKETED = re.compile(
    r"\s*(?:\(([^(),\\]*)\)|\\left\s*\(([^(),\\]*)\\right\s*\)|(?:\\(?:mathbf|mathrm|textbf))?\{([^{}\\]*)\})\s*"
)
_NOT_UNITS = re.compile(
    # words of mathematics, and names of products of variables
    r"(pi|sqrt|sin|cos|tan|log|ln|exp|over|times|plus|minus|negative|divided|multiplied|squared|cubed|factorial|roots?"
    r"|power|mod|modulo|base|remainder|percent|percentage|cent|point|equals?|inverse|reciprocal|abcd?|xyz|xyz?w"
    # multiples and parts
    r"|(half|halve|third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundred|hundredth|thousand|thousandth"
    r"|million|billion|trillion|dozen|pair|score|gross|grand|lakh|crore|mil|mln|bn|tn)s?"
    r"|doubled?|tripled?|twice|thrice|fold|odd|ish|[kMBT]"
    # numbers in words
    r"|(zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(thir|four|fif|six|seven|eigh|nine)teen"
    r"|(twen|thir|for|fif|six|seven|eigh|nine)ty)(e?s)?|sixes|(twen|thir|for|fif|six|seven|eigh|nine)ties"
    r"|(eleventh|twelfth|\w+teenth|\w+tieth|\w*hundredth|\w*thousandth|\w*illionth|\w*illion|\w*illiard|dozenth)s?"
    # prefixes of units, and parts of a hundred or more
    r"|(kilo|mega|giga|tera|peta|hecto|deca|deka|deci|centi|milli|micro|nano|pico|myriad|googol)s?"
    r"|pct|permil+e?|mille|ppm|ppb|ppt|basis|bps?|bips|percentiles?|thou"
    # words that lead to another number, or make the number a bound or a guess
    r"|or|and|nor|to|not|no|never|but|of|than|then|vs|versus|between|through|until|till|up|down|if|is|are|was|were"
    r"|more|less|fewer|greater|most|least|maximum|minimum|about|around|approximately|approx|roughly|nearly|almost"
    r"|maybe|perhaps|possibly|because|since|so|actually|wait|instead|rather|off|am|pm)",
    re.IGNORECASE,
)
"""Words behind a number that may change its value: no units."""
_SHORT_UNITS = re.compile(r"mm|cm|dm|km|mg|kg|ml|mL|dl|ft|in|yd|mi|oz|lb|hr|on|at|an|by")
"""Words of two letters that are units or parts of one. All others may be variables, as in `2 xy`."""


def read_numeral(line: str) -> Numeral | None:
    r"""The number that a whole line states; None where it states none, or something else besides.

    >>> read_numeral(r"\(-\frac{3}{4}\)").value, read_numeral("18 dollars per day").value
    (Fraction(-3, 4), Fraction(18, 1))
    >>> read_numeral("2 million"), read_numeral("about 5"), read_numeral("1 000")
    (None, None, None)
    """
    if len(line) > _LONGEST:
        return None
    bracketed = _BRACKETED.fullmatch(line)
    if bracketed:
        inner, offset = read_numeral(bracketed[bracketed.lastindex or 0]), bracketed.start(bracketed.lastindex or 0)
        return inner and inner._replace(start=inner.start + offset, end=inner.end + offset)
    match = _NUMERAL.fullmatch(line)
    if match is None or not _is_unit(match) or (match["percent"] and (match["unit"] or match["text"])):
        return None
    value = _value(match)
    if value is None or (match["sign"] and match["inner"]):
        return None
    if "-" in _ascii(match["sign"] + (match["inner"] or "")):
        value = -value
    percent = match["percent"] is not None
    return Numeral(value, percent, match["decimal"] is not None and not percent, *match.span("number"))


def canonical_numeral(line: str, numeral: Numeral) -> str:
    """A number's text without what surrounds it; a decimal number without commas, currency and trailing zeros."""
    text = _ascii(" ".join(line[numeral.start : numeral.end].split()))
    if not numeral.decimal:
        return text
    return canonical_number(re.sub(r"\\[$,!]|[,{}$€£\s]", "", text)) or text


def canonical_number(text: str) -> str | None:
    """A decimal number in plain digits, or None where the text is no number."""
    text = _ascii(text.strip())
    text = re.sub(r"^([-+]?)[$€£]", r"\1", text)
    if "," in text and not re.fullmatch(r"[-+]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?", text):
        return None
    number = decimal(text.replace(",", ""))
    if number is None:
        return None
    plain = format(number, "f")
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if number == 0 else plain.removeprefix("+")


def decimal(value: Any) -> Decimal | None:
    """A finite number out of a data row or a text, or None. Booleans and non-ASCII digits are no numbers."""
    if isinstance(value, bool) or not str(value).strip().isascii() or "_" in str(value):
        return None
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() and abs(number.adjusted()) < 10_000 else None


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The part of a text without what surrounds an answer: space, emphasis, delimiters of LaTeX, backticks, and a full
    stop at its end. A point before a digit belongs to the number."""
    while True:
        before = start, end
        while start < end and (text[start] in "$*" or text[start].isspace()):
            start += 1
        if start + 1 < end and text[start] == "." and text[start + 1] != "." and not text[start + 1].isdigit():
            start += 1
        while start < end and (text[end - 1] in "$*。" or text[end - 1].isspace()):
            end -= 1
        if text.endswith(".", start, end) and not text.endswith("..", start, end):  # 0.3... is not 0.3
            end -= 1
        if set(text[start:end]) == {"."}:
            end = start
        for opening, closing in (("\\(", "\\)"), ("\\[", "\\]"), ("`", "`")):
            inside = start + len(opening), end - len(closing)
            if inside[0] <= inside[1] and text.startswith(opening, start) and text.endswith(closing, start, end):
                between = text[slice(*inside)]
                if opening not in between and closing not in between:
                    start, end = inside
        if end - start > 1 and text[end - 1] == "\\":  # of a space or a dollar sign in LaTeX
            end -= 1
        if (start, end) == before:
            return before


def _ascii(text: str) -> str:
    return text.replace("−", "-")


def _is_unit(match: re.Match[str]) -> bool:
    words = (match["unit"] or match["text"] or "").split()
    if any(_NOT_UNITS.fullmatch(word) for word in words if word != "a"):
        return match["length"] is not None
    return match["text"] is not None or all(len(w) > 2 or _SHORT_UNITS.fullmatch(w) or w == "a" for w in words)


def _value(match: re.Match[str]) -> Fraction | None:
    if match["decimal"]:
        return _fraction(match["decimal"])
    if match["whole"]:
        part = _fraction(match["part"] or match["ofpart"] or match["ofpart1"])
        parts = _fraction(match["parts"] or match["ofparts"] or match["ofparts1"])
        # Only a proper fraction makes a mixed number: 3 7/2 is none.
        if part is None or parts is None or not 0 < part < parts:
            return None
        whole = _fraction(match["whole"])
        return None if whole is None else whole + part / parts
    over = _fraction(match["top"] or match["over"] or match["over1"])
    under = _fraction(match["bottom"] or match["under"] or match["under1"])
    return over / under if over is not None and under else None


def _fraction(text: str) -> Fraction | None:
    number = decimal(re.sub(r"\\[,!]|[,{}]", "", _ascii(text)))
    return None if number is None else Fraction(number)
