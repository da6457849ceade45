"""The diagnostics of a run, iteration by iteration."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from estep.config import RunConfig
from estep.diagnostics.alarms import alarms
from estep.diagnostics.probes import Probe, ProbeFigures
from estep.diagnostics.samples import from_samples
from estep.e_step import EStepResult
from estep.engines import Engine
from estep.metrics import Diagnostics, IterationMetrics
from estep.progress import Reporter
from estep.records import Question, Response, derive_seed
from estep.store.run import IterationStore, RunStore
from estep.tasks import Task


@dataclass(frozen=True)
class Diagnosis:
    """Computes the diagnostics of a run's iterations.

    Args:
        task: the task.
        engine: holds the policy of the iteration.
        config: the run's resolved configuration.
        validation: the questions that `full` diagnostics ask.
        store: the run, for the metrics of its earlier iterations.
        reporter: receives progress and warnings.
    """

    task: Task
    engine: Engine
    config: RunConfig
    validation: Sequence[Question]
    store: RunStore
    reporter: Reporter

    def of(
        self,
        step: IterationStore,
        test: Sequence[Response],
        e_step: EStepResult | None,
        metrics: IterationMetrics,
    ) -> Diagnostics | None:
        """The diagnostics of an iteration; None if they are off. Logs each warning that the previous iteration did not
        give.

        Args:
            step: the iteration's folder, for samples and scores.
            test: the policy's responses to the test questions.
            e_step: the iteration's E-step; None for the base model.
            metrics: the iteration's other metrics.
        """
        if self.config.diagnostics == "off":
            return None
        found = from_samples(self.task, test, e_step)
        if self.config.diagnostics == "full":
            found = replace(found, **asdict(self._probed(step)))
        earlier = [self.store.iteration(k).metrics() for k in range(step.number)]
        raised = alarms([*earlier, replace(metrics, diagnostics=found)])
        former = earlier[-1].diagnostics if earlier else None
        for alarm in raised:
            if former is None or alarm.name not in former.warnings:
                self.reporter.log(f"  warning: {alarm.reason}; {alarm.suggestion}")
        return replace(found, warnings=tuple(alarm.name for alarm in raised))

    def _probed(self, step: IterationStore) -> ProbeFigures:
        """The figures that come from plain samples of the policy for the validation questions."""
        probe = Probe(self.task, self.engine, self.config.max_new_tokens, self.reporter)
        seed = derive_seed(self.config.seed, "probe", step.number)
        return probe(self.validation, seed, step.probe, step.probe_scores)
