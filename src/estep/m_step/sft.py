"""The M-step: supervised fine-tuning on the accepted pairs (Algorithm 1, lines 4-5).

Nothing of a pair is cut off, and the loss covers exactly the completion and its end of turn. A gradient step
minimizes

    − Σᵢ wᵢ Σₜ aᵢₜ log π(token t of completion i) / D

over its pairs i: wᵢ is the pair's weight, aᵢₜ is `answer_weight` on the tokens of the answer and 1 elsewhere, and D
counts completion tokens (`loss_reduction: token`) or pairs (`sequence`).

Weights are trained in float32: at the paper's learning rates, bfloat16 would round most updates away.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from estep.config import MStepConfig, RunConfig
from estep.durable import publish, sync_tree
from estep.engines import Engine
from estep.errors import DataError, writing
from estep.m_step.base import MStepInput, MStepResult, read_m_step, write_m_step
from estep.m_step.canary import Canary
from estep.m_step.job import Launch, Row, TrainingJob, TrainingOutcome
from estep.m_step.launch import launch_of
from estep.models.loading import Chat, context_length, load_chat, tokenizer_path
from estep.records import Messages, ModelRef, Pair

_CANARIES = 8


class SFTMStep:
    """Each call trains for one or more epochs.

    Args:
        config: the run's `m_step` section.
        context: the model's context in tokens; None for no limit.
        on_overlength: what to do with a pair that exceeds it: `stop` raises, `skip` leaves the pair out and counts it.
        canary_dtype: the engine's dtype, in which the canary is scored.
        launch: where to train; None for the devices of this machine.
    """

    def __init__(
        self,
        config: MStepConfig,
        context: int | None,
        on_overlength: str,
        canary_dtype: str,
        launch: Launch | None = None,
    ):
        self.config = config
        self.context = context
        self.on_overlength = on_overlength
        self.canary_dtype = canary_dtype
        self.launch = launch or launch_of(config)

    def __call__(self, inputs: MStepInput) -> MStepResult | None:
        """Train and write the weights.

        Raises:
            DataError: a pair exceeds the model's context and `on_overlength` is `stop`.
            StoreError: the weights cannot be written; no partial files remain.
            EstepError: the training failed; no partial files remain.
        """
        chat = load_chat(tokenizer_path(inputs.start.path))
        tokenized = [(pair, self._tokenized(chat, pair)) for pair in inputs.pairs]
        fitting = [(pair, row) for pair, row in tokenized if row is not None]
        if left_out := len(tokenized) - len(fitting):
            inputs.log(f"  iteration {inputs.iteration}: left out {left_out} pairs that exceed the model's context")
        if not fitting:
            return None
        responses = self._canaries(fitting)
        before = sum(inputs.score_before(prompt, text) for prompt, text in responses)
        inputs.release()
        job = self._job(chat, [row for _, row in fitting], responses, inputs)
        with self._finished_folder(job):
            outcome = self.launch(job, inputs.advance, inputs.log)
            chat.tokenizer.save_pretrained(job.partial)
            trained = self._result(job, outcome, responses, before, inputs)
            write_m_step(trained, job.partial)
        return trained

    def _job(
        self, chat: Chat, rows: list[Row], responses: tuple[tuple[Messages, str], ...], inputs: MStepInput
    ) -> TrainingJob:
        # The scores before training show whether the engine took the new weights, if they are those of its present
        # ones. An adapter would have to be merged, which would end its training.
        former = self.config.lora is None and (self.config.init == "previous" or inputs.iteration == 1)
        last = read_m_step(Path(inputs.start.path))
        return TrainingJob(
            config=self.config,
            start=inputs.start.path,
            rows=rows,
            learning_rate=inputs.learning_rate,
            seed=inputs.seed,
            folder=inputs.folder,
            canary=[_row(chat.prompt_ids(prompt), chat.completion_ids(text)) for prompt, text in responses],
            canary_dtype=self.canary_dtype,
            former_scores=former,
            halvings=last.halvings if last is not None else 0,
        )

    def _result(
        self,
        job: TrainingJob,
        outcome: TrainingOutcome,
        responses: tuple[tuple[Messages, str], ...],
        before: float,
        inputs: MStepInput,
    ) -> MStepResult:
        former, last = outcome.former_scores, read_m_step(Path(inputs.start.path))
        if last is not None and last.precision not in ("", outcome.precision):
            inputs.log(f"  note: trained in {outcome.precision}, and the iteration before in {last.precision}")
        return MStepResult(
            model=ModelRef(str(inputs.folder), inputs.iteration),
            pairs=len(job.rows),
            steps=len(outcome.losses),
            tokens=sum(len(row["input_ids"]) for row in job.rows) * self.config.epochs,
            completion_tokens=sum(len(row["weights"]) for row in job.rows) * self.config.epochs,
            losses=outcome.losses,
            learning_rate=inputs.learning_rate,
            left_out=len(inputs.pairs) - len(job.rows),
            canary=Canary(
                responses=responses,
                logprob=sum(outcome.scores),
                before=before,
                tokens=sum(len(row["weights"]) for row in job.canary),
                visible=former is not None and all(a != b for a, b in zip(outcome.scores, former, strict=True)),
            ),
            halvings=outcome.halvings,
            precision=outcome.precision,
        )

    def _tokenized(self, chat: Chat, pair: Pair) -> Row | None:
        prompt, completion = chat.prompt_ids(pair.prompt), chat.completion_ids(pair.completion)
        length = len(prompt) + len(completion)
        if self.context is not None and length > self.context:
            if self.on_overlength == "stop":
                raise DataError(
                    f"question {pair.question_id}: a training pair of {length} tokens exceeds the model's context of "
                    f"{self.context}; on_overlength=skip leaves such pairs out"
                )
            return None
        row = _row(prompt, completion, pair.weight)
        if self.config.answer_weight != 1.0 and pair.answer_span is not None:
            for position in chat.tokens_of(pair.completion, *pair.answer_span):
                row["weights"][position] *= self.config.answer_weight
        return row

    def _canaries(self, pairs: list[tuple[Pair, Row]]) -> tuple[tuple[Messages, str], ...]:
        """The pairs with the largest weights; among equals the last ones, because with replay the first were trained on
        before and change little.

        Pairs that fill the context are avoided: some engines must sample one more token when they score.
        """
        fit = [pair for pair, row in pairs if len(row["input_ids"]) != self.context] or [pair for pair, _ in pairs]
        chosen = sorted(range(len(fit)), key=lambda index: (-fit[index].weight, -index))[:_CANARIES]
        return tuple((fit[index].prompt, fit[index].completion) for index in chosen)

    @contextlib.contextmanager
    def _finished_folder(self, job: TrainingJob) -> Iterator[None]:
        """Makes the job's partial folder, which takes its final name once the block has ended without an error and all
        of it is on the disk. It vanishes otherwise."""
        with writing(job.folder):
            shutil.rmtree(job.partial, ignore_errors=True)
            job.partial.mkdir(parents=True)
            try:
                yield
                sync_tree(job.partial)
                publish(job.partial, job.folder)
            except BaseException:
                shutil.rmtree(job.partial, ignore_errors=True)
                raise


def _row(prompt: list[int], completion: list[int], weight: float = 1.0) -> Row:
    return {"input_ids": prompt + completion, "weights": [weight] * len(completion)}


def build_m_step(config: RunConfig, base: ModelRef, engine: Engine, launch: Launch | None = None) -> SFTMStep:
    """The M-step of a resolved configuration.

    Args:
        launch: where to train; None for the devices of this machine.
    """
    dtype = str(engine.metadata.get("dtype", "bfloat16"))
    contexts = [context for context in (context_length(base.path), engine.context) if context is not None]
    return SFTMStep(config.m_step, min(contexts, default=None), config.on_overlength, dtype, launch)
