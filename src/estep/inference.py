"""Commands that train nothing: preview a proposal, evaluate a model, score new rows."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from estep.cluster import open_engine
from estep.config import DataConfig, EvaluationConfig, OpenAIEngineConfig, RunConfig, served_model
from estep.data.prepare import announce, open_task, within_context
from estep.data.split import Sizes, apart_from, draw_split, draw_test, load_pool, with_own_data
from estep.e_step import EStep, EStepResult, e_step_seed, proposal_sampling
from estep.engines import Engine, open_proposer
from estep.engines.base import log_usage
from estep.errors import ConfigError, DataError, writing
from estep.evaluate import Evaluator
from estep.filters import build_filters
from estep.metrics import Evaluation, confidence, evaluate_responses, expected_score, voted
from estep.progress import Reporter
from estep.proposals import build_proposal
from estep.records import NO_HISTORY, NO_LOG, ModelRef, Question, Response, RowLog, derive_seed
from estep.scoring import Scorer
from estep.sources.archives import cache_dir
from estep.sources.models import resolve_model
from estep.sources.rows import read_rows
from estep.store.files import JsonlFile, write_whole
from estep.store.model import iteration_of, run_on, run_settings, task_file_of
from estep.store.run import RunStore
from estep.tasks import InvalidRow, OnInvalidRow, Task


def find_model(name: str, reporter: Reporter) -> str:
    """The path or hub id of a model, given its name, its folder, or the folder of the run that trained it."""
    folder = Path(name).expanduser()
    if (folder / "run.json").is_file():
        store = RunStore(folder)
        config = store.config()
        trained = store.selected(config)
        if trained is None and config.select == "validation" and len(store.committed()) > 1:
            reporter.log(f"the run in {folder} selected its base model")
            return resolve_model(config.model, reporter.log)
        if trained is None:
            raise DataError(f"the run in {folder} has no trained weights yet")
        if not Path(trained.path).is_dir():
            raise DataError(f"the weights of iteration {trained.iteration} of {folder} were not kept (keep_weights)")
        reporter.log(f"weights of iteration {trained.iteration} of {folder}")
        return trained.path
    if (folder / "study.json").is_file():
        raise DataError(f"{folder} is a study; name one of the run folders in {folder / 'runs'}")
    return resolve_model(name, reporter.log)


def _model_of(config: RunConfig, reporter: Reporter) -> str:
    """The model that a configuration names; for a server, its name on the server."""
    return config.model if isinstance(config.engine, OpenAIEngineConfig) else find_model(config.model, reporter)


@contextmanager
def _paid_for(
    engine: Engine, config: RunConfig, task: Task, questions: Sequence[Question], what: str
) -> Iterator[RowLog]:
    """A cache of the rows of an interrupted command that used a server, so that no response is paid for twice.

    The cache is removed when the command finishes. Rows are reused only for the same questions, task and
    configuration. Local models need no cache.

    Args:
        what: the kind of rows; each kind has its own cache.
    """
    if engine.metadata.get("engine") != "openai":
        yield NO_LOG
        return
    asked = {
        "what": what,
        "config": config.model_dump(mode="json"),
        "task": task.file.model_dump(mode="json"),
        "questions": [asdict(question) for question in questions],
    }
    key = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
    path = cache_dir() / "unfinished" / f"{key}.jsonl"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    file = JsonlFile(path)
    try:
        yield file
    finally:
        file.close()
    path.unlink(missing_ok=True)


def _responses(
    task: Task, questions: list[Question], engine: Engine, config: RunConfig, reporter: Reporter, title: str
) -> list[Response]:
    """The graded responses to the questions."""
    with _paid_for(engine, config, task, questions, title) as kept:
        evaluator = Evaluator(task, engine, config.evaluation, config.max_new_tokens, reporter)
        responses = evaluator.run(questions, config.seed, title, kept)
        return evaluator.with_probabilities(questions, responses, "answer probabilities")


def _not_trained_on(
    task: Task, model: str, questions: list[Question], config: DataConfig, reporter: Reporter
) -> list[Question]:
    """The questions that the model's run did not use for training or to select weights, and that share no text,
    document or prompt with one that it used."""
    run = run_on(task, model)
    if run is None:
        return questions
    used = [question for split in ("train", "validation") for question in RunStore(run).questions(split)]
    kept = apart_from(task, questions, used, config)
    if len(kept) < len(questions):
        reporter.log(f"left out {len(questions) - len(kept)} questions that this model was trained on")
    if not kept:
        raise DataError(f"the model was trained on all {len(questions)} test questions; choose another seed")
    return kept


def warn_of_other_prompt(task: Task, model: str, reporter: Reporter) -> None:
    """Warn if a run's model is asked with a different prompt from the one it was trained on."""
    run = run_on(task, model)
    if run is None:
        return
    few_shot = run_settings(model, task.name)["few_shot"] or task_file_of(run).few_shot
    if (few_shot == "both") != task.policy_sees_examples:
        reporter.log(f"note: this model was trained with few_shot={few_shot} and is now asked with a different prompt")


