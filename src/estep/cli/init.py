"""The command `estep init`: from a table of texts and scores to a task file."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.table import Table
from rich.text import Text

from estep.cli.app import app, say, show
from estep.errors import ConfigError, EstepError, StoreError, writing

if TYPE_CHECKING:
    from estep.tasks.columns import Column, Roles
    from estep.tasks.draft import Draft, Scale

T = TypeVar("T")
_NONE = "-"
"""What stands for no column."""


@app.command()
def init(  # noqa: PLR0913 (typer reads the options from the signature)
    source: Annotated[Path, typer.Argument(metavar="TABLE", help="Scored texts: .csv, .tsv, .jsonl or .parquet.")],
    text: Annotated[str | None, typer.Option("--text", metavar="COLUMN", help="The column with the texts.")] = None,
    score: Annotated[
        str | None,
        typer.Option(
            "--score", metavar="COLUMN", help="The column with the score or label; - for the raters' mean or majority."
        ),
    ] = None,
    raters: Annotated[
        str | None,
        typer.Option("--raters", metavar="A,B,C", help="The columns with one rater's scores each; - for none."),
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id", metavar="COLUMN", help="The column that identifies a row; - for none.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="COLUMN", help="Rows that share its value stay together; - for none."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The task's name [default: that of the table].")] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            "--scale", metavar="0-4", help="Lowest and highest score; takes numbers alone [default: as in the data]."
        ),
    ] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Take numbers as labels without an order.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The task file [default: NAME.yaml].")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing, and take what is proposed.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a task file for a table of texts with scores or labels.

    Asks which column is what, and proposes answers. The file passes `estep check`; its comments say what to improve.
    """
    from estep.sources.rows import read_rows
    from estep.tasks.columns import columns_of
    from estep.tasks.draft import draft, far_score, has_labels, read_scale, why_labels
    from estep.tasks.draft_file import task_name

    if labels and scale is not None:
        raise ConfigError("--labels and --scale: labels have no scale")
    fixed = read_scale(scale) if scale is not None else None
    rows = read_rows(source)
    columns = columns_of(rows)
    if not yes:
        _show_columns(columns)
    if name is None and not yes:
        name = _ask("Name of the task", task_name(source.stem), _valid_name)
    name = _valid_name(name if name is not None else task_name(source.stem))
    out = out if out is not None else Path(f"{name}.yaml")
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"cannot write {out}: the extension must be .yaml or .yml")
    _require_new(out, force, ask=not yes)
    given = {"text": text, "score": score, "raters": raters, "id": id_column, "group": group}
    roles = _Chooser(columns, given, yes).roles()
    if fixed is None and not labels:
        as_labels = has_labels(columns, roles, labels)
        note = why_labels(columns, roles) if as_labels else far_score(columns, roles)
        if note is not None:
            say(f"note: {note}")
    if fixed is None and not yes:
        fixed = _scale(columns, roles, labels)
    found = draft(rows, roles, labels, fixed)
    rows_file = None if found.as_it_is else _rows_file(source, out)
    if rows_file is not None:
        _require_new(rows_file, force, ask=not yes)
    _write(found, name, source, out, rows_file)
    questions = _checked(out)
    _report(found, source, out, rows_file)
    say(f"{questions} questions are left to train and test on")
    _next_commands(out)


def _show_columns(columns: "Mapping[str, Column]") -> None:
    table = Table("column", "holds", "different values", "for example", box=None, pad_edge=False)
    for one in columns.values():
        example = " ".join(str(one.filled[0]).split()) if one.filled else ""
        short = example if len(example) <= 50 else f"{example[:49]}…"
        table.add_row(Text(one.name), one.kind, str(one.distinct), Text(short))
    show(table)


# What to ask


def _ask(question: str, proposed: str, read: Callable[[str], T]) -> T:
    """An answer, asked for again until it can be read."""

    def checked(answer: str) -> T:
        try:
            return read(answer)
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from error

    with _typed_input():
        answer: T = typer.prompt(question, default=proposed, value_proc=checked)
    return answer


@contextmanager
def _typed_input() -> Iterator[None]:
    """Says what to do where nobody answers, as in a script."""
    ended = ConfigError("the input ended before all questions were answered; --yes takes what is proposed")
    if sys.stdin is None:  # closed by the shell
        raise ended
    try:
        yield
    except typer.Abort as error:
        if not isinstance(error.__context__, EOFError):  # but Ctrl-C
            raise
        say("")
        raise ended from None


def _valid_name(name: str) -> str:
    from estep.tasks.draft_file import task_name

    if task_name(name) != name:
        raise ConfigError(f"name '{name}': letters, digits, '.', '_' and '-' are allowed, such as {task_name(name)}")
    return name


def _scale(columns: "Mapping[str, Column]", roles: "Roles", labels: bool) -> "Scale | None":
    from estep.tasks.draft import data_scale, has_labels, read_scale

    if has_labels(columns, roles, labels):
        return None
    found = data_scale(columns, roles)

    def read(answer: str) -> "Scale":
        scale = read_scale(answer)
        if scale.lowest > found.lowest or scale.highest < found.highest:
            raise ConfigError(f"scale '{answer}': the data have scores from {found.lowest} to {found.highest}")
        return scale

    return _ask("Lowest and highest score", f"{found.lowest}-{found.highest}", read)


