"""Reading an answer out of a model's text, and comparing it with the correct one. No task; what must be computed to be
compared is computed elsewhere (`expressions`, `generators`).

Parsing fails closed. A text earns the reward r(ŷ, y*) = 1[ŷ = y*] only if it states exactly one answer in the
form that the prompt asks for; two different answers, an answer outside the range, or an answer in words are
`None`, never a guess. The text comes from a model that is trained on what passes here, so every leniency would be
learned and exploited.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from estep.tasks.endings import is_in_list, is_taken_back
from estep.tasks.expressions import equal, is_boxed, last_boxed, read_expression, read_line, readable, skip_variable
from estep.tasks.functions import Verifier, load_function
from estep.tasks.letters import read_letter
from estep.tasks.numbers import canonical_number, decimal
from estep.tasks.reasoning_gym import full_score


class Parsed(NamedTuple):
    """An answer found in a text."""

    answer: str
    """In canonical form, so that equality of strings is equality of answers (except for `python` specs)."""
    start: int
    """Where the answer, with its label, begins: the rationale is the text before it."""
    span: tuple[int, int] | None = None
    """Start and end of the answer itself, the last one if it is stated several times; None if only a user's verifier
    knows its position."""


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @property
    def values(self) -> tuple[str, ...]:
        """Every allowed answer, in order; empty where there is no such list."""
        return ()

    @property
    def regex(self) -> str | None:
        """What an allowed answer looks like, without its label; None where only a function knows what it reads."""
        return rf"[^\n{COLONS}]{{1,60}}"

    def sound(self, answer: str) -> bool:
        """Whether a correct answer in canonical form can be compared with others."""
        return True

    def agree(self, stated: str, answer: str, fields: Mapping[str, Any]) -> bool:
        """Whether a stated answer is the correct one, both in canonical form.

        Args:
            fields: the question's.
        """
        return stated == answer


COLONS = ":："
"""What ends a label: a colon, or the full-width one of Chinese and Japanese text."""


def label_pattern(label: str) -> str:
    """A regex for `label:` as models write it, never part of a longer word.

    Accepted: any case, emphasis, quotation marks (as in JSON) or backticks around the label, and a full-width colon.

    A colon is required. `Score 4` and `Score = 4` are how prompts and rubrics talk about scores ("Score 0: bad"), so
    they state nothing. A heading (`### Score`, `**Score**`) with its answer on the next line is refused too:
    structured generation keeps labels out of a rationale by keeping colons out, and could not keep out headings. No
    text may separate label and colon: `Score (0-4):` is harmless, but `Score (of 10):` and `Score (draft):` are
    another scale and another score.
    """
    # A label and its quotation marks are found from the start of a run of emphasis only, and no run is tried twice: the
    # time must be linear in the text.
    name = rf"(?i:{re.escape(label)})"
    quoted = rf"(?:[\"“'`][*_]*+(?={name}[*_]*[\"”'`]))?"
    return rf"(?<![\w\u2010\u2011-])(?:(?<!\*)[*_]++)?{quoted}{name}[*_\"”'`]*+\s*+[{COLONS}][*_]*\s*"


class IntegerAnswer(_Spec):
    """An integer in [min, max] after a label, as in `Score: 3`."""

    type: Literal["integer"]
    min: int
    max: int
    label: str = "Score"

    @model_validator(mode="after")
    def _ordered(self) -> "IntegerAnswer":
        if self.min >= self.max:
            raise ValueError(f"min ({self.min}) must be below max ({self.max})")
        return self

    @property
    def values(self) -> tuple[str, ...]:
        return tuple(str(value) for value in range(self.min, self.max + 1))

    @property
    def regex(self) -> str:
        return f"({'|'.join(self.values)})"

    def canonical(self, gold: Any) -> str | None:
        """The canonical form of a data row's answer, or None where it is no integer of the range."""
        number = decimal(gold)
        if number is None or number != number.to_integral_value() or not self.min <= number <= self.max:
            return None
        return str(int(number))

    def parse(self, text: str) -> Parsed | None:
        """The one score that `text` states.

        Every label followed by something numeric must hold a valid score, and all of them the same one. Accepted:
        `3`, `3.0`, `**3**`, `(3)`, `$3$`, a 3 in backticks, `3/4` where 4 is the maximum. Labels followed by anything
        else are ignored. Digits are ASCII digits.
        """
        answers: list[Parsed] = []
        labels = list(re.finditer(label_pattern(self.label), text))
        for label, following in zip_longest(labels, labels[1:]):
            attempt = _NUMERIC.match(text, label.end())
            if attempt is None:
                if _OTHERWISE_NUMERIC.match(text, label.end()):
                    return None
                continue
            answer = self._read(attempt)
            stop = len(text) if following is None else following.start()
            rest = text[attempt.end() : stop].split("\n", 1)[0]
            if answer is None or is_taken_back(answer, rest) or is_in_list(text, label.end(), attempt.end(), stop):
                return None
            answers.append(Parsed(answer, label.start(), attempt.span("number")))
        return _agreed(answers)

    def _read(self, attempt: re.Match[str]) -> str | None:
        if attempt["tail"] or (attempt["of"] and Decimal(attempt["of"]) != self.max):
            return None
        return self.canonical(attempt["number"])