def evaluate_model(config: RunConfig, reporter: Reporter) -> tuple[Evaluation, list[Response]]:
    """Evaluate a model on a task's held-out questions, in the same way as a run with this configuration.

    The questions are those that a run with this seed and `test_size` holds out. With the settings of its own run (see
    `run_settings`), a trained model gives the metrics that the run reported for it.

    Args:
        config: the task and the model; the folder of a run is also a model.
        reporter: receives progress.

    Returns:
        The metrics, and the graded responses.

    Raises:
        DataError: the model was trained on all of the questions, or the data cannot be read.
    """
    task, config = open_task(config)
    announce(task, reporter.log)
    task = with_own_data(task, config.data)
    path = _model_of(config, reporter)
    pool = load_pool(task, config.on_invalid_row, reporter.log)
    questions = draw_test(task, pool, config.test_size, config.seed, config.data)
    questions = _not_trained_on(task, config.model, questions, config.data, reporter)
    engine = open_engine(config, ModelRef(path), reporter.log)
    try:
        warn_of_other_prompt(task, path, reporter)
        kept = within_context(engine, questions, (task.prompt,), config, "test", reporter.log)
        # The seed of a run's own evaluation, so the responses are the same; a base model's are those of iteration 0.
        seeded = config.model_copy(update={"seed": derive_seed(config.seed, iteration_of(config.model))})
        responses = _responses(task, kept, engine, seeded, reporter, "evaluation")
    finally:
        log_usage(engine, reporter)
        engine.close()
    return evaluate_responses(responses, task.answers, task.ordinal, config.evaluation.vote), responses


@dataclass(frozen=True)
class Preview:
    """The result of a proposal's E-step on a few questions."""

    task: Task
    """The task as the proposal saw it."""
    questions: dict[str, Question]
    """The questions by their ids."""
    e_step: EStepResult
    """The draws with their samples and verdicts, and the accepted pairs."""


def preview(config: RunConfig, questions: int, reporter: Reporter) -> Preview:
    """Sample from a proposal for a few training questions, then grade and filter the samples. Nothing is trained.

    The model of a run on this task proposes as in the run's next iteration: with `few_shot: first`, without the
    examples, and with the history of its iterations.

    Args:
        config: the task, the model and the proposal; the folder of a run is also a model.
        questions: how many training questions to sample for.
        reporter: receives progress.

    Raises:
        EstepError: for example an unknown task, data that cannot be read, or an engine that does not start.
    """
    task, config = open_task(config)
    announce(task, reporter.log)
    task = with_own_data(task, config.data)
    pool = load_pool(task, config.on_invalid_row, reporter.log)
    chosen = draw_split(task, pool, Sizes(None, config.test_size), config.seed, config.data).train[:questions]
    proposer, run = served_model(config.proposal), None
    asks = (task.hinted_prompt, task.proposal_prompt)  # with the examples, as in a run
    if proposer is not None:
        engine = open_proposer(proposer)
        if config.filters.weight_by != "none":
            reporter.log("note: the policy is not loaded here, so filters.weight_by gives all samples the same weight")
    else:
        path = _model_of(config, reporter)
        engine = open_engine(config, ModelRef(path), reporter.log)
        run = run_on(task, path)
        task = task.after_training() if run is not None else task
    try:
        kept = within_context(engine, chosen, asks, config, "train", reporter.log)
        proposal, filters = build_proposal(config.proposal), build_filters(config.filters, task.file.answer, kept)
        scorer = Scorer(engine, reporter) if config.scores_samples and proposer is None else None
        sampling = proposal_sampling(config, task)
        number = iteration_of(config.model) + 1
        history = RunStore(run).history(number) if run is not None else NO_HISTORY
        e_step = EStep(task, proposal, filters, engine, sampling, reporter, history, scorer)
        seed = e_step_seed(config.seed, number)
        with _paid_for(engine, config, task, kept, "preview") as samples:
            result = e_step.run(kept, seed, kept=samples)
    finally:
        log_usage(engine, reporter)
        engine.close()
    return Preview(task, {question.id: question for question in kept}, result)


ADDED = ("prediction", "rationale", "status", "response")
"""The fields that `predict` adds to a row."""
WITH_PROBABILITIES = ("probability", "expected_score")
"""What it also adds with `evaluation.probabilities`; the second only for scores."""
_DIGITS = 6
"""Decimal places of what probabilities add."""
WRITABLE = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Predictions:
    """Scored rows."""

    rows: list[dict[str, Any]]
    """The rows in their order, with the added fields."""
    bad: list[InvalidRow]
    """Rows that could not be used."""
    parsed: int
    """Number of rows with a prediction."""


