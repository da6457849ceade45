"""The command `estep inspect-logs`: the evaluations of a run as logs of inspect_ai."""

from pathlib import Path
from typing import Annotated

import typer

from estep.cli.app import app, say


@app.command("inspect-logs")
def inspect_logs(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_STUDY", help="A run folder or a study folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the logs.")] = Path("logs"),
    last: Annotated[bool, typer.Option("--last", help="Only the evaluation that each run ends in.")] = False,
) -> None:
    """Write the evaluations of a run or a study as logs of inspect_ai, one per iteration."""
    from estep.report.inspect_logs import write_inspect_logs

    written = write_inspect_logs(source, out, last)
    say(f"{len(written)} logs in {out}")
    say(f"to look at them: inspect view --log-dir {out}")
