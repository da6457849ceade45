"""The command `estep plan`: memory, tokens and time of a run or a study, without a GPU."""

import json
from typing import Annotated

import typer

from estep.cli.app import Overrides, app, complete_config, console, say
from estep.errors import ConfigError


@app.command()
def plan(
    config: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or the name of a shipped configuration or study.", autocompletion=complete_config
        ),
    ],
    overrides: Overrides = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices", help="Such as 4x80GB, 2xH100 or 2x8x80GB (machines first) [default: this machine's]."
        ),
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option("--prompt-tokens", min=1, help="Tokens of a prompt [default: of the task's rows].")
    ] = None,
    completion_tokens: Annotated[
        int | None,
        typer.Option("--completion-tokens", min=1, help="Tokens of a response [default: half of the most allowed]."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data; sizes are bytes.")] = False,
) -> None:
    """Say what a run or a study will need: memory of each device, tokens and time. Reads no weights, needs no GPU."""
    from estep.planning.devices import local_devices, parse_devices
    from estep.planning.report import distinct, plan_run, plan_table
    from estep.report.terminal import duration
    from estep.study.grid import load_grid

    there = parse_devices(devices) if devices is not None else local_devices()
    grid = load_grid(config, overrides)
    plans = distinct([plan_run(cell.config, there, prompt_tokens, completion_tokens) for cell in grid.cells])
    if as_json:
        rows = [{**one.as_json(), "runs": runs, "seconds_of_all": seconds} for one, runs, seconds in plans]
        print(json.dumps(rows, indent=1))
    else:
        for one, runs, _ in plans:
            console.print(plan_table(one, runs, duration))
        if len(grid.cells) > 1:
            total = duration(sum(seconds for _, _, seconds in plans))
            say(f"all {len(grid.cells)} runs: about {total}, without the work that they share, which is done only once")
    refusals = [one.refusal for one, _, _ in plans if one.refusal is not None]
    if refusals:
        raise ConfigError(refusals[0] + (f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""))
