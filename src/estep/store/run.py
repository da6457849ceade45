"""The run folder: append-only records, one commit per iteration, and everything needed to resume.

    run.json            one entry per session: versions, platform, git revision
    config.yaml         the resolved configuration
    task.yaml           the task file
    train.jsonl, test.jsonl
    iteration-00/       the base model: eval.jsonl, metrics.json, iteration.json
    iteration-01/       draws, samples, verdicts, pairs, eval (.jsonl), weights/, metrics.json, iteration.json

With validation questions, the run folder and each iteration's folder also hold a `validation.jsonl`. `scores.jsonl` has
the log-probabilities of the E-step's correct samples, if `filters.weight_by` or `diagnostics: full` need them;
`probe.jsonl` and `probe_scores.jsonl` belong to `diagnostics: full`, and `eval_scores.jsonl`, the log-probabilities of
all answers to the test questions, to `evaluation.probabilities`.

`iteration.json` is the commit: it is written last, when everything else of the iteration is on the disk.
Samples, responses and scores grow line by line; a line torn by a kill is removed on resume. All other files appear
whole. `datasets.load_dataset("json", ...)` reads every `.jsonl` as it is, and TRL's `SFTTrainer` trains on
`pairs.jsonl`.
"""

import json
import os
import platform
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from filelock import FileLock, Timeout

from estep.config import RunConfig, without_placement
from estep.config.files import difference, validate
from estep.durable import make_folder, sync
from estep.errors import StoreError, writing
from estep.metrics import IterationMetrics, metrics_from_json, metrics_to_json, selected
from estep.records import Attempt, History, Message, ModelRef, Pair, Question, Response, Tally
from estep.store.files import JsonlFile, write_rows, write_whole
from estep.store.revision import git_revision

_PACKAGES = ("estep", "torch", "transformers", "peft", "datasets", "tokenizers", "numpy")


class IterationStore:
    """The folder of one iteration."""

    def __init__(self, folder: Path, number: int, on_commit: "OnCommit | None" = None):
        self.folder = folder
        self.number = number
        self._on_commit = on_commit
        self.samples = JsonlFile(folder / "samples.jsonl")
        self.eval = JsonlFile(folder / "eval.jsonl")
        self.eval_scores = JsonlFile(folder / "eval_scores.jsonl")
        self.validation = JsonlFile(folder / "validation.jsonl")
        self.scores = JsonlFile(folder / "scores.jsonl")
        self.probe = JsonlFile(folder / "probe.jsonl")
        self.probe_scores = JsonlFile(folder / "probe_scores.jsonl")

    @property
    def weights(self) -> Path:
        """The folder of the iteration's weights, if it trained and they were kept."""
        return self.folder / "weights"

    @property
    def committed(self) -> bool:
        """Whether the iteration is finished."""
        return (self.folder / "iteration.json").is_file()

    def __enter__(self) -> Self:
        with writing(self.folder):
            make_folder(self.folder)
        return self

    def __exit__(self, *error: object) -> None:
        self._close_logs()

    def _logs(self) -> tuple[JsonlFile, ...]:
        logs = (self.samples, self.scores, self.eval, self.eval_scores)
        return (*logs, self.validation, self.probe, self.probe_scores)

    def _close_logs(self) -> None:
        for log in self._logs():
            log.close()

    def write(self, name: str, records: Iterable[Any]) -> None:
        """Write `name.jsonl` from dataclass records."""
        write_rows(self.folder / f"{name}.jsonl", (asdict(record) for record in records))

    def write_pairs(self, pairs: Iterable[Pair]) -> None:
        """Write `pairs.jsonl`, whose rows TRL's trainers read as they are: `prompt` and `completion` are lists of
        messages."""
        rows = ({**asdict(pair), "completion": [_assistant(pair.completion)]} for pair in pairs)
        write_rows(self.folder / "pairs.jsonl", rows)

    def pairs(self) -> list[Pair]:
        """The accepted pairs, as stored by `write_pairs`. Earlier versions stored a completion as text."""
        return [
            Pair(
                **{
                    **row,
                    "prompt": tuple(row["prompt"]),
                    "completion": _content(row["completion"]),
                    "answer_span": _span(row),
                }
            )
            for row in JsonlFile(self.folder / "pairs.jsonl").read()
        ]

    def responses(self) -> list[Response]:
        """The graded responses to the test questions so far."""
        return [Response(**row) for row in self.eval.read()]

    def keep_responses(self, responses: Iterable[Response]) -> None:
        """Replace the responses to the test questions, all of which are finished, by the same with more fields."""
        self.eval.close()
        self.write("eval", responses)

    def commit(self, metrics: IterationMetrics, record: Mapping[str, Any]) -> None:
        """End the iteration: sync its logs, write its metrics, then the file that marks it as finished."""
        self._close_logs()
        for log in self._logs():
            if log.path.exists():  # a session that was killed may have written rows without syncing them
                with writing(log.path):
                    sync(log.path)
        write_whole(self.folder / "metrics.json", json.dumps(metrics_to_json(metrics), indent=1) + "\n")
        write_whole(self.folder / "iteration.json", json.dumps(dict(record), indent=1) + "\n")
        if self._on_commit is not None:
            self._on_commit(self)

    def metrics(self) -> IterationMetrics:
        """The metrics of a committed iteration."""
        return metrics_from_json(json.loads((self.folder / "metrics.json").read_text(encoding="utf-8")))

    def record(self) -> dict[str, Any]:
        """The content of `iteration.json`."""
        content: dict[str, Any] = json.loads((self.folder / "iteration.json").read_text(encoding="utf-8"))
        return content


