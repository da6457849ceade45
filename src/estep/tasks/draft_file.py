"""Writes a draft as a commented task file, and its rows as a file where a task file cannot read the table itself."""

import re
import unicodedata
from typing import Any

import jinja2
import jinja2.meta
import yaml

from estep.config.names import file_name
from estep.tasks.columns import is_missing, number
from estep.tasks.draft import Draft, Scale, Scored, thresholds
from estep.tasks.templates import JINJA

_RESERVED = frozenset({"hint", "options", "self", "super", "caller", "loop", "varargs", "kwargs"})
_PLAIN_NAMES = frozenset({"score", "rating", "label", "gold", "grade", "value", "target", "class", "stars", "mean"})
"""Names of columns that do not say what is judged."""
_QUOTED_WORDS = 10


def task_name(stem: str) -> str:
    """A task's name from that of its table's file.

    >>> task_name("Kunden Bewertungen (2024)")
    'Kunden-Bewertungen-2024'
    """
    return file_name(stem).strip("-.") or "task"


def text_field(draft: Draft) -> str:
    """The name by which templates see the text: the column's own, or `text` if a template cannot name the column."""
    name = draft.roles.text
    if _is_template_name(name):
        return name
    free = (f"text{'_' * count}" for count in range(len(draft.columns) + 1))
    return next(one for one in free if one not in draft.columns)


def gold_field(draft: Draft) -> str:
    """The name of the field with the answer; for several raters, of the one that `data_rows` adds."""
    if draft.roles.score is not None:
        return draft.roles.score
    name = "mean_score" if draft.answer.type == "integer" else "majority_label"
    while name in draft.columns:
        name += "_"
    return name


def raters_of(draft: Draft) -> tuple[str, ...]:
    """The raters that the task file names: several, all of whose scores are on the scale."""
    raters, spec = draft.roles.raters, draft.answer
    if len(raters) < 2:
        return ()
    given = [number(one.row.get(name)) for one in draft.usable for name in raters]
    if spec.type == "integer" and not all(spec.min <= value <= spec.max for value in given if value is not None):
        return ()
    return raters


def data_rows(draft: Draft) -> list[dict[str, Any]]:
    """The usable rows with all their columns, and the answer in `gold_field`. Raters' cells without a score or label
    are empty."""
    raters = raters_of(draft)
    return [
        {
            **one.row,
            **{name: one.row.get(name) if _is_rating(draft, one.row.get(name)) else None for name in raters},
            gold_field(draft): one.gold,
        }
        for one in draft.usable
    ]


def _is_rating(draft: Draft, cell: Any) -> bool:
    if is_missing(cell):
        return False
    return number(cell) is not None if draft.answer.type == "integer" else draft.answer.canonical(cell) is not None


def task_text(draft: Draft, name: str, source: str, table: str) -> str:
    """The task file.

    Args:
        source: the file of the rows, relative to the task file.
        table: the name of the table, for comments.
    """
    parts = [_heading(draft, name, table), _data(draft, source, table), _gold(draft), _answer(draft)]
    return "\n".join([*parts, _prompts(draft), _examples(draft, table), _hint(draft)])


def _heading(draft: Draft, name: str, table: str) -> str:
    kind = "Scores" if draft.answer.type == "integer" else "Labels"
    return (
        f"# Written by `estep init` from {_one_line(table)}. All of it may be changed; `estep check`\n"
        f"# says whether the task is still sound, and docs/tasks.md describes every key.\n"
        f"name: {_scalar(name)}\n"
        f"description: {_scalar(f'{kind} of texts, from {table}.')}\n"
    )


def _data(draft: Draft, source: str, table: str) -> str:
    roles, text = draft.roles, text_field(draft)
    lines = ["data:"]
    if not draft.as_it_is:
        lines.append(
            f"  # The {len(draft.usable)} usable rows of {_one_line(table)}, with the field {gold_field(draft)}."
        )
    lines.append(f"  source: {_scalar(source)}")
    if roles.id is not None:
        lines.append(f"  id: {_scalar(roles.id)}")
    if roles.group is not None:
        lines += ["  # Rows that share this value never end up on both sides of a split."]
        lines += [f"  group: {_scalar(roles.group)}"]
    if text != roles.text:
        lines += ["  # Templates cannot name this column, so they see it by another name."]
        lines += ["  rename:", f"    {_scalar(roles.text)}: {text}"]
    if draft.as_it_is and draft.left_out:
        lines += ["  # Rows without a value in one of these fields are left out and counted."]
        lines += ["  required_fields:", f"    - {text}", f"    - {_scalar(gold_field(draft))}"]
    return "\n".join(lines) + "\n"


def _gold(draft: Draft) -> str:
    lines, raters = [], ", ".join(map(_one_line, draft.roles.raters))
    if draft.roles.score is None and draft.answer.type == "integer":
        lines.append(f"# The mean of the scores of {raters}.")
    elif draft.roles.score is None:
        lines.append(f"# The label that most of {raters} gave.")
    lines += ["gold:", f"  field: {_scalar(gold_field(draft))}"]
    if draft.rounded and draft.answer.type == "integer":
        scale = Scale(draft.answer.min, draft.answer.max)
        lines += ["  # Rounded to the nearest score, at half points; a half is rounded up."]
        lines += [f"  thresholds: {thresholds(scale)}", "  # Other ratings are refused: they are on another scale."]
        lines += [f"  range: [{scale.lowest}, {scale.highest}]"]
    if raters_of(draft):
        lines += ["# What each rater said: `estep report` measures how well people agree. No prompt contains it."]
        lines += ["raters:", "  fields:", *(f"    - {_scalar(name)}" for name in raters_of(draft))]
    return "\n".join(lines) + "\n"


