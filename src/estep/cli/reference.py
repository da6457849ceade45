"""The commands that say what files may contain: `keys` and `schema`."""

import json
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from estep.cli.app import app, console


@app.command()
def keys(
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", help="Only keys that begin with this, such as m_step or temperature.")
    ] = "",
) -> None:
    """List the keys of a configuration with their types, defaults and meanings. In a pipe, each key is one line with
    tabs and its full description."""
    from estep.config.keys import find_keys

    found = find_keys(prefix)
    if not console.is_terminal:
        for key in found:
            print(key.path, _plain(key.kind), _plain(key.default), ", ".join(key.variants), key.meaning, sep="\t")
        return
    table = Table("key", "value", "default", "meaning", box=None, pad_edge=False)
    for key in found:
        meaning = key.meaning if len(found) == 1 else key.summary
        types = f" (type: {' or '.join(key.variants)})" if key.variants else ""
        table.add_row(*map(Text, (key.path, _plain(key.kind), _plain(key.default), meaning + types)))
    console.print(table)


class FileKind(StrEnum):
    config = "config"
    task = "task"
    study = "study"


@app.command()
def schema(kind: Annotated[FileKind, typer.Argument(metavar="config|task|study", help="The kind of file.")]) -> None:
    """Print a JSON Schema with which editors complete and check a configuration, a task file or a study."""
    from estep.config.schema import config_schema
    from estep.study.schema import study_schema
    from estep.tasks.schema import task_schema

    of_kind = {FileKind.config: config_schema, FileKind.task: task_schema, FileKind.study: study_schema}
    print(json.dumps(of_kind[kind](), indent=1, ensure_ascii=False))


def _plain(markdown: str) -> str:
    return markdown.replace("`", "")
