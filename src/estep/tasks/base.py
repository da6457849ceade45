"""A task: where its questions come from, how it asks them, and how it judges the answers.

A task is a YAML file. It renders three prompts, and keeps them apart by method, so that no caller can mistake
one for another:

- `prompt`: what the policy is asked, in evaluation and in every training pair. Never hinted.
- `proposal_prompt`: what a proposal asks without the answer. Differs from `prompt` only in the few-shot examples,
  which `few_shot: proposal` leaves out of the policy's own prompt (as in STaR, which fine-tunes without them).
- `hinted_prompt`: the same with the correct answer as a hint (paper, Figure 1), in the examples too.

Templates never see the row's answer field, so a plain prompt cannot leak it.
"""

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2.meta

from estep.errors import ConfigError, DataError, nearest
from estep.records import Message, Messages, Question, Status
from estep.tasks.answers import PythonAnswer
from estep.tasks.file import CATALOG, JINJA, Example, FewShot, OptionsSection, TaskFile, parse_task, template

OnBadRow = Literal["stop", "skip"]


class Judgement(NamedTuple):
    """What a text is worth as an answer to a question."""

    status: Status
    answer: str | None
    rationale: str
    hint_mentioned: bool


class BadRow(NamedTuple):
    """A row that cannot become a question."""

    place: str
    reason: str


class Rows(NamedTuple):
    """The questions of one source, and the rows left out of it."""

    questions: list[Question]
    bad: list[BadRow]
    left_out: int = 0
    """Rows without a value in a field of `data.leave_out_without`."""


_HINT_RUN = 6
"""This many of the hint's words in a row count as a mention of it."""