OnCommit = Callable[[IterationStore], None]
"""Called with an iteration that has just been committed."""


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _content(completion: str | Sequence[Message]) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


def _span(row: Mapping[str, Any]) -> tuple[int, int] | None:
    span = row.get("answer_span")
    return None if span is None else (span[0], span[1])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder of a run or a study; create it if it is missing.

    Raises:
        StoreError: another process has locked it.
    """
    with writing(folder):
        make_folder(folder)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(f"another process is running in {folder}") from None
    try:
        yield
    finally:
        lock.release()


class RunStore:
    """A run folder, used by one process at a time.

    Attributes:
        on_commit: called after each commit, with its iteration.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.on_commit: OnCommit | None = None

    def iteration(self, number: int) -> IterationStore:
        """The folder of an iteration; 0 is the base model."""
        return IterationStore(self.folder / f"iteration-{number:02d}", number, self.on_commit)

    def config(self) -> RunConfig:
        """The resolved configuration of the run.

        Raises:
            StoreError: the folder holds no run.
        """
        path = self.folder / "config.yaml"
        if not path.is_file():
            raise StoreError(f"{self.folder} holds no run")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return validate({**content, "run_dir": str(self.folder)}, str(path))

    def committed(self) -> list[IterationStore]:
        """The committed iterations, in order."""
        found: list[IterationStore] = []
        while (step := self.iteration(len(found))).committed:
            found.append(step)
        return found

    def started(self, config: RunConfig, task_text: str) -> bool:
        """Whether the folder holds a run of this resolved configuration and task.

        Raises:
            StoreError: it holds a run of another configuration or task.
        """
        if not (self.folder / "config.yaml").is_file():
            return False
        # Neither how long weights are kept nor where the run is computed changes what it computes.
        former, present = (
            without_placement({**_resolved(one), "keep_weights": None}) for one in (self.config(), config)
        )
        changed = difference(former, present)
        if changed:
            raise StoreError(
                f"{self.folder} holds a run of another configuration ({'; '.join(changed)}); "
                "set run_dir to another folder, or remove this one"
            )
        if (self.folder / "task.yaml").read_text(encoding="utf-8") != task_text:
            raise StoreError(
                f"the task file changed since {self.folder} was started; set run_dir to another folder, or remove this "
                "one"
            )
        return True

    def finished(self, config: RunConfig, task_text: str) -> bool:
        """Whether the folder holds every iteration of a run of this resolved configuration and task.

        Raises:
            StoreError: it holds a run of another configuration or task.
        """
        return self.started(config, task_text) and len(self.committed()) > config.iterations

    def open(self, config: RunConfig, task_text: str) -> bool:
        """Start a run, or resume one of the same configuration and task.

        Returns:
            Whether the run had been started before.

        Raises:
            StoreError: the folder holds a run of another configuration or task, or something else.
        """
        resumed = self.started(config, task_text)
        if not resumed:
            ours = (".lock", "task.yaml", "task.yaml.partial", "config.yaml.partial")
            strangers = [p.name for p in self.folder.iterdir() if p.name not in ours]
            if strangers:
                raise StoreError(f"{self.folder} is not empty and holds no run (found {sorted(strangers)[0]})")
            write_whole(self.folder / "task.yaml", task_text)
            write_whole(
                self.folder / "config.yaml", yaml.safe_dump(_resolved(config), sort_keys=False, allow_unicode=True)
            )
        self._add_session()
        return resumed

    def keep_questions(self, split: str, questions: list[Question]) -> None:
        """Store the questions of a split; on resume, check that they are the same.

        Raises:
            StoreError: the data changed since the run was started.
        """
        path = self.folder / f"{split}.jsonl"
        rows = [_plain(question.as_row()) for question in questions]
        if path.is_file():
            if JsonlFile(path).read() != rows:
                raise StoreError(f"the {split} questions changed since {self.folder} was started; set another run_dir")
        else:
            write_rows(path, rows)

    def questions(self, split: str) -> list[Question]:
        """The questions of a split, as stored by `keep_questions`; empty if the run does not have the split."""
        return [Question.from_row(row) for row in JsonlFile(self.folder / f"{split}.jsonl").read()]

    def model_after(self, number: int) -> ModelRef | None:
        """The weights after a committed iteration; None if nothing was trained so far."""
        trained = self.iteration(number).record()["weights_of_iteration"]
        return ModelRef(str(self.iteration(trained).weights), trained) if trained else None

    def selected(self, config: RunConfig) -> ModelRef | None:
        """The weights chosen by `select` among the committed iterations; None for the base model."""
        committed = [step.metrics() for step in self.committed()]
        return self.model_after(selected(committed, config.select).iteration) if committed else None

    def replayed(self, k: int, replay: int | Literal["last"], new: Sequence[Pair]) -> list[Pair]:
        """The pairs of the iterations before iteration k that `m_step.replay` trains on again, the oldest first.

        Args:
            new: the pairs of iteration k. With `last`, they replace the former pairs of their attempts; with a number,
                nothing is replayed without new pairs.
        """
        if replay != "last":
            first = max(1, k - replay + 1) if new else k
            return [pair for j in range(first, k) for pair in self.iteration(j).pairs()]
        held = {(pair.question_id, pair.index) for pair in new}
        former: list[Pair] = []
        for j in range(k - 1, 0, -1):
            latest = [pair for pair in self.iteration(j).pairs() if (pair.question_id, pair.index) not in held]
            held |= {(pair.question_id, pair.index) for pair in latest}
            former = latest + former
        return former

    def history(self, k: int) -> History:
        """What the iterations before iteration k tell its proposal."""
        accepted = {Attempt(pair.question_id, pair.index) for j in range(1, k) for pair in self.iteration(j).pairs()}
        plain: dict[str, Tally] = {}
        for row in JsonlFile(self.iteration(k - 1).folder / "verdicts.jsonl").read():
            if not row["hinted"] and not row["supplied"]:
                draws, correct = plain.get(row["question_id"], Tally(0, 0))
                plain[row["question_id"]] = Tally(draws + 1, correct + (row["status"] == "correct"))
        return History(frozenset(accepted), plain)

    def free_weights(self, config: RunConfig) -> None:
        """Remove weights that neither the next iteration starts from nor the run may end in (`keep_weights`)."""
        if config.keep_weights == "last":
            wanted = (self.model_after(self.committed()[-1].number), self.selected(config))
            self.remove_weights(keep={model.iteration for model in wanted if model is not None})

    def remove_weights(self, keep: Collection[int]) -> None:
        """Delete the weights of committed iterations, except those of the iterations in `keep`."""
        committed = self.committed()
        if committed:
            sync(committed[-1].folder)  # a kill may have come between the commit and its sync
        for step in committed:
            # Renamed first, so that a kill during the removal leaves no incomplete weights.
            removed = step.weights.with_name("weights.removed")
            if step.number not in keep and step.weights.is_dir():
                step.weights.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)

    def engines(self) -> list[str]:
        """The engine of each session, and its dtype where it has one, such as `vllm in bfloat16`."""
        engines = [session["engine"] for session in self._sessions() if "engine" in session]
        return [" in ".join(engine[key] for key in ("engine", "dtype") if key in engine) for engine in engines]

    def latest_metadata(self, key: str) -> Any:
        """The latest value of a key in the metadata of any session; None if no session has it."""
        return next((session[key] for session in reversed(self._sessions()) if key in session), None)

    def add_metadata(self, **metadata: Any) -> None:
        """Add metadata to the current session's entry in `run.json`."""
        *former, present = self._sessions()
        self._keep_sessions([*former, {**present, **metadata}])

    def _add_session(self) -> None:
        present = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "versions": _versions(),
            "git_revision": git_revision(),
        }
        self._keep_sessions([*self._sessions(), present])

    def _sessions(self) -> list[dict[str, Any]]:
        path = self.folder / "run.json"
        if not path.is_file():
            return []
        sessions: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["sessions"]
        return sessions

    def _keep_sessions(self, sessions: list[dict[str, Any]]) -> None:
        write_whole(self.folder / "run.json", json.dumps({"sessions": sessions}, indent=1) + "\n")


def _resolved(config: RunConfig) -> dict[str, Any]:
    content: dict[str, Any] = config.model_dump(mode="json", exclude={"run_dir"})
    return content


def _plain(row: dict[str, Any]) -> Any:
    """A row after a round trip through JSON."""
    return json.loads(json.dumps(row, default=str))


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
