"""Filtered expectation maximization: Algorithm 1 of Lee et al. (2025), with every step kept in the run folder.

`FilteredEM.run` is the algorithm. The parts it calls take records and return records; what they finish is on the
disk at once, so that a killed run goes on where it stopped.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from estep.config import RunConfig
from estep.e_step import EStepResult, e_step_metrics, e_step_seed, expect, proposal_sampling
from estep.engines import Engine
from estep.engines.base import NeverSampledError
from estep.evaluate import ask, responses
from estep.filters import Filter
from estep.m_step.base import MStep, MStepInput, MStepResult, learning_rate_at, m_step_metrics, read_m_step
from estep.m_step.canary import check_canary
from estep.metrics import (
    Evaluation,
    IterationMetrics,
    evaluate_predictions,
    summary,
)
from estep.progress import Reporter
from estep.proposals import Proposal
from estep.records import ModelRef, Pair, Question, Sample, derive_seed
from estep.store.run import IterationStore, JsonlFile, RunStore
from estep.tasks import Task

_NOTABLE_SHIFT = 0.1
"""Accepted answers that are mixed this much otherwise than the data (total variation) are told of."""


@dataclass
class FilteredEM:
    """One run of Algorithm 1.

    `base` is θ⁽⁰⁾, `train` is 𝒟, `proposal` is q, `filters` hold r, `config` holds K and η.
    """

    config: RunConfig
    task: Task
    base: ModelRef
    train: list[Question]
    test: list[Question]
    validation: list[Question]
    """Choose the iteration whose weights stay; empty for the last."""
    proposal: Proposal
    filters: dict[str, Filter]
    engine: Engine
    m_step: MStep
    store: RunStore
    reporter: Reporter
    proposer: Engine | None = None
    """What q samples from; None for the policy itself."""
    loaded: ModelRef | None = None
    """The weights that the engine holds."""
    _canary: dict[str, Any] | None = field(default=None, init=False)
    _seconds: dict[str, float] = field(default_factory=dict, init=False)

    def run(self) -> list[IterationMetrics]:
        """Algorithm 1; returns the metrics of the base model and of every iteration."""
        theta = self.base  # θ⁽⁰⁾
        history = [self.before_training(theta)]
        for k in range(1, self.config.iterations + 1):
            step = self.store.iteration(k)
            if not step.committed:
                with step:
                    kept = self.e_step(theta, k, step)  # line 3: ẑ, ŷ ~ q(· | x, y*; θ⁽ᵏ⁻¹⁾), where r(ŷ, y*) = 1
                    trained = self.maximize(theta, k, self.replayed(k, kept.pairs), step)  # lines 4-5: + η⁽ᵏ⁾ r ∇ log π
                    self.evaluate(trained.model if trained else theta, k, step, kept, trained)
                self.free_weights()
            theta = self.store.model_after(k) or self.base  # θ⁽ᵏ⁾
            history.append(step.metrics())
        self.free_weights()  # a kill may have come before
        return history  # line 6: θ⁽ᴷ⁾ lies in the last trained iteration's folder

    def free_weights(self) -> None:
        """Remove the weights that neither the next iteration starts from nor the run may end in (`keep_weights`)."""
        if self.config.keep_weights == "last":
            newest = self.store.model_after(self.store.committed()[-1].number)
            wanted = (newest, self.store.selected(self.config))
            self.store.remove_weights(keep={model.iteration for model in wanted if model is not None})

    def before_training(self, base: ModelRef) -> IterationMetrics:
        """Evaluate the base model: iteration 0."""
        step = self.store.iteration(0)
        if not step.committed:
            with step:
                self.evaluate(base, 0, step)
        return step.metrics()

    def e_step(self, theta: ModelRef, k: int, step: IterationStore) -> EStepResult:
        """Sample rationales for all questions and keep the ones that justify the right answer."""
        with self._timed("e_step"):
            expectation = self._sampled_before(theta, k, step)
            if expectation is None:
                engine = self.proposer or self.engine
                if engine is self.engine:
                    self._load(theta)
                expectation = self._expect(theta, k, step, engine)
        step.write("verdicts", expectation.verdicts)
        step.write("pairs", expectation.pairs)
        return expectation

    def _sampled_before(self, theta: ModelRef, k: int, step: IterationStore) -> EStepResult | None:
        """The E-step from its samples alone, where they were all trained on already; else None."""
        if read_m_step(step.weights) is None:
            return None
        try:
            return self._expect(theta, k, step, None)
        except NeverSampledError:  # a verifier that ran out of time judges otherwise than before
            return None

    def _expect(self, theta: ModelRef, k: int, step: IterationStore, engine: Engine | None) -> EStepResult:
        # A served proposer is never trained, so it goes on with the examples.
        trained = theta.iteration > 0 and self.proposer is None
        return expect(
            task=self.task.after_training() if trained else self.task,
            questions=self.train,
            proposal=self.proposal,
            filters=self.filters,
            engine=engine,
            sampling=proposal_sampling(self.config, self.task),
            seed=e_step_seed(self.config.seed, k),
            reporter=self.reporter,
            title=f"iteration {k} E-step",
            finished={row["draw_id"]: Sample(**row) for row in step.samples.read()},
            keep_draws=lambda draws: step.write("draws", draws),
            keep_sample=lambda sample: step.samples.append(asdict(sample)),
        )

    def replayed(self, k: int, pairs: list[Pair]) -> list[Pair]:
        """The pairs of iteration k, behind those of the iterations before it that `m_step.replay` asks for; none where
        iteration k has none."""
        if not pairs:
            return []
        earlier = range(max(1, k - self.config.m_step.replay + 1), k)
        return [*(pair for j in earlier for pair in self.store.iteration(j).pairs()), *pairs]

    def maximize(self, theta: ModelRef, k: int, pairs: list[Pair], step: IterationStore) -> MStepResult | None:
        """Fine-tune on the pairs; None where there are none, so that θ⁽ᵏ⁾ = θ⁽ᵏ⁻¹⁾."""
        trained = read_m_step(step.weights)
        if trained is not None:
            return trained
        if not pairs:
            self.reporter.log(f"  iteration {k}: no sample was accepted, so there is nothing to train on")
            return None
        start = theta if self.config.m_step.init == "previous" else self.base
        first, last = self.config.m_step.learning_rate
        rate = learning_rate_at(k, self.config.iterations, first, last)
        total = len(pairs) * self.config.m_step.epochs
        with self._timed("m_step"), self.reporter.phase(f"iteration {k} M-step", total, "pairs") as advance:
            work = MStepInput(
                start=start,
                iteration=k,
                pairs=pairs,
                learning_rate=rate,
                seed=derive_seed(self.config.seed, "m-step", k),
                folder=step.weights,
                score_before=self.engine.score,
                advance=advance,
                release=self._release,
                log=self.reporter.log,
            )
            self._load(theta)
            trained = self.m_step(work)
        if trained is None or trained.left_out:
            count = len(pairs) if trained is None else trained.left_out
            self.reporter.log(f"  iteration {k}: left out {count} pairs that exceed the model's context")
        return trained

    def evaluate(
        self,
        theta: ModelRef,
        k: int,
        step: IterationStore,
        expectation: EStepResult | None = None,
        trained: MStepResult | None = None,
    ) -> None:
        """Ask θ⁽ᵏ⁾ the held-out questions with the plain prompt, and commit the iteration."""
        canary = self._load(theta)
        rows = self._answers(self.test, k, step.eval, "evaluation")
        validation_rows = self._answers(self.validation, k, step.validation, "validation") if self.validation else []
        tokens = {
            "evaluation_prompt": sum(row["prompt_tokens"] for row in [*rows, *validation_rows]),
            "evaluation_new": sum(row["completion_tokens"] for row in [*rows, *validation_rows]),
        }
        if expectation is not None:
            tokens["e_step_prompt"] = sum(sample.prompt_tokens for sample in expectation.samples)
            tokens["e_step_new"] = sum(sample.completion_tokens for sample in expectation.samples)
            tokens["m_step"] = trained.tokens if trained else 0
        metrics = IterationMetrics(
            iteration=k,
            evaluation=self._evaluation(rows),
            validation=self._evaluation(validation_rows) if self.validation else None,
            e_step=None if expectation is None else e_step_metrics(expectation, self.task),
            m_step=None if trained is None else m_step_metrics(trained),
            tokens=tokens,
            seconds={phase: round(seconds, 3) for phase, seconds in self._seconds.items()},
        )
        shift = metrics.e_step.answer_shift if metrics.e_step else 0.0
        if shift > _NOTABLE_SHIFT and self.config.filters.balance == "none":
            self.reporter.log(
                f"  note: {shift:.0%} of the accepted pairs would need another answer to be mixed as the data; "
                "filters.balance gives every answer its share"
            )
        weights = trained.model.iteration if trained else theta.iteration
        step.commit(metrics, {"iteration": k, "weights_of_iteration": weights, "canary": canary})
        self._seconds.clear()
        self.reporter.log(summary(metrics))

    def _answers(self, questions: list[Question], k: int, log: JsonlFile, title: str) -> list[dict[str, Any]]:
        """The engine's judged answers to held-out questions."""
        with self._timed("evaluation"):
            return ask(
                self.task,
                questions,
                self.engine,
                self.config.evaluation,
                self.config.max_new_tokens,
                derive_seed(self.config.seed, k),
                self.reporter,
                log.read(),
                log.append,
                title,
            )

    def _evaluation(self, rows: list[dict[str, Any]]) -> Evaluation:
        return evaluate_predictions(
            list(responses(rows)), self.task.answers, self.task.ordinal, self.config.evaluation.vote
        )

    # Weights

    def _release(self) -> None:
        self.engine.release()
        self.loaded = None

    def _load(self, theta: ModelRef) -> dict[str, Any] | None:
        """Load weights, unless the engine has them, and prove by their canary that they are in use.

        Returns:
            What the canary said; None for a base model, which has none.
        """
        if self.loaded != theta:
            with self._timed("load"):
                self.engine.load(theta)
            trained = read_m_step(Path(theta.path)) if theta.iteration else None
            self._canary = check_canary(self.engine, trained.canary) if trained else None
            if self._canary is not None and not self._canary["telling"]:
                moved = abs(self._canary["trained"] - self._canary["before"])
                self.reporter.log(
                    f"  note: training changed the model so little ({moved:.2f} nats on fixed responses) that whether "
                    "the engine took the new weights cannot be checked"
                )
            self.loaded = theta
        return self._canary

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.monotonic() - started