@dataclass(frozen=True)
class Task:
    """A task file, ready to render prompts and judge texts.

    Example:
        >>> task = load_task("sentiment/movies")
        >>> question = task.question({"text": "A dull film."}, answer=-1.0)
        >>> task.judge(question, "Evaluation: It calls the film dull. Score: 1").status
        'correct'
    """

    file: TaskFile
    path: Path | None = None
    """Where the file lies; data paths are relative to its folder."""
    hint_variant: str | None = None
    """The hint's wording; None for the file's default."""
    few_shot: FewShot | None = None
    """Overrides the file's `few_shot`."""

    def __post_init__(self) -> None:
        if self.hint_variant is not None and self.hint_variant not in self.file.hint.variants:
            raise ConfigError(
                f"task {self.name} has no hint variant '{self.hint_variant}'; "
                + nearest(self.hint_variant, self.file.hint.variants)
            )

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def answers(self) -> tuple[str, ...]:
        """Every allowed answer in canonical form and in order; empty where there is no such list."""
        return self.file.answer.values

    @property
    def ordinal(self) -> bool:
        """Whether answers are integers, so that kappa and MAE mean something."""
        return self.file.answer.type == "integer"

    @property
    def policy_sees_examples(self) -> bool:
        return (self.few_shot or self.file.few_shot) == "both"

    # Prompts

    def prompt(self, question: Question) -> Messages:
        """What the policy is asked: the prompt of evaluation and of every training pair."""
        return self._messages(question, examples=self.policy_sees_examples, hinted=False)

    def proposal_prompt(self, question: Question) -> Messages:
        """What a proposal asks without the answer, always with the few-shot examples."""
        return self._messages(question, examples=True, hinted=False)

    def hinted_prompt(self, question: Question) -> Messages:
        """What a proposal asks with the correct answer as a hint: x and y* of q(z, y | x, y*)."""
        return self._messages(question, examples=True, hinted=True)

    def hint(self, question: Question) -> str:
        """The hint's text for a question."""
        options = question.fields.get("options", ()) if self.file.options is not None else ()
        return self._hint(question.answer, _text_of(options, question.answer), question.solution)

    def _hint(self, answer: str, option: str = "", solution: str = "") -> str:
        seen = {"answer": answer, "option": option, "solution": solution}
        return _render(self.file.hint.variants[self.hint_variant or self.file.hint.default], seen, self.name)

    def full_completion(self, rationale: str, answer: str) -> str:
        """A response in the form that the prompt asks for."""
        return _render(self.file.completion, {"rationale": rationale, "answer": answer}, self.name)

    def direct_completion(self, question: Question) -> str:
        """The correct answer with no rationale before it, for the answer-only baseline."""
        return _render(self.file.direct, {"answer": question.answer}, self.name)

    def response_regex(self, max_new_tokens: int) -> str:
        """A regex of the responses that the prompt asks for: any rationale, then an allowed answer, then the end.

        The rationale has no colon, so that the label stands once, and at most `_CHARACTERS_A_TOKEN` characters for
        each token that the rest of the form leaves over.

        Raises:
            ConfigError: the answers are read by a function of the user's own, whose form is not known.
        """
        answer = self.file.answer.regex
        if answer is None:
            raise ConfigError(f"task {self.name}: engine.structured needs an answer spec other than python")
        form = self.full_completion(_RATIONALE, _ANSWER)
        label = len(form.replace(_RATIONALE, "").replace(_ANSWER, ""))
        longest = max(20, _CHARACTERS_A_TOKEN * max_new_tokens - label)
        parts = re.split(f"({_RATIONALE}|{_ANSWER})", form)
        inner = {_RATIONALE: f"[^:]{{1,{longest}}}", _ANSWER: answer}
        return "".join(inner.get(part) or re.escape(part) for part in parts)

    def _messages(self, question: Question, *, examples: bool, hinted: bool) -> Messages:
        messages: list[Message] = []
        if self.file.system:
            messages.append({"role": "system", "content": self.file.system.strip()})
        for example in self._examples if examples else ():
            messages.append(self._user(example.question, hinted))
            completion = self.full_completion(example.rationale, example.question.answer)
            messages.append({"role": "assistant", "content": completion})
        messages.append(self._user(question, hinted))
        return tuple(messages)

    def _user(self, question: Question, hinted: bool) -> Message:
        given = {name: _render(text, question.fields, self.name) for name, text in self.file.parameters.items()}
        seen = {**question.fields, **given, "hint": self.hint(question) if hinted else ""}
        return {"role": "user", "content": _render(self.file.user, seen, self.name)}

    @cached_property
    def _examples(self) -> list["_Shown"]:
        return [_Shown(self._example(example), example.rationale) for example in self.file.examples]

    def _example(self, example: Example) -> Question:
        answer = self.file.answer.canonical(example.answer)
        if answer is None:
            raise DataError(f"task {self.name}: the example's answer {example.answer!r} is none: {self._allowed()}")
        return replace(self.question(dict(example.fields)), answer=answer, solution=example.solution)

    # Judging

    def judge(self, question: Question, text: str) -> Judgement:
        """The verdict on a text: `r(ŷ, y*) = 1` exactly where the status is `correct`.

        A question whose own answer is not in canonical form never earns the reward: its status is `gold_invalid`.
        """
        spec = self.file.answer
        if isinstance(spec, PythonAnswer):
            try:
                verifier = spec.verifier()
            except ValueError as error:
                raise DataError(f"task {self.name}: {error}") from error
            try:
                stated, correct = verifier(text, question.answer)
            except Exception as error:
                raise DataError(
                    f"the verifier {spec.function} failed on question '{question.id}': {type(error).__name__}: {error}"
                ) from error
            start = len(text)
        else:
            parsed = spec.parse(text)
            stated, start = (parsed.answer, parsed.start) if parsed else (None, len(text))
            correct = stated is not None and spec.agree(stated, question.answer, question.fields)
        rationale = self._rationale(text[:start])
        status: Status
        if spec.canonical(question.answer) != question.answer or not spec.sound(question.answer):
            status = "gold_invalid"
        elif stated is None:
            status = "unparseable"
        else:
            status = "correct" if correct else "wrong"
        return Judgement(status, stated, rationale, self._mentions_hint(text, question))

    def answer_span(self, text: str) -> tuple[int, int] | None:
        """Where the answer that a text states stands in it; None where it states none, or where only the task's own
        verifier knows."""
        if isinstance(self.file.answer, PythonAnswer):
            return None
        parsed = self.file.answer.parse(text)
        return parsed.span if parsed else None

    def _rationale(self, text: str) -> str:
        text = text.strip()
        if self.file.rationale_label:
            text = re.sub(rf"^[*_#\s]*(?i:{re.escape(self.file.rationale_label)})[*_]*\s*:[*_]*\s*", "", text)
        return text.strip()

    def _mentions_hint(self, text: str, question: Question) -> bool:
        if any(pattern.search(text) for pattern in self._hint_mentions):
            return True
        words = f" {' '.join(_words(text))} "
        hint = _words(self._hint(question.answer))  # what the option or the solution says may be said
        runs = (hint[start : start + _HINT_RUN] for start in range(len(hint) - _HINT_RUN + 1))
        return any(f" {' '.join(run)} " in words for run in runs)

    @cached_property
    def _hint_mentions(self) -> list[re.Pattern[str]]:
        return [re.compile(pattern, re.IGNORECASE) for pattern in self.file.hint.mentions]

    # Rows

    @cached_property
    def needed_fields(self) -> frozenset[str]:
        """The fields that a row must have for the prompt."""
        seen = {name for source in self._asking for name in jinja2.meta.find_undeclared_variables(JINJA.parse(source))}
        return frozenset(seen) - {"hint", *self.file.parameters} - ({"options"} if self.file.options else set())

    @property
    def _asking(self) -> tuple[str, ...]:
        """The templates that make a question."""
        return (self.file.user, *self.file.parameters.values())

    def question(self, row: dict[str, Any], answer: Any = None, id: str = "") -> Question:
        """A question of a row.

        Args:
            answer: what the gold field holds; None where it is not known.

        Raises:
            DataError: a field that the prompt needs is missing, or the answer is not allowed.
        """
        gold = self.file.gold
        missing = sorted(field for field in self.needed_fields if row.get(field) is None)
        if missing:
            raise DataError(f"no value for {', '.join(missing)}; the row has {', '.join(map(str, row)) or 'no fields'}")
        fields = _without(row, gold.field)
        solution = ""
        if gold.solution is not None:
            solution = str(_value(row, gold.solution) or "")
            fields = _without(fields, gold.solution)
        if answer is not None:
            answer, told = self._read_gold(answer)
            solution = solution or told
        if self.file.options is not None:
            options = _options(row, self.file.options, self.file.answer.values)
            fields["options"] = [{"letter": letter, "text": text} for letter, text in options.items()]
            answer = answer if answer is None else self._letter(answer, row, options, self.file.options)
        return Question(id, fields, "" if answer is None else self._gold(answer), solution)

    def permuted(self, question: Question, seed: int) -> Question:
        """The same question with its options in an order of the seed's."""
        options = question.fields["options"]
        texts = [option["text"] for option in options]
        order = list(range(len(texts)))
        random.Random(f"{seed}-{question.id}").shuffle(order)
        letters = [option["letter"] for option in options]
        shuffled = [{"letter": letter, "text": texts[place]} for letter, place in zip(letters, order, strict=True)]
        answer = letters[order.index(letters.index(question.answer))]
        return replace(question, fields={**question.fields, "options": shuffled}, answer=answer)

    def group(self, question: Question) -> str | None:
        """What the question shares with others of its document or prompt; None where the task groups none."""
        return None if self.file.data.group is None else str(_value(question.fields, self.file.data.group))

    def _read_gold(self, value: Any) -> tuple[Any, str]:
        """The answer and the worked solution in a gold field."""
        gold = self.file.gold
        if gold.remove is not None:
            value = re.sub(gold.remove, "", str(value), flags=re.DOTALL)
        if gold.pattern is None:
            return value, ""
        found = re.fullmatch(gold.pattern, str(value).strip(), re.DOTALL)
        if found is None:
            raise DataError(f"{gold.field} = {_short(value)} does not hold an answer (gold.pattern)")
        return found["answer"].strip(), (found.groupdict().get("solution") or "").strip()

    def _letter(self, answer: Any, row: dict[str, Any], options: Mapping[str, str], section: OptionsSection) -> str:
        """The letter of the option that a gold field names."""
        letters = list(options)
        if section.gold == "index":
            known = [str(place) for place in range(len(letters))]
        elif section.gold == "text":
            known = list(options.values())
        else:
            labels = letters if section.labels is None else _value(row, section.labels)
            known = [str(label).strip() for label in labels or ()]
        if str(answer).strip() not in known or len(known) != len(letters):
            raise DataError(
                f"{self.file.gold.field} = {_short(answer)} is none of the row's options {', '.join(known)}"
            )
        return letters[known.index(str(answer).strip())]

    def _gold(self, value: Any) -> str:
        if self.file.gold.cut is not None and self.file.answer.type == "integer":
            try:
                rating = float(value)
            except (TypeError, ValueError):
                rating = float("nan")
            if not math.isfinite(rating) or isinstance(value, bool):
                raise DataError(f"{self.file.gold.field} = {_short(value)} is not a number")
            return str(self.file.answer.min + sum(rating >= threshold for threshold in self.file.gold.cut))
        answer = self.file.answer.canonical(value)
        if answer is None:
            raise DataError(f"{self.file.gold.field} = {_short(value)} is not allowed: {self._allowed()}")
        return answer

    def _allowed(self) -> str:
        spec = self.file.answer
        if spec.type == "integer":
            return f"an integer from {spec.min} to {spec.max}"
        if spec.type == "choice":
            return f"one of {', '.join(spec.choices)}"
        named = {"number": "a number", "math": "a number or an expression"}
        return named.get(spec.type, "some text")

    def rows(self, rows: list[tuple[str, dict[str, Any]]], prefix: str, on_bad_row: OnBadRow) -> Rows:
        """Questions of the rows of one source.

        Args:
            rows: each row's place (`file:line`) and fields.
            prefix: begins the ids of rows that have none of their own.
            on_bad_row: `stop` raises at the first row that cannot be used; `skip` lists them all.

        Raises:
            DataError: a bad row with `stop`; two rows with one id; nothing left.
        """
        questions: dict[str, Question] = {}
        bad: list[BadRow] = []
        left_out = 0
        for number, (place, row) in enumerate(rows, 1):
            row = {self.file.data.rename.get(key, key): value for key, value in row.items()}
            if any(_value(row, field) in (None, "") for field in self.file.data.leave_out_without):
                left_out += 1
                continue
            try:
                question = self._asked_by(row, f"{prefix}-{number}")
                if question.id in questions:
                    raise DataError(f"a second row with the id '{question.id}'")
                questions[question.id] = question
            except DataError as error:
                if on_bad_row == "stop":
                    raise DataError(f"{place}: {error} (--on-bad-row skip leaves such rows out)") from error
                bad.append(BadRow(place, str(error)))
        if not questions:
            why = f"the first: {bad[0].place}: {bad[0].reason}" if bad else self._nothing_there(rows)
            raise DataError(f"task {self.name}: no usable row among {len(rows)}; {why}")
        return Rows(list(questions.values()), bad, left_out)

    def _asked_by(self, row: dict[str, Any], number: str) -> Question:
        """The question of a row with an answer."""
        gold, id_field = self.file.gold.field, self.file.data.id
        answer = _value(row, gold)
        if answer is None or str(answer).strip() == "":
            there = "is empty" if gold in row else f"is missing; the row has {', '.join(map(str, row))}"
            raise DataError(f"no answer: field '{gold}' {there}")
        id = number if id_field is None else _value(row, id_field)
        if id is None:
            raise DataError(f"no id: field '{id_field}' is missing")
        if self.file.data.group is not None and _value(row, self.file.data.group) is None:
            raise DataError(f"no group: field '{self.file.data.group}' is missing")
        return self.question(row, answer, str(id))

    def _nothing_there(self, rows: list[tuple[str, dict[str, Any]]]) -> str:
        fields = ", ".join(self.file.data.leave_out_without)
        return f"none has a value in each of {fields}; the first has {', '.join(map(str, rows[0][1])) or 'no fields'}"


