"""What follows a stated answer: lists, and words that take the answer back. Both leave the text without an answer."""

import re

_NUMBER_WORDS = (
    r"zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
)
DOUBT = re.compile(
    r"\b(?:or|no|not|nor|but|wait|actually|maybe|perhaps|possibly|instead|rather|alternatively|correction|mistake|wrong"
    rf"|{_NUMBER_WORDS}|half|quarter|third|hundreds?|thousands?|millions?|billions?|dozens?|percent)\b",
    re.IGNORECASE,
)
"""Words of a remark that may retract a number or state another one."""
_RETRACTION = (
    r"no|nope|nor|or|wait|actually|maybe|perhaps|possibly|instead|rather|alternatively|correction|mistake|wrong"
    r"|oops|sorry|hmm"
)
_AT_ONCE = re.compile(
    r"[^\w\n]*(?:and\s+)?(?:an?\s+|one\s+)?"
    rf"(?:{_RETRACTION}|half|halves|third|quarters?|point|minus|plus|times|percent|hundred|thousand|dozen|less|more)\b",
    re.IGNORECASE,
)
"""A number's next word that changes it or takes it back."""
_ANYWHERE = re.compile(
    r"\b(?:wait|oops|correction|scratch\s+that|second\s+thoughts?|(?:on|upon)\s+reflection|reconsider\w*)\b",
    re.IGNORECASE,
)
_REVISION = rf"\b(?:{_RETRACTION}|not|but|really|should|change|better|make)\b"
_WITH_A_NUMBER = re.compile(_REVISION, re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,])[0-9]+(?:\.[0-9]+)?(?!\w)")
_IN_WORDS = re.compile(rf"{_REVISION}(?:\W+\w+){{0,2}}\W+(?:(?!one\s+\w)(?:{_NUMBER_WORDS})|half)\b", re.IGNORECASE)
"""A number in words soon after a word of doubt. `one` with a word behind it is a pronoun: `but one of the leads`."""
_SCALE = re.compile(r"\bscale\s+(?:of|from)\s+[-−]?[0-9]+\s*(?:to|[-–])\s*[-−]?[0-9]+", re.IGNORECASE)
_LAST = re.compile(r"(?<![\w.,/])([0-9]+)(?:\.0+)?[^\w\n]*\Z")
_ITEM = re.compile(r"(?:(?<!\S)[(\[*]{0,4}([0-9]+)[.):](?=[*\])]*\s)|[,;]\s?[(\[*]{0,4}([0-9]+)(?![\w.,]))")

_OPENING = r"[-*•_(\[#`\"']{0,6}[ \t]?[(\[*_`\"']{0,4}"
_NUMBERED = re.compile(rf"{_OPENING}[0-9]+(?:[.):\]](?![0-9])|[*_`]{{0,4}}[ \t]*(?:\n|\Z))")
_TAKEN_BACK = re.compile(rf"\W{{0,6}}(?:{_RETRACTION}|but|not)\b", re.IGNORECASE)
_FIRST_ITEM = re.compile(r"[*_(]{0,4}[0-9]+[.)][*_]{0,4}[ \t]+\S")


_SPACE = re.compile(r"\s*")


def following_line(text: str, end: int, stop: int) -> str:
    """The beginning of the next line that is not blank, behind the line that holds `end`.

    Args:
        stop: what is read of the text ends there.

    Returns:
        The line; empty if there is none.
    """
    newline = text.find("\n", end, stop)
    if newline < 0:
        return ""
    begin = _SPACE.match(text, newline, stop)
    start = begin.end() if begin else newline
    return text[start : min(start + 200, stop)].split("\n", 1)[0]


def takes_back(line: str) -> bool:
    """Whether a line begins with words that take the answer before it back."""
    return _TAKEN_BACK.match(line) is not None


def is_in_list(text: str, start: int, end: int, stop: int) -> bool:
    """Whether a number is an item of a numbered list, or the next line takes it back.

    Args:
        start: where the line begins that states the number.
        end: where that line ends, or a place in it.
        stop: where the next label begins, or the text ends.
    """
    before = text[max(0, start - 20) : start]
    if "\n" in before[len(before.rstrip()) :] and _FIRST_ITEM.match(text, start, stop):
        return True
    following = following_line(text, end, stop)
    return _NUMBERED.match(following) is not None or (
        takes_back(following) and (_NUMBER.search(following) or _IN_WORDS.search(following)) is not None
    )


def is_taken_back(number: str, rest: str) -> bool:
    """Whether the rest of a line changes an integer, takes it back, or goes through a list of several.

    >>> is_taken_back("4", ", no wait, 3"), is_taken_back("3", " and a half"), is_taken_back("4", ". It is great.")
    (True, True, False)
    """
    rest = _SCALE.sub("scale", rest)
    if _AT_ONCE.match(rest) or _ANYWHERE.search(rest) or _IN_WORDS.search(rest):
        return True
    if _WITH_A_NUMBER.search(rest) and any(found[0] != number for found in _NUMBER.finditer(rest)):
        return True
    last = _LAST.search(rest)
    return (last is not None and last[1] != number) or any(
        (item[1] or item[2]) != number for item in _ITEM.finditer(rest)
    )
