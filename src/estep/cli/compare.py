"""The command `estep compare`: paired statistics for the predictions of any tool."""

import json
from typing import Annotated

import typer

from estep.cli.app import app, console, say
from estep.errors import ConfigError


@app.command()
def compare(  # noqa: PLR0913 (typer reads the options from the signature)
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="PREDICTIONS",
            help="Files of rows (.csv, .tsv, .jsonl, .parquet), run folders, or an iteration's eval.jsonl; NAME=PATH "
            "names one. The first is the reference.",
            show_default=False,
        ),
    ],
    id_column: Annotated[
        list[str] | None,
        typer.Option(
            "--id", metavar="NAME", help="The column that pairs the rows, such as doc_id or doc.id [default: id]."
        ),
    ] = None,
    gold: Annotated[
        list[str] | None,
        typer.Option("--gold", metavar="NAME", help="The correct answer, in one file or several [default: gold]."),
    ] = None,
    prediction: Annotated[
        list[str] | None,
        typer.Option("--prediction", metavar="NAME", help="The predicted answer [default: prediction]."),
    ] = None,
    correct: Annotated[
        str | None,
        typer.Option("--correct", metavar="NAME", help="The tool's own verdict (1 or 0, true or false, C or I)."),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="COLUMN=VALUE", help="Read only the rows with this value.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="The name of the one to compare with [default: the first].")
    ] = None,
    ordinal: Annotated[
        bool | None,
        typer.Option(
            "--ordinal/--nominal",
            help="Whether answers are ordered, so that kappa and MAE mean something "
            "[default: ordinal if every answer is an integer].",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data; shares are between 0 and 1.")] = False,
) -> None:
    """Compare predictions of any tool, question by question, with intervals and exact tests.

    Answers are compared without the whitespace around them, and 3 equals 3.0; nothing is searched for in a text. No
    prediction, an empty one and lm-evaluation-harness's [invalid] count as wrong. A list of one element counts as the
    element. If the files have different columns, give --id, --gold or --prediction several times: of these names, the
    first that a file has counts.
    """
    from estep.report.compare import compare as compared
    from estep.report.predictions import Columns, read_arms
    from estep.report.terminal import arms_table, comparisons_table

    columns = Columns(id_column or ("id",), gold or ("gold",), prediction or ("prediction",), correct, _rows_of(where))
    arms = read_arms(sources, columns)
    found = compared(arms, reference, ordinal)
    if as_json:
        print(json.dumps(found.as_json(), indent=1, ensure_ascii=False))
        return
    for one in found.arms:
        say(f"{one.name}: {one.rows} ids in {one.source}")
    say(f"{found.questions} ids are shared by all, and are compared")
    say(f"answers are {'ordinal' if found.ordinal else 'nominal'}: {found.why}")
    console.print(arms_table(found))
    console.print(comparisons_table(found))
    for note in found.notes:
        say(f"note: {note}")


def _rows_of(where: list[str] | None) -> dict[str, str]:
    """The value that each column of `--where` must have."""
    chosen = {}
    for one in where or []:
        column, equals, value = one.partition("=")
        if not equals or not column:
            raise ConfigError(f"--where {one}: COLUMN=VALUE is expected, such as --where filter=strict-match")
        chosen[column] = value
    return chosen
