"""A task: where its questions come from, how it asks them, and how it judges the answers.

A task is a YAML file. It renders three prompts, each by its own method, so that no caller can confuse them:

- `prompt`: the prompt of the policy, in evaluation and in every training pair. It never contains the hint.
- `proposal_prompt`: the prompt of a proposal that does not use the answer. It differs from `prompt` only in the
  few-shot examples, which `first` and `proposal` leave out of the policy's own prompt. With `first` it equals `prompt`
  once the policy has been trained (`after_training`), so that the E-step samples from what the M-step trains,
  π(· | x; θ) of Algorithm 2.
- `hinted_prompt`: the same with the correct answer as a hint (paper, Figure 1), also in the examples.

Templates never see the row's answer field, so a plain prompt cannot leak it.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from estep.errors import ConfigError, DataError, nearest
from estep.records import Message, Messages, Question, Status
from estep.shipped import CATALOG, task_names
from estep.sources.rows import Row
from estep.tasks.answers import COLONS, GeneratorAnswer, PythonAnswer
from estep.tasks.file import Example, FewShot, TaskFile, parse_task
from estep.tasks.functions import fingerprint, notice
from estep.tasks.puzzle_sets import require_safe
from estep.tasks.rows import OnInvalidRow, RowReader, Rows, reordered, value_of
from estep.tasks.templates import template


class Judgment(NamedTuple):
    """The judgment of a text as an answer to a question."""

    status: Status
    answer: str | None
    rationale: str
    hint_mentioned: bool


_HINT_RUN = 6
"""This many consecutive words of the hint count as a mention of it."""


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
    """The path of the task file; data paths are relative to its folder."""
    hint_variant: str | None = None
    """The name of the hint's wording; None for the file's default."""
    few_shot: FewShot | None = None
    """Overrides the file's `few_shot`."""
    trained: bool = False
    """Whether the model that proposes has been trained on this task; see `after_training`."""

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
    def text(self) -> str:
        """The task file as YAML, with everything that it extends and all defaults filled in. A comment at its end
        identifies the file of a user's function, so that runs with different functions have different texts."""
        text = yaml.safe_dump(self.file.model_dump(mode="json"), sort_keys=False)
        spec = self.file.answer
        if isinstance(spec, PythonAnswer) and spec.package is None:
            text += f"# {fingerprint(spec.function, self._folder)}\n"
        return text

    @property
    def hint_name(self) -> str:
        """The name of the hint's wording."""
        return self.hint_variant or self.file.hint.default

    @property
    def answers(self) -> tuple[str, ...]:
        """Every allowed answer in canonical form and in order; empty if they cannot be listed."""
        return self.file.answer.values

    def answers_to(self, question: Question) -> tuple[str, ...]:
        """The allowed answers to a question: of a question with options, their letters."""
        letters = {option["letter"] for option in self._options(question)}
        return tuple(answer for answer in self.answers if not letters or answer in letters)

    @property
    def ordinal(self) -> bool:
        """Whether answers are integers, so that kappa and MAE mean something."""
        return self.file.answer.type == "integer"

    @property
    def examples_in(self) -> FewShot:
        """Which prompts contain the few-shot examples."""
        return self.few_shot or self.file.few_shot

    @property
    def policy_sees_examples(self) -> bool:
        return self.examples_in == "both"

    @property
    def proposal_sees_examples(self) -> bool:
        return not (self.trained and self.examples_in == "first")

    def after_training(self) -> "Task":
        """The task for a policy that has been trained on it: with `few_shot: first`, it proposes without the
        examples."""
        return replace(self, trained=True)

    @property
    def notices(self) -> tuple[str, ...]:
        """Lines to print before the task is used: which foreign code it runs."""
        spec = self.file.answer
        return (notice(spec.function, self._folder, spec.package),) if isinstance(spec, PythonAnswer) else ()

    @property
    def _folder(self) -> Path | None:
        return self.path.parent if self.path is not None else None

    # Prompts

    def prompt(self, question: Question) -> Messages:
        """The policy's prompt, in evaluation and in every training pair."""
        return self._messages(question, examples=self.policy_sees_examples, hinted=False)

    def proposal_prompt(self, question: Question) -> Messages:
        """The prompt of a proposal that does not use the answer."""
        return self._messages(question, examples=self.proposal_sees_examples, hinted=False)

    def hinted_prompt(self, question: Question) -> Messages:
        """The prompt of a proposal with the correct answer as a hint: x and y* of q(z, y | x, y*)."""
        return self._messages(question, examples=self.proposal_sees_examples, hinted=True)

    def hint(self, question: Question) -> str:
        """The hint's text for a question."""
        return self._hint(question.answer, _text_of(self._options(question), question.answer), question.solution)

    def _hint(self, answer: str, option: str, solution: str) -> str:
        seen = {"answer": answer, "option": option, "solution": solution}
        return _render(self.file.hint.variants[self.hint_name], seen, self.name)

    def full_completion(self, rationale: str, answer: str) -> str:
        """A response in the format that the prompt asks for."""
        return _render(self.file.completion, {"rationale": rationale, "answer": answer}, self.name)

    def gold_completion(self, question: Question) -> str:
        """A response whose rationale is the row's worked solution, for fine-tuning on gold rationales.

        Raises:
            DataError: the row has no solution.
        """
        if not question.solution:
            raise DataError(
                f"task {self.name}: question '{question.id}' has no worked solution (gold.solution names it)"
            )
        return self.full_completion(question.solution, question.answer)

    def direct_completion(self, question: Question) -> str:
        """The correct answer without a rationale, for the answer-only baseline."""
        return _render(self.file.direct, {"answer": question.answer}, self.name)

    def response_regex(self, max_new_tokens: int) -> str:
        """A regex of the responses that the prompt asks for: any rationale, then an allowed answer, then the end.

        The rationale contains no colon of any width, so that the label occurs only once, and at most
        `_CHARACTERS_PER_TOKEN` characters per token that the rest of the response leaves.

        Raises:
            ConfigError: a function of the user reads the answers, so their format is not known.
        """
        answer = self.file.answer.regex
        if answer is None:
            raise ConfigError(f"task {self.name}: engine.structured needs an answer spec other than python")
        form = self.full_completion(_RATIONALE, _ANSWER)
        label = len(form.replace(_RATIONALE, "").replace(_ANSWER, ""))
        longest = max(20, _CHARACTERS_PER_TOKEN * max_new_tokens - label)
        parts = re.split(f"({_RATIONALE}|{_ANSWER})", form)
        inner = {_RATIONALE: f"[^{COLONS}]{{1,{longest}}}", _ANSWER: answer}
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

    @property
    def examples(self) -> list[Question]:
        """The questions of the few-shot examples, with their answers."""
        return [example.question for example in self._examples]

    def _example(self, example: Example) -> Question:
        answer = self.file.answer.canonical(example.answer)
        if answer is None:
            raise DataError(
                f"task {self.name}: the example's answer {example.answer!r} is none: {self._reader.allowed}"
            )
        try:
            asked = self.question(dict(example.fields))
        except DataError as error:
            raise DataError(f"task {self.name}: the example with the answer {answer}: {error}") from error
        return replace(asked, answer=answer, solution=example.solution)

    def shown(self, question: Question) -> str:
        """A question on one line for people to read: the fields that its prompt uses, and its options."""
        fields = [question.fields[name] for name in sorted(self.needed_fields)]
        texts = [field for field in fields if not isinstance(field, dict)] or [self.prompt(question)[-1]["content"]]
        texts += [f"{option['letter']}. {option['text']}" for option in self._options(question)]
        return "; ".join(" ".join(str(text).split()) for text in texts)

    # Judging

    def judge(self, question: Question, text: str) -> Judgment:
        """The verdict on a text: `r(ŷ, y*) = 1` exactly where the status is `correct`.

        A question whose own answer is not in canonical form never earns the reward: its status is `gold_invalid`.
        """
        spec = self.file.answer
        if isinstance(spec, PythonAnswer):
            try:
                verifier = spec.verifier(self._folder)
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
        return Judgment(status, stated, rationale, self._mentions_hint(text))

    def answer_span(self, text: str) -> tuple[int, int] | None:
        """The position of the answer in a text; None if the text states no answer, or if only the task's own verifier
        can find it."""
        if isinstance(self.file.answer, PythonAnswer):
            return None
        parsed = self.file.answer.parse(text)
        return parsed.span if parsed else None

    def _rationale(self, text: str) -> str:
        text = text.strip()
        if self.file.rationale_label:
            text = re.sub(rf"^[*_#\s]*(?i:{re.escape(self.file.rationale_label)})[*_]*\s*[{COLONS}][*_]*\s*", "", text)
        return text.strip()

    def _mentions_hint(self, text: str) -> bool:
        if any(pattern.search(text) for pattern in self._hint_mentions):
            return True
        words = f" {' '.join(_words(text))} "
        return any(run in words for run in self._hint_runs)

    @cached_property
    def _hint_runs(self) -> list[str]:
        """Every run of `_HINT_RUN` words of the hint itself, without answer, option and solution, which a text may
        repeat."""
        parts = [_words(part) for part in self._hint(_ANSWER, _ANSWER, _ANSWER).split(_ANSWER)]
        starts = ((part, start) for part in parts for start in range(len(part) - _HINT_RUN + 1))
        return [f" {' '.join(part[start : start + _HINT_RUN])} " for part, start in starts]

    @cached_property
    def _hint_mentions(self) -> list[re.Pattern[str]]:
        return [re.compile(pattern, re.IGNORECASE) for pattern in self.file.hint.mentions]

    # Rows

    @cached_property
    def _reader(self) -> RowReader:
        return RowReader(self.file)

    @property
    def needed_fields(self) -> frozenset[str]:
        """The fields that the prompt needs from a row."""
        return self._reader.needed_fields

    def question(self, row: dict[str, Any], answer: Any = None, id: str = "") -> Question:
        """See `RowReader.question`."""
        return self._reader.question(row, answer, id)

    def rows(self, rows: list[Row], prefix: str, on_invalid_row: OnInvalidRow) -> Rows:
        """See `RowReader.rows`."""
        return self._reader.rows(rows, prefix, on_invalid_row, self.prompt)

    def permuted(self, question: Question, seed: int) -> Question:
        """The same question with its options shuffled by the seed; only for tasks with options."""
        order = list(range(len(question.fields["options"])))
        random.Random(f"{seed}-{question.id}").shuffle(order)
        return reordered(question, order)

    def in_order(self, question: Question) -> Question:
        """The same question with its options, if any, sorted by their texts."""
        options = self._options(question)
        return reordered(question, sorted(range(len(options)), key=lambda index: options[index]["text"]))

    def _options(self, question: Question) -> list[dict[str, str]]:
        return list(question.fields.get("options", ())) if self.file.options is not None else []

    def group(self, question: Question) -> str | None:
        """The value that identifies the question's document or prompt; None if the task has no `data.group`."""
        return None if self.file.data.group is None else str(value_of(question.fields, self.file.data.group))