@dataclass(frozen=True)
class _Chooser:
    """Chooses columns: as given by an option, as answered, or as proposed."""

    columns: "Mapping[str, Column]"
    given: Mapping[str, str | None]
    yes: bool

    def roles(self) -> "Roles":
        from estep.tasks import columns as table

        columns = self.columns
        text = self._one("text", "Column with the texts", table.propose_text(columns))
        if text is None:
            raise ConfigError(f"no column holds texts of several words; --text names one of {', '.join(columns)}")
        question = f"Columns with the scores of one rater each, as in A,B,C ({_NONE} for none)"
        raters = self._some("raters", question, table.propose_raters(columns, text))
        question = "Column with the score or label" + (f" ({_NONE} for that of the raters)" if raters else "")
        score = self._one("score", question, table.propose_score(columns, text, raters))
        if score is None and not raters:
            raise ConfigError(f"no column holds scores or labels; --score names one of {', '.join(columns)}")
        used = [text, score, *raters]
        question = f"Column that identifies a row ({_NONE} for none)"
        id_column = self._one("id", question, table.propose_id(columns, used))
        question = f"Column whose values keep rows together, such as a document ({_NONE} for none)"
        group = self._one("group", question, table.propose_group(columns, [*used, id_column]))
        return table.Roles(text, score, raters, id_column, group)

    def _one(self, key: str, question: str, proposed: str | None) -> str | None:
        names = self._some(key, question, (proposed,) if proposed is not None else ())
        return names[0] if names else None

    def _some(self, key: str, question: str, proposed: tuple[str, ...]) -> tuple[str, ...]:
        def read(answer: str) -> tuple[str, ...]:
            return self._known(answer, several=key == "raters")

        value = self.given[key]
        if value is not None:
            return read(value)
        return proposed if self.yes else _ask(question, ",".join(proposed) or _NONE, read)

    def _known(self, answer: str, several: bool) -> tuple[str, ...]:
        from estep.tasks.columns import column

        if answer.strip() == _NONE:
            return ()
        names = answer.split(",") if several else [answer]
        return tuple(column(self.columns, name if name in self.columns else name.strip()).name for name in names)


# What to write


def _require_new(path: Path, force: bool, ask: bool) -> None:
    """Refuse to replace a file, unless it is forced or the answer to a question."""
    if not path.exists() or force:
        return
    replace = False
    if ask:
        with _typed_input():
            replace = typer.confirm(f"{path} exists already. Replace it?")
    if not replace:
        raise StoreError(f"{path} exists already; --force replaces it, and -o names another file")


def _rows_file(source: Path, out: Path) -> Path:
    """The file of the rows of a task that needs one of its own."""
    path = out.with_name(f"{out.stem}-rows.jsonl")
    if path.resolve() == source.resolve():
        raise ConfigError(f"{path} would replace the table itself; choose another name with -o")
    return path


def _write(found: "Draft", name: str, source: Path, out: Path, rows_file: Path | None) -> None:
    from estep.sources.archives import DATASETS
    from estep.store.files import write_rows, write_whole
    from estep.tasks.draft_file import data_rows, task_text

    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    reference = Path(os.path.relpath(source.resolve(), out.resolve().parent)).as_posix()
    if rows_file is not None:
        write_rows(rows_file, data_rows(found))
        reference = rows_file.name
    if reference.partition("/")[0] in DATASETS:
        reference = f"./{reference}"
    write_whole(out, task_text(found, name, reference, source.name))


def _checked(out: Path) -> int:
    """The number of questions of a task that was just written.

    Raises:
        EstepError: it is not sound.
    """
    from estep.data.check import check_task
    from estep.data.split import load_pool
    from estep.tasks import load_task

    task = load_task(str(out))
    check = check_task(task, load_pool(task))
    if check.problems:
        raise EstepError(f"{out} is written, but is not sound yet: {'; '.join(check.problems)}")
    return check.train


def _report(found: "Draft", source: Path, out: Path, rows_file: Path | None) -> None:
    from estep.tasks.draft import counted
    from estep.tasks.draft_file import raters_of

    roles = found.roles
    total = len(found.usable) + sum(found.left_out.values())
    say(f"{out}: task file, with comments that say what to improve")
    if rows_file is not None:
        why = "the task file cannot combine columns" if roles.score is None else "some cells cannot be read as they are"
        say(f"{rows_file}: the usable rows of {source.name}, because {why}")
    say(f"rows: {len(found.usable)} of {total} are usable" + (f"; {counted(found.left_out)}" if found.left_out else ""))
    what = roles.score or f"{'mean' if found.answer.type == 'integer' else 'majority'} of {', '.join(roles.raters)}"
    say(f"text: {roles.text}; answer: {what}{', rounded' if found.rounded else ''}")
    say(f"{'scores' if found.answer.type == 'integer' else 'labels'} with their rows: {counted(found.counts)}")
    if found.unanimous:
        rows = f"{len(found.unanimous)} rows with at least two ratings"
        say(f"raters: {len(roles.raters)}; on {found.agreement:.0%} of the {rows} they all say the same")
    elif roles.raters:
        say(f"raters: {len(roles.raters)}; no row has two ratings, so it is unknown how far they agree")
    if len(roles.raters) > 1 and not raters_of(found):
        say("note: the raters' scores are on another scale than the answer, so the task file does not name the raters")
    if found.contradictory:
        say(f"note: {len(found.contradictory)} texts have different answers in different rows; they stay in the data")
    shown = len({one.reads for one in found.examples})
    say(f"examples: {shown} rows" + ("; their rationales are stopgaps, so please write better ones" if shown else ""))


def _next_commands(out: Path) -> None:
    from estep.config.files import load_config

    task = shlex.quote(str(out))
    overrides = [f"task={out}", "train_size=null", "test_size=null"]
    folder = shlex.quote(str(load_config("demo", overrides).folder))
    say("next:")
    say(f"  estep check {task} --model smollm2-135m")
    say(f"  estep sample {task} --proposal pps -n 8")
    say(f"  estep train demo {shlex.join(overrides)}")
    say(f"  estep predict {folder} {task} new.csv -o scored.csv")
