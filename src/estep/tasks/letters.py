"""Reading the letter of an option behind its label. Every letter is read alike.

`A` is a letter and an article, and `I` is a pronoun. A reader that treats them apart rejects more of the responses that
choose A, and so shifts what is trained on. Hence one rule for all: a bare letter with a space and a word behind it
counts only where the word gives a reason (`because`, `since`, ...), which cannot follow an article. `A mirror` states
no letter, and `B mirror` states none. A letter that is marked (`(A)`, `**A**`, `option A`) or has a delimiter behind it
(`A.`, `A:`, `A -`, `A (`) may have any words behind it: they are its option's text or an explanation.
"""

import re
from typing import NamedTuple

from estep.tasks.endings import following_line, takes_back


class Stated(NamedTuple):
    """What is behind a label."""

    letter: str | None
    """None where the text states several letters, or one that is no choice."""
    start: int
    end: int


_OPENING = r"(?:\\text\s*\{|[\[(\"'“‘`*_{$])*"
_FIRST = re.compile(
    rf"{_OPENING}(?P<named>(?i:option|choice|letter)\s+{_OPENING})?"
    r"(?P<letter>[A-Za-z])(?P<closing>[\])\"'”’`*_}$]*)(?![\w'’])"
)
_ABBREVIATION = re.compile(r"(?<=[\w,] )(?:[A-Z]\.){2,6}|\b(?:[A-Z]\.\s?){2,4}(?=[A-Z][a-z]+)")
"""`D.C.` behind a word, and initials before a name."""
_REASONS = re.compile(r"because|since|as|which|due", re.IGNORECASE)
_JOINS = re.compile(r"or|and|nor|to|vs|versus|plus|but|not|if|either", re.IGNORECASE)
_RIGHT = re.compile(r"\s+is\s+(?:the\s+)?(?:correct|right|best)\b")
_CLAIM = re.compile(r"\s+(?:is|are|was|were|isn|can|cannot|could|would|may|might|seems)\b", re.IGNORECASE)
_NO_DELIMITER = re.compile(r"[/+&|~=<>%#@^\\]|-\w|\.[^\W_](?!\w)|[.,:]\d")
_ANOTHER = re.compile(
    r"[\s.]*\(?(?:[-–—~/,;&|+]|(?i:\b(?:to|or|and)\b))\s*(?i:(?:option|choice)\s+)?[\[(*_`\"]*"
    r"(?:[A-Z](?![\w'’])|[a-z](?![\w'’]|\s+\w))"
)
_BOTH = re.compile(
    r"[\s.):\]*_(–—-]*(?i:both|neither|all\s+of|none\s+of)\s+[A-Z](?:\s*,\s*[A-Z])*(?:\s*,)?\s+(?:and|or|nor)\s+[A-Z](?!\w)"
)
_ITEM = re.compile(r"[-*•_(\[`\"']{0,6}\s?[(\[*_`\"']{0,4}([A-Za-z])[*_`\"']{0,4}(?:[.):\]]|\s*\Z)")
_FINAL = re.compile(r"[\s.!)\]*_\"'`]*")
_LEADS = re.compile(
    _JOINS.pattern
    + r"|so|no|yes|maybe|perhaps|also|rather|instead|wait|then|is|are|was|be|being|its?|mean|say|than|even"
    r"|choose|chose|pick|options?|choices?|letter|answers?|with|without|against|unlike|like|both|neither|all|only|except"
    r"|through|from|see|think|guess|prefer|select|go|going|sorry|oops|correction|hmm|otherwise|ditto|the|an?|this|that"
    r"|for|of|by|in|on|\w+ly",
    re.IGNORECASE,
)
"""Words that lead to another letter. Any other word makes one phrase with it, such as `Vitamin C`."""
_CLAIMS = re.compile(
    _JOINS.pattern
    + r"|is|are|was|were|be|because|since|as|could|would|should|may|might|can|cannot|has|seems|looks|fits"
    r"|works|applies|instead|too|also|maybe|perhaps|possibly|both|only|rather|does|do|than|right|correct|wrong|better"
    r"|best|likely"
)
"""Words behind a letter that make it an answer talked about, where any other word makes the letter an article."""