class _Shown(NamedTuple):
    """A worked example."""

    question: Question
    rationale: str


_RATIONALE, _ANSWER = "estepRATIONALE", "estepANSWER"
_CHARACTERS_PER_TOKEN = 2  # fewer than in English prose, so that the tokens suffice for the answer


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _render(source: str, context: dict[str, Any], name: str) -> str:
    try:
        return template(source).render(context).strip()
    except Exception as error:
        raise DataError(f"task {name}: {error} in the template {source.strip()[:60]!r}") from error


def _text_of(options: Sequence[Mapping[str, str]], letter: str) -> str:
    return next((option["text"] for option in options if option["letter"] == letter), "")


# Catalog


def load_task(name: str, hint: str | None = None, few_shot: FewShot | None = None) -> Task:
    """Load a built-in task by name, or another task by the path of its file.

    Args:
        name: such as `sentiment/movies`, or a path that ends in `.yaml` or `.yml`.
        hint: the name of the hint's wording; None for the task's default.
        few_shot: which prompts contain the examples; None for the task's default.

    Raises:
        ConfigError: no such task or variant, or puzzles whose verifier may not judge answers.
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
    file = parse_task(text, str(path), path.parent)
    if isinstance(file.answer, GeneratorAnswer):
        require_safe(file.answer.dataset)
    return Task(file, path.resolve(), hint, few_shot)
