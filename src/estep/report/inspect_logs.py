"""The evaluations of a run as logs of inspect_ai, written through its own interface: one log per iteration.

estep inspect-logs runs/reviews-smollm2-135m-pps-s257 -o logs
inspect view --log-dir logs
"""

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from estep.errors import EstepError, writing
from estep.metrics import Evaluation, IterationMetrics
from estep.records import Question, Response
from estep.report.results import Run, read_results
from estep.tasks import Task

_SCORER = "estep"
_REDUCERS = {"none": "mean", "majority": "mode", "median": "median"}
"""inspect_ai's names for how several samples of a question become one prediction."""
_STOP_REASONS = {"stop": "stop", "length": "max_tokens", "supplied": "stop"}


def write_inspect_logs(source: Path, out: Path, last: bool = False) -> list[Path]:
    """Write a log for each evaluation of a run or of a study's finished runs. A log has the same name each time.

    Args:
        source: the folder of the run or study.
        out: the folder of the logs; made if it is missing.
        last: write only the evaluation that each run ends in.

    Raises:
        EstepError: inspect_ai is not installed.
        StoreError: there is no such run, or a log cannot be written.
    """
    try:
        import inspect_ai.log
    except ModuleNotFoundError as error:
        raise EstepError("logs of inspect_ai need the package inspect-ai: pip install 'estep[inspect]'") from error
    results = read_results(source)
    written = []
    for run in results.runs:
        for metrics in [run.final] if last else run.iterations:
            log = _log(run, metrics, results.name if results.study is not None else None)
            # Not a time of the file system, which a copy of the run does not keep.
            created = run.record["sessions"][0]["started"].replace(":", "-")
            path = out / f"{created}_{log.eval.task.replace('/', '-').replace('_', '-')}_{log.eval.task_id}.eval"
            with writing(path):
                out.mkdir(parents=True, exist_ok=True)
                inspect_ai.log.write_eval_log(log, str(path))
            written.append(path)
    return written


def _log(run: Run, metrics: IterationMetrics, study: str | None) -> Any:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSpec, EvalStats
    from inspect_ai.model import GenerateConfig, ModelUsage

    k, config = metrics.iteration, run.config
    step = run.store.iteration(k)
    # The prompts are those of the evaluation: the run may override the task's few_shot.
    task = replace(run.task, few_shot=config.few_shot)
    questions = {question.id: question for question in run.store.questions("test")}
    place = {question: number for number, question in enumerate(questions)}
    responses = sorted(step.responses(), key=lambda one: (place[one.question_id], one.index))
    model = "/".join(["estep", Path(config.model).name, *([run.arm, f"iteration-{k}"] if k else [])])
    ended = datetime.fromtimestamp((step.folder / "iteration.json").stat().st_mtime, UTC)
    started = ended - timedelta(seconds=metrics.seconds.get("evaluation", 0.0))
    times = {"started_at": started.isoformat(timespec="seconds"), "completed_at": ended.isoformat(timespec="seconds")}
    name = hashlib.sha256(json.dumps([run.name, config.model_dump(mode="json"), k]).encode()).hexdigest()[:22]
    identifiers = {"task_id": name, "eval_id": name, "run_id": name}
    usage = _usage(responses)
    return EvalLog(
        status="success",
        eval=EvalSpec(
            **identifiers,
            created=times["completed_at"],
            task=task.name,
            task_args={"seed": config.seed},
            tags=[study] if study is not None else None,
            dataset=EvalDataset(name=task.name, samples=len(questions), sample_ids=list(questions)),
            model=model,
            model_generate_config=GenerateConfig(
                temperature=config.evaluation.temperature, max_tokens=config.max_new_tokens
            ),
            config=EvalConfig(epochs=config.evaluation.samples),
            packages=run.record["sessions"][-1].get("versions", {}),
            metadata={"run": run.name, "iteration": k, "proposal": config.proposal.model_dump(mode="json")},
        ),
        results=_results(run, metrics),
        stats=EvalStats(**times, model_usage={model: ModelUsage(**usage)}),
        samples=[_sample(task, questions[one.question_id], one, model) for one in responses],
    )


def _results(run: Run, metrics: IterationMetrics) -> Any:
    """The accuracy with its standard error over questions, as inspect_ai computes it, and estep's other measures."""
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore

    found: Evaluation = metrics.evaluation
    scores = list(run.scores(metrics.iteration).values())
    error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    values = {"accuracy": found.accuracy, "stderr": error}
    values |= {name: getattr(found, name) for name in ("kappa", "mae", "parse_rate", "reasoning_words")}
    evaluation = run.config.evaluation
    return EvalResults(
        total_samples=found.questions * evaluation.samples,
        completed_samples=found.questions * evaluation.samples,
        scores=[
            EvalScore(
                name=_SCORER,
                scorer=_SCORER,
                reducer=_REDUCERS[evaluation.vote] if evaluation.samples > 1 else None,
                scored_samples=found.questions,
                metrics={
                    name: EvalMetric(name=name, value=value) for name, value in values.items() if not math.isnan(value)
                },
            )
        ],
    )


def _sample(task: Task, question: Question, response: Response, model: str) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageUser,
        ModelOutput,
        ModelUsage,
    )
    from inspect_ai.scorer import CORRECT, INCORRECT, Score

    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    prompt: list[Any] = [kinds[message["role"]](content=message["content"]) for message in task.prompt(question)]
    output = ModelOutput.from_content(model, response.text, _STOP_REASONS[response.finish_reason])
    output.usage = ModelUsage(**_usage([response]))
    right = response.status == "correct"
    return EvalSample(
        id=question.id,
        epoch=response.index + 1,
        input=prompt,
        target=question.answer,
        messages=[*prompt, output.message],
        output=output,
        scores={
            _SCORER: Score(
                value=CORRECT if right else INCORRECT,
                answer=response.answer,
                explanation=response.rationale or None,
                metadata={"status": response.status, "hint_mentioned": response.hint_mentioned},
            )
        },
        model_usage={model: output.usage},
    )


def _usage(responses: Iterable[Response]) -> dict[str, int]:
    listed: Sequence[Response] = list(responses)
    read, new = sum(one.prompt_tokens for one in listed), sum(one.completion_tokens for one in listed)
    return {"input_tokens": read, "output_tokens": new, "total_tokens": read + new}
