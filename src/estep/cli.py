"""The command line: parses arguments, calls the library and prints results.

Exit codes: 0 for success, 1 for a study with failed cells, 2 for bad input (with an error message on one line), 130 for
an interrupt. Any other exception is a bug and shows its traceback.
"""

import copy
import os
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from estep.config import RunConfig, hint_variant
from estep.config.files import load_config, override, validate
from estep.errors import ConfigError, EstepError, writing
from estep.progress import Plain, reporter
from estep.tasks import load_task, task_names

if TYPE_CHECKING:
    from estep.trainer import TrainResult

# Waiting threads sleep instead of spinning, unless the user sets this variable: with spinning, two runs on the same
# cores stall each other (docs/log.md, 2026-11-24). OpenMP reads the variable when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    name="estep",
    help="Teach language models to reason from questions and verified answers alone, by filtered EM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_out = Console()


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
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as engine.temperature=0.7.", show_default=False),
]
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="A built-in task's name or the path of a task file.")]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="smollm2-135m, a model folder, a run folder, or a hub id.")
]
ModelOption = Annotated[str, typer.Option("--model", help="smollm2-135m, a model folder, a run folder, or a hub id.")]


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped configuration such as demo.")],
    overrides: Overrides = None,
    on_invalid_row: InvalidRows = None,
) -> None:
    """Train a model with filtered EM. To resume an interrupted run, run the same command again."""
    extra = [f"on_invalid_row={on_invalid_row.value}"] if on_invalid_row is not None else []
    _train(load_config(config, [*(overrides or []), *extra]))


def _train(config: RunConfig) -> "TrainResult":
    from estep.report.terminal import run_table
    from estep.trainer import FEMTrainer

    try:
        result = FEMTrainer(config.model, config.task, config, reporter=reporter()).train()
    except KeyboardInterrupt:
        print(f"interrupted; to resume in {config.folder}, run the same command again", file=sys.stderr)
        raise SystemExit(130) from None
    _out.print(run_table(result.iterations, f"{config.proposal.type} on {config.task} with {config.model}"))
    untrained = [str(metrics.iteration) for metrics in result.iterations[1:] if metrics.m_step is None]
    if untrained:
        _say(
            f"note: nothing was trained in iteration {', '.join(untrained)}: no sample was accepted (see estep sample)"
        )
    if config.select == "validation":
        _say(f"selected:   {result.selected.name}")
    _say(f"weights:    {result.model}")
    _say(f"run folder: {result.run_dir}")
    return result