def read_letter(text: str, choices: str) -> Stated | None:
    """The letter that a text begins with; None where it begins with none.

    >>> read_letter("D. Both A and B", "ABCD"), read_letter("A or B", "ABCD"), read_letter("A mirror", "ABCD")
    (Stated(letter='D', start=0, end=1), Stated(letter=None, start=0, end=1), None)
    """
    match = _FIRST.match(text)
    if match is None:
        return None
    rest = text[match.end() :]
    line = rest.split("\n", 1)[0]
    marked = bool(match["named"] or match["closing"])
    word = re.match(r"[^\S\n]+(\w+)", line)
    nothing = Stated(None, *match.span("letter"))
    reason = word is not None and _REASONS.fullmatch(word[1]) is not None
    if word and _JOINS.fullmatch(word[1]):
        return nothing
    right = _RIGHT.match(line) is not None
    if word and not (marked or reason or right):
        return nothing if _CLAIM.match(line) else None
    letter = match["letter"].upper()
    if letter not in choices or _NO_DELIMITER.match(line) or _ANOTHER.match(rest) or (_CLAIM.match(line) and not right):
        return nothing
    if _others(letter, line, choices, reason) or _is_changed(letter, following_line(rest, 0, len(rest)), choices):
        return nothing
    return Stated(letter, *match.span("letter"))


def _is_changed(letter: str, following: str, choices: str) -> bool:
    """Whether the next line is another item of a list, or takes the letter back."""
    item = _ITEM.match(following)
    if item and item[1].upper() in choices and item[1].upper() != letter:
        return True
    others = re.findall(r"(?<![\w'’])[A-Z](?![\w'’])", following) if takes_back(following) else []
    return any(other in choices and other != letter for other in others)


def _others(letter: str, line: str, choices: str, reason: bool) -> bool:
    """Whether the rest of a line states another letter.

    Args:
        reason: the line gives a reason; else it may be the option's text.
    """
    both = None if reason else _BOTH.match(line)
    if both and letter not in re.findall(r"\b[A-Z]\b", both[0]):  # "D. Both A and B", but not "A. Both A and B"
        line = line[both.end() :]
    line = _ABBREVIATION.sub(_without_initials, line)
    alone = re.finditer(r"(?<![\w'’])[A-Za-z](?![\w'’])", line)
    return any(o[0].upper() in choices and o[0].upper() != letter and _is_stated(o, reason) for o in alone)


def _without_initials(found: re.Match[str]) -> str:
    """A word in place of an abbreviation, unless a word before or behind it makes its letters answers."""
    before = re.search(r"([A-Za-z]+)\W*\Z", found.string[max(0, found.start() - 40) : found.start()])
    name = re.match(r"\w*", found.string[found.end() : found.end() + 40])
    leads = before is not None and before[1].lower() != "by" and _LEADS.fullmatch(before[1]) is not None
    return found[0] if leads or (name and _LEADS.fullmatch(name[0])) else "x" * len(found[0])


def _is_stated(other: re.Match[str], reason: bool) -> bool:
    """Whether another letter is an answer, and not an article or the end of a phrase such as `Vitamin C`."""
    # No more of the line than the longest word before it, and a few words behind it: the time must be linear.
    before, after = other.string[max(0, other.start() - 60) : other.start()], other.string[other.end() :][:60]
    if re.search(r"[\d°]\s*\Z", before) and not re.match(r"[.):\]]+\s*\w", after):  # 20 °C, 10 A
        return False
    before_it = before.rstrip(" \t([*_\"'`{$")
    leading = re.search(r"[A-Za-z]+$", before_it)
    leads = leading is not None and _LEADS.fullmatch(leading[0]) is not None
    joined = leads or before_it.endswith((",", ";", "/", "&", "|", "+", "~", "-", "–", "—"))
    labeled = before.endswith(("(", "[")) and after.startswith((")", "]"))
    if other[0].islower():
        return labeled or (joined and re.match(r"\s+\w", after) is None)
    if joined or labeled:
        return True
    behind = re.match(r"\s+([a-z]\w*)", after)
    if behind and not _CLAIMS.fullmatch(behind[1]):
        return False
    final = _FINAL.fullmatch(other.string, other.end()) is not None
    return reason or leading is None or not final