_DIGIT = r"[\d²³¹¼-¾⁰-₉⅐-↉]"
_NUMERIC = re.compile(
    rf"""(?:\\[(\[]|\\boxed\s*\{{|[\[("'“‘`$*_{{])*     # brackets, quotes and emphasis before the number
    (?P<number>[-+−]?[0-9]+(?:\.[0-9]+)?)
    (?:\\[)\]]|[\])"'”’`$*_}}])*
    (?:\s*(?:/|\(?\b(?:out\s+)?of\b)\s*(?P<of>[0-9]+)[\])"'`$*_}}]*)?    # 3/4, 3 out of 4, 3 (of 4)
    (?P<tail>                                      # what makes it another thing than one number
        [^\W_]                                     # 3rd, 3x, 3٣
      | \s*[%°/^\\⁄]
      | \s*\(?\b(?:out\s+of|or)\b                  # 3 out of five, 3 or four
      | (?![.!?][*_"'`$)\]]*\s)                    # a new sentence may begin with a number
        [^\w\n]*(?:\b(?:to|and|vs)\b[^\w\n]*)?{_DIGIT}   # 3-4, 3 to 4, 3 4, 3.5.1
    )?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_OTHERWISE_NUMERIC = re.compile(rf"[\W_]*{_DIGIT}")


class ChoiceAnswer(_Spec):
    """One of several letters after a label, as in `Answer: B`."""

    type: Literal["choice"]
    choices: str = Field("ABCD", min_length=2, pattern=r"^[A-Z]+$")
    label: str = "Answer"

    @property
    def values(self) -> tuple[str, ...]:
        return tuple(self.choices)

    @property
    def regex(self) -> str:
        return f"({'|'.join(map(re.escape, self.values))})"

    def canonical(self, gold: Any) -> str | None:
        letter = str(gold).strip().upper()
        return letter if len(letter) == 1 and letter in self.choices else None

    def parse(self, text: str) -> Parsed | None:
        """The one letter that `text` states: `B`, `(B)`, `**B**`, `option B`, `B. Paris`, `B because ...`; a lone
        lower-case letter counts. `estep.tasks.letters` has the rules."""
        answers: list[Parsed] = []
        stop = len(text)
        for label in reversed(list(re.finditer(label_pattern(self.label), text))):
            stated = read_letter(text[label.end() : stop], self.choices)
            if stated is None:
                continue
            if stated.letter is None:
                return None
            span = (label.end() + stated.start, label.end() + stated.end)
            answers.append(Parsed(stated.letter, label.start(), span))
            stop = label.start()  # the next label's answer is read there
        return _agreed(answers[::-1])


class NumberAnswer(_Spec):
    """A decimal number after a label, compared by value: `1,200`, `1200.0` and `$1200` are one answer.

    The line must state one number and nothing else of weight. Accepted behind it: a unit (`18 dollars per day`), and a
    reason or sentences without digits. A label with other digits behind it leaves the text without an answer:
    fractions, percentages, ranges, times, `2 million`, `1 000`, `1e5`, `about 5`.
    """

    type: Literal["number"]
    label: str = "Answer"

    @property
    def regex(self) -> str:
        return r"-?[0-9]{1,12}(\.[0-9]{1,6})?"

    def canonical(self, gold: Any) -> str | None:
        return None if isinstance(gold, bool) else canonical_number(str(gold))

    def parse(self, text: str) -> Parsed | None:
        answers: list[Parsed] = []
        for start, line, stop in _lines(self.label, text):
            if re.search(_DIGIT, text[slice(*line)]) and is_in_list(text, *line, stop):
                return None
            stated = read_line(text, skip_variable(text, *line), line[1])
            if stated is not None and stated.numeral is not None and stated.numeral.decimal:
                answers.append(Parsed(stated.answer, start, stated.span))
            elif re.search(_DIGIT, text[slice(*line)]):
                return None
        return _agreed(answers)


class TextAnswer(_Spec):
    """The rest of the line after a label, compared without regard to case, outer space and a final full stop."""

    type: Literal["text"]
    label: str = "Answer"

    def canonical(self, gold: Any) -> str | None:
        if gold is None:
            return None
        text = " ".join(str(gold).split()).casefold().lstrip("*_ ").rstrip("*_ .")
        return text or None

    def parse(self, text: str) -> Parsed | None:
        return _after_labels(self.label, text, _REST_OF_LINE, self.canonical)


class PythonAnswer(_Spec):
    """A verifier of the user's own: `function: verify:score` is the function `score` of the file `verify.py` beside the
    task file; with `package: mypkg`, `function: mypkg.verify:score` is one of an installed package.

    The function gets `(text: str, answer: str)` and returns `(stated, correct)`: the answer that the text states
    (`None` if it states none) and whether it is right.
    """

    type: Literal["python"]
    function: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
    package: str | None = Field(None, pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")
    """The installed package that holds the function; None for a file beside the task file."""

    @property
    def regex(self) -> str | None:
        """None: only the function knows what it reads."""
        return None

    def canonical(self, gold: Any) -> str | None:
        return str(gold) if str(gold).strip() else None

    def verifier(self, folder: Path | None) -> Verifier:
        """The function.

        Args:
            folder: of the task file.

        Raises:
            ValueError: there is no such function.
        """
        return load_function(self.function, folder, self.package)

    def parse(self, text: str) -> Parsed | None:
        """None: only the function knows, and where it lies only the task knows."""
        return None


class MathAnswer(_Spec):
    """A number or an expression after a label, compared by value: `1/2`, `0.5` and `\\frac{1}{2}` are one answer.

    Numbers are read as for `number`, and fractions, mixed numbers, percentages and degrees are numbers too. Anything
    else must be an expression as a whole.
    """

    type: Literal["math"]
    label: str = "Answer"

    def canonical(self, gold: Any) -> str | None:
        """What is inside the last `\\boxed{}`, or the whole where there is no box, without dollar signs and a full stop
        at its end."""
        if gold is None or isinstance(gold, bool):
            return None
        text = str(gold)
        inside = last_boxed(text) if is_boxed(text) else text
        return None if inside is None else read_expression(inside, 0, len(inside)).answer or None

    def sound(self, answer: str) -> bool:
        return readable(answer)

    def agree(self, stated: str, answer: str, fields: Mapping[str, Any]) -> bool:
        return equal(answer, stated)

    def parse(self, text: str) -> Parsed | None:
        answers: list[Parsed] = []
        for start, line, stop in _lines(self.label, text):
            stated = read_line(text, *line)
            if stated is None or is_in_list(text, *line, stop):
                return None
            if stated.answer:
                answers.append(Parsed(stated.answer, start, stated.span))
        return _agreed(answers)


def _lines(label: str, text: str) -> Iterator[tuple[int, tuple[int, int], int]]:
    """For each label, where it begins, the line behind it, and where the next label begins.

    The line ends where the next label begins, and may be all of a displayed formula.
    """
    labels = list(re.finditer(label_pattern(label), text))
    for match, following in zip_longest(labels, labels[1:]):
        stop = len(text) if following is None else following.start()
        line = _LINE.match(text, match.end(), stop)
        yield match.start(), (match.end(), line.end() if line else match.end()), stop


_LINE = re.compile(r"\\\[[^\S\n]*\n[^\n]+\n[^\S\n]*\\\][^\n]*|\$\$[^\S\n]*\n[^\n]+\n[^\S\n]*\$\$[^\n]*|[^\n]+")


class GeneratorAnswer(_Spec):
    """The rest of the line after a label. Right is the answer that reasoning-gym made with the question, and what else
    its data set gives the full score, if its verifier may judge."""

    type: Literal["reasoning_gym"]
    dataset: str
    label: str = "Answer"

    @property
    def regex(self) -> str:
        return r"[^\n]{1,60}"

    def canonical(self, gold: Any) -> str | None:
        text = " ".join(str(gold).split()).strip("*_ ")
        return text or None

    def agree(self, stated: str, answer: str, fields: Mapping[str, Any]) -> bool:
        return full_score(self.dataset, stated, {**fields, "answer": answer})

    def parse(self, text: str) -> Parsed | None:
        return _after_labels(self.label, text, _REST_OF_LINE, self.canonical)


AnswerSpec = Annotated[
    IntegerAnswer | ChoiceAnswer | NumberAnswer | TextAnswer | MathAnswer | GeneratorAnswer | PythonAnswer,
    Field(discriminator="type"),
]


def _agreed(answers: list[Parsed]) -> Parsed | None:
    """The one answer of all that were found; None where they differ, or there is none."""
    if len({parsed.answer for parsed in answers}) != 1:
        return None
    return answers[0]._replace(span=answers[-1].span)


def _after_labels(label: str, text: str, pattern: re.Pattern[str], read: Callable[[str], str | None]) -> Parsed | None:
    """The answer after a text's labels, if all labels that are followed by an answer agree.

    Args:
        pattern: of what follows a label, with a group `answer`; where it matches without that group, the text states no
            answer.
        read: gives the group's canonical form, or None where it is no answer.
    """
    answers = []
    for match in re.finditer(label_pattern(label), text):
        attempt = pattern.match(text, match.end())
        if attempt and attempt["answer"] is None:
            return None
        answer = read(attempt["answer"]) if attempt else None
        if attempt is not None and answer is not None:
            answers.append(Parsed(answer, match.start(), attempt.span("answer")))
            if answer != answers[0].answer:
                return None
    return _agreed(answers)


_REST_OF_LINE = re.compile(r"(?P<answer>[^\n]+)")
