"""Runs from Python, in the style of TRL's trainers.

>>> from estep import FEMConfig, FEMTrainer
>>> args = FEMConfig(iterations=3, train_size=256, test_size=192)
>>> result = FEMTrainer("smollm2-135m", "sentiment/movies", args).train()
>>> result.last.evaluation.accuracy, result.model
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estep.cluster import connected, launch_of, open_engine
from estep.config import FEMConfig, OpenAIEngineConfig, RunConfig, ScriptedEngineConfig, hint_variant, served_model
from estep.data.prepare import announce, fit_to_task, within_context, without_control_tokens
from estep.data.split import Pool, Sizes, Split, draw_split, load_pool, with_own_data
from estep.e_step import proposal_sampling
from estep.engines import Engine, open_proposer
from estep.engines.base import log_usage
from estep.errors import ConfigError, DataError
from estep.filters import build_filters
from estep.loop import FilteredEM
from estep.m_step.base import MStep
from estep.m_step.sft import build_m_step
from estep.metrics import IterationMetrics, selected
from estep.planning.check import check_fits
from estep.progress import Reporter, Silent
from estep.proposals import build_proposal
from estep.records import ModelRef, Question
from estep.sources.models import resolve_model
from estep.store.model import run_on
from estep.store.reuse import ReusableRuns, reuse_base_eval, reuse_training
from estep.store.run import RunStore, locked
from estep.tasks import Task, load_task
from estep.tracking import check_installed, tracked


@dataclass(frozen=True)
class TrainResult:
    """The result of a run."""

    run_dir: Path
    """The run folder."""
    model: str
    """The selected weights: a folder for `from_pretrained`, or the base model if no iteration trained."""
    iterations: tuple[IterationMetrics, ...]
    """Metrics of the base model (iteration 0) and of each iteration."""
    selected: IterationMetrics
    """The iteration that `select` chose: the last, or the best on the validation questions. `model` has its weights; if
    it trained nothing, they are those of an earlier iteration."""

    @property
    def base(self) -> IterationMetrics:
        """Metrics of the base model."""
        return self.iterations[0]

    @property
    def last(self) -> IterationMetrics:
        """Metrics of the last iteration, which need not be the selected one."""
        return self.iterations[-1]


_NOTHING_SHARED = ReusableRuns()


class FEMTrainer:
    """Filtered expectation maximization on one task.

    Args:
        model: `smollm2-135m`, a local folder or a hub id; needs a chat template.
        task: a built-in task's name, the path of a task file, or a `Task`.
        args: all other settings of the run.
        reporter: receives progress; silent by default.
        engine: an engine to use instead of opening the configured one; it is not closed.
        m_step: an M-step to use instead of supervised fine-tuning.
    """

    def __init__(
        self,
        model: str,
        task: str | Task,
        args: FEMConfig | None = None,
        *,
        reporter: Reporter | None = None,
        engine: Engine | None = None,
        m_step: MStep | None = None,
    ):
        args = args or FEMConfig()
        if isinstance(task, str):
            task = load_task(task, hint_variant(args.proposal), args.few_shot)
        task = with_own_data(task, args.data)
        name = str(task.path) if task.path is not None and task.path.suffix and not _built_in(task) else task.name
        self.task = task
        content = {**args.model_dump(exclude={"task", "model"}), "task": name, "model": model}
        self.config = fit_to_task(RunConfig.model_validate(content), task)
        self.reporter: Reporter = reporter or Silent()
        if isinstance(self.config.engine, ScriptedEngineConfig) and m_step is None:
            raise ConfigError("engine.type=scripted needs an M-step of your own: FEMTrainer(..., m_step=...)")
        if isinstance(self.config.engine, OpenAIEngineConfig):
            raise ConfigError("engine.type=openai cannot be trained; proposal.model lets a served model propose")
        self._engine = engine
        self._m_step = m_step
        self._cells = 1

    def use(self, engine: Engine, cells: int = 1) -> None:
        """Sample with an engine that is already open; it is not closed.

        Args:
            cells: number of runs that share a cluster at the same time.
        """
        self._engine = engine
        self._cells = cells

    def train(self, shared: ReusableRuns = _NOTHING_SHARED, study: str | None = None) -> TrainResult:
        """Run Algorithm 1, or resume the run in the run folder.

        Args:
            shared: other runs, whose finished work on the same questions is reused.
            study: the name of the study that the run belongs to, for trackers.

        Raises:
            EstepError: for example bad input, a run folder of another configuration, data that changed since a peer
                run, a full disk, or stale weights.
        """
        config = self.config
        check_installed(config.report_to)
        announce(self.task, self.reporter.log)
        pool, split = self._split()
        digest = pool.digest
        _same_data(digest, shared.peers)
        base = ModelRef(resolve_model(config.model, self.reporter.log))
        with self._engines(base) as (engine, proposer):
            asked = self._fitting(split, engine, proposer)
            metadata = {
                "engine": engine.metadata,
                "data": digest,
                "invalid_rows": pool.invalid_rows,
                "overlapping": split.overlapping,
                "related": split.related,
                "near_validation": split.near_validation,
                "left_out": pool.left_out,
                "overlength": {name: len(getattr(split, name)) - len(kept) for name, kept in asked.items()},
                "structured": proposal_sampling(config, self.task).regex,
            }
            store = RunStore(config.folder)
            with locked(store.folder):
                self._open(store, asked, metadata)
                self._reuse(store, shared)
                # Weights that a run on this task trained propose without the examples, as in that run's next iteration.
                trained = proposer is None and run_on(self.task, base.path) is not None
                loop = FilteredEM(
                    config=config,
                    task=self.task.after_training() if trained else self.task,
                    base=base,
                    **asked,
                    proposal=build_proposal(config.proposal),
                    filters=build_filters(config.filters, self.task.file.answer, asked["train"]),
                    engine=engine,
                    update=self._m_step or build_m_step(config, base, engine, launch_of(config, engine, self._cells)),
                    store=store,
                    reporter=self.reporter,
                    proposer=proposer,
                )
                try:
                    with tracked(store, config, study, self.reporter.log):
                        history = loop.run()
                finally:
                    if proposer is not None:
                        store.add_metadata(proposer=proposer.metadata)
                        log_usage(proposer, self.reporter)
        model = store.selected(config) or base
        return TrainResult(store.folder, model.path, tuple(history), selected(history, config.select))

    def _split(self) -> tuple[Pool, Split]:
        """All questions of the task, and the questions of this run."""
        config = self.config
        pool = load_pool(self.task, config.on_invalid_row, self.reporter.log)
        sizes = (config.train_size, config.test_size)
        split = draw_split(self.task, pool, Sizes(*sizes, config.validation_size), config.seed, config.data)
        if split.overlapping:
            self.reporter.log(f"left out {split.overlapping} training questions with the same text as a test question")
        if split.related:
            group = self.task.file.data.group
            self.reporter.log(f"left out {split.related} training questions with the same {group} as a test question")
        if split.near_validation:
            count = split.near_validation
            self.reporter.log(f"left out {count} training questions with the text or group of a validation question")
        return pool, split

    def _fitting(self, split: Split, engine: Engine, proposer: Engine | None) -> dict[str, list[Question]]:
        """The questions of each split that fit the model's context."""
        # The hinted prompt is measured for every proposal, so all proposals use the same questions.
        training = (self.task.hinted_prompt, self.task.proposal_prompt)
        parts = {"train": (split.train, training), "test": (split.test, (self.task.prompt,))}
        parts["validation"] = (split.validation, (self.task.prompt,))
        fitting = {}
        for name, (questions, prompts) in parts.items():
            if proposer is not None:
                questions = without_control_tokens(questions, proposer.control_tokens, self.reporter.log)
            fitting[name] = (
                within_context(engine, questions, prompts, self.config, name, self.reporter.log) if questions else []
            )
        return fitting

    @contextmanager
    def _engines(self, base: ModelRef) -> Iterator[tuple[Engine, Engine | None]]:
        """The policy's engine with the base model loaded, and the proposer's engine if there is one. Closes the engines
        that it opened."""
        with ExitStack() as stack:
            stack.enter_context(connected(self.config.cluster, self.reporter.log))
            if self._engine is None and self._m_step is None:
                check_fits(self.config, base.path, self.reporter.log)
            served = served_model(self.config.proposal)
            proposer = open_proposer(served) if served is not None else None
            if proposer is not None:
                stack.callback(proposer.close)
            engine = self._engine
            if engine is None:
                engine = open_engine(self.config, base, self.reporter.log, self._cells)
                stack.callback(engine.close)
            else:
                engine.load(base)
            yield engine, proposer

    def _open(self, store: RunStore, questions: dict[str, list[Question]], metadata: dict[str, Any]) -> None:
        """Start the run folder or resume in it, and record the metadata of this session."""
        resumed = store.open(self.config, self.task.text)
        for split, of_split in questions.items():
            if of_split:
                store.keep_questions(split, of_split)
        store.add_metadata(**metadata)
        *former, present = store.engines()
        if former and former[-1] != present:
            self.reporter.log(f"note: this run was started with the engine {former[-1]} and resumes with {present}")
        self.reporter.log(f"{'resuming in' if resumed else 'run folder'} {store.folder}")

    def _reuse(self, store: RunStore, shared: ReusableRuns) -> None:
        for other in shared.base:
            if reuse_base_eval(store, other):
                self.reporter.log(f"  reusing the base model's evaluation from {other.folder.name}")
        for other in shared.training:
            if reuse_training(store, other, self.config.iterations):
                self.reporter.log(f"  reusing the training from {other.folder.name}")
                break


def _same_data(digest: str, others: Sequence[RunStore]) -> None:
    """Check that runs that are compared use the same data.

    Raises:
        DataError: the data changed since one of the others started.
    """
    for other in others:
        if other.latest_metadata("data") not in (None, digest):
            raise DataError(
                f"the data changed since {other.folder.name} was run on it, so the two runs could not be compared; set "
                "run_dir to another folder, or restore the data"
            )


def _built_in(task: Task) -> bool:
    from estep.shipped import CATALOG

    return task.path is not None and task.path.is_relative_to(CATALOG)
