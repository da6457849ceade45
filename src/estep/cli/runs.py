"""The commands that train, compare and report: `train`, `study`, `runs`, `report` and `demo`."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from estep.cli.app import InvalidRows, Overrides, app, complete_config, console, one_of, say, show
from estep.errors import ConfigError, nearest
from estep.progress import Plain, reporter

if TYPE_CHECKING:
    from estep.config import RunConfig
    from estep.trainer import TrainResult


@app.command()
def train(
    config: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or the name of a shipped configuration such as demo.", autocompletion=complete_config
        ),
    ],
    overrides: Overrides = None,
    on_invalid_row: InvalidRows = None,
) -> None:
    """Train a model with filtered EM. To resume an interrupted run, run the same command again."""
    from estep.config.files import load_config

    extra = [f"on_invalid_row={on_invalid_row.value}"] if on_invalid_row is not None else []
    _train(load_config(config, [*(overrides or []), *extra]))


def _train(config: "RunConfig") -> "TrainResult":
    from estep.report.terminal import run_table
    from estep.trainer import FEMTrainer

    try:
        result = FEMTrainer(config.model, config.task, config, reporter=reporter()).train()
    except KeyboardInterrupt:
        print(f"interrupted; to resume in {config.folder}, run the same command again", file=sys.stderr)
        raise SystemExit(130) from None
    console.print(run_table(result.iterations, f"{config.proposal.type} on {config.task} with {config.model}"))
    untrained = [str(metrics.iteration) for metrics in result.iterations[1:] if metrics.m_step is None]
    if untrained:
        say(f"note: nothing was trained in iteration {', '.join(untrained)}: no sample was accepted (see estep sample)")
    if config.select == "validation":
        say(f"selected:   {result.selected.name}")
    say(f"weights:    {result.model}")
    say(f"run folder: {result.run_dir}")
    return result


@app.command()
def study(
    config: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or the name of a shipped study such as studies/cpu.", autocompletion=complete_config
        ),
    ],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure briefly, then print each run and its estimated cost.")
    ] = False,
    parallel: Annotated[
        int, typer.Option("--parallel", min=1, help="Number of runs at the same time, on a Ray cluster (cluster=...).")
    ] = 1,
) -> None:
    """Run a grid of runs: every list in the configuration is an axis. To resume an interrupted study, run the same
    command again."""
    from estep.study.grid import load_grid
    from estep.study.run import run_study

    grid = load_grid(config, overrides)
    if dry_run:
        from estep.study.cost import estimate
        from estep.study.cost_table import estimate_table

        console.print(estimate_table(estimate(grid, reporter()), grid.name))
        return
    try:
        outcomes = run_study(grid, reporter() if parallel == 1 else Plain(), parallel)
    except KeyboardInterrupt:
        print(f"interrupted; to resume in {grid.folder}, run the same command again", file=sys.stderr)
        raise SystemExit(130) from None
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    say(f"study folder: {grid.folder}, {len(outcomes) - len(failed)} of {len(outcomes)} runs finished")
    if len(failed) < len(outcomes):
        say(f"for a report: estep report {grid.folder}")
    for outcome in failed:
        say(f"failed: {outcome.cell.name}: {outcome.error}")
    if failed:
        raise SystemExit(1)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to look.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data.")] = False,
) -> None:
    """List the runs and studies below a folder: how far each is, its settings and its last accuracy."""
    from estep.report import overview

    entries = overview.find_entries(folder)
    if as_json:
        print(json.dumps([overview.as_json(entry) for entry in entries], indent=1, ensure_ascii=False))
        return
    show(overview.overview_table(entries, folder))
    for line in overview.reasons(entries):
        say(line)


@app.command()
def report(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_STUDY", help="A run folder or a study folder.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The output folder [default: report/ in that folder]."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="The arm to compare the others with [default: the first named pps...]."),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            "--examples",
            min=1,
            help="Number of test questions that the page shows per run [default: 200, fewer for many runs].",
        ),
    ] = None,
) -> None:
    """Write tables, figures, statistics and a web page for a run or a study, even if it is not finished."""
    from estep.report.write import write_report

    written = write_report(source, out, reference, examples)
    for sentence in written.sentences:
        say(sentence)
    say(f"page:    {written.page}")
    say(f"tables:  {written.folder / 'tables'}")
    say(f"figures: {written.folder / 'figures'}")


DEMOS = {"movies": "demo", "sums": "demo-sums"}
"""The demos by name, and their configurations; the first one is the default."""
_NOTES = {
    ("movies", "pps"): (
        "Rationales alone do not help here. The baseline to beat is fine-tuning on answers alone, which with\n"
        "this small model is about as accurate and samples nothing:\n"
        "  estep train demo proposal.type=direct"
    ),
    ("sums", "rejection"): (
        "Rationales pay here: each step is simple, and the sum is not. Fine-tuning on answers alone learns little:\n"
        "  estep train demo-sums proposal.type=direct\n"
        "The same model on longer sums than it was trained on, which it does not solve:\n"
        "  estep eval RUN_FOLDER sums/6 test_size=128"
    ),
}
"""What a demo says at its end, by its name and its proposal."""


@app.command()
def demo(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[movies|sums] [KEY=VALUE]...",
            help="Which demo, movies by default, and settings such as seed=521.",
            autocompletion=one_of(lambda: DEMOS),
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a 135M model and show its answers before and after. It learns to score film-review sentences as people did
    (movies, the default), or to add up numbers step by step (sums)."""
    from estep.config.files import load_config
    from estep.report.figure import draw_run
    from estep.report.raters import single_rater_of
    from estep.report.rationales import before_and_after, valid_steps
    from estep.report.terminal import percent
    from estep.store.run import RunStore
    from estep.tasks import load_task

    name, overrides = _which_demo(arguments or [])
    config = load_config(DEMOS[name], overrides)
    result = _train(config)
    title = f"{config.proposal.type} on {config.task} with {config.model}, seed {config.seed}"
    store = RunStore(result.run_dir)
    pair = before_and_after(store)
    if pair is not None:
        whose = "human score" if name == "movies" else "correct answer"
        say(f"\nA test question that the base model got wrong, with {whose} {pair.before['gold']}:")
        read = load_task(config.task).needed_fields | {"options"}
        for field, value in pair.question["fields"].items():
            if field in read:
                say(f"  {field}: {value}")
        say(f"  before: {pair.before['text']}")
        say(f"  after:  {pair.after['text']}")
    before, after = valid_steps(store)
    if not math.isnan(after):
        say(f"\ntrue steps: {percent(after)} of the equations in the answers, {percent(before)} before training")
    ceiling = single_rater_of(result.run_dir)
    if ceiling is not None:
        say(f"\na single rater agrees with the other raters on {percent(ceiling)} of these test questions")
    say(f"\nfigure:     {draw_run(result.iterations, title, result.run_dir / 'figure.png', ceiling)}")
    note = _NOTES.get((name, config.proposal.type))
    if note is not None:
        say(f"\n{note.replace('RUN_FOLDER', str(result.run_dir))}")


def _which_demo(arguments: list[str]) -> tuple[str, list[str]]:
    """The name of a demo, and the settings that follow it."""
    if not arguments or "=" in arguments[0]:
        return next(iter(DEMOS)), arguments
    if arguments[0] not in DEMOS:
        raise ConfigError(f"unknown demo '{arguments[0]}'; {nearest(arguments[0], DEMOS)}")
    return arguments[0], arguments[1:]
