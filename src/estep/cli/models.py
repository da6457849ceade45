"""The commands for tasks and models without training: `tasks`, `check`, `sample`, `eval` and `predict`."""

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from estep.cli.app import InvalidRows, ModelName, ModelOption, OnInvalidRow, Overrides, TaskName, app, console, say
from estep.errors import ConfigError, EstepError, writing
from estep.progress import reporter

if TYPE_CHECKING:
    from estep.config import RunConfig
    from estep.data.check import Ratings


@app.command()
def tasks() -> None:
    """List the built-in tasks. With `data.train_file=FILE`, any of them reads your own rows. Raters: the data hold what
    each of several people said."""
    from estep.data.split import origin
    from estep.tasks import load_task, task_names

    table = Table("task", "answer", "rows from", "description", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for name in task_names():
        file = load_task(name).file
        kind = f"{file.answer.min}-{file.answer.max}" if file.answer.type == "integer" else file.answer.type
        table.add_row(name, kind + (", raters" if file.raters else ""), origin(file.data), file.description)
    console.print(table)


@app.command()
def check(
    task: TaskName,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option("--model", help="Measure the prompts' lengths for this model.")] = None,
    hint: Annotated[str | None, typer.Option("--hint", help="The variant of the hint.")] = None,
    on_invalid_row: InvalidRows = None,
) -> None:
    """Check a task: print its prompts in full, and check gold answers, label counts, duplicates and prompt lengths."""
    from estep.config import hint_variant
    from estep.data.check import check_task
    from estep.data.prepare import announce
    from estep.data.split import load_pool, with_own_data
    from estep.inference import find_model
    from estep.models.loading import context_length, load_chat, tokenizer_path
    from estep.tasks import load_task

    config = config_of(task, model or "smollm2-135m", on_invalid_row, overrides)
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
        console.rule(Text(kind))
        for message in messages:
            say(f"[{message['role']}]\n{message['content']}")
    console.rule()
    table = Table("property", "value", title=loaded.name, title_justify="left")
    table.add_row("questions", str(found.train) if found.test is None else f"{found.train} train, {found.test} test")
    table.add_row("invalid rows left out", str(found.invalid_rows))
    if loaded.file.data.required_fields:
        table.add_row(f"rows without {' or '.join(loaded.file.data.required_fields)}", str(found.left_out))
    if found.in_examples:
        table.add_row("rows that the examples show, left out", str(found.in_examples))
    if found.groups is not None:
        table.add_row(f"distinct values of {loaded.file.data.group}", str(found.groups))
    total = sum(found.labels.values())
    shown = [f"{label}: {count} ({count / total:.0%})" for label, count in list(found.labels.items())[:12]]
    table.add_row("answers", "\n".join(shown) + ("\n…" if len(found.labels) > 12 else ""))
    if found.ratings is not None:
        table.add_row("questions with at least two ratings", _ratings(found.ratings))
    across = "within the source" if found.test is None else "across train and test"
    table.add_row(f"duplicate questions {across}", str(found.duplicates))
    for kind, lengths in found.lengths.items():
        table.add_row(f"{kind} prompt, tokens", f"{lengths.shortest} to {lengths.longest}, median {lengths.median:.0f}")
    if found.lengths:
        table.add_row("model's context, tokens", str(found.context or "not stated"))
    console.print(table)
    if found.problems:
        raise EstepError("; ".join(found.problems))
    say("the task is sound: every gold answer passes its own verifier, and no plain prompt holds the hint")


def _ratings(ratings: "Ratings") -> str:
    if not ratings.rated:
        return "none, so a report cannot measure people"
    each = str(ratings.most) if ratings.fewest == ratings.most else f"{ratings.fewest} to {ratings.most}"
    return f"{ratings.rated}, with {each} ratings each"


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

    previewed = preview(config_of(task, model, on_invalid_row, overrides, proposal), n, reporter())
    e_step = previewed.e_step
    accepted = {pair.draw_id for pair in e_step.pairs}
    shown_question = None
    for draw, drawn, verdict in zip(e_step.draws, e_step.samples, e_step.verdicts, strict=True):
        question = previewed.questions[draw.question_id]
        if question.id != shown_question:
            say(f"\n{question.id} (answer {question.answer}): {previewed.task.shown(question)}")
            shown_question = question.id
        kind = "hinted" if draw.hinted else "plain"
        mark = "accepted" if draw.id in accepted else "not used"
        leak = ", mentions the hint" if verdict.hint_mentioned else ""
        say(f"  [{kind}, {verdict.status}{leak}, {mark}] {drawn.text}")
    tokens = sum(drawn.completion_tokens for drawn in e_step.samples)
    attempts = len(e_step.candidates)
    say(
        f"\naccepted {len(e_step.pairs)} of {attempts} ({len(e_step.pairs) / attempts:.0%}) with {len(e_step.draws)} "
        f"draws, {tokens} new tokens" + (f", {tokens / len(e_step.pairs):.0f} per pair" if e_step.pairs else "")
    )
    dropped = ", ".join(
        f"{'not ' if name == 'correct' else ''}{name}: {count}" for name, count in e_step.dropped.items() if count
    )
    say(f"dropped by the filters: {dropped or 'none'}")
    if not e_step.pairs:
        say(
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
    as_json: Annotated[bool, typer.Option("--json", help="Print the measures as plain data.")] = False,
) -> None:
    """Evaluate a model on a task's held-out questions, with the plain prompt (without a hint)."""
    from estep.inference import evaluate_model
    from estep.metrics import metrics_to_json
    from estep.report.terminal import evaluation_table
    from estep.store.files import write_rows

    if out is not None and out.suffix != ".jsonl":
        raise ConfigError(f"cannot write {out}: the extension must be .jsonl")
    if out is not None:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
    evaluation, responses = evaluate_model(config_of(task, model, on_invalid_row, overrides), reporter())
    if out is not None:
        write_rows(out, map(asdict, responses))
    if as_json:
        print(json.dumps({"model": model, "task": task, **metrics_to_json(evaluation)}, indent=1, ensure_ascii=False))
    else:
        console.print(evaluation_table(evaluation, f"{model} on {task}"))


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
    config = config_of(task, model, on_invalid_row or OnInvalidRow.stop, overrides)
    predictions = score(config, source, config.on_invalid_row, reporter())
    write_predictions(predictions.rows, out)
    left_out = f", {len(predictions.bad)} invalid rows left out" if predictions.bad else ""
    say(f"{len(predictions.rows)} rows, {predictions.parsed} with a prediction{left_out}: {out}")


def config_of(
    task: str, model: str, on_invalid_row: OnInvalidRow | None, overrides: list[str] | None, proposal: str | None = None
) -> "RunConfig":
    """The configuration of a command that does not train. If a run trained the model, the run's settings are the
    defaults."""
    from estep.config.files import override_all, validate
    from estep.store.model import run_of, run_settings, settings_line

    given: dict[str, Any] = {}
    override_all(given, overrides or ())
    types = {key: section.get("type") for key, section in given.items() if isinstance(section, dict)}
    settings = run_settings(model, task, types.get("engine"), types.get("proposal") or proposal)
    content: dict[str, Any] = {**copy.deepcopy(settings), "task": task, "model": model}
    if on_invalid_row is not None:
        content["on_invalid_row"] = on_invalid_row.value
    if proposal is not None:
        content["proposal"] = {**content.get("proposal", {}), "type": proposal}
    override_all(content, overrides or ())
    config = validate(content, "options")
    if run_of(model) is not None:
        reporter().log(settings_line(settings, config))
    return config