def predict(config: RunConfig, source: Path, on_invalid_row: OnInvalidRow, reporter: Reporter) -> Predictions:
    """Score rows without answers. Adds `prediction`, `rationale`, `status` and `response` to each row.

    With `evaluation.probabilities`, it also adds the `probability` of the prediction and, for scores, the
    `expected_score`: the mean of all scores by their probabilities. A row without a prediction has an expected score if
    its prompt fits the context, but no probability.

    The status is `ok`, `unparseable` (no prediction), or `overlength` (the prompt does not fit the context).

    Args:
        config: the task and the model, such as the `config.yaml` of a run with the run's folder as `model`.
        source: a `.jsonl`, `.csv`, `.tsv` or `.parquet` file with the fields that the task's prompt needs.
        on_invalid_row: `stop`, or `skip` to leave out rows whose prompt cannot be made.
        reporter: receives progress.

    Raises:
        DataError: a row lacks a field that the prompt needs (with `stop`), or already has one of the added fields.
    """
    task, config = open_task(config)
    announce(task, reporter.log)
    names = added_names(task, config)
    questions, originals, bad = _new_questions(task, source, on_invalid_row, names)
    path = _model_of(config, reporter)
    engine = open_engine(config, ModelRef(path), reporter.log)
    try:
        warn_of_other_prompt(task, path, reporter)
        kept = within_context(engine, questions, (task.prompt,), config, "new", reporter.log)
        responses = _responses(task, kept, engine, config, reporter, "prediction")
    finally:
        log_usage(engine, reporter)
        engine.close()
    answered = one_each(responses, config.evaluation)
    scored = [
        {**original, **added_fields(task, answered.get(question.id), names)}
        for question, original in zip(questions, originals, strict=True)
    ]
    return Predictions(scored, bad, sum(row["status"] == "ok" for row in scored))


def added_names(task: Task, config: RunConfig) -> tuple[str, ...]:
    """The fields that `predict` adds with this configuration."""
    if not config.evaluation.probabilities:
        return ADDED
    return (*ADDED, *(WITH_PROBABILITIES if task.ordinal else WITH_PROBABILITIES[:1]))


def added_fields(task: Task, response: Response | None, names: Sequence[str] = ADDED) -> dict[str, Any]:
    """The fields that a response adds to its row.

    Args:
        response: None for a row whose prompt does not fit the context.
        names: which of `ADDED` and `WITH_PROBABILITIES` to add.
    """
    if response is None:
        return dict.fromkeys(names) | {"status": "overlength"}
    number = int(response.answer) if task.ordinal and response.answer is not None else response.answer
    stated = confidence(response)
    fields: dict[str, Any] = {
        "prediction": number,
        "rationale": response.rationale,
        "status": "unparseable" if response.answer is None else "ok",
        "response": response.text,
        "probability": None if stated is None else round(stated.probability, _DIGITS),
    }
    if task.ordinal and response.probabilities is not None:
        fields["expected_score"] = round(expected_score(response.probabilities), _DIGITS)
    return {name: fields.get(name) for name in names}


def _new_questions(
    task: Task, source: Path, on_invalid_row: OnInvalidRow, added: Sequence[str]
) -> tuple[list[Question], list[dict[str, Any]], list[InvalidRow]]:
    questions, originals, bad = [], [], []
    for number, (location, row) in enumerate(read_rows(source), 1):
        taken = [name for name in added if name in row]
        if taken:
            raise DataError(f"{location}: the row has a field named '{taken[0]}', which predict adds; rename it")
        try:
            question = task.question(row, id=f"row-{number}")
            task.prompt(question)  # finds rows whose prompt cannot be rendered
            questions.append(question)
            originals.append(row)
        except DataError as error:
            if on_invalid_row == "stop":
                raise DataError(f"{location}: {error} (--on-invalid-row skip leaves such rows out)") from error
            bad.append(InvalidRow(location, str(error)))
    if not questions:
        raise DataError(f"{source}: no usable row; the first: {bad[0].location}: {bad[0].reason}")
    return questions, originals, bad


def one_each(responses: Sequence[Response], config: EvaluationConfig) -> dict[str, Response]:
    """One graded response per question; with voting, the first one with the winning answer."""
    first: dict[tuple[str, str | None], Response] = {}
    for response in responses:
        first.setdefault((response.question_id, response.answer), response)
    by_question: dict[str, Response] = {}
    for winner in voted(responses, config.vote):
        shown = replace(first[winner.question_id, winner.answer], probabilities=winner.probabilities)
        by_question.setdefault(winner.question_id, shown)
    return by_question


def write_predictions(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Write rows in the format of the extension of `out`; the file appears only when it is complete.

    Raises:
        ConfigError: the extension is not one of `WRITABLE`.
    """
    suffix = check_writable(out)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".jsonl":
        write_whole(out, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))
    elif suffix == ".csv":
        fields = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(out, text.getvalue())
    else:
        import pyarrow
        import pyarrow.parquet

        partial = out.with_name(out.name + ".partial")
        with writing(out):
            try:
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), partial)
                partial.replace(out)
            finally:
                partial.unlink(missing_ok=True)


def check_writable(out: Path) -> str:
    """The extension of `out`, checked against what `write_predictions` can write."""
    if out.suffix.lower() not in WRITABLE:
        raise ConfigError(f"cannot write {out}: allowed extensions are {', '.join(WRITABLE)}")
    return out.suffix.lower()
