"""Filtered expectation maximization: Algorithm 1 of Lee et al. (2025).

`FilteredEM.run` is the algorithm; its parts take records and return records. Finished work is written to the run folder
at once, so a killed run resumes where it stopped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from estep.config import RunConfig
from estep.diagnostics import Diagnosis
from estep.e_step import EStep, EStepResult, e_step_seed, proposal_sampling, replayed_or_sampled
from estep.engines import Engine
from estep.evaluate import Evaluator
from estep.filters import Filter
from estep.m_step.base import MStep, MStepInput, MStepResult, count_tokens, learning_rate_at, read_m_step
from estep.m_step.policy import Policy
from estep.metrics import IterationMetrics, summary
from estep.progress import PhaseTimer, Reporter
from estep.proposals import Proposal
from estep.records import ModelRef, Pair, Question, Response, derive_seed
from estep.scoring import Scorer
from estep.store.run import IterationStore, RunStore
from estep.tasks import Task


@dataclass
class FilteredEM:
    """One run of Algorithm 1.

    `base` is θ⁽⁰⁾, `train` is 𝒟, `proposal` is q, the first of `filters` is r; `config` holds K and η.
    """

    config: RunConfig
    task: Task
    base: ModelRef
    train: list[Question]
    test: list[Question]
    validation: list[Question]  # to select the iteration whose weights are used; empty for the last iteration
    proposal: Proposal
    filters: Mapping[str, Filter]
    engine: Engine
    update: MStep
    store: RunStore
    reporter: Reporter
    proposer: Engine | None  # the engine that q samples from; None for the policy itself

    def __post_init__(self) -> None:
        self.timer = PhaseTimer()
        self.policy = Policy(self.engine, self.base, self.reporter, self.timer)
        config = self.config
        self.evaluator = Evaluator(self.task, self.engine, config.evaluation, config.max_new_tokens, self.reporter)
        self.diagnosis = Diagnosis(self.task, self.engine, config, self.validation, self.store, self.reporter)

    def run(self) -> list[IterationMetrics]:
        """Algorithm 1; returns the metrics of the base model and of every iteration."""
        theta = self.base  # θ⁽⁰⁾
        with self.store.iteration(0) as step:
            if not step.committed:
                self.evaluate(theta, step, None, None)
        history = [step.metrics()]
        for k in range(1, self.config.iterations + 1):
            step = self.store.iteration(k)
            if not step.committed:
                with step:
                    e_step = self.e_step(theta, step)  # line 3: ẑ, ŷ ~ q(· | x, y*; θ⁽ᵏ⁻¹⁾), kept where r(ŷ, y*) = 1
                    m_step = self.m_step(theta, k, e_step.pairs)  # lines 4-5: θ ← θ + η⁽ᵏ⁾ r ∇ log π(ẑ, ŷ | x; θ)
                    self.evaluate(m_step.model if m_step else theta, step, e_step, m_step)
                self.store.free_weights(self.config)
            theta = self.store.model_after(k) or self.base  # θ⁽ᵏ⁾
            history.append(step.metrics())
        self.store.free_weights(self.config)  # again, in case the run was killed before it could
        return history  # line 6: θ⁽ᴷ⁾ is in the folder of the last iteration that trained

    def e_step(self, theta: ModelRef, step: IterationStore) -> EStepResult:
        """Sample rationales for all questions, and keep those that end in the correct answer."""
        with self.timer.phase("e_step"):
            result = replayed_or_sampled(step.samples, lambda samples: self._sampled(theta, step, samples))
        step.write("verdicts", result.verdicts)
        step.write_pairs(result.pairs)
        return result

    def _sampled(self, theta: ModelRef, step: IterationStore, samples: bool) -> EStepResult:
        # A served proposer is never trained, so its prompts keep the few-shot examples.
        served = self.proposer is not None
        task = self.task.after_training() if theta.iteration > 0 and not served else self.task
        scores = self.config.scores_samples
        policy = self.policy.with_weights(theta) if samples and (scores or not served) else None
        engine = (self.proposer or policy) if samples else None
        sampling, history = proposal_sampling(self.config, task), self.store.history(step.number)
        scorer = Scorer(policy, self.reporter, step.scores) if scores else None
        e_step = EStep(task, self.proposal, self.filters, engine, sampling, self.reporter, history, scorer, served)
        seed, title = e_step_seed(self.config.seed, step.number), f"iteration {step.number} E-step"
        return e_step.run(self.train, seed, title, step.samples, lambda draws: step.write("draws", draws))

    def m_step(self, theta: ModelRef, k: int, new_pairs: list[Pair]) -> MStepResult | None:
        """Fine-tune on the pairs and those to replay; None if there are none, so θ⁽ᵏ⁾ = θ⁽ᵏ⁻¹⁾."""
        folder = self.store.iteration(k).weights
        if finished := read_m_step(folder):
            return finished
        settings = self.config.m_step
        pairs = [*self.store.replayed(k, settings.replay, new_pairs), *new_pairs]
        if not pairs:
            self.reporter.log(f"  iteration {k}: no sample was accepted, so there is nothing to train on")
            return None
        if not new_pairs:
            self.reporter.log(f"  iteration {k}: no sample was accepted; training on pairs of earlier iterations")
        total = len(pairs) * settings.epochs
        with self.timer.phase("m_step"), self.reporter.phase(f"iteration {k} M-step", total, "pairs") as advance:
            self.policy.load(theta)
            inputs = MStepInput(
                start=theta if settings.init == "previous" else self.base,
                iteration=k,
                pairs=pairs,
                learning_rate=learning_rate_at(k, self.config.iterations, *settings.learning_rate),  # η⁽ᵏ⁾
                seed=derive_seed(self.config.seed, "m-step", k),
                folder=folder,
                score_before=self.engine.score,
                advance=advance,
                release=self.policy.release,
                log=self.reporter.log,
            )
            return self.update(inputs)

    def asked(self, step: IterationStore, seed: int) -> list[Response]:
        """The responses to the test questions, with the probabilities of all answers if they are asked for."""
        test = self.evaluator.run(self.test, seed, "evaluation", step.eval)
        if self.config.evaluation.probabilities:
            test = self.evaluator.with_probabilities(self.test, test, "answer probabilities", step.eval_scores)
            step.keep_responses(test)
        return test

    def evaluate(
        self, theta: ModelRef, step: IterationStore, e_step: EStepResult | None, m_step: MStepResult | None
    ) -> None:
        """Ask θ⁽ᵏ⁾ the held-out questions with the plain prompt, and commit the iteration."""
        canary = self.policy.load(theta)
        evaluator, k = self.evaluator, step.number
        with self.timer.phase("evaluation"):
            seed = derive_seed(self.config.seed, k)
            test = self.asked(step, seed)
            validation = evaluator.run(self.validation, seed, "validation", step.validation) if self.validation else []
        metrics = IterationMetrics(
            iteration=k,
            evaluation=evaluator.measure(test),
            validation=evaluator.measure(validation) if self.validation else None,
            e_step=e_step.metrics if e_step else None,
            m_step=m_step.metrics if m_step else None,
            tokens=count_tokens([*test, *validation], e_step.samples if e_step else None, m_step),
        )
        with self.timer.phase("diagnostics"):
            metrics = replace(metrics, diagnostics=self.diagnosis.of(step, test, e_step, metrics))
        metrics = replace(metrics, seconds=self.timer.take())
        weights = m_step.model.iteration if m_step else theta.iteration
        step.commit(metrics, {"iteration": k, "weights_of_iteration": weights, "canary": canary})
        self.reporter.log(summary(metrics))