def _answer(draft: Draft) -> str:
    spec = draft.answer
    lines = ["answer:", f"  type: {spec.type}"]
    if spec.type == "integer":
        lines += [f"  min: {spec.min}", f"  max: {spec.max}"]
    elif spec.type == "choice":
        lines += [f"  choices: {_scalar(spec.choices)}"]
    return "\n".join([*lines, f"  label: {spec.label}"]) + "\n"


def _prompts(draft: Draft) -> str:
    spec = draft.answer
    label, small = spec.label, spec.label.lower()
    judged = ""
    column = " ".join((draft.roles.score or "").split())
    if column and column.isprintable() and column.lower() not in _PLAIN_NAMES:
        judged = f' for "{column}"'
    if spec.type == "integer":
        task = f"Score a text{judged}: an integer from {spec.min} (lowest) to {spec.max} (highest)."
        advice = "# Say in your own words what is scored and what each score means. The model knows nothing else."
    else:
        task = f"Label a text{judged}: {', '.join(map(_one_line, sorted(draft.counts)))}."
        advice = "# Say in your own words what is judged and what each label means. The model knows nothing else."
    return f"""\
{advice}
system: |
  {task}
  First evaluate it in one sentence, then give the {small}. Answer as "Evaluation: (evaluation) {label}: ({small})".

# The text between {{% if hint %}} and {{% endif %}} is part of the proposal's hinted prompt only.
user: |
  Text: {{{{ {text_field(draft)} }}}}
  {{% if hint %}}
  Hint: {{{{ hint }}}}
  {{% endif %}}

completion: "Evaluation: {{{{ rationale }}}} {label}: {{{{ answer }}}}"
direct: "{label}: {{{{ answer }}}}"
rationale_label: Evaluation

# Sample with the examples below until the model has been trained once; then the model has learned the form.
few_shot: first
max_new_tokens: 64
"""


def _examples(draft: Draft, table: str) -> str:
    if not draft.examples:
        return (
            "# No row is fit for an example: each answer has a single text, or its texts are too long. Examples help\n"
            "# small models, so write some of your own.\n"
            "examples: []\n"
        )
    lines = [
        "# Rows of the data, which are neither trained nor tested on while they stand here. Please write better",
        "# rationales: one sentence, without a colon, on why the text deserves its answer. The model imitates them.",
        "examples:",
    ]
    for one in draft.examples:
        place = re.sub(r"^.*?(?=(:| row )\S*$)", "", _one_line(one.location))
        lines += [f"  # {_one_line(table)}{':' if place.startswith(' ') else ''}{place}"]
        lines += ["  - fields:", f"      {_scalar(text_field(draft))}: {_quoted(one.text)}"]
        lines += [f"    rationale: {_quoted(rationale(draft, one))}", f"    answer: {_scalar(_typed(draft, one))}"]
    return "\n".join(lines) + "\n"


def _hint(draft: Draft) -> str:
    small = draft.answer.label.lower()
    return f"""\
# What a hinted prompt adds: the correct answer. Rationales that mention the hint are not trained on.
hint:
  default: strict
  variants:
    strict: Evaluate the text as if its {small} was {{{{ answer }}}}. Do not output the hint.
    plain: The {small} of the text should be {{{{ answer }}}}. Do not output the hint.
  mentions:
    - \\bhint\\b
    - as if its {small}
    - {small} of the text should be
"""


def rationale(draft: Draft, one: Scored) -> str:
    """A true rationale that a person can improve: how the text begins, and which answer it was given.

    It holds no colon, which would end a label, and no quotation mark of the text.
    """
    words = re.split(r"[:：]", one.text.strip(), maxsplit=1)[0].replace('"', "").split()
    said = " ".join(words[:_QUOTED_WORDS]).rstrip(".,;!?-– ")
    whole = len(words) <= _QUOTED_WORDS and not re.search("[:：]", one.text)
    opening = f'The text {"says" if whole else "begins with"} "{said}"' if said else "This is a text"
    spec = draft.answer
    if spec.type != "integer":
        return f"{opening}, and it was labeled as {one.answer}."
    if one.answer == str(spec.max):
        return f"{opening}, and it was given the highest score."
    if one.answer == str(spec.min):
        return f"{opening}, and it was given the lowest score."
    return f"{opening}, and it was given {one.answer} on the scale from {spec.min} to {spec.max}."


def _typed(draft: Draft, one: Scored) -> int | str:
    return int(one.answer) if draft.answer.type == "integer" else one.answer


def _is_template_name(name: str) -> bool:
    """Whether a template can name this field."""
    if not name.isidentifier() or name in _RESERVED or unicodedata.normalize("NFKC", name) != name:
        return False
    try:
        return jinja2.meta.find_undeclared_variables(JINJA.parse(f"{{{{ {name} }}}}")) == {name}
    except jinja2.TemplateSyntaxError:
        return False


def _scalar(value: int | str) -> str:
    """A value in YAML, quoted where it must be."""
    text = yaml.safe_dump(value, allow_unicode=True, width=2**30).removesuffix("\n").removesuffix("\n...")
    return _quoted(value) if isinstance(value, str) and ("\n" in text or text[0] in "'\"") else text


def _quoted(value: str) -> str:
    """A text in YAML, in double quotes on one line."""
    return yaml.safe_dump(value, allow_unicode=True, width=2**30, default_style='"').removesuffix("\n")


def _one_line(text: str) -> str:
    """A text for a comment."""
    return "".join(character if character.isprintable() else " " for character in text)