class _Shown(NamedTuple):
    """A worked example."""

    question: Question
    rationale: str


_RATIONALE, _ANSWER = "estepRATIONALE", "estepANSWER"
_CHARACTERS_A_TOKEN = 2  # fewer than in English prose, so that the answer is reached before the tokens run out


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _render(source: str, context: dict[str, Any], name: str) -> str:
    try:
        return template(source).render(context).strip()
    except Exception as error:
        raise DataError(f"task {name}: {error} in the template {source.strip()[:60]!r}") from error


def _value(row: Mapping[str, Any], field: str) -> Any:
    """The value of a field, or, by dots, of a field of a field; None where there is none."""
    if field in row:
        return row[field]
    head, _, rest = field.partition(".")
    inner = row.get(head)
    return _value(inner, rest) if rest and isinstance(inner, Mapping) else None


def _without(row: Mapping[str, Any], field: str) -> dict[str, Any]:
    """A copy of a row that lacks one field, or, by dots, a field of a field."""
    head, _, rest = field.partition(".")
    if rest and field not in row and isinstance(row.get(head), Mapping):
        return {**row, head: _without(row[head], rest)}
    return {key: value for key, value in row.items() if key != field}


def _options(row: Mapping[str, Any], section: OptionsSection, letters: Sequence[str]) -> dict[str, str]:
    """The texts of a row's options by letter."""
    if isinstance(section.texts, str):
        texts = _value(row, section.texts)
        if not isinstance(texts, list | tuple):
            raise DataError(f"field '{section.texts}' is no list of options, got {_short(texts)}")
    else:
        texts = [_value(row, field) for field in section.texts]
    if not 2 <= len(texts) <= len(letters) or any(text is None for text in texts):
        raise DataError(f"2 to {len(letters)} options are allowed, got {_short(list(texts))}")
    return dict(zip(letters, map(str, texts), strict=False))


def _text_of(options: Sequence[Mapping[str, str]], letter: str) -> str:
    return next((option["text"] for option in options if option["letter"] == letter), "")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


# Catalogue


def task_names() -> list[str]:
    """The names of the built-in tasks. A file whose name begins with `_` is there to be extended."""
    files = (path for path in CATALOG.rglob("*.yaml") if not path.name.startswith("_"))
    return sorted(str(path.relative_to(CATALOG).with_suffix("")) for path in files)


def load_task(name: str, hint: str | None = None, few_shot: FewShot | None = None) -> Task:
    """A built-in task by name, or a user's own by the path of its file.

    Args:
        name: such as `sentiment/movies`, or a path that ends in `.yaml` or `.yml`.
        hint: the hint's variant; None for the task's default.
        few_shot: whether the policy's own prompt has the examples; None for the task's default.

    Raises:
        ConfigError: no such task or variant.
        DataError: the file is not a valid task.
    """
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        if name not in task_names():
            raise ConfigError(f"unknown task '{name}'; {nearest(name, task_names())}; or the path of a .yaml file")
        path = CATALOG / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"could not read the task file {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    return Task(parse_task(text, str(path), path.parent), path.resolve(), hint, few_shot)
