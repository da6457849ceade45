"""The application that commands are added to, the options that they share, and how they print."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from estep import __version__
from estep.shipped import config_names, task_names

app = typer.Typer(
    name="estep",
    help="Teach language models to reason from questions and verified answers alone, by filtered EM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console()


def one_of(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completes an argument in a shell: the names that begin as typed. If there is none, the shell offers files."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def _model_names() -> Iterable[str]:
    from estep.models.registry import HUB_MODELS

    return ("smollm2-135m", *HUB_MODELS)


class OnInvalidRow(StrEnum):
    stop = "stop"
    skip = "skip"


InvalidRows = Annotated[
    OnInvalidRow | None,
    typer.Option(
        "--on-invalid-row",
        help="What to do with invalid rows: stop, or skip and count them [default: stop, or as configured].",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings, such as engine.temperature=0.7; `estep keys` lists them all.",
        show_default=False,
    ),
]
TaskName = Annotated[
    str,
    typer.Argument(
        metavar="TASK", help="A built-in task's name or the path of a task file.", autocompletion=one_of(task_names)
    ),
]
complete_config = one_of(config_names)
complete_model = one_of(_model_names)
_MODEL = "smollm2-135m, a model folder, a run folder, or a hub id."
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL, autocompletion=complete_model)]
ModelOption = Annotated[str, typer.Option("--model", help=_MODEL, autocompletion=complete_model)]


def _print_version(asked: bool) -> None:
    if asked:
        from estep.store.revision import git_revision

        revision = git_revision()
        say(f"estep {__version__}" + (f", revision {revision}" if revision is not None else ""))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options that stand before a command."""


def show(table: Table) -> None:
    """Print a table; in a pipe, without a limit on its width."""
    (console if console.is_terminal else Console(width=1000)).print(table)


def say(text: str) -> None:
    """Print text verbatim, without markup or wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