@app.command()
def study(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped study such as studies/cpu.")],
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

        _out.print(estimate_table(estimate(grid, reporter()), grid.name))
        return
    try:
        outcomes = run_study(grid, reporter() if parallel == 1 else Plain(), parallel)
    except KeyboardInterrupt:
        print(f"interrupted; to resume in {grid.folder}, run the same command again", file=sys.stderr)
        raise SystemExit(130) from None
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    _say(f"study folder: {grid.folder}, {len(outcomes) - len(failed)} of {len(outcomes)} runs finished")
    if len(failed) < len(outcomes):
        _say(f"for a report: estep report {grid.folder}")
    for outcome in failed:
        _say(f"failed: {outcome.cell.name}: {outcome.error}")
    if failed:
        raise SystemExit(1)


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
        _say(sentence)
    _say(f"page:    {written.page}")
    _say(f"tables:  {written.folder / 'tables'}")
    _say(f"figures: {written.folder / 'figures'}")


@app.command()
def demo(overrides: Overrides = None) -> None:
    """Train a 135M model to score film-review sentences as people did, and show its answers before and after."""
    from estep.report.figure import draw_run
    from estep.report.rationales import before_and_after
    from estep.store.run import RunStore

    config = load_config("demo", overrides)
    result = _train(config)
    title = f"{config.proposal.type} on {config.task} with {config.model}, seed {config.seed}"
    pair = before_and_after(RunStore(result.run_dir))
    if pair is not None:
        _say(f"\nA test question that the base model got wrong, with human score {pair.before['gold']}:")
        for name, value in pair.question["fields"].items():
            if name != "id":
                _say(f"  {name}: {value}")
        _say(f"  before: {pair.before['text']}")
        _say(f"  after:  {pair.after['text']}")
    _say(f"\nfigure:     {draw_run(result.iterations, title, result.run_dir / 'figure.png')}")
    if config.proposal.type == "pps":
        _say(
            "\nRationales alone do not help here. The baseline to beat is fine-tuning on answers alone, which with\n"
            "this small model is about as accurate and samples nothing:\n"
            "  estep train demo proposal.type=direct"
        )


@app.command()
def tasks() -> None:
    """List the built-in tasks. With `data.train_file=FILE`, any of them reads your own rows."""
    from estep.data.split import origin

    table = Table("task", "answer", "rows from", "description", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for name in task_names():
        file = load_task(name).file
        kind = f"{file.answer.min}-{file.answer.max}" if file.answer.type == "integer" else file.answer.type
        table.add_row(name, kind, origin(file.data), file.description)
    _out.print(table)


@app.command()
def check(
    task: TaskName,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option("--model", help="Measure the prompts' lengths for this model.")] = None,
    hint: Annotated[str | None, typer.Option("--hint", help="The variant of the hint.")] = None,
    on_invalid_row: InvalidRows = None,
) -> None:
    """Check a task: print its prompts in full, and check gold answers, label counts, duplicates and prompt lengths."""
    from estep.data.check import check_task
    from estep.data.prepare import announce
    from estep.data.split import load_pool, with_own_data
    from estep.inference import find_model
    from estep.models.loading import context_length, load_chat, tokenizer_path

    config = _config(task, model or "smollm2-135m", on_invalid_row, overrides)
    loaded = with_own_data(load_task(task, hint or hint_variant(config.proposal), config.few_shot), config.data)
    news = reporter()
    announce(loaded, news.log)
    pool = load_pool(loaded, config.on_invalid_row, news.log)
    path = find_model(model, news) if model is not None else None
    chat = load_chat(tokenizer_path(path)) if path is not None else None
    found = check_task(loaded, pool, chat, context_length(path) if path is not None else None)
    prompts = {"plain prompt of the policy": found.prompt}
    if found.proposal != found.prompt:
        prompts["plain prompt of the proposal"] = found.proposal
    for kind, messages in {**prompts, "hinted prompt of the proposal": found.hinted}.items():
        _out.rule(Text(kind))
        for message in messages:
            _say(f"[{message['role']}]\n{message['content']}")
    _out.rule()
    table = Table("property", "value", title=loaded.name, title_justify="left")
    table.add_row("questions", str(found.train) if found.test is None else f"{found.train} train, {found.test} test")
    table.add_row("invalid rows left out", str(found.invalid_rows))
    if loaded.file.data.required_fields:
        table.add_row(f"rows without {' or '.join(loaded.file.data.required_fields)}", str(found.left_out))
    if found.groups is not None:
        table.add_row(f"distinct values of {loaded.file.data.group}", str(found.groups))
    total = sum(found.labels.values())
    shown = [f"{label}: {count} ({count / total:.0%})" for label, count in list(found.labels.items())[:12]]
    table.add_row("answers", "\n".join(shown) + ("\n…" if len(found.labels) > 12 else ""))
    across = "within the source" if found.test is None else "across train and test"
    table.add_row(f"duplicate questions {across}", str(found.duplicates))
    for kind, lengths in found.lengths.items():
        table.add_row(f"{kind} prompt, tokens", f"{lengths.shortest} to {lengths.longest}, median {lengths.median:.0f}")
    if found.lengths:
        table.add_row("model's context, tokens", str(found.context or "not stated"))
    _out.print(table)
    if found.problems:
        raise EstepError("; ".join(found.problems))
    _say("the task is sound: every gold answer passes its own verifier, and no plain prompt holds the hint")


@app.command()
def sample(
    task: TaskName,
    overrides: Overrides = None,
    proposal: Annotated[str, typer.Option("--proposal", help="rejection, star, pps, direct or mixture.")] = "pps",
    n: Annotated[int, typer.Option("-n", min=1, help="Number of training questions.")] = 8,
    model: ModelOption = "smollm2-135m",
    on_invalid_row: InvalidRows = None,
) -> None:
    """Preview a proposal without training: print its samples, verdicts and acceptance rate, for example to tune a
    prompt."""
    from estep.inference import preview

    previewed = preview(_config(task, model, on_invalid_row, overrides, proposal), n, reporter())
    e_step = previewed.e_step
    accepted = {pair.draw_id for pair in e_step.pairs}
    shown_question = None
    for draw, drawn, verdict in zip(e_step.draws, e_step.samples, e_step.verdicts, strict=True):
        question = previewed.questions[draw.question_id]
        if question.id != shown_question:
            _say(f"\n{question.id} (answer {question.answer}): {previewed.task.shown(question)}")
            shown_question = question.id
        kind = "hinted" if draw.hinted else "plain"
        mark = "accepted" if draw.id in accepted else "not used"
        leak = ", mentions the hint" if verdict.hint_mentioned else ""
        _say(f"  [{kind}, {verdict.status}{leak}, {mark}] {drawn.text}")
    tokens = sum(drawn.completion_tokens for drawn in e_step.samples)
    attempts = len(e_step.candidates)
    _say(
        f"\naccepted {len(e_step.pairs)} of {attempts} ({len(e_step.pairs) / attempts:.0%}) with {len(e_step.draws)} "
        f"draws, {tokens} new tokens" + (f", {tokens / len(e_step.pairs):.0f} per pair" if e_step.pairs else "")
    )
    dropped = ", ".join(
        f"{'not ' if name == 'correct' else ''}{name}: {count}" for name, count in e_step.dropped.items() if count
    )
    _say(f"dropped by the filters: {dropped or 'none'}")
    if not e_step.pairs:
        _say(
            "a run would have nothing to train on: try more questions (-n), state the form of the answer more plainly, "
            "give more examples, or allow more tokens (engine.max_new_tokens)"
        )


@app.command(name="eval")
def evaluate(
    model: ModelName,
    task: TaskName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write every response to this .jsonl file.")] = None,
    on_invalid_row: InvalidRows = None,
) -> None:
    """Evaluate a model on a task's held-out questions, with the plain prompt (without a hint)."""
    from estep.inference import evaluate_model
    from estep.report.terminal import evaluation_table
    from estep.store.files import write_rows

    if out is not None and out.suffix != ".jsonl":
        raise ConfigError(f"cannot write {out}: the extension must be .jsonl")
    if out is not None:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
    evaluation, responses = evaluate_model(_config(task, model, on_invalid_row, overrides), reporter())
    if out is not None:
        write_rows(out, map(asdict, responses))
    _out.print(evaluation_table(evaluation, f"{model} on {task}"))


@app.command()
def predict(
    model: ModelName,
    task: TaskName,
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Rows to score: .jsonl, .csv, .tsv or .parquet.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The output file: .jsonl, .csv or .parquet.")] = Path(
        "predictions.jsonl"
    ),
    on_invalid_row: InvalidRows = None,
) -> None:
    """Score new rows: add prediction, rationale, status and response to each row."""
    from estep.inference import check_writable, write_predictions
    from estep.inference import predict as score

    check_writable(out)
    if out.resolve() == source.resolve():
        raise ConfigError(f"--out {out} would replace the input; name another file")
    # New rows: a run that skipped invalid rows of its own data says nothing about these.
    config = _config(task, model, on_invalid_row or OnInvalidRow.stop, overrides)
    predictions = score(config, source, config.on_invalid_row, reporter())
    write_predictions(predictions.rows, out)
    left_out = f", {len(predictions.bad)} invalid rows left out" if predictions.bad else ""
    _say(f"{len(predictions.rows)} rows, {predictions.parsed} with a prediction{left_out}: {out}")


def _config(
    task: str, model: str, on_invalid_row: OnInvalidRow | None, overrides: list[str] | None, proposal: str | None = None
) -> RunConfig:
    """The configuration of a command that does not train. If a run trained the model, the run's settings are the
    defaults."""
    from estep.store.model import run_of, run_settings, settings_line

    given: dict[str, Any] = {}
    for pair in overrides or []:
        override(given, pair)
    types = {key: section.get("type") for key, section in given.items() if isinstance(section, dict)}
    settings = run_settings(model, task, types.get("engine"), types.get("proposal") or proposal)
    content: dict[str, Any] = {**copy.deepcopy(settings), "task": task, "model": model}
    if on_invalid_row is not None:
        content["on_invalid_row"] = on_invalid_row.value
    if proposal is not None:
        content["proposal"] = {**content.get("proposal", {}), "type": proposal}
    for pair in overrides or []:
        override(content, pair)
    config = validate(content, "options")
    if run_of(model) is not None:
        reporter().log(settings_line(settings, config))
    return config


def _say(text: str) -> None:
    """Print text verbatim, without markup or wrapping."""
    _out.print(text, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """The entry point: turns errors into one line and an exit code."""
    try:
        app()
    except EstepError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


if __name__ == "__main__":
    main()
